"""Responses of samples to drugs, learned, asked and taken to another screen; what is refused before the work."""

import dataclasses
import json
import logging

import numpy as np
import pandas as pd
import pytest

import geneformer_repro as gf
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.cli import main
from geneformer_repro.finetuning.response_data import ResponseData
from geneformer_repro.finetuning.responses import finetune_response, refuse_learned
from geneformer_repro.finetuning.settings.pairs import ResponseConfig
from geneformer_repro.identities import Aliases

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "blank_pictures", "few_resamples")]

DRUGS = {"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "ethanol": "CCO",
         "phenol": "Oc1ccccc1", "toluene": "Cc1ccccc1", "urea": "NC(N)=O"}  # fmt: skip


def screen(n: int, *, prefix: str = "L-", seed: int = 0, missing: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lines of four programmes, of which one decides how they respond to rings, beside the potency of each drug."""
    rng, programmes = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(4, 100))
    of_lines = rng.normal(size=(n, 4))
    expression = pd.DataFrame(of_lines @ programmes + 0.3 * rng.normal(size=(n, 100)))
    expression.index = [f"{prefix}{i}" for i in range(n)]
    expression.columns = [f"ENSG{i:011d}" for i in range(100)]
    has_ring = np.array([1.0 if "1" in smiles else -1.0 for smiles in DRUGS.values()])
    potency = np.linspace(-2, 2, len(DRUGS))
    values = potency + np.outer(of_lines[:, 0], has_ring) + 0.1 * rng.normal(size=(n, len(DRUGS)))
    table = pd.DataFrame(values, index=expression.index, columns=list(DRUGS)).rename_axis("sample")
    long = table.reset_index().melt("sample", var_name="drug", value_name="ln_ic50")
    return expression, long[rng.random(len(long)) >= missing]


@pytest.fixture(scope="module")
def drugs():
    pytest.importorskip("rdkit", reason="needs RDKit: pip install 'geneformer-repro[drug]'")
    return gf.Drugs.of_table(pd.DataFrame({"drug": list(DRUGS), "smiles": list(DRUGS.values())}))


CONFIG = ResponseConfig(
    measure="LN_IC50",
    network={"model": "tdnn", "drug_input": "fingerprint", "sample_layers": (32,), "drug_layers": (32,)},
    training={"epochs": 8, "batch_size": 16, "learning_rate": 3e-3},
    split={"by": "sample", "test": 0.3, "validation": 0.2},
)


@pytest.fixture(scope="module")
def learned(drugs, tmp_path_factory):
    expression, table = screen(60)
    out = tmp_path_factory.mktemp("response") / "run"
    config = dataclasses.replace(CONFIG, compare={"ablations": True})
    return expression, out, finetune_response(None, expression, table, drugs, config, out=out)


def test_a_network_finds_which_drug_helps_which_sample_and_means_do_not(learned):
    _, _, result = learned
    beyond = result.methods["pearson_global_normalised"]
    assert beyond["tDNN"] > 0.7
    assert beyond["mean effects"] == 0
    assert abs(beyond["tDNN, permuted expression"]) < 0.5
    assert (result.methods.loc["drug mean", "pearson_within_sample"]) > 0.5


def test_table_text_record_and_network_are_of_one_run_and_say_the_measure(learned):
    """Prasse et al.'s text has errors of another run than their table, and a network of AUC is said to be of IC50."""
    _, out, result = learned
    score = "pearson_global_normalised"
    predictions = pd.read_csv(out / "predictions.tsv", sep="\t")
    left = predictions[["true", "tDNN"]].sub(predictions["mean effects"], axis=0)
    methods = pd.read_csv(out / "methods.tsv", sep="\t", index_col=0)
    assert methods.loc["tDNN", score] == pytest.approx(left.corr().iloc[0, 1], abs=1e-6)
    record = json.loads((out / "provenance.json").read_text())
    assert record["result"][score] == pytest.approx(methods.loc["tDNN", score], abs=1e-6)
    assert f"{abs(methods.loc['tDNN', f'{score}_vs_best_simple']):.2f}" in result.evaluation.verdict
    assert Checkpoint.from_pretrained(out).pair_network.target.measure == record["config"]["measure"] == "LN_IC50"


def test_reported_samples_are_in_no_other_part(learned):
    _, _, result = learned
    parts = result.split.assign(sample=result.split["pair"].str.split("/").str[0]).groupby("sample")["part"].nunique()
    assert (parts == 1).all()


def test_asked_again_from_its_folder_the_network_says_what_the_table_holds(learned, drugs):
    expression, out, result = learned
    told = result.evaluation.predictions
    said = gf.predict_response(Checkpoint.from_pretrained(out), expression, drugs)
    joined = told.merge(said, on=["sample", "drug"])
    assert len(joined) == len(told)
    np.testing.assert_allclose(joined["tDNN"], joined["predicted"], rtol=1e-5, atol=1e-5)
    assert not joined["sample_learned"].any()
    assert said["drug_learned"].all()
    best = said[said["sample"] == "L-0"].iloc[0]
    assert best["rank"] == 1


def test_what_lies_far_from_training_has_a_note(learned, drugs):
    expression, _, result = learned
    unlike = gf.Drugs.of_table(pd.DataFrame({"drug": ["hexane"], "smiles": ["CCCCCC"]}))
    said = gf.predict_response(result.checkpoint, expression[:1] * 10, unlike)
    assert said["note"].tolist() == ["sample far from training; drug unlike training"]
    assert said["z"].isna().all()


def test_a_sample_that_the_start_has_learned_is_not_reported_as_new(learned, drugs, tmp_path):
    expression, _, result = learned
    renamed = expression.rename(index=lambda name: name.replace("L-", "l"))
    _, table = screen(60)
    table["sample"] = table["sample"].str.replace("L-", "L ")
    with pytest.raises(gf.InputError, match=r"samples that are reported as new .*allow_seen"):
        finetune_response(
            result.checkpoint, renamed, table, drugs, dataclasses.replace(CONFIG, seed=1), out=tmp_path / "again"
        )


@pytest.mark.parametrize(
    ("by", "learned_before"),
    [
        pytest.param("sample", "42MGBA", id="the same letters and digits"),
        pytest.param("sample", "GB-42", id="an alias"),
        pytest.param("drug", "sodium salicylate acetate", id="a salt of the drug"),
    ],
)
def test_who_was_learned_under_another_name_is_not_reported_as_new(by, learned_before, drugs):
    """Prasse et al. removed "42MGBA" from the source where it was "42-MG-BA": 284 of 355 lines stayed."""
    expression, table = screen(12)
    expression, table = expression.rename(index={"L-3": "42-MG-BA"}), table.replace({"L-3": "42-MG-BA"})
    aliases = Aliases.of_table(pd.DataFrame({"name": ["42-MG-BA"], "alias": ["GB-42"]}))
    data = ResponseData.read(expression, table, drugs, measure="LN_IC50", aliases=aliases)
    problem = data.problem(dataclasses.replace(CONFIG, split={"by": by}))
    before = [learned_before if by == "sample" else "L-0", "of no other screen"]
    salt = pd.DataFrame({"drug": ["sodium salicylate acetate"], "smiles": ["[Na+].CC(=O)Oc1ccccc1C([O-])=O"]})
    of_source = drugs if by == "sample" else gf.Drugs.of_table(salt)
    values = pd.DataFrame({"sample": before, "drug": of_source.names[0], "value": [1.0, 2.0]})
    source = ResponseData.read(expression[:2].set_axis(before), values, of_source, measure="LN_IC50").problem(CONFIG)
    start = source.checkpoint(source.begun(None, CONFIG, np.arange(2)), {}, like=None)
    is_new = problem.sample_names == "42-MG-BA", np.array(problem.drugs.names) == "aspirin"
    again = np.flatnonzero(is_new[by == "drug"][problem.pairs[:, int(by == "drug")]])
    refuse_learned(start, problem, np.setdiff1d(np.arange(len(problem.pairs)), again), aliases)
    with pytest.raises(gf.InputError, match=f"1 {by}s that are reported as new"):
        refuse_learned(start, problem, again, aliases)


def test_names_of_one_sample_are_on_one_side(drugs, tmp_path):
    expression, table = screen(20)
    twins = expression.rename(index=lambda name: name.replace("-", ""))
    both = pd.concat([expression, twins])
    twice = pd.concat([table, table.assign(sample=table["sample"].str.replace("-", ""))])
    data = ResponseData.read(both, twice, drugs, measure="LN_IC50")
    groups = data.problem(CONFIG).groups
    assert len(np.unique(groups)) == 20


def test_without_structures_a_network_that_reads_them_is_refused_before_the_work(tmp_path):
    expression, table = screen(12)
    with pytest.raises(gf.InputError, match="no SMILES") as refused:
        finetune_response(None, expression, table, None, CONFIG, out=tmp_path / "run")
    assert "one-hot" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_a_wide_table_of_micromolar_ic50s_and_no_structures(tmp_path, capsys, caplog):
    expression, table = screen(30)
    np.exp2(expression).to_csv(tmp_path / "tpm.csv")
    wide = table.assign(ln_ic50=np.exp(table["ln_ic50"])).pivot(index="sample", columns="drug", values="ln_ic50")
    wide.to_csv(tmp_path / "ic50.csv")
    given = ["response", str(tmp_path / "tpm.csv"), "--responses", str(tmp_path / "ic50.csv"), "--values", "expression"]
    given += ["--network", "tdnn", "--drug-input", "one_hot", "-o", str(tmp_path / "run"), "--set", "training.epochs=1"]
    assert main([*given, "training.batch_size=64"]) == 2
    assert "measure= is missing" in capsys.readouterr().err
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join([*expression.columns[:20], "ENSG99999999999"]))
    assert main([*given, "training.batch_size=64", "--measure", "IC50_uM", "--genes", str(genes)]) == 0
    assert "1 of 21 genes asked for are not in the matrix: 'ENSG99999999999'" in caplog.text
    assert len(Checkpoint.from_pretrained(tmp_path / "run").pair_network.scale) == 20
    assert "tDNN" in capsys.readouterr().out
    out = tmp_path / "said.tsv"
    names = tmp_path / "drugs.tsv"
    pd.DataFrame({"drug": ["aspirin", "urea"]}).to_csv(names, sep="\t", index=False)
    asked = ["predict-response", str(tmp_path / "run"), str(tmp_path / "tpm.csv"), "--drugs", str(names)]
    assert main([*asked, "-o", str(out)]) == 0
    assert len(pd.read_csv(out, sep="\t")) == 60


def test_genes_none_of_which_is_in_the_matrix_are_refused():
    given = ResponseData.read(*screen(12), None, measure="LN_IC50")
    with pytest.raises(gf.InputError, match=r"None of the 2 genes asked for .* 'ENSG00000000000'"):
        given.problem(dataclasses.replace(CONFIG, genes=("TP53", "EGFR")))


def test_what_is_learned_of_one_screen_helps_in_another_where_few_are_known(drugs, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    of_source = ResponseData.read(*screen(60), drugs, measure="LN_IC50")
    expression, table = screen(24, prefix="M-", seed=1)
    expression = pd.concat([expression, of_source.samples.iloc[:4].rename(index=lambda name: f"also {name}")])
    target = ResponseData.read(expression, table, drugs, measure="LN_IC50")
    config = gf.ResponseStudyConfig(
        networks=("tdnn",),
        uses=("sample",),
        sizes=(0, 12),
        steps=30,
        network=CONFIG.network,
        source={"epochs": 8},
        split={"folds": 2, "validation": 0.2},
        training={"batch_size": 16, "learning_rate": 3e-3},
        compare={"baselines": False},
    )
    study = gf.transfer_study(None, of_source, target, config, out=tmp_path / "study")
    assert study.table["n"].drop_duplicates().tolist()[:2] == [0, 12]
    few = study.table[study.table["n"] == 12].set_index("method")["pearson_within_drug"]
    assert few["tDNN, pretrained"] > few["tDNN, scratch"] + 0.2
    compared = set(study.differences[["n", "method", "other"]].itertuples(index=False, name=None))
    assert compared >= {
        (0, "tDNN, pretrained", "mean effects of the source"),
        (12, "tDNN, pretrained", "tDNN, scratch"),
        (12, "tDNN, pretrained", "mean effects of the source"),
    }
    by_sample = study.evaluations["sample", 12].per_group.query("aggregation == 'within_sample'").set_index("group")
    ours, theirs = (
        by_sample.loc[by_sample["method"] == f"tDNN, {way}", "pearson"] for way in ("pretrained", "scratch")
    )
    first = study.differences.query("n == 12").iloc[0]
    assert first["difference"] == pytest.approx((ours - theirs).mean())
    assert "taken for the same" in caplog.text
    network = Checkpoint.from_pretrained(tmp_path / "study" / "sample" / "source" / "tdnn").pair_network
    assert not {f"L{i}" for i in range(4)} & set(network.learned["samples"])
    assert {"methods.tsv", "differences.tsv", "report.html", "curve-sample.png"} <= {
        path.name for path in (tmp_path / "study").iterdir()
    }
