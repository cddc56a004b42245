"""Sampled screens: the values of the exact screen where they measure, and the same bytes however they are made."""

import logging
import os
import signal

import numpy as np
import pandas as pd
import pytest
from forking import forked, several, status_of
from slow_screen import random_model

import geneformer_repro as gf
from geneformer_repro import Deletion, GoalState, InputError, Overexpression, RankShift, perturb, shift_statistics
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico import sampled_screen
from geneformer_repro.in_silico import screen as module
from geneformer_repro.in_silico.sampled_effects import sample_in_words
from geneformer_repro.in_silico.shift_table import SAMPLED_COLUMNS
from geneformer_repro.targets import Classes

GOAL = GoalState("cell_type", "CD56+ NK", "CD19+ B", ["CD34+"])
ROW = ["cell", "perturbed", "state", "dose"]


@pytest.fixture(scope="module")
def short(_pbmc):
    """Thirty NK cells and a few of two goals, their first dozen genes."""
    types = _pbmc.obs["cell_type"].to_numpy()
    some = [np.flatnonzero(types == state)[: 30 if state == GOAL.start else 12] for state in GOAL.states]
    adata = _pbmc[np.sort(np.concatenate(some))].copy()
    adata.obs["donor"] = [f"donor{i % 3}" for i in range(adata.n_obs)]
    return gf.tokenize(adata, gf.Vocabulary.fit(_pbmc, max_length=14), obs=["cell_type", "donor"])


@pytest.fixture(scope="module")
def model(short):
    return random_model(short.vocabulary)


OPTIONS = {"goal": GOAL, "donor": "donor", "seed": 3, "device": "cpu"}
SAMPLED = OPTIONS | {"method": "sampled", "passes": 120, "top": 5, "min_cells": 4}


@pytest.fixture(scope="module")
def sampled(model, short):
    return perturb(model, short, Deletion(), **SAMPLED)


@pytest.fixture(scope="module")
def exact(model, short):
    return perturb(model, short, Deletion(), **OPTIONS)


# The table


def test_what_is_measured_has_the_value_of_the_exact_screen(sampled, exact):
    both = sampled.table.merge(exact.table, on=ROW, suffixes=("", "_exact"), validate="one_to_one")
    assert len(both) == len(sampled.table)
    measured = both["exact"]
    assert measured.sum() == 120 * 2  # of two states
    np.testing.assert_allclose(both["value"][measured], both["value_exact"][measured], atol=1e-6)
    assert (both["value"] - both["value_exact"])[~measured].abs().min() > 0
    np.testing.assert_allclose(both["before"], both["before_exact"], atol=1e-5)


def test_it_holds_the_estimates_of_a_first_order_screen(model, short, sampled):
    estimated = perturb(model, short, Deletion(), **OPTIONS, method="first_order").table
    np.testing.assert_array_equal(sampled.table["estimate"], estimated["estimate"])
    assert sampled.table[ROW].equals(estimated[ROW])


def test_every_row_says_whether_when_and_with_what_chance_it_was_measured(sampled):
    table = sampled.table
    assert list(table)[-5:] == list(SAMPLED_COLUMNS)
    assert table["round"].notna().equals(table["exact"])
    assert table["chance"][table["exact"]].between(0, 1, inclusive="right").all()
    assert (table["chance"][~table["exact"]] == 0).all()
    n_cells = table.groupby("perturbed")["cell"].transform("nunique")
    assert not table["exact"][n_cells < 4].any()
    assert table["variance"].isna().equals(n_cells < 4)
    per_gene = table[n_cells >= 4].groupby(["perturbed", "state"])["exact"].sum()
    assert per_gene.min() >= 2


def test_all_passes_give_the_exact_screen(model, short, exact):
    whole = perturb(model, short, Deletion(), **SAMPLED | {"passes": 100_000, "min_cells": 3}).table
    both = whole.merge(exact.table, on=ROW, suffixes=("", "_exact"))
    drawn = both["exact"]
    assert drawn.sum() > 200
    for name in ("value", "unbiased"):
        np.testing.assert_allclose(both[name][drawn], both["value_exact"][drawn], atol=1e-6)
    assert (both["variance"][drawn] == 0).all()


@pytest.mark.parametrize("kind", [Overexpression(), RankShift(to=(0.2, 0.9))], ids=["overexpression", "doses"])
def test_other_moves_are_sampled_too(model, short, kind):
    shifts = perturb(model, short, kind, **SAMPLED | {"passes": 140})
    assert shifts.table["exact"].sum() == 140 * 2
    assert np.isfinite(shifts.table[["value", "unbiased"]]).all(axis=None)


def test_a_classifier_without_a_goal_is_sampled_for_all_its_classes(short):
    classifier = random_model(short.vocabulary, CellClassifier, Head((Classes("cell_type", ("B", "NK", "T")),), "mean"))
    options = SAMPLED | {"goal": None, "target": "cell_type"}
    shifts = perturb(classifier, short.select(range(30)), Deletion(), **options)
    estimates = shifts.table.groupby("state")["estimate"].apply(lambda of: (of**2).sum())
    assert shifts.metadata["sampled"]["state"] == estimates.idxmax()
    measured = shifts.table[shifts.table["exact"]]
    assert measured.groupby(["cell", "perturbed"]).size().eq(3).all()
    np.testing.assert_allclose(measured.groupby(["cell", "perturbed"])["value"].sum(), 0, atol=1e-6)


def test_without_goal_and_target_it_is_a_plain_sample_and_says_so(model, short, caplog):
    with caplog.at_level(logging.WARNING):
        shifts = perturb(model, short, Deletion(), **SAMPLED | {"goal": None, "passes": 300})
    assert "no first order: this is a plain sample" in caplog.text
    assert shifts.table["estimate"].isna().all()
    assert shifts.metadata["sampled"]["first_order"] == {"None": {"correlation": None, "slope": None}}
    assert shifts.table["value"].between(-1, 1.01).all()


def test_a_first_order_of_no_use_is_warned_of(model, short, caplog, monkeypatch):
    monkeypatch.setattr(sampled_screen, "USELESS", 2.0)
    with caplog.at_level(logging.WARNING):
        perturb(model, short, Deletion(), **SAMPLED)
    assert "First order tells next to nothing of exact values here (CD19+ B: correlation" in caplog.text


# Statistics


def test_statistics_are_of_unbiased_values_with_intervals_of_sampling_and_of_donors(sampled, exact):
    table, of_exact = shift_statistics(sampled), shift_statistics(exact)
    rows = sampled.table[sampled.table["state"] == GOAL.goal]
    of_donors = rows.groupby(["perturbed", "donor"])
    means = of_donors[["unbiased", "value"]].mean().groupby("perturbed").mean().loc[table.index]
    np.testing.assert_allclose(table["effect"], means["unbiased"], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(table["effect_shrunken"], means["value"], rtol=1e-9, atol=1e-15)
    error = of_donors["variance"].sum(min_count=1) / of_donors.size() ** 2
    half = 1.959964 * np.sqrt(error.groupby("perturbed").sum()) / error.groupby("perturbed").size()
    drawn = table["n_exact"] > 0
    np.testing.assert_allclose(
        table["sampling_high"][drawn] - table["effect"][drawn], half.loc[table.index][drawn], rtol=1e-6
    )
    both = table[drawn].join(of_exact["effect"], rsuffix="_exact")
    assert both["effect_exact"].between(both["sampling_low"] - 1e-7, both["sampling_high"] + 1e-7).mean() > 0.8
    assert (table["warning"][~drawn].str.endswith("only estimated, not measured")).all()
    assert table["sampling_low"][~drawn].isna().all()
    assert table.loc[:, ["low", "p_value"]].notna().any().all()


def test_who_is_in_the_top_is_said(sampled):
    table, found = shift_statistics(sampled), sampled.metadata["sampled"]["found"]
    for direction in ("highest", "lowest"):
        assert set(table.index[table["in_top"] == direction]) == set(found[direction]["decided"])
    spent, trust, decided = sample_in_words(sampled.metadata)
    assert spent.startswith("120 of ")
    assert "correlation" in trust
    assert decided.startswith(f"highest 5: {len(found['highest']['decided'])} decided")


def test_published_methods_take_what_was_measured_or_is_expected(sampled):
    table = shift_statistics(sampled, method="goal_state")
    towards = sampled.table[sampled.table["state"] == GOAL.goal].groupby("perturbed")["value"].mean()
    np.testing.assert_allclose(table["effect"], towards.loc[table.index], rtol=1e-9)


# Refused before the work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"passes": None}, "needs a budget: passes=.*or minutes=.*one of the two", id="none"),
        pytest.param({"minutes": 1.0}, "needs a budget: passes=.*or minutes=", id="both"),
        pytest.param({"passes": 20}, r"passes=20 gives not each of the \d+ genes in at least 4 cells 2 pass", id="few"),
        pytest.param({"passes": None, "minutes": 1e-9}, r"minutes=1e-09 \(\d+ passes here\) gives not", id="short"),
        pytest.param({"passes": 0}, "passes must be at least 1, found 0", id="zero"),
        pytest.param({"passes": None, "minutes": -1.0}, "minutes must be above 0, found -1", id="negative"),
        pytest.param({"top": 0}, "top must be at least 1, found 0", id="top"),
        pytest.param({"min_cells": 2}, "min_cells must be at least 3, found 2", id="min_cells"),
        pytest.param({"min_cells": 31}, "No gene is in 31 of the 30 cells", id="rare"),
        pytest.param({"method": "exact"}, "passes= is for method='sampled'; found method='exact'", id="exact"),
        pytest.param({"refine": 3}, "refine must be at least 0, and is for method='first_order'", id="refine"),
        pytest.param({"goal": None, "affected": "each"}, "affected= needs method='exact'", id="affected"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, short, options, message):
    with pytest.raises(InputError, match=message):
        perturb(model, short, Deletion(), **SAMPLED | options)


def test_several_genes_at_once_are_refused(model, short):
    with pytest.raises(InputError, match="method='sampled' samples one expressed gene at a time"):
        perturb(model, short, Deletion(combine="pairs"), **SAMPLED)


# However it is made


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "CELLS_A_PART", 7)


def test_on_disk_it_holds_what_it_holds_in_memory(model, short, tmp_path, small_parts):
    out = tmp_path / "shifts.parquet"
    on_disk, in_memory = (perturb(model, short, Deletion(), **SAMPLED, out=where) for where in (out, None))
    pd.testing.assert_frame_equal(gf.ShiftTable.open(out).table, in_memory.table, check_exact=True)
    assert on_disk.metadata == in_memory.metadata
    assert not (tmp_path / "shifts.parquet.partial").exists()


def kill_at(stage):
    """Be killed before a part of a stage is kept."""
    measured = sampled_screen.SampledScreen._measured

    def watched(self, drawn, part, show):
        table = measured(self, drawn, part, show)
        watched.n += 1
        if watched.n == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        return table

    watched.n = 0
    sampled_screen.SampledScreen._measured = watched


def test_killed_it_goes_on_and_two_processes_write_what_one_does(model, short, tmp_path, small_parts):
    whole, cut, two = (tmp_path / f"{name}.parquet" for name in ("whole", "cut", "two"))
    options = SAMPLED | {"passes": 150}

    def killed():
        kill_at(8)
        perturb(model, short, Deletion(), **options, out=cut)

    assert status_of(forked(killed, tmp_path / "killed.log")) == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "cut.parquet.partial").iterdir()]
    assert "part-000000.round1.parquet" in left
    perturb(model, short, Deletion(), **options, out=cut)
    several(lambda _: perturb(model, short, Deletion(), **options, out=two), tmp_path)
    perturb(model, short, Deletion(), **options, out=whole)
    assert cut.read_bytes() == whole.read_bytes()
    assert two.read_bytes() == whole.read_bytes()


def test_minutes_become_passes_once(model, short, tmp_path, small_parts, monkeypatch):
    out, options = tmp_path / "shifts.parquet", SAMPLED | {"passes": None, "minutes": 1.0}
    rates = iter([60 / 150, 1.0])
    monkeypatch.setattr(sampled_screen.SampledScreen, "_seconds_a_pass", lambda self: next(rates))
    with monkeypatch.context() as patch:
        patch.setattr(sampled_screen._Sampler, "keep", lambda self, tables: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            perturb(model, short, Deletion(), **options, out=out)
    assert perturb(model, short, Deletion(), **options, out=out).metadata["sampled"]["passes"] == 150
    assert next(rates) == 1.0
