"""What one cohort tells of another: of simulated cohorts, where what both share is known."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from _cohorts import simulate_cohorts

import geneformer_repro as gf
from geneformer_repro.cli import main
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.baselines import Features, column_effects, components
from geneformer_repro.finetuning.cohort_pairs import HARMONISED, agreement
from geneformer_repro.finetuning.cross_cohort import cross_cohort
from geneformer_repro.finetuning.cross_cohort_pages import _genes_section
from geneformer_repro.finetuning.kinds.survival_methods import SURVIVAL_METHODS

pytestmark = pytest.mark.usefixtures("few_resamples")

SURVIVAL = {"event": "event_time"}


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["all is shared", "nothing is shared"])
def compared(request):
    """Part of the risk that two cohorts share, the cohorts, and what the first tells of the second."""
    cohorts = simulate_cohorts(2, 150, n_genes=200, sharing=request.param, censoring=0.2, seed=2)
    return request.param, cohorts, cross_cohort(cohorts, SURVIVAL, cohort="cohort", train="C01", test=["C02"], folds=3)


def test_nothing_is_lost_where_all_is_shared_and_all_where_nothing_is(compared):
    sharing, _, table = compared
    (row,) = table.to_dict("records")
    assert (row["train_cohort"], row["test_cohort"], row["n_train"]) == ("C01", "C02", 150)
    np.testing.assert_allclose(row["drop"], row["within"] - row["cross"])
    assert row["domain_auc_before"] > 0.95
    assert row["domain_auc_after"] < 0.6
    if sharing:
        assert row["cross"] > 0.65
        assert row["drop_low"] < 0
    else:
        assert abs(row["cross"] - 0.5) < 0.08
        assert row["drop_low"] > 0


def test_the_risk_is_that_of_the_method_on_harmonised_values(compared):
    _, cohorts, table = compared
    values = np.concatenate([(x - x.mean(axis=0)) / x.std(axis=0) for x in np.split(cohorts.X.astype(float), 2)])
    obs = cohorts.obs[["event_time", "event"]].assign(cohort=0.0).to_numpy()
    first, last = np.arange(150), np.arange(150, 300)
    risk = SURVIVAL_METHODS["Cox ridge, PCA"](Features.of_samples(values), first, obs[first], last, 0, ())[:, 0]
    time, event = obs[last, :2].T
    of_all_pairs = (risk[:, None] > risk)[(event[:, None] == 1) & (time[:, None] < time)].mean()
    assert abs(table["cross"].item() - of_all_pairs) < 0.05  # a third of the pairs: those within a fold
    assert table["events_test"].item() == event.sum()


def test_small_cohorts_are_left_out_and_named(caplog):
    caplog.set_level(logging.WARNING)
    cohorts = simulate_cohorts(3, [40, 40, 9], n_genes=20, seed=1)
    table = cross_cohort(cohorts, SURVIVAL, cohort="cohort", train="C01", harmonise="none", folds=2)
    assert list(table["test_cohort"]) == ["C02"]
    assert any("cohorts with fewer than 10 events are left out: C03 (" in message for message in caplog.messages)
    np.testing.assert_array_equal(table["domain_auc_before"], table["domain_auc_after"])
    with pytest.raises(InputError, match="1 cohorts have 10 events of event"):
        cross_cohort(cohorts[cohorts.obs["cohort"] != "C02"].copy(), SURVIVAL, cohort="cohort")


def test_what_cannot_be_compared_is_refused():
    cohorts = simulate_cohorts(2, 40, n_genes=30, seed=1)
    with pytest.raises(InputError, match="no obs column 'centre'"):
        cross_cohort(cohorts, SURVIVAL, cohort="centre")
    with pytest.raises(InputError, match="no cohort 'C09' that is large enough"):
        cross_cohort(cohorts, SURVIVAL, cohort="cohort", test="C09")
    cohorts.X[3, 4] = np.nan
    with pytest.raises(InputError, match="1 values of the expression are missing"):
        cross_cohort(cohorts, SURVIVAL, cohort="cohort")


def test_every_way_of_harmonising_stands_beside_what_was_not_harmonised(compared):
    _, _, table = compared
    auc = table.filter(like="domain_auc").iloc[0]
    assert set(auc.index) == {f"domain_auc_{way}" for way in ("before", "after", *HARMONISED)} - {"domain_auc_none"}
    assert auc["domain_auc_after"] == auc["domain_auc_standardise"]
    assert auc["domain_auc_combat"] < 0.6 < auc["domain_auc_before"]


def test_effects_of_genes_agree_where_the_risk_is_shared(compared):
    sharing, _, table = compared
    row = table.iloc[0]
    assert row["effects_top_chance"] == pytest.approx(50 / 350)
    if sharing:
        assert row["effects_spearman"] > 0.2
        assert row["effects_top"] > 1.5 * row["effects_top_chance"]
    else:
        assert abs(row["effects_spearman"]) < 0.2
        assert row["effects_spearman_within"] > row["effects_spearman"] + 0.1
    effects = table.attrs["effects"]
    assert effects.groupby("cohort").size().to_dict() == {"C01": 200, "C02": 200}


def test_effects_of_columns_are_what_the_method_adds_for_each():
    """Told by moving a gene of every row a little, which a method on components follows line by line."""
    rng = np.random.default_rng(0)
    values, rows = rng.normal(size=(60, 25)), np.arange(60)
    weights = rng.normal(size=50)

    def told(asked):
        both = np.concatenate([values, asked])
        of_asked = components(both, rows, np.arange(60, 60 + len(asked)), 0, most=8)[1]
        return of_asked @ weights[: of_asked.shape[1], None]

    effects = column_effects(values, rows, told(values))
    clipped = values.clip(*np.quantile(values, [0.01, 0.99], axis=0))
    middle = np.tile(np.median(values, axis=0), (25, 1))
    step = 0.1 * clipped.std(axis=0)
    np.testing.assert_allclose((told(middle + np.diag(step)) - told(middle))[:, 0] / 0.1, effects[:, 0], atol=1e-9)


def test_agreement_is_of_what_both_fits_look_at():
    first = pd.DataFrame({"risk": [3.0, 1, 2, 0, 5], "other": 1.0})
    second = pd.DataFrame({"risk": [3.0, 1, 2, 4, 5]})
    found = agreement(first, second, 2)
    assert (found["effects_spearman"], found["effects_top"], found["n_genes"], found["n_outputs"]) == (1, 1, 4, 1)
    assert np.isnan(agreement(first[["other"]], second, 2)["effects_spearman"])


# Labels


def labelled(n=90, *, shared=True, seed=0):
    """Two cohorts of three donors; two labels by ten genes, of which the second cohort has others if not shared."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"study": np.repeat(["one", "two"], n), "label": np.tile(["a", "b", "c"], 2 * n // 3)})
    obs["donor"] = obs["study"] + "-" + pd.Series(rng.integers(0, 3, 2 * n).astype(str))
    obs.loc[(obs["study"] == "two") & (obs["label"] == "c"), "label"] = "d"
    counts = rng.poisson(3, (2 * n, 60))
    is_b = (obs["label"] == "b").to_numpy()
    counts[is_b, :10] += rng.poisson(4, (is_b.sum(), 10))
    if not shared:
        second = is_b & (obs["study"] == "two").to_numpy()
        counts[second, :10], counts[second, 20:30] = rng.poisson(3, (second.sum(), 10)), 9
    counts[obs["study"] == "two", 40:] *= 2
    obs.index = [f"s{i}" for i in range(2 * n)]
    return ad.AnnData(counts.astype(np.float32), obs, pd.DataFrame(index=[f"g{i}" for i in range(60)]))


@pytest.mark.parametrize("shared", [True, False], ids=["the same genes", "other genes"])
def test_labels_of_one_cohort_are_told_by_another_by_what_both_share(shared):
    table = cross_cohort(labelled(shared=shared), cohort="study", target="label", donor="donor", folds=3, top=10)
    row = table.iloc[0]
    assert (row["target"], row["metric"], row["n_classes"], row["n_donors_test"]) == ("label", "macro_f1", 2, 3)
    assert row["n_test"] == 60  # those of label d are left out
    assert row["within"] > 0.9
    assert row["domain_auc_before"] > 0.65
    assert 0.35 < row["domain_auc_after"] < 0.65
    assert (row["cross"] > 0.9) == shared
    assert (row["drop_low"] > 0) == (not shared)
    assert (row["effects_top"] > 0.3) == shared


def test_tokens_are_looked_at_by_rank_or_by_vectors(checkpoint, cells, tmp_path):
    asked = {"cohort": "donor", "target": "cell_type", "train": "donor0", "test": "donor1", "folds": 2, "top": 20}
    by_rank, by_vector = cross_cohort(cells, **asked), cross_cohort(cells, checkpoint=checkpoint, **asked)
    assert by_rank["within"].item() > 0.5
    assert by_rank["n_outputs"].item() > 2
    assert "effects_spearman" not in by_vector
    assert by_vector.attrs["effects"].empty
    with pytest.raises(InputError, match="Effects of genes are not known"):
        gf.plot_cross_cohort(by_vector, kind="effects")
    assert by_vector.attrs["sentence"].endswith("whose numbers stand for no genes.")
    assert "no genes" not in by_rank.attrs["sentence"]
    gf.write_cross_cohort_report(by_vector, tmp_path / "cohorts.html")
    assert "Effects of genes are not known" in (tmp_path / "cohorts.html").read_text().partition("<section>")[2]


# Drug response


def study(names, *, of=0, noise=0.3, seed=0, measure="LN_IC50", turned=1):
    """Samples whose five genes say to which of eight drugs they respond; `of` another study other genes do."""
    everything = np.random.default_rng(9).normal(size=(120, 40))
    weights = np.random.default_rng(10 + of).normal(size=(5, 8))
    expression = pd.DataFrame(everything, columns=[f"g{i}" for i in range(40)]).iloc[names]
    expression.index = [f"line{i}" for i in names]
    rng = np.random.default_rng(seed)
    values = expression.to_numpy()[:, :5] @ weights + np.linspace(-4, 4, 8) + noise * rng.normal(size=(len(names), 8))
    if turned < 0:
        values = (8 - values) / 2
    long = pd.DataFrame(values, index=expression.index, columns=[f"drug{i}" for i in range(8)])
    table = long.rename_axis("sample").reset_index().melt("sample", var_name="drug", value_name=measure)
    return gf.ResponseData.read(expression, table, measure=measure)


def test_a_study_tells_of_another_as_much_as_both_measure_the_same():
    studies = {"A": study(range(80)), "B": study(range(40, 120), seed=1), "C": study(range(40, 120), of=1, seed=2)}
    table = cross_cohort(studies, harmonise="none", folds=3, top=5).set_index(["train_cohort", "test_cohort"])
    same, other = table.loc[("A", "B")], table.loc[("A", "C")]
    assert (same["measure"], same["metric"]) == ("LN_IC50", "pearson_within_sample_normalised")
    assert (same["n_drugs"], same["n_samples_test"], same["n_measured_twice"]) == (8, 80, 40 * 8)
    assert same["measured_twice"] > 0.9
    assert same["within"] > 0.6
    assert same["drop_low"] < 0.05
    assert same["effects_spearman"] > 0.3
    assert other["cross"] < 0.4 < other["drop"]


def test_a_drug_without_responses_in_one_study_is_not_shared():
    second = study(range(40, 120), seed=1)
    table = second.responses.pairs.rename(columns={"value": "LN_IC50"})[["sample", "drug", "LN_IC50"]]
    few = gf.ResponseData.read(second.samples, table[table["drug"] != "drug3"], second.drugs, measure="LN_IC50")
    row = cross_cohort({"A": study(range(80)), "B": few}, harmonise="none", folds=2, train="A", top=5).iloc[0]
    assert (row["n_drugs"], row["n_train"]) == (7, 7 * 80)


def test_a_measure_that_points_the_other_way_is_turned_round():
    studies = {"A": study(range(80)), "B": study(range(40, 120), seed=1, measure="pIC50", turned=-1)}
    row = cross_cohort(studies, harmonise="none", folds=2, train="A", test="B", top=5).iloc[0]
    assert row["measure"] == "LN_IC50 → pIC50"
    assert min(row["cross"], row["measured_twice"], row["effects_spearman"]) > 0.3


def test_samples_of_a_fold_are_unknown_to_both(monkeypatch):
    """Of one study twice, a sample that is tested must not have been learned under the other's name."""
    from geneformer_repro.finetuning.cohort_outcomes import ResponseOutcome

    beyond, overlaps = ResponseOutcome._beyond, []

    def watched(self, samples, train, responses, test, true):
        names = np.tile([f"line{i}" for i in range(30)], len(samples) // 30)
        if len(test) < len(train):
            overlaps.append(len(set(names[train[:, 0]]) & set(names[test[:, 0]])))
        return beyond(self, samples, train, responses, test, true)

    monkeypatch.setattr(ResponseOutcome, "_beyond", watched)
    cross_cohort({"A": study(range(30)), "B": study(range(30), seed=1)}, harmonise="none", folds=3, train="A", test="B")
    assert overlaps == [0] * 6


# What is refused, pictures, and the command line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "label"}, "cohort= is missing"),
        ({"cohort": "study"}, "Say what is predicted"),
        ({"cohort": "study", "target": "lable"}, "no obs column 'lable'. Did you mean 'label'"),
        ({"cohort": "donor", "target": "study"}, "two are compared"),
        ({"cohort": "study", "target": "label", "train": "one", "test": "one"}, "compared with another"),
        ({"cohort": "study", "target": "label", "folds": 1}, "folds must be at least 2"),
        ({"survival": {"event": "time"}, "cohort": "study", "donor": "donor"}, "donor= is for labels"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_questions_that_are_none_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        cross_cohort(labelled(), **options)


def test_a_command_writes_table_picture_and_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labelled().write_h5ad("cells.h5ad")
    command = ["cross-cohort", "cells.h5ad", "--cohort", "study", "--target", "label", "--donor", "donor"]
    assert main([*command, "--folds", "2", "--top", "10", "-o", "cross.tsv"]) == 0
    said = capsys.readouterr().out
    assert "macro-F1" in said
    table = pd.read_csv("cross.tsv", sep="\t")
    assert table[["train_cohort", "test_cohort"]].to_numpy().tolist() == [["one", "two"], ["two", "one"]]
    page = (tmp_path / "cross.html").read_text()
    for title in ("What is lost", "told apart", "use the same genes", "largest effects"):
        assert title in page
    assert (tmp_path / "cross.png").stat().st_size > 5000
    assert main([*command, "-o", "cross.tsv"]) == 2
    assert main(["cross-cohort", "-o", "x.tsv"]) == 2
    assert "Name samples" in capsys.readouterr().err


def test_the_page_lists_cohorts_in_their_order_and_genes_by_effect():
    effects = [(cohort, output, "low", -at) for at, cohort in enumerate(("C01", "C02", "C03"), 1) for output in "xy"]
    effects += [(cohort, output, "high", 10.0 * at) for cohort, output, _, at in effects]
    effects += [("C01", "x", "ENSG00000187608", 5.0)]
    table = pd.DataFrame({"target": ["kind"]})
    table.attrs["effects"] = pd.DataFrame(effects, columns=["cohort", "output", "gene", "effect"])
    table.attrs["called"] = {"high": "HIGH"}
    (section,) = _genes_section(table)
    assert section.table.index.tolist() == [("x", 1), ("x", 2), ("x", 3), ("y", 1), ("y", 2)]
    assert section.table.index.names == ["label", "place"]
    assert section.table.columns.tolist() == ["C01", "C02", "C03"]
    assert section.table.loc["y", "C03"].tolist() == ["HIGH -30", "low -3"]
    assert section.table.loc["x", "C01"].tolist() == ["HIGH -10", "ISG15 +5", "low -1"]


def test_a_table_of_something_else_is_no_page(tmp_path):
    with pytest.raises(InputError, match="no result of cross_cohort"):
        gf.write_cross_cohort_report(pd.DataFrame({"within": [1]}), tmp_path / "x.html")
