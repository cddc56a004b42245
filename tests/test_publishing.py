"""A checkpoint on the hub: what is pushed, what is kept back, what its card says, and that it opens from there."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import EntryNotFoundError

import geneformer_repro as gf
from geneformer_repro.drug_inputs import DrugScale
from geneformer_repro.expression import ExpressionInputs, InputScale
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.mean_effects import MeanEffects
from geneformer_repro.network_settings import PairNetworkConfig
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.targets import Classes, Response

SAID = {"license": "cc-by-4.0", "data": "700 blood cells of one donor."}
METHODS = (
    "method\tmacro_f1\tmacro_f1_low\tmacro_f1_high\tmacro_f1_vs_best_simple\n"
    "fine-tuned\t0.61234\t0.5\t0.7\t-0.1\nmajority <class>|x\t0.048\t\t\t\n"
)
SPLIT = {"group": "donor", "test_groups": ["Mrs. Smith"], "split_file": "home/split.tsv", "test": 0.2}


class NoRouteError(Exception):
    """What a client of HTTP raises, which is none of Python's own errors."""


class Hub:
    """Repositories as folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: list[bool] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> huggingface_hub.RepoUrl:
        assert exist_ok
        self.private.append(private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def list_repo_files(self, repo_id: str) -> list[str]:
        return [file.name for file in (self.root / repo_id).iterdir()]

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: str) -> None:
        assert commit_message
        assert delete_patterns == "*"
        shutil.rmtree(self.root / repo_id)
        shutil.copytree(folder_path, self.root / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    there = Hub(tmp_path / "hub")

    def metadata(url: str, **_: object) -> None:
        if not (there.root / url.removeprefix("https://huggingface.co/").replace("resolve/main/", "")).exists():
            raise EntryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: there)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **_: str(there.root / repo_id))
    return there


@pytest.fixture
def classifier(checkpoint, tmp_path):
    model = CellClassifier(checkpoint.model.config, Head((Classes("cell_type", ("B", "T")),))).eval()
    provenance = {"step": "finetune", "config": {"split": SPLIT}, "intervals": "95 % bootstrap over 4 donors"}
    gf.Checkpoint(model, checkpoint.vocabulary, provenance, np.array([3, 9], np.uint64)).save(tmp_path / "type")
    (tmp_path / "type" / "methods.tsv").write_text(METHODS)
    (tmp_path / "type" / "predictions.tsv").write_text("cell\n")
    return gf.Checkpoint.from_pretrained(tmp_path / "type")


def test_what_is_pushed_opens_by_its_name_alone(classifier, hub, tmp_path):
    address = classifier.push_to_hub("lab/blood", **SAID)
    opened = gf.Checkpoint.from_pretrained("lab/blood")
    assert address == "https://huggingface.co/lab/blood"
    assert opened.fingerprint == classifier.fingerprint
    assert (opened.path, opened.name) == ("lab/blood", "checkpoint lab/blood")
    assert opened.seen.tolist() == [3, 9]
    assert hub.private == [True]


def test_names_of_people_paths_and_predictions_stay_here(classifier, hub):
    classifier.push_to_hub("lab/blood", **SAID)
    pushed = {file.name: file.read_bytes() for file in (hub.root / "lab/blood").iterdir()}
    assert not [name for name, content in pushed.items() if b"Smith" in content or b"home/" in content]
    assert "predictions.tsv" not in pushed
    assert json.loads(pushed["provenance.json"])["config"]["split"] == SPLIT | {"test_groups": [], "split_file": None}


def test_the_card_has_the_scores_of_guesses_beside(classifier, hub):
    classifier.push_to_hub("lab/blood", **SAID)
    _, front, text = (hub.root / "lab/blood/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    assert "| method | macro f1 |" in text
    assert "| fine-tuned | 0.6123 (0.5–0.7) |\n| majority &lt;class>\\|x | 0.048 |" in text
    assert "Brackets: 95 % bootstrap over 4 donors." in text
    assert "Digests of the 2 cells" in text
    assert SAID["data"] in text


def test_the_card_of_a_pretrained_model_that_lost_to_a_guess_says_so_first(checkpoint, hub):
    scores = {"model": {"loss": 8.5}, "gene frequency": {"loss": 8.4}}
    provenance = {"step": "pretrain", "result": {"scores": scores, "n_cells": 1900, "n_held_out": 100}}
    gf.Checkpoint(checkpoint.model, checkpoint.vocabulary, provenance).push_to_hub("lab/base", **SAID)
    text = (hub.root / "lab/base/README.md").read_text()
    assert "## Scores\n\n**No better than a guess.**" in text
    assert "1,900 cells were learned from, 100 held out. Which cells it has seen is not recorded" in text


def test_a_repository_with_files_is_replaced_on_request_alone(classifier, checkpoint, hub):
    classifier.push_to_hub("lab/blood", **SAID)
    with pytest.raises(gf.InputError, match=r"lab/blood: has \d+ files on the hub .* overwrite=True"):
        checkpoint.push_to_hub("lab/blood", **SAID)
    checkpoint.push_to_hub("lab/blood", overwrite=True, **SAID)
    assert gf.Checkpoint.from_pretrained("lab/blood").head is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"license": " "}, "license=: expected some text"),
        ({"data": ""}, "data=: expected some text"),
        ({"repo_id": "a/b/c"}, "is no name on the hub"),
    ],
)
def test_what_cannot_be_published_is_refused_before_the_hub_is_asked(checkpoint, monkeypatch, changed, message):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: pytest.fail("the hub was asked"))
    with pytest.raises(gf.InputError, match=message):
        checkpoint.push_to_hub(**{"repo_id": "lab/blood", **SAID, **changed})


def test_a_hub_that_is_not_to_be_reached_is_told(checkpoint, monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise NoRouteError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: SimpleNamespace(create_repo=unreachable))
    with pytest.raises(gf.InputError, match=r"lab/blood: the hub refused \(no route\).*hf auth login"):
        checkpoint.push_to_hub("lab/blood", **SAID)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(gf.InputError, match="lab/blood: no such folder, and on the hub no checkpoint of this package"):
        gf.Checkpoint.from_pretrained("lab/blood")


@pytest.mark.parametrize("sample_names", [False, True])
def test_samples_of_a_network_of_drug_response_are_published_on_request_alone(checkpoint, hub, sample_names):
    rng, names, drugs = np.random.default_rng(0), ["Mrs. Smith", "Mr. Jones"], gf.Drugs.of_names(["x", "y"])
    inputs = ExpressionInputs({"expression": rng.normal(size=(2, 5))}, {"expression": tuple("abcde")})
    shape = PairNetworkConfig(model="tdnn", drug_input="one_hot").filled()
    scale, of_drugs = InputScale.fit(inputs), DrugScale.fit(drugs, "one_hot", at_least=shape.fewest_positions)
    network = PairNetwork(shape, Head((Response("response", "AUC", mean=0, sd=1),)), scale, of_drugs, seed=0).eval()
    network.learned = {"samples": names, "drugs": list(drugs.keys)}
    network.effects = MeanEffects.fit(np.arange(4.0), np.repeat(names, 2), np.tile(drugs.keys, 2))
    gf.Checkpoint(network, checkpoint.vocabulary).push_to_hub("lab/drugs", **SAID, sample_names=sample_names)
    assert [b"Smith" in file.read_bytes() for file in (hub.root / "lab/drugs").iterdir()].count(True) == sample_names
    opened = gf.Checkpoint.from_pretrained("lab/drugs").model
    assert opened.learned == network.learned | ({} if sample_names else {"samples": []})
    assert sorted(opened.effects.differences) == (["drug", "sample"] if sample_names else ["drug"])
    card = (hub.root / "lab/drugs/README.md").read_text()
    assert f"2 samples, whose names{' are in' if sample_names else ', and mean effects by name, are left out'}" in card
    assert 'gf.predict_response(checkpoint, "samples.h5ad", "drugs.tsv")' in card


def test_saving_a_checkpoint_brings_no_greetings_of_libraries(checkpoint, tmp_path, caplog):
    """`save_pretrained` imports accelerate, and that DeepSpeed, which warns whoever has a CPU alone."""
    greeting = logging.getLogger("DeepSpeed")
    greeting.addHandler(caplog.handler)
    try:
        checkpoint.save(tmp_path / "saved")
        greeting.warning("Setting accelerator to CPU. If you have GPU or other accelerator, …")
        greeting.warning("something else")
    finally:
        greeting.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records if record.name == "DeepSpeed"} == {"something else"}
