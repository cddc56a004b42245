import json
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from geneformer_repro.config import ConfigError, from_mapping, load_config, require, resolved
from geneformer_repro.finetuning.finetune import FinetuneConfig
from geneformer_repro.pretraining.pretrain import PretrainConfig


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
    with pytest.raises(ConfigError, match=r"configuration: .*'target'"):
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
        ({"epochs": "3"}, r"PretrainConfig.epochs must be float, found '3' \(str\)"),
        ({"learning_rate": float("inf")}, "PretrainConfig.learning_rate must be a finite number, found inf"),
        ({"batch_size": 2.5}, "PretrainConfig.batch_size must be int, found 2.5"),
        ({"trainer": ["bf16"]}, "PretrainConfig.trainer must be dict, found"),
    ],
    ids=["text", "infinite", "fraction", "list"],
)
def test_a_configuration_made_in_python_is_checked_as_well(changes, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(**changes)


def test_a_bound_of_the_package_is_named_with_the_value():
    with pytest.raises(ConfigError, match=r"PretrainConfig\.mask_probability must be between 0 and 1, found 1\.5"):
        load_config(PretrainConfig, overrides=["mask_probability=1.5"])


def test_an_unknown_size_of_model_is_refused_with_the_sizes():
    with pytest.raises(ConfigError, match=r"size must be one of .*'V1-10M'.*'V2-104M'.*found 'V3'"):
        load_config(PretrainConfig, overrides=["size=V3"])


def test_where_several_types_are_allowed_the_error_names_them_all():
    @dataclass(frozen=True)
    class Folded:
        folds: int | Literal["groups"] = 1

    with pytest.raises(ConfigError, match=r"folds must be int, found 'x' \(str\)\. Or: .*one of 'groups', found 'x'"):
        load_config(Folded, overrides=["folds=x"])
