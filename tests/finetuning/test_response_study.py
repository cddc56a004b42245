"""From one screen to another: whoever does the work, and however often it was cut off, the study is the same."""

import dataclasses
import io
import os
import pickle
import signal
from contextlib import redirect_stdout

import anndata as ad
import numpy as np
import pytest
from forking import forked, status_of
from test_finetune_response import CONFIG, screen

import geneformer_repro as gf
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.cli import main
from geneformer_repro.finetuning import response_study as module
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.response_data import ResponseData

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_pictures", "few_resamples")]

STUDY = gf.ResponseStudyConfig(
    values="zscore",
    measure="LN_IC50",
    networks=("tdnn",),
    uses=("sample",),
    sizes=(0, 12),
    steps=3,
    network=dataclasses.replace(CONFIG.network, drug_input="one_hot", sample_layers=(8,), drug_layers=(8,)),
    source={"epochs": 1},
    split={"folds": 2, "validation": 0.2},
    training={"batch_size": 32, "learning_rate": 1e-2},
    compare={"baselines": False},
)
TASKS = 1 + 2 * 3
"""A network of the source; of each fold 0, 12 and all pairs."""


@pytest.fixture(autouse=True)
def _without_pages(monkeypatch):
    monkeypatch.setattr("geneformer_repro.finetuning.response_results.write_report", lambda *given, **options: None)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *given, **options: None)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two screens as files, and the options of the command that name them."""
    folder = tmp_path_factory.mktemp("tables")
    options = []
    for name, of_screen in (("source", screen(30)), ("target", screen(16, prefix="M-", seed=1))):
        of_screen[0].to_parquet(folder / f"{name}.parquet")
        of_screen[1].to_csv(folder / f"{name}.tsv", sep="\t", index=False)
    options = ["--source", folder / "source.parquet", "--source-responses", folder / "source.tsv"]
    options += [folder / "target.parquet", "--responses", folder / "target.tsv", "--measure", "LN_IC50"]
    return folder, [*map(str, options), "--values", "zscore"]


@pytest.fixture(scope="module")
def screens(tables):
    folder, _ = tables
    return tuple(
        ResponseData.read(folder / f"{name}.parquet", folder / f"{name}.tsv", measure="LN_IC50")
        for name in ("source", "target")
    )


@pytest.fixture(scope="module")
def whole(tables, tmp_path_factory):
    """The study by the command, without an interruption and by one process; its folder, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "study"
    options = ["--networks", "tdnn", "--new", "sample", "--sizes", "0", "12", "--folds", "2", "--no-baselines"]
    quick = ["steps=3", "source.epochs=1", "training.batch_size=32", "training.learning_rate=0.01"]
    quick += ["split.validation=0.2", "network.drug_input=one_hot", "network.sample_layers=[8]"]
    command = ["response-study", *tables[1], *options, "-o", str(out), "--set", *quick, "network.drug_layers=[8]"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        _without_pages.__wrapped__(patch)
        assert main(command) == 0
    return out, said.getvalue()


def assert_same_study(out, whole):
    """Tables and networks are the same bytes; dates are not compared."""
    files = sorted(path.relative_to(whole[0]) for path in whole[0].rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    compared = [file for file in files if file.name != "provenance.json"]
    assert {"methods.tsv", "predictions.tsv", "model.safetensors"} <= {file.name for file in compared}
    for file in compared:
        assert (out / file).read_bytes() == (whole[0] / file).read_bytes(), file


def test_the_command_prints_what_each_question_came_to(whole):
    out, said = whole
    lines = said[said.index("new in") :].splitlines()
    assert lines[0] == "new in the test: sample; pearson within sample after so many pairs of the target"
    assert lines[1].split() == ["0", "12", "48"]
    assert [line.rsplit(maxsplit=3)[0] for line in lines[2:5]] == [
        "mean effects of the source", "tDNN, pretrained", "tDNN, scratch",
    ]  # fmt: skip
    assert lines[4].split()[2] == "–"
    assert lines[-1] == f"{out}/report.html has the pictures, {out}/methods.tsv all scores"


REFUSED = {
    "measure": (["--measure", "IC50"], "Did you mean"),
    "source's measure": (["--source-measure", "AUC"], "source.tsv: no column is called 'AUC'"),
    "values": (["--values", "counts"], "hold raw counts, but there is a value that is none"),
    "samples": (["--source", "none.parquet"], "none.parquet: no such file"),
    "network": (["--networks", "encoder"], "begins with the checkpoint of an encoder"),
    "structures": (["--networks", "tdnn"], "6 of 6 have no SMILES"),
    "genes": (["--source", "others.parquet", "--set", "network.drug_input=one_hot"], "genes that the network reads"),
}
"""What is wrong → options that make it so, and what is said."""


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_said_before_the_work(tables, options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    others = screen(30)[0].rename(columns=lambda gene: gene.replace("ENSG00", "ENSG01"))
    others.to_parquet("others.parquet")
    assert main(["response-study", *tables[1], *options, "-o", "out", "--quiet"]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["others.parquet"]


def test_workers_do_not_change_a_study_and_are_sent_little_of_it(screens, whole, tmp_path, monkeypatch):
    sent = []

    def backwards(tasks, work, workers):
        """As workers do it: what they are given is pickled, and they end in any order."""
        for task in reversed(tasks):
            sent.append(pickle.dumps((work, task)))
            do, same = pickle.loads(sent[-1])  # noqa: TID251, as workers do
            yield task, do(same)

    monkeypatch.setattr(module, "by_processes", backwards)
    monkeypatch.setattr(module, "die_with", lambda parent: None)
    study = gf.transfer_study(None, *screens, STUDY, out=tmp_path / "study", workers=2)
    assert_same_study(tmp_path / "study", whole)
    assert len(sent) == TASKS
    source, target = (data.samples.X.astype(np.float32).tobytes() for data in screens)
    weights = study.networks["sample", "tdnn"].model.expression_tower[0].weight.detach().numpy().tobytes()
    assert source in sent[0]
    for given in sent[1:]:
        assert target in given
        assert source not in given
        assert weights not in given


def killed_at(task, screens, out):
    compare, done = module._compare, []

    def compare_or_die(work, given):
        done.append(given)
        if len(done) == task:
            os.kill(os.getpid(), signal.SIGKILL)
        return compare(work, given)

    module._compare = compare_or_die
    gf.transfer_study(None, *screens, STUDY, out=out)


def test_a_study_that_was_killed_goes_on_to_the_same_end_and_not_with_other_settings(
    screens, whole, tmp_path, monkeypatch
):
    out = tmp_path / "study"
    assert status_of(forked(lambda: killed_at(5, screens, out), tmp_path / "log")) == -signal.SIGKILL
    others = dataclasses.replace(STUDY, steps=4)
    with pytest.raises(FileExistsError, match="other settings"):
        gf.transfer_study(None, *screens, others, out=out)
    trained = []
    train = PairProblem._trained
    monkeypatch.setattr(
        PairProblem, "_trained", lambda *given, **named: trained.append(named["step"]) or train(*given, **named)
    )
    gf.transfer_study(None, *screens, STUDY, out=out)
    assert_same_study(out, whole)
    assert {step.split(",")[1] for step in trained} == {" fold 2"}
    assert not (tmp_path / "study.partial").exists()


def test_a_study_that_is_under_way_is_not_begun_a_second_time(screens, tmp_path, monkeypatch):
    out, log = tmp_path / "study", tmp_path / "log"

    def meanwhile(*given):
        status = status_of(forked(lambda: gf.transfer_study(None, *screens, STUDY, out=out), log))
        raise gf.InputError(f"the second ended with {status}")

    monkeypatch.setattr(module, "_of_source", meanwhile)
    with pytest.raises(gf.InputError, match="the second ended with 1"):
        gf.transfer_study(None, *screens, STUDY, out=out)
    assert "another call is working on this study" in log.read_text()


@pytest.fixture(scope="module")
def tokens():
    """The same samples as tokens."""
    screens, adatas = (screen(30), screen(16, prefix="M-", seed=1)), []
    for expression, _ in screens:
        adatas.append(ad.AnnData(np.exp2(expression).astype(np.float32)))
    vocabulary = gf.Vocabulary.fit(adatas[0], values="expression", max_length=34)
    return vocabulary, *(
        ResponseData.read(gf.tokenize(adata, vocabulary, values="expression"), table, measure="LN_IC50")
        for adata, (_, table) in zip(adatas, screens, strict=True)
    )


def of_encoder(**changes):
    network = {"model": "encoder", "drug_input": "one_hot", "drug_layers": (8,), "joint_layers": (8,)}
    chosen = {"networks": ("encoder",), "network": network, "sizes": (), "transfer": {"strategy": "probe"}}
    return dataclasses.replace(STUDY, **chosen | changes)


def test_an_encoder_learns_the_source_and_goes_on_and_scratch_begins_with_a_random_one(
    tokens, untrained, tmp_path, monkeypatch, caplog
):
    vocabulary, source, target = tokens
    base = untrained(vocabulary, 0.2)
    begun, train = {}, PairProblem.train

    def watched(problem, start, config, split, **options):
        bert = (start.model if isinstance(start, gf.Checkpoint) else start).bert
        words = bert.embeddings.word_embeddings.weight.detach().clone()
        begun[options["step"].rpartition(", ")[2]] = words, config.transfer.strategy
        return train(problem, start, config, split, **options)

    monkeypatch.setattr(PairProblem, "train", watched)
    study = gf.transfer_study(base, source, target, of_encoder(), out=tmp_path / "study")
    assert study.table["method"].tolist()[:2] == ["encoder and drug, pretrained", "encoder and drug, scratch"]
    words = base.model.bert.embeddings.word_embeddings.weight.detach()
    for step, strategy in (("encoder and drug", "probe"), ("pretrained", "probe"), ("scratch", "full")):
        assert begun[step][1] == strategy
        assert bool((begun[step][0] == words).all()) == (step != "scratch")
    assert Checkpoint.from_pretrained(tmp_path / "study" / "sample" / "source" / "encoder").vocabulary == vocabulary
    assert "There are tokens alone" in caplog.text


def test_an_encoder_is_given_if_and_only_if_a_network_has_one(tokens, untrained, tmp_path):
    vocabulary, *screens = tokens
    base = untrained(vocabulary, 0.2)
    with pytest.raises(gf.InputError, match=r'"encoder" begins with the checkpoint of an encoder; give it'):
        gf.transfer_study(None, *screens, of_encoder(), out=tmp_path / "study")
    with pytest.raises(gf.InputError, match=r"is what networks=\('encoder',\) begins with, and networks are tdnn"):
        gf.transfer_study(base, *screens, STUDY, out=tmp_path / "study")
    with pytest.raises(gf.InputError, match="and of these samples there are tokens alone"):
        gf.transfer_study(None, *screens, STUDY, out=tmp_path / "study")
