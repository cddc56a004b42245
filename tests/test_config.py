import copy
import json
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from geneformer_repro.config import (
    ConfigError,
    Section,
    from_mapping,
    load_config,
    names_in,
    require,
    resolved,
    sections_of,
    setting,
    with_settings,
)
from geneformer_repro.finetuning.settings.cells import FinetuneConfig
from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig
from geneformer_repro.pretraining.settings import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Example:
    """One field of every kind that configurations have."""

    epochs: int = 1
    learning_rate: float = 1e-3
    name: str = "a"
    fast: bool = False
    size: Literal["small", "large"] = "small"
    group: str | None = None
    limit: int | float | None = None
    genes: tuple[str, ...] = ()
    trainer: Mapping[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        require(self.epochs > 0, self, "epochs", "above 0")


@dataclass(frozen=True, kw_only=True)
class Needy:
    """A field without a default."""

    target: str


def toml(tmp_path, text):
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    return tmp_path / "run.toml"


# what is accepted


def test_nothing_given_means_the_defaults():
    assert load_config(Example) == Example()


def test_an_empty_file_means_the_defaults(tmp_path):
    assert load_config(Example, toml(tmp_path, "")) == Example()


def test_a_file_fills_every_kind_of_field(tmp_path):
    text = """
        epochs = 3
        learning_rate = 1e-4
        name = "b"
        fast = true
        size = "large"
        group = "donor"
        limit = 0.5
        genes = ["TBX5", "GATA4"]
        [trainer]
        bf16 = true
    """
    expected = Example(
        epochs=3, learning_rate=1e-4, name="b", fast=True, size="large", group="donor", limit=0.5,
        genes=("TBX5", "GATA4"), trainer={"bf16": True},
    )  # fmt: skip
    assert load_config(Example, toml(tmp_path, text)) == expected


def test_a_path_may_be_a_string(tmp_path):
    assert load_config(Example, str(toml(tmp_path, "epochs = 2"))).epochs == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        pytest.param("epochs=3", {"epochs": 3}, id="int"),
        pytest.param("learning_rate=1e-4", {"learning_rate": 1e-4}, id="float_that_yaml_reads_as_text"),
        pytest.param("learning_rate=1", {"learning_rate": 1.0}, id="int_for_float"),
        pytest.param("fast=true", {"fast": True}, id="bool"),
        pytest.param("name=b", {"name": "b"}, id="bare_word"),
        pytest.param("name='b c'", {"name": "b c"}, id="quoted"),
        pytest.param("name=no", {"name": "no"}, id="word_that_yaml_reads_as_false"),
        pytest.param("name=a=b", {"name": "a=b"}, id="value_with_equals"),
        pytest.param("name=", {"name": ""}, id="empty_value"),
        pytest.param(" epochs = 3 ", {"epochs": 3}, id="spaces"),
        pytest.param("group=donor", {"group": "donor"}, id="optional"),
        pytest.param("limit=2", {"limit": 2}, id="first_of_a_union"),
        pytest.param("limit=0.5", {"limit": 0.5}, id="second_of_a_union"),
        pytest.param('genes=["TBX5"]', {"genes": ("TBX5",)}, id="list_for_tuple"),
        pytest.param("trainer.bf16=true", {"trainer": {"bf16": True}}, id="dotted"),
        pytest.param("trainer.a.b=1", {"trainer": {"a": {"b": 1}}}, id="dotted_deeper"),
        pytest.param("plain={a = 1}", {"plain": {"a": 1}}, id="inline_table"),
        pytest.param("anything=1979-05-27", None, id="any"),
    ],
)
def test_an_override_is_read_as_toml_or_as_a_bare_word(override, expected):
    found = load_config(Example, overrides=[override])
    assert found == Example(**expected) if expected else found.anything.year == 1979


def test_an_int_for_a_float_becomes_a_float():
    assert isinstance(from_mapping(Example, {"learning_rate": 1}).learning_rate, float)


def test_overrides_win_over_the_file(tmp_path):
    path = toml(tmp_path, "epochs = 2\nname = 'file'")
    assert load_config(Example, path, ["epochs=4"]) == Example(epochs=4, name="file")


def test_numbers_of_numpy_and_paths_become_plain_ones():
    found = from_mapping(Example, {"epochs": np.int64(3), "learning_rate": np.float32(0.5), "name": Path("a/b")})
    assert found == Example(epochs=3, learning_rate=0.5, name="a/b")
    assert [type(value) for value in (found.epochs, found.learning_rate, found.name)] == [int, float, str]


def test_a_dotted_override_keeps_the_rest_of_the_table(tmp_path):
    path = toml(tmp_path, "[trainer]\na = 1\nb = 2")
    assert load_config(Example, path, ["trainer.b=3"]).trainer == {"a": 1, "b": 3}


def test_a_mapping_is_left_as_it_was():
    values = {"genes": ["TBX5"], "trainer": {"a": 1}}
    from_mapping(Example, values)
    assert values == {"genes": ["TBX5"], "trainer": {"a": 1}}


@pytest.mark.parametrize("config_type", [PretrainConfig, FinetuneConfig])
def test_the_configurations_of_the_package_survive_the_way_through_json(config_type):
    required = {"target": "cell_type"} if config_type is FinetuneConfig else {}
    config = config_type(**required)
    assert from_mapping(config_type, json.loads(json.dumps(resolved(config)))) == config


def test_a_resolved_configuration_has_every_field():
    assert resolved(Example(epochs=2)) == {
        "epochs": 2, "learning_rate": 1e-3, "name": "a", "fast": False, "size": "small", "group": None, "limit": None,
        "genes": (), "trainer": {}, "plain": {}, "anything": None,
    }  # fmt: skip


def test_a_configuration_cannot_be_changed_afterwards():
    with pytest.raises(FrozenInstanceError):
        load_config(Example).epochs = 2


# what is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"epoch": 3}, r"Example has no field 'epoch'\. Did you mean 'epochs'\?", id="unknown_key"),
        pytest.param({"zzz": 3}, r"no field 'zzz'\. There are: 'anything', 'epochs', ", id="unlike_any_key"),
        pytest.param({"epochs": "three"}, r"epochs must be int, found 'three' \(str\)", id="text_for_int"),
        pytest.param({"epochs": 1.5}, r"epochs must be int, found 1\.5 \(float\)", id="float_for_int"),
        pytest.param({"epochs": True}, r"epochs must be int, found True \(bool\)", id="bool_for_int"),
        pytest.param({"learning_rate": True}, r"learning_rate must be float, found True", id="bool_for_float"),
        pytest.param({"learning_rate": "1e-4"}, r"learning_rate must be float, found '1e-4'", id="text_for_float"),
        pytest.param({"fast": 1}, r"fast must be bool, found 1 \(int\)", id="int_for_bool"),
        pytest.param({"name": 1}, r"name must be str, found 1 \(int\)", id="int_for_text"),
        pytest.param({"size": "huge"}, r"size must be one of 'small', 'large', found 'huge'", id="literal"),
        pytest.param({"group": 1}, r"group must be str, found 1", id="optional"),
        pytest.param({"genes": "TBX5"}, r"genes must be tuple, found 'TBX5'", id="text_for_tuple"),
        pytest.param({"genes": ["TBX5", 5]}, r"genes must be str, found 5", id="wrong_item"),
        pytest.param({"trainer": 3}, r"trainer must be dict, found 3", id="number_for_table"),
        pytest.param({"epochs": 0}, r"Example\.epochs must be above 0, found 0", id="out_of_bounds"),
    ],
)
def test_a_wrong_value_is_refused_with_field_expectation_and_value(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Example, values)


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match=r"configuration: Needy\.target is missing"):
        from_mapping(Needy, {})


def test_the_message_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.toml: Example has no field 'epoch'"):
        load_config(Example, toml(tmp_path, "epoch = 1"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read \(No such file"):
        load_config(Example, tmp_path / "absent.toml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Example, tmp_path)


@pytest.mark.parametrize("content", [b"epochs: 3", b"epochs = ", b"a = 1\na = 2", b"\xff"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml: not valid TOML \(.+\)"):
        load_config(Example, tmp_path / "run.toml")


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--set epochs: expected key=value"):
        load_config(Example, overrides=["epochs"])


def test_a_dotted_override_of_a_number_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--set epochs\.x: epochs is not a table"):
        load_config(Example, toml(tmp_path, "epochs = 3"), ["epochs.x=1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(["epochs=3", "epochs=4"], "--set epochs=4: epochs is set twice, in --set or by an", id="twice"),
        pytest.param(["trainer={a = 1}", "trainer.b=2"], "trainer.b is set twice", id="in a table that was given"),
        pytest.param(["trainer.b=2", "trainer={a = 1}"], "trainer is set twice", id="a table of which part was given"),
        pytest.param(["trainer.=1"], "--set trainer.=1: 'trainer.' is no key", id="ends with a dot"),
        pytest.param([".a=1"], "'.a' is no key", id="begins with a dot"),
        pytest.param(["trainer..a=1"], "'trainer..a' is no key", id="two dots"),
        pytest.param(["=1"], "'' is no key", id="nothing"),
        pytest.param(["[trainer]\na=1"], "is no key", id="a table's head"),
        pytest.param(["epochs=3\nname='b'"], "more than one value", id="two lines"),
        pytest.param(["genes=['a'"], "not valid TOML", id="a list that does not end"),
        pytest.param(["name='b"], "not valid TOML", id="text that does not end"),
        pytest.param(["plain={a=}"], "not valid TOML", id="a table without a value"),
        pytest.param(["epochs=3x"], "epochs must be int, found '3x'", id="no number"),
        pytest.param(["learning_rate=nan"], "learning_rate must be a finite number, found nan", id="not a number"),
        pytest.param(["learning_rate=inf"], "learning_rate must be a finite number, found inf", id="infinite"),
    ],
)
def test_what_is_not_read_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(Example, overrides=overrides)


def test_a_key_with_dots_is_quoted():
    assert load_config(Example, overrides=['plain."a.b c"=1', "plain.my column=2"]).plain == {
        "a.b c": 1,
        "my column": 2,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": "3"}, r"PretrainConfig: training.epochs must be float, found '3' \(str\)"),
        ({"learning_rate": float("inf")}, "PretrainConfig: training.learning_rate must be a finite number, found inf"),
        ({"batch_size": 2.5}, "PretrainConfig: training.batch_size must be int, found 2.5"),
        ({"trainer": ["bf16"]}, "PretrainConfig: training.trainer must be dict, found"),
    ],
    ids=["text", "infinite", "fraction", "list"],
)
def test_a_configuration_made_in_python_is_checked_as_well(changes, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(training=changes)


def test_a_bound_of_the_package_is_named_with_the_value():
    with pytest.raises(ConfigError, match=r"PretrainConfig\.mask_probability must be between 0 and 1, found 1\.5"):
        load_config(PretrainConfig, overrides=["mask_probability=1.5"])


def test_an_unknown_size_of_model_is_refused_with_the_sizes():
    with pytest.raises(ConfigError, match=r"size must be one of .*'V1-10M'.*'V2-104M'.*found 'V3'"):
        load_config(PretrainConfig, overrides=["size=V3"])


# sections


@dataclass(frozen=True, kw_only=True)
class Training:
    """A section; every field has a default."""

    section = "training"
    epochs: int = 1
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.epochs > 0, self, "epochs", "above 0")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A section that must be given."""

    target: str
    epochs: int = 5


@dataclass(frozen=True, kw_only=True)
class Sectioned:
    """A configuration of two sections."""

    name: str = "a"
    training: Section[Training] = Section(Training)
    source: Section[Source] = Section(Source)


SOURCE = {"target": "t"}
CONFIGURED = Sectioned(training=Training(epochs=3), source=Source(target="t"))


def test_a_section_is_a_table_a_dotted_setting_a_mapping_or_an_instance(tmp_path):
    file = toml(tmp_path, "[training]\nepochs = 3\n[source]\ntarget = 't'")
    assert load_config(Sectioned, file) == CONFIGURED
    assert load_config(Sectioned, None, ["training.epochs=3", "source.target=t"]) == CONFIGURED
    assert Sectioned(training={"epochs": 3}, source=SOURCE) == CONFIGURED
    assert from_mapping(Sectioned, resolved(CONFIGURED)) == CONFIGURED


def test_a_section_that_is_not_given_is_its_default_unless_it_has_none():
    assert Sectioned(source=SOURCE).training == Training()
    with pytest.raises(ConfigError, match="source is missing; it must be given"):
        load_config(Sectioned)


def test_settings_are_found_in_the_first_section_that_has_them():
    changed = with_settings(CONFIGURED, name="b", epochs=7, target="s")
    assert changed == Sectioned(name="b", training=Training(epochs=7), source=Source(target="s"))
    assert [setting(changed, name) for name in ("name", "epochs", "target")] == ["b", 7, "s"]


def test_a_copy_or_a_replaced_section_leaves_the_configuration_as_it_was():
    assert copy.deepcopy(CONFIGURED) == CONFIGURED
    assert replace(CONFIGURED, training={"epochs": 4}).training.epochs == 4
    assert CONFIGURED.training.epochs == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epoch=3"], "Sectioned has no field 'epoch'. Did you mean 'training.epochs' or 'source.epochs'?"),
        (["training.epoch=3"], "training has no field 'epoch'. Did you mean 'epochs'?"),
        (["training.epochs=many"], "configuration: training.epochs must be int, found 'many'"),
        (["training.epochs=0"], "training.epochs must be above 0, found 0"),
        (["training=3"], "training must be a table, found 3 (int)"),
        (["source.epochs=1"], "target is missing; it must be given"),
    ],
    ids=["without section", "unknown", "type", "bound", "no table", "missing"],
)
def test_what_is_wrong_in_a_section_is_said_as_it_is_written(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(Sectioned, overrides=overrides)


@pytest.mark.parametrize("config_type", [PretrainConfig, FinetuneConfig, GeneFinetuneConfig])
def test_no_two_settings_have_one_name(config_type):
    names = names_in(config_type)
    for section in sections_of(config_type).values():
        names += names_in(section.config_type)
    assert len(names) == len(set(names))


# for one release


FLAT = {"epochs": 3, "trainer": {"bf16": True}, "group": "donor", "transfer": "lora", "lora_rank": 4, "trials": 2}
IN_SECTIONS = FinetuneConfig(
    target="t",
    training={"epochs": 3, "trainer": {"bf16": True}},
    split={"group": "donor"},
    transfer={"strategy": "lora", "lora_rank": 4},
    search={"trials": 2},
)
PLACES = {
    "epochs": "training.epochs", "trainer": "training.trainer", "group": "split.group", "transfer": "transfer.strategy",
    "lora_rank": "transfer.lora_rank", "trials": "search.trials",
}  # fmt: skip


def in_python(_):
    return FinetuneConfig(target="t", **FLAT)


def in_a_file(tmp_path):
    text = "target='t'\nepochs=3\ngroup='donor'\ntransfer='lora'\nlora_rank=4\ntrials=2\n[trainer]\nbf16=true"
    return load_config(FinetuneConfig, toml(tmp_path, text))


def by_set(_):
    given = ["epochs=3", "trainer.bf16=true", "group=donor", "transfer=lora", "lora_rank=4", "trials=2"]
    return load_config(FinetuneConfig, None, ["target=t", *given])


@pytest.mark.parametrize("given", [in_python, in_a_file, by_set])
def test_names_without_a_section_work_with_a_word_in_the_log(given, tmp_path, caplog):
    assert given(tmp_path) == IN_SECTIONS
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == sorted(
        f"{name} is {place} now; the name without its section works until the next release."
        for name, place in PLACES.items()
    )


def test_they_can_be_read_and_replaced_too(caplog):
    assert (IN_SECTIONS.epochs, replace(IN_SECTIONS, epochs=4).training.epochs) == (3, 4)
    assert "epochs is training.epochs now" in caplog.text
    with pytest.raises(AttributeError, match="'FinetuneConfig' object has no attribute 'epoch'"):
        _ = IN_SECTIONS.epoch


def test_a_name_without_a_section_wins_over_the_file_as_any_setting(tmp_path):
    path = toml(tmp_path, "target = 't'\n[training]\nepochs = 3\nbatch_size = 4")
    assert load_config(FinetuneConfig, path, ["epochs=5"]).training == replace(
        IN_SECTIONS.training, epochs=5, batch_size=4, trainer={}
    )


def test_a_setting_given_with_and_without_its_section_is_refused():
    with pytest.raises(ConfigError, match=r"training.epochs is given twice, also as epochs"):
        FinetuneConfig(target="t", training={"epochs": 2}, epochs=3)
    with pytest.raises(ConfigError, match=r"training.epochs is set twice"):
        load_config(FinetuneConfig, None, ["target=t", "epochs=3", "training.epochs=2"])


def test_where_several_types_are_allowed_the_error_names_them_all():
    @dataclass(frozen=True)
    class Folded:
        folds: int | Literal["groups"] = 1

    with pytest.raises(ConfigError, match=r"folds must be int, found 'x' \(str\)\. Or: .*one of 'groups', found 'x'"):
        load_config(Folded, overrides=["folds=x"])
