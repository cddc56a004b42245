"""Screens as users meet them: which cells and genes, what is refused, what is on disk when something goes wrong."""

import dataclasses
import errno
import json
import logging
import os
import re
import signal
import time
import traceback
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from forking import free_port
from slow_screen import SlowScreen, assert_same_rows, cells_of, random_model

import geneformer_repro as gf
from geneformer_repro import Activation, Deletion, GoalState, InputError, Overexpression, ShiftTable, perturb, processes
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head
from geneformer_repro.in_silico import parted
from geneformer_repro.in_silico import screen as module
from geneformer_repro.in_silico.shift_table import COLUMNS
from geneformer_repro.reading import consecutive_parts
from geneformer_repro.targets import Classes, Number

pytestmark = pytest.mark.slow

GOAL = GoalState("cell_type", "CD56+ NK", "CD19+ B", ["CD34+"])
OTHER = gf.Vocabulary.from_tokens({"<pad>": 0, "<mask>": 1, "ENSG00000000003": 2})


@pytest.fixture(scope="module")
def short(_pbmc):
    """Twelve blood cells of each of three states, only their first dozen genes: a screen is small."""
    types = _pbmc.obs["cell_type"].to_numpy()
    adata = _pbmc[np.sort(np.concatenate([np.flatnonzero(types == state)[:12] for state in GOAL.states]))].copy()
    adata.obs["donor"] = [f"donor{i % 3}" for i in range(36)]
    adata.obs["partly"] = pd.Series(adata.obs["donor"]).where(np.arange(36) > 0)
    adata.obs["value"] = 1.0
    vocabulary = gf.Vocabulary.fit(_pbmc, max_length=14)
    return gf.tokenize(adata, vocabulary, obs=["cell_type", "donor", "partly", "value", "n_counts"])


@pytest.fixture
def model(short):
    return random_model(short.vocabulary)


@pytest.fixture
def classifier(short):
    return random_model(
        short.vocabulary, CellClassifier, Head((Classes("cell_type", ("B", "NK")), Number("age")), "mean")
    )


def left_by(folder):
    """Name what lies in a folder, without the lock and the digests of unfinished work."""
    return sorted(path.name for path in folder.iterdir() if path.name != "lock" and path.suffix != ".sha256")


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


# What a table holds


def test_the_cells_come_in_their_order_and_the_genes_in_that_of_the_cell(model, short):
    table = perturb(model, short, Deletion(), max_tokens=40).table
    assert table["cell"].tolist() == np.repeat(short.cell_names, 12).tolist()
    assert table["perturbed"].tolist() == [gene for i in range(36) for gene in short.genes(i)]
    assert table["rank"].tolist() == list(range(12)) * 36
    assert table["value"].between(-1, 1).all()


def test_columns_are_those_that_are_promised_then_obs(model, short):
    table = perturb(model, short, Deletion(), obs=["n_counts", "cell_type"], max_cells=1).table
    assert list(table) == [*COLUMNS, "n_counts", "cell_type"]


def test_a_row_names_cell_donor_and_obs(model, short):
    table = perturb(model, short, Deletion(), donor="donor", obs=["n_counts", "cell_type"], max_cells=5).table
    of_cell = short.obs.loc[table["cell"]].reset_index(drop=True)
    for name in ("donor", "n_counts", "cell_type"):
        assert table[name].tolist() == of_cell[name].tolist(), name


def test_an_obs_column_that_some_cells_lack_is_carried_along(model, short, tmp_path, monkeypatch):
    """Also where a part of the cells knows no value of it."""
    monkeypatch.setattr(module, "CELLS_A_PART", 1)
    few = short.select([0, 1])
    for out in (None, tmp_path / "shifts.parquet"):
        table = perturb(model, few, Deletion(), obs=["partly"], out=out).table
        assert table["partly"].tolist() == [None] * 12 + ["donor1"] * 12


def test_without_goal_donor_and_dose_their_columns_are_empty(model, short):
    table = perturb(model, short, Deletion(), max_cells=1).table
    for name in ("donor", "affected", "state", "dose", "before"):
        assert table[name].isna().all(), name
    assert table["exact"].all()
    assert table["value"].between(-1, 1).all()
    assert table["value"].nunique() == len(table)


def test_metadata_says_what_made_the_table(model, short):
    shifts = perturb(model, short, Activation(quartiles=2), max_cells=2, seed=5, donor="donor", obs=["n_counts"])
    names = shifts.metadata.pop("gene_names")
    assert shifts.metadata == {
        "measure": "cosine similarity",
        "goal": None,
        "target": None,
        "affected": None,
        "method": "exact",
        "refine": 0,
        "donor": "donor",
        "obs": ["n_counts"],
        "perturbation": Activation(quartiles=2).describe(),
        "layer": -1,
        "pooling": "cls",
        "dtype": "float32",
        "checkpoint": model.fingerprint,
        "cells": short.fingerprint,
        "n_cells": 2,
        "seed": 5,
    }
    vocabulary, genes = short.vocabulary, sorted(shifts.table["perturbed"].unique())
    assert names == {gene: vocabulary.gene_names[vocabulary.position[gene]] for gene in genes}


def test_metadata_name_the_genes_of_pairs_and_those_that_are_affected(model, short):
    pair = short.genes(0)[:2]
    shifts = perturb(model, short.select([0]), Deletion(pair, combine="pairs"), affected="each")
    assert set(shifts.metadata["gene_names"]) == set(short.genes(0))


def test_genes_that_were_named_are_in_the_table_by_id(model, short):
    gene = short.genes(0)[1]
    name = short.vocabulary.gene_names[short.vocabulary.position[gene]]
    shifts = perturb(model, short, Deletion([name]))
    assert set(shifts.table["perturbed"]) == {gene}
    assert shifts.metadata["perturbation"]["genes"] == [gene]


@pytest.mark.parametrize("goal", [None, GOAL], ids=["no goal", "goal"])
def test_the_file_holds_what_is_returned_in_memory(model, short, tmp_path, goal):
    options = {"goal": goal, "max_cells": 3, "donor": "donor", "obs": ["n_counts", "cell_type"]}
    memory = perturb(model, short, Deletion(), **options)
    returned = perturb(model, short, Deletion(), out=tmp_path / "shifts.parquet", **options)
    for other in (returned, ShiftTable.open(tmp_path / "shifts.parquet")):
        pd.testing.assert_frame_equal(other.table, memory.table, check_exact=True)
        assert other.metadata == memory.metadata
    assert left_by(tmp_path) == ["shifts.parquet"]


def test_the_model_and_the_cells_stay_as_they_are(model, short):
    before = model.fingerprint, short.table.to_pandas()
    perturb(model, short, Deletion(), pooling="mean", max_cells=1)
    assert model.fingerprint == before[0]
    pd.testing.assert_frame_equal(short.table.to_pandas(), before[1])


# Goals


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("layer", [0, -1])
def test_the_vector_of_a_state_is_the_mean_of_its_cells(model, short, pooling, layer):
    adata = gf.embed(model, short, layer=layer, pooling=pooling)
    means = {state: adata[adata.obs["cell_type"] == state].X.mean(axis=0) for state in GOAL.states}
    goals = (GOAL, dataclasses.replace(GOAL, embeddings=means))
    found = [perturb(model, short, Deletion(), goal=one, layer=layer, pooling=pooling, max_cells=2) for one in goals]
    assert_same_rows(found[0].table, found[1].table)


def test_given_state_vectors_are_used_instead_of_the_means(model, short):
    own = dict(gf.embed_states(model, short, GOAL.obs, pooling="cls", states=GOAL.states).T.items())
    found = [
        perturb(model, short, Deletion(), goal=dataclasses.replace(GOAL, embeddings=given), max_cells=2).table
        for given in (None, own, {state: -vector for state, vector in own.items()})
    ]
    assert_same_rows(found[0], found[1])
    np.testing.assert_allclose(found[2]["value"], -found[0]["value"], atol=1e-6)


def test_only_cells_of_the_start_state_are_perturbed(model, short):
    shifts = perturb(model, short, Deletion(), goal=GOAL)
    assert shifts.table["cell"].unique().tolist() == short.cell_names[short.obs["cell_type"] == "CD56+ NK"].tolist()
    assert shifts.table["state"].unique().tolist() == list(GOAL.states)
    assert shifts.metadata["n_cells"] == 12
    assert shifts.metadata["goal"] == {
        "obs": "cell_type", "start": "CD56+ NK", "goal": "CD19+ B", "alternatives": ["CD34+"],
    }  # fmt: skip


def test_states_of_few_cells_are_warned_about(model, short, caplog):
    few = short.select([*np.flatnonzero(short.obs["cell_type"] == "CD56+ NK"), *np.arange(9)])
    few = dataclasses.replace(
        few, table=few.table.remove_columns("cell_type").add_column("state", [*"a" * 12, *"b" * 9])
    )
    perturb(model, few, Deletion(), goal=GoalState("state", "a", "b"), max_cells=1)
    assert warnings_of(caplog) == ["States of few cells, whose mean vectors are uncertain: {'b': 9}."]


def given(**vectors):
    """A goal with vectors of its own."""
    return GoalState("donor", "donor0", "donor1", embeddings=vectors)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        pytest.param(
            GoalState("donr", "donor0", "donor1"), r"no obs column 'donr'\. Did you mean 'donor'", id="column"
        ),
        pytest.param(GoalState("donor", "donor9", "donor1"), r"No cell has donor = 'donor9'.*'donor0'", id="start"),
        pytest.param(GoalState("donor", "donor0", "dnor1"), r"No cell has donor = 'dnor1'.*mean 'donor1'", id="goal"),
        pytest.param(
            GoalState("donor", "donor0", "donor1", ["x"]), r"'x'\. There are: 'donor0', 'donor1'", id="alternative"
        ),
        pytest.param(GoalState("value", 1, 2.0), r"No cell has value = '2'\. There are: '1'", id="a number"),
        pytest.param(GoalState("value", True, 1), r"No cell has value = 'True'\. There are: '1'", id="a truth value"),
        pytest.param(GoalState("partly", "donor0", "None"), r"partly = 'None'.*are: 'donor0', 'd", id="of no state"),
        pytest.param(given(donor0=np.ones(64)), r"embeddings lack the states \['donor1'\]", id="a vector missing"),
        pytest.param(
            given(donor0=np.ones(3), donor1=np.ones(3)),
            r"vector of state 'donor0' has shape \(3,\), the model's have \(64,\)",
            id="another model's vectors",
        ),
        pytest.param(
            given(donor0=np.ones(64), donor1=np.full(64, np.nan)),
            "vector of state 'donor1' holds values that are not finite",
            id="no numbers",
        ),
    ],
)
def test_a_goal_that_does_not_fit_the_cells_is_refused(model, short, goal, message, tmp_path):
    with pytest.raises(InputError, match=message):
        perturb(model, short, Deletion(), goal=goal, max_cells=1, out=tmp_path / "shifts.parquet")
    assert left_by(tmp_path) == []


@pytest.mark.parametrize(
    ("states", "message"),
    [
        pytest.param(("a", "a"), "must be different states, found 'a', 'a'", id="start is goal"),
        pytest.param(("a", "b", ["b"]), "must be different states, found 'a', 'b', 'b'", id="goal is an alternative"),
        pytest.param((0, "0"), "must be different states, found '0', '0'", id="one state written twice"),
        pytest.param((None, "b"), "start must be a value of a column.*found None", id="no start"),
        pytest.param(("a", "b", 3), r"alternatives: each must be in a sequence.*give \[3\]", id="a number of states"),
        pytest.param(("dcm", "nf", "hcm"), r"alternatives.*\['hcm'\]", id="one alternative without brackets"),
    ],
)
def test_a_goal_that_contradicts_itself_is_refused(states, message):
    with pytest.raises(InputError, match=message):
        GoalState("disease", *states)


def test_states_have_the_names_that_classes_have():
    asked = GoalState("code", 0, np.int64(1), [2.0, True, "x"], embeddings={0: np.ones(2), 1.0: np.zeros(2)})
    assert asked.states == ("0", "1", "2", "True", "x")
    assert list(asked.embeddings) == ["0", "1"]
    assert GoalState("code", 0, 1) == GoalState("code", "0", "1")
    with pytest.raises(InputError, match="embeddings give a state twice: 0, '0'"):
        GoalState("code", 0, 1, embeddings={0: np.ones(2), "0": np.ones(2)})


# Which cells


def test_max_cells_takes_a_random_choice_that_the_seed_decides(model, short):
    chosen = [perturb(model, short, Deletion(), max_cells=5, seed=seed).table["cell"].unique() for seed in (0, 0, 1)]
    assert [len(names) for names in chosen] == [5, 5, 5]
    assert chosen[0].tolist() == chosen[1].tolist() != chosen[2].tolist()
    assert (np.diff(pd.Index(short.cell_names).get_indexer(chosen[0])) > 0).all()


def test_max_cells_above_their_number_takes_all(model, short):
    assert perturb(model, short.select(range(3)), Deletion(), max_cells=99).table["cell"].nunique() == 3


def test_max_cells_counts_cells_that_can_be_perturbed(model, short):
    gene = perturb(model, short, Deletion()).table["perturbed"].value_counts().index[0]
    shifts = perturb(model, short, Deletion([gene]), max_cells=4)
    assert len(shifts) == shifts.metadata["n_cells"] == 4


def test_max_cells_makes_no_variant_of_the_cells_it_leaves_out(model, short, monkeypatch):
    made, variants = [], module.Edits.variants

    def counting(edits, cell):
        made.append(cell.tolist())
        return variants(edits, cell)

    monkeypatch.setattr(module.Edits, "variants", counting)
    shifts = perturb(model, short, Deletion(combine="pairs"), max_cells=1, max_tokens=10_000)
    (cell,) = short.select(np.flatnonzero(short.cell_names == shifts.table["cell"].iloc[0]))
    assert made == [cell.tolist()]


def test_a_set_is_deleted_in_the_cells_that_have_all_of_it(model, short):
    pair = short.genes(0)[1:3]
    found = perturb(model, short, Deletion(pair)).table
    assert found["cell"].tolist() == [name for i, name in enumerate(short.cell_names) if {*pair} <= {*short.genes(i)}]
    assert found["perturbed"].unique().tolist() == ["+".join(pair)]


# Genes


def unexpressed(short):
    """A gene of the vocabulary that none of the first three cells has."""
    return next(gene for gene in short.vocabulary.gene_ids if not any(gene in short.genes(i) for i in range(3)))


def test_an_unknown_gene_is_listed_and_the_rest_goes_on(model, short, caplog):
    genes = short.genes(0)[:2]
    found = perturb(model, short, Deletion([genes[0], "ACTB4", genes[1], "TTN9"], combine="singly"))
    assert warnings_of(caplog) == [
        "2 of 4 genes are not in the vocabulary, or their name stands for several genes: 'ACTB4', 'TTN9'. They are "
        "left out."
    ]
    pd.testing.assert_frame_equal(found.table, perturb(model, short, Deletion(genes, combine="singly")).table)
    assert found.metadata["perturbation"]["genes"] == genes


def test_a_gene_that_no_cell_expresses_is_listed_and_the_rest_goes_on(model, short, caplog):
    few, gene, absent = short.select(range(3)), short.genes(0)[0], unexpressed(short)
    found = perturb(model, few, Deletion([absent, gene], combine="singly")).table
    assert warnings_of(caplog) == [f"1 of 2 genes are expressed by none of the cells: '{absent}'. They are left out."]
    assert set(found["perturbed"]) == {gene}


def test_a_step_of_which_no_gene_is_left_is_left_out(model, short, caplog):
    few, gene, absent = short.select(range(3)), short.genes(0)[0], unexpressed(short)
    found = perturb(model, few, Deletion([absent]) + Activation([gene]))
    assert len(warnings_of(caplog)) == 1
    assert found.metadata["perturbation"]["steps"] == [Activation([gene]).describe()]


def test_absent_genes_can_be_overexpressed_in_all_cells(model, short, caplog):
    found = perturb(model, short.select(range(3)), Overexpression([unexpressed(short)])).table
    assert warnings_of(caplog) == []
    assert len(found) == 3
    assert found["rank"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda a, no: Deletion(["ACTB4"]), r"1 of 1 genes are not in the vocab.*'ACTB4'", id="unknown"),
        pytest.param(lambda a, no: Overexpression(["ACTB4"]), r"1 of 1 genes are not in the vocab", id="to insert"),
        pytest.param(lambda a, no: Deletion(anchor="ACTB4"), r"1 of 1 genes are not in the vocab", id="unknown anchor"),
        pytest.param(lambda a, no: Deletion([no]), r"1 of 1 genes are expressed by none of the cells", id="absent"),
        pytest.param(
            lambda a, no: Deletion(a[:1], anchor=no), "1 of 2 genes are expressed by none", id="absent anchor"
        ),
        pytest.param(
            lambda a, no: Deletion([a[0], no], combine="pairs"), "1 of 2 genes are expressed by none", id="half a pair"
        ),
        pytest.param(
            lambda a, no: Deletion(["X"]) + Deletion(["Y"]), "2 of 2 genes are not in the vocabulary", id="all steps"
        ),
    ],
)
def test_without_a_gene_that_is_left_nothing_is_done(model, short, tmp_path, change, message):
    few = short.select(range(3))
    with pytest.raises(InputError, match=rf"{message}.*Give ids or names of genes that are there"):
        perturb(model, few, change(few.genes(0), unexpressed(short)), out=tmp_path / "shifts.parquet")
    assert left_by(tmp_path) == []


def test_a_set_that_no_cell_has_whole_is_refused(model, short):
    apart = cells_of(short, [short.genes(0)[:4], short.genes(0)[4:8], short.genes(0)[8:]], state=["a", "a", "b"])
    both = Deletion([short.genes(0)[0], short.genes(0)[5]])
    with pytest.raises(InputError, match="No cell has the genes to perturb and another one to keep"):
        perturb(model, apart, both)
    states = dict.fromkeys("ab", np.ones(64))
    with pytest.raises(InputError, match="No cell in state 'a' has the genes"):
        perturb(model, apart, both, goal=GoalState("state", "a", "b", embeddings=states))


def test_a_cell_of_one_gene_is_left_out(model, short):
    cells = cells_of(short, [short.genes(0)[:1], short.genes(0)[:2]])
    assert perturb(model, cells, Deletion()).table["cell"].tolist() == ["cell1", "cell1"]
    with pytest.raises(InputError, match="another one to keep"):
        perturb(model, cells.select([0]), Deletion())


@pytest.fixture(params=[(1, 13), (0, 14)], ids=["special tokens only", "no token"])
def with_empty_cells(short, request):
    """The cells, of which the second and two later ones hold no gene; and the others alone."""
    rows, (start, end) = short.table.to_pandas(), request.param
    for row in (1, 14, 30):
        rows.at[row, "input_ids"] = np.delete(rows.at[row, "input_ids"], slice(start, end))
        rows.at[row, "length"] = len(rows.at[row, "input_ids"])
    table = type(short.table).from_pandas(rows, preserve_index=False)
    cells = dataclasses.replace(short, table=table)
    return cells, cells.select(np.setdiff1d(np.arange(36), [1, 14, 30]))


def test_cells_without_a_gene_are_left_out_of_a_screen(model, classifier, with_empty_cells):
    """Also where they are of the goal's states."""
    cells, others = with_empty_cells
    vectors = dict(zip(GOAL.states, np.random.default_rng(0).normal(size=(3, 64))))
    own = dataclasses.replace(GOAL, embeddings=vectors)
    pair = others.genes(0)[:2]
    for checkpoint, change, options in (
        (model, Deletion(), {"affected": "each", "pooling": "mean"}),
        (model, Overexpression(pair), {}),
        (model, Deletion(pair, combine="pairs"), {"goal": own}),
        (model, Deletion(), {"goal": own, "method": "first_order", "max_cells": 3}),
        (classifier, Deletion(), {"target": "age", "max_cells": 4}),
    ):
        found, expected = (perturb(checkpoint, some, change, **options).table for some in (cells, others))
        assert_same_rows(found, expected)
    shifts = perturb(model, cells, Deletion(), goal=GOAL, donor="donor")
    assert gf.shift_statistics(shifts, cells=cells)["effect_beyond_baselines"].notna().all()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"layer": 1}, r"layer must lie between -3 .* and 0 \(the last block\), found 1", id="layer above"),
        pytest.param({"layer": -4}, r"layer must lie between -3 .*found -4", id="layer below"),
        pytest.param({"pooling": "max"}, "pooling must be one of 'mean', 'cls', found 'max'", id="pooling"),
        pytest.param({"max_cells": 0}, "max_cells must be at least 1, found 0", id="no cells"),
        pytest.param({"seed": -1}, "seed must be at least 0, found -1", id="seed"),
        pytest.param({"dtype": "float16"}, "dtype must be one of 'float32', 'bfloat16', found 'float16'", id="dtype"),
        pytest.param(
            {"method": "fast"}, "method must be 'exact', 'first_order' or 'sampled', found 'fast'", id="method"
        ),
        pytest.param({"method": "first_order"}, r"needs goal= or target=", id="first order of similarity"),
        pytest.param({"refine": 2}, "refine must be at least 0, and is for method='first_order'; found 2", id="refine"),
        pytest.param(
            {"refine": -1, "method": "first_order", "goal": GOAL},
            "refine must be at least 0.*found -1",
            id="refine < 0",
        ),
        pytest.param(
            {"method": "first_order", "goal": GOAL, "perturbation": Deletion(combine="pairs")},
            "estimates one expressed gene at a time.*Use method='exact'",
            id="first order of pairs",
        ),
        pytest.param({"affected": "each", "goal": GOAL}, "Make two screens", id="affected and goal"),
        pytest.param({"affected": "all"}, "affected must be 'each' or a sequence.*found 'all'", id="affected as text"),
        pytest.param({"affected": ["ACTB4"]}, "1 of 1 genes are not in the vocabulary", id="unknown affected gene"),
        pytest.param(
            {"target": "age"}, "needs a classifier of cells, and checkpoint tiny is a pretrained", id="target"
        ),
        pytest.param({"donor": "donr"}, "no obs column 'donr'. Did you mean 'donor'", id="donor"),
        pytest.param({"obs": ["sex"]}, "no obs column 'sex'", id="obs"),
        pytest.param(
            {"obs": "donor"}, r"obs must be a sequence of columns; for one give \['donor'\]", id="obs as text"
        ),
        pytest.param({"obs": ["n_counts", "n_counts"]}, "obs names a column twice", id="obs twice"),
        pytest.param({"obs": ["value"]}, "its own column 'value'; rename that of obs", id="obs named as ours"),
        pytest.param({"obs": ["donor"]}, "its own column 'donor'", id="donor as obs"),
        pytest.param({"donor": "partly"}, r"1 of 36 cells to perturb have no 'partly'.*cells\.select", id="no donor"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_leave_nothing_behind(model, short, tmp_path, options, message):
    options = {"perturbation": Deletion(), "out": tmp_path / "shifts.parquet", **options}
    with pytest.raises(InputError, match=message):
        perturb(model, short, **options)
    assert left_by(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"target": "agee"}, "checkpoint tiny has no target 'agee'. Did you mean 'age'", id="target"),
        pytest.param({"layer": -1}, "the classifier decides layer and pooling; leave them out", id="layer"),
        pytest.param({"pooling": "mean"}, "the classifier decides layer and pooling", id="pooling"),
        pytest.param({"affected": "each"}, "Make two screens", id="affected"),
        pytest.param(
            {"goal": GOAL}, "names classes of 'age', without embeddings; found states of 'cell_type'", id="other goal"
        ),
        pytest.param(
            {"target": "cell_type", "goal": GOAL}, "knows no cell_type 'CD56\\+ NK'. There are: 'B', 'NK'", id="class"
        ),
        pytest.param(
            {"target": "cell_type", "goal": GoalState("cell_type", "B", "NK", embeddings={})},
            "names classes of 'cell_type', without embeddings",
            id="vectors",
        ),
        pytest.param(
            {"target": "cell_type", "goal": GoalState("cell_type", "B", "NK")},
            "No cell has cell_type = 'B'",
            id="start",
        ),
    ],
)
def test_options_that_do_not_fit_a_classifier_are_refused(classifier, short, options, message):
    with pytest.raises(InputError, match=message):
        perturb(classifier, short, Deletion(), **{"target": "age", **options})


def test_a_classifier_of_genes_has_no_prediction_of_cells(short):
    genes = random_model(short.vocabulary, GeneClassifier, Head((Classes("dosage", ("no", "yes")),), level="gene"))
    with pytest.raises(InputError, match="needs a classifier of cells, and checkpoint tiny is one of genes"):
        perturb(genes, short, Deletion(), target="dosage")


def test_only_cells_that_are_perturbed_need_a_donor(model, short):
    started = short.obs["cell_type"].iloc[0]
    others = [state for state in GOAL.states if state != started]
    goal = GoalState("cell_type", started, others[0])
    with pytest.raises(InputError, match="1 of 12 cells to perturb have no 'partly'"):
        perturb(model, short, Deletion(), goal=goal, donor="partly")
    goal = GoalState("cell_type", others[0], others[1])
    assert perturb(model, short, Deletion(), goal=goal, donor="partly", max_cells=2).table["donor"].notna().all()


def test_cells_of_another_vocabulary_are_refused(model, short):
    with pytest.raises(gf.VocabularyMismatchError, match="the dataset and checkpoint tiny have different vocabularies"):
        perturb(dataclasses.replace(model, vocabulary=OTHER), short, Deletion())


def test_cls_is_refused_where_cells_have_none(pbmc):
    vocabulary = gf.Vocabulary.fit(pbmc, series="V1", max_length=12)
    with pytest.raises(InputError, match="pooling='cls' needs cells that begin with <cls>"):
        perturb(random_model(vocabulary), gf.tokenize(pbmc[:2], vocabulary), Deletion(), pooling="cls")


def test_no_cells_are_refused_in_our_words(model, short):
    with pytest.raises(InputError, match="no cells"):
        perturb(model, short.select([]), Deletion())


def test_more_genes_than_a_cell_has_room_for_are_refused(model, short):
    genes = short.vocabulary.gene_ids[:12]
    with pytest.raises(InputError, match="12 genes are perturbed at once, and a cell has room for 12"):
        perturb(model, short, Overexpression(genes))
    assert len(perturb(model, short, Overexpression(genes[:11]), max_cells=2)) == 2


def test_a_list_of_which_each_gene_is_perturbed_alone_may_be_longer_than_a_cell(model, short):
    genes = sorted(set(short.genes(0)) | set(short.genes(1)) | set(short.genes(2)))
    assert len(genes) > 12
    found = perturb(model, short.select([0]), Overexpression(genes, combine="singly")).table
    assert found["perturbed"].tolist() == genes


def test_several_processes_need_a_file_to_share(model, short, monkeypatch):
    monkeypatch.setattr(parted, "processes", SimpleNamespace(count=lambda: 2))
    with pytest.raises(InputError, match=r"Several processes share a screen through its file; give out="):
        perturb(model, short, Deletion())


def test_an_output_that_exists_is_refused_or_replaced(model, short, tmp_path):
    out = tmp_path / "shifts.parquet"
    out.write_text("earlier")
    with pytest.raises(FileExistsError, match=r"shifts\.parquet already exists.*overwrite=True"):
        perturb(model, short.select([0]), Deletion(), out=out)
    assert out.read_text() == "earlier"
    perturb(model, short.select([0]), Deletion(), out=out, overwrite=True)
    assert len(ShiftTable.open(out)) == 12


# What is said meanwhile


def said(caplog, *given, **options):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        perturb(*given, **options)
    return [record.message for record in caplog.records if record.levelno == logging.INFO]


def test_before_the_start_is_said_what_is_to_be_done_and_how_long_it_takes(model, short, caplog):
    pooled, first, *_ = said(caplog, model, short, Deletion(), max_tokens=14)
    assert pooled.startswith("Cells are pooled by <cls>, as published")
    assert re.fullmatch(r"432 variants of 36 cells, about \d+ s here", first)


def test_what_a_probe_would_take_much_of_is_begun_at_once(model, short, caplog):
    assert said(caplog, model, short.select(range(3)), Deletion())[1] == "36 variants of 3 cells"


def test_of_long_work_is_said_how_long_less_would_take(model, short, caplog, monkeypatch):
    monkeypatch.setattr(module._Screen, "_seconds", lambda *given: 100.0)
    messages = said(caplog, model, short, Deletion(), max_tokens=14)
    assert messages[1] == "432 variants of 36 cells, about 12 h 0 min here; 20 min for 1 cells (max_cells)"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"), (89, "89 s"), (95, "2 min"), (5000, "83 min"), (7199, "2 h 0 min"), (3 * 3600 + 120, "3 h 2 min"),
        (72 * 3600, "3.0 days"),
    ],
)  # fmt: skip
def test_times_are_said_as_people_do(seconds, words):
    assert parted.in_words(seconds) == words


def test_the_last_line_tells_how_much_was_done_and_how_fast(model, short, caplog):
    line = json.loads(said(caplog, model, short.select(range(3)), Deletion())[-1])
    assert (line["event"], line["variants"]) == ("perturb", 36)
    assert set(line) == {"event", "variants", "seconds", "variants_per_second", "peak_memory_gb"}


# Cut off


class StoppedError(RuntimeError):
    """Stands for a crash."""


@pytest.fixture
def small_parts(monkeypatch):
    """Five parts of two cells where there would be one."""
    monkeypatch.setattr(module, "CELLS_A_PART", 2)


def stop_at_part(patch, n):
    """Crash in the n-th part that is done, once its values are there; return the list of the cells of those done."""
    table, done = module._Screen.table_of, []

    def stopping(self, part, show):
        result = table(self, part, show)
        if len(done) == n:
            raise StoppedError
        done.append(part.tolist())
        return result

    patch.setattr(module._Screen, "table_of", stopping)
    return done


@pytest.fixture
def options(tmp_path):
    return {"goal": GOAL, "max_cells": 10, "donor": "donor", "obs": ["n_counts"], "out": tmp_path / "shifts.parquet"}


@pytest.fixture
def cut_off(model, short, options, monkeypatch, small_parts):
    """Output of a screen of ten cells that crashed in its fourth part."""
    with monkeypatch.context() as patch:
        stop_at_part(patch, 3)
        with pytest.raises(StoppedError):
            perturb(model, short, Deletion(), **options)
    return options["out"]


def test_a_screen_that_was_cut_off_ends_like_an_uninterrupted_one(
    model, short, tmp_path, cut_off, options, monkeypatch
):
    assert not cut_off.exists()
    assert left_by(cut_off.with_name("shifts.parquet.partial")) == [
        "part-000000.parquet", "part-000001.parquet", "part-000002.parquet", "plan.json",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        redone = stop_at_part(patch, -1)
        perturb(model, short, Deletion(), **options)
    assert redone == [[6, 7], [8, 9]]
    perturb(model, short, Deletion(), **options | {"out": tmp_path / "whole.parquet"})
    assert cut_off.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert left_by(tmp_path) == ["shifts.parquet", "whole.parquet"]


def test_what_remains_to_be_done_is_said(model, short, cut_off, options, caplog):
    messages = said(caplog, model, short, Deletion(), **options)
    assert "48 variants of 4 cells" in messages
    assert json.loads(messages[-1])["variants"] == 120


def test_half_a_part_that_a_killed_process_left_is_not_read(model, short, cut_off, options):
    (cut_off.with_name("shifts.parquet.partial") / ".part-000003.tmp-1.parquet").write_bytes(b"PAR1")
    resumed = perturb(model, short, Deletion(), **options)
    whole = perturb(model, short, Deletion(), **options | {"out": None})
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)


@pytest.mark.parametrize("lost", [[1], [0, 2]], ids=str)
def test_only_parts_that_are_missing_are_done_again(model, short, cut_off, options, monkeypatch, lost):
    whole = perturb(model, short, Deletion(), **options | {"out": None})
    for part in lost:
        (cut_off.with_name("shifts.parquet.partial") / f"part-{part:06d}.parquet").unlink()
    redone = stop_at_part(monkeypatch, -1)
    resumed = perturb(model, short, Deletion(), **options)
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
    assert redone == [[2 * part, 2 * part + 1] for part in sorted([*lost, 3, 4])]


def test_parts_end_where_there_is_enough_to_do():
    parts = consecutive_parts(np.array([4, 6, 1, 99, 1, 1, 1, 1]), 3, 10)
    assert [part.tolist() for part in parts] == [[0, 1], [2], [3], [4, 5, 6], [7]]


OTHER_RUNS = [
    ({"layer": 0}, "layer: -1 there, 0 now"),
    ({"pooling": "mean"}, "pooling: 'cls' there, 'mean' now"),
    ({"goal": None}, "measure: 'cosine shift' there, 'cosine similarity' now"),
    ({"max_cells": 9}, "n_cells: 10 there, 9 now"),
    ({"seed": 1}, "seed: 0 there, 1 now"),
    ({"donor": None}, "donor: 'donor' there, None now"),
    ({"dtype": "bfloat16"}, "dtype: 'float32' there, 'bfloat16' now"),
    ({"perturbation": Overexpression()}, "kind: 'Deletion' there, 'Overexpression' now"),
    ({"method": "first_order"}, "method: 'exact' there, 'first_order' now"),
    (
        {"goal": dataclasses.replace(GOAL, embeddings=dict.fromkeys(GOAL.states, np.ones(64)))},
        r"goal\.embeddings: None there",
    ),
]


def test_an_unfinished_screen_of_another_run_is_refused_with_the_difference(model, short, cut_off, options):
    for changes, difference in OTHER_RUNS:
        with pytest.raises(FileExistsError, match=rf"screen with other settings \(.*{difference}.*overwrite=True"):
            perturb(model, short, **{"perturbation": Deletion(), **options, **changes})
    assert len(left_by(cut_off.with_name("shifts.parquet.partial"))) == 4


def test_an_unfinished_screen_of_another_model_or_other_cells_is_refused(model, short, cut_off, options):
    with pytest.raises(FileExistsError, match="cells: "):
        perturb(model, short.select(range(35)), Deletion(), **options)
    with torch.no_grad():
        model.model.bert.embeddings.word_embeddings.weight += 1
    with pytest.raises(FileExistsError, match="checkpoint: "):
        perturb(model, short, Deletion(), **options)


def test_an_unfinished_screen_with_other_settings_gives_way_to_overwrite(model, short, cut_off, options):
    table = perturb(model, short, Deletion(), **options | {"layer": 0}, overwrite=True).table
    expected = perturb(model, short, Deletion(), **options | {"layer": 0, "out": None}).table
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


@pytest.mark.parametrize(
    ("full", "code"),
    [("part-000002.parquet", errno.ENOSPC), ("shifts.parquet", errno.EDQUOT), ("plan.json", errno.ENOSPC)],
    ids=["in a part", "in the file, quota", "before the first"],
)
def test_a_disk_that_is_full_is_named_and_the_same_call_goes_on(
    model, short, options, small_parts, monkeypatch, full, code
):
    """Where it is met: in a part, in the file of them all, before the first."""
    stem = full.split(".")[0]
    replace = type(options["out"]).replace

    def fills(aside, path):
        if path.name == full:
            raise OSError(code, os.strerror(code))
        return replace(aside, path)

    with monkeypatch.context() as patch:
        patch.setattr(type(options["out"]), "replace", fills)
        with pytest.raises(InputError, match=rf"{full} could not be written: the disk is full.*the same call again"):
            perturb(model, short, Deletion(), **options)
    assert not list(options["out"].parent.rglob(f".{stem}*"))
    redone = stop_at_part(monkeypatch, -1)
    resumed = perturb(model, short, Deletion(), **options)
    assert len(redone) == {"part-000002.parquet": 3, "shifts.parquet": 0, "plan.json": 5}[full]
    whole = perturb(model, short, Deletion(), **options | {"out": None})
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)


# Killed, and shared


def forked(work, **environment):
    """Do work in a copy of this process, which has everything loaded; return its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update(environment)
        torch.set_num_threads(1)
        PartialState._reset_state()
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def on_one_thread(model, short, options, small_parts):
    """Make the screen, with as many threads as a process that was forked."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda out: perturb(model, short, Deletion(), **options | {"out": out})
    torch.set_num_threads(n_threads)


def before_each_part(work):
    """Do something before a part's rows are kept."""
    table = module._Screen.table_of

    def watched(self, part, show):
        rows = table(self, part, show)
        work(part)
        return rows

    module._Screen.table_of = watched


def test_a_screen_that_was_killed_goes_on_and_ends_with_the_same_bytes(on_one_thread, tmp_path, monkeypatch):
    out, whole = tmp_path / "shifts.parquet", tmp_path / "whole.parquet"

    def killed():
        before_each_part(lambda part: os.kill(os.getpid(), signal.SIGKILL) if part[0] == 4 else None)
        on_one_thread(out)

    assert ended(forked(killed)) == -signal.SIGKILL
    assert left_by(tmp_path / "shifts.parquet.partial")[:2] == ["part-000000.parquet", "part-000001.parquet"]
    redone = stop_at_part(monkeypatch, -1)
    on_one_thread(out)
    assert redone == [[4, 5], [6, 7], [8, 9]]
    on_one_thread(whole)
    assert out.read_bytes() == whole.read_bytes()


def test_two_processes_write_what_one_does(on_one_thread, tmp_path):
    """The second takes its time, so that the first has to wait for it."""
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    port = str(free_port())
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1"}

    def of_two():
        before_each_part(lambda part: time.sleep(0.2 * processes.rank()))
        on_one_thread(two)

    both = [forked(of_two, **shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(2)]
    assert [ended(pid) for pid in both] == [0, 0]
    on_one_thread(one)
    assert two.read_bytes() == one.read_bytes()
    assert not (tmp_path / "two.parquet.partial").exists()


# Defects of the published perturber


def test_defect_1_values_of_affected_genes_are_their_own_not_their_neighbours(golden):
    """Published, a name is missing before the values are filed: others have their neighbour's value, one has none."""
    pooling = "cls" if golden.vocabulary.has_cls else "mean"
    found = perturb(golden.checkpoint, golden.cells, Overexpression(), affected="each", pooling=pooling).table
    first = golden.cells.select([0])
    expected = SlowScreen(golden.checkpoint, pooling=pooling).table(first, Overexpression(), affected="each")
    assert_same_rows(found[found["cell"] == first.cell_names[0]].reset_index(drop=True), expected, atol=1e-5)
    published = pd.read_parquet(golden.folder / "isp_overexpress_all_and_gene.parquet")
    assert len(found) - len(published) == found["affected"].isna().sum() == (published["affected"] == "cell_emb").sum()


@pytest.mark.parametrize("kind", [Deletion, Overexpression])
def test_defect_2_a_pair_comes_with_its_genes_alone_in_the_same_cells(model, short, kind):
    """Published, pairs come alone, without what the statistics of pairs compare them with."""
    anchor, gene = short.genes(0)[3], short.genes(0)[6]
    table = perturb(model, short, kind([gene], anchor=anchor)).table
    by_cell = table.groupby("cell", sort=False)["perturbed"].agg(list)
    both = [name for i, name in enumerate(short.cell_names) if {anchor, gene} <= {*short.genes(i)}]
    assert both
    for name in short.cell_names if kind is Overexpression else both:
        assert by_cell[name] == [anchor, gene, f"{anchor}+{gene}"]


def test_defect_2_with_an_anchor_every_other_gene_is_overexpressed(model, short):
    """Published, two genes' names are missing, and values stand under others'."""
    anchor = short.genes(0)[3]
    few = short.select([0])
    table = perturb(model, few, Overexpression(anchor=anchor)).table
    assert set(table["perturbed"]) == {*short.genes(0), *(f"{anchor}+{g}" for g in short.genes(0) if g != anchor)}
    assert_same_rows(table, SlowScreen(model, pooling="cls").table(few, Overexpression(anchor=anchor)))


def test_defect_3_a_cell_with_room_for_the_gene_is_not_cropped(model, short):
    """Published, a gene is taken off the end of the unchanged cell though it has a place left."""
    absent = unexpressed(short)
    for n_genes, n_left in ((11, 11), (12, 11)):  # a cell may have twelve
        cell = cells_of(short, [short.genes(0)[:n_genes]])
        found = perturb(model, cell, Overexpression([absent]), affected="each", pooling="mean").table
        assert found["affected"].dropna().tolist() == short.genes(0)[:n_left]
    room = cells_of(short, [short.genes(0)[:11]])
    expected = SlowScreen(model).table(room, Overexpression([absent]))
    assert_same_rows(perturb(model, room, Overexpression([absent]), pooling="mean").table, expected)


@pytest.mark.parametrize("kind", [Deletion, Overexpression])
def test_defect_4_one_unknown_gene_does_not_stop_the_others(model, short, kind, caplog):
    """Published, with one unknown gene of a list no cell has them all, or the model meets a token that is none."""
    genes = short.genes(0)[:2]
    found = perturb(model, short, kind(["ENSG99999999999", *genes])).table
    assert "'ENSG99999999999'" in warnings_of(caplog)[0]
    pd.testing.assert_frame_equal(found, perturb(model, short, kind(genes)).table)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", [Deletion, Overexpression])
def test_defect_5_a_cell_of_which_nothing_is_left_has_no_row(model, short, kind, pooling):
    """Published, the test for "no result" is never true."""
    pair = short.genes(0)[:2]
    cells = cells_of(short, [pair, pair[::-1], short.genes(0)[:3]])
    for change in (kind(pair), kind(pair, combine="pairs"), kind()):
        table = perturb(model, cells, change, pooling=pooling, affected="each").table
        assert table["value"].notna().all()
    table = perturb(model, cells, kind(pair), pooling=pooling).table
    assert table["cell"].tolist() == ["cell2"]


@pytest.mark.parametrize(("cells_a_part", "max_tokens"), [(1, 50), (3, 14), (7, 14), (100, 50)])
def test_defect_6_every_row_is_written_whatever_the_sizes_of_parts_and_batches(
    model, short, tmp_path, monkeypatch, cells_a_part, max_tokens
):
    """Published, results are kept in memory unless one size is a multiple of the other."""
    monkeypatch.setattr(module, "CELLS_A_PART", cells_a_part)
    written, write = [], pq.write_table

    def counting(table, *given, **options):
        written.append(len(table))
        return write(table, *given, **options)

    monkeypatch.setattr(parted.pq, "write_table", counting)
    out = tmp_path / "shifts.parquet"
    shifts = perturb(model, short, Deletion(), max_cells=7, out=out, max_tokens=max_tokens)
    assert shifts.table["perturbed"].tolist() == [
        g for name in shifts.table["cell"].unique() for g in genes_of(short, name)
    ]
    assert max(written) == 12 * min(cells_a_part, 7)
    assert sum(written) == 12 * 7


def genes_of(cells, name):
    return cells.genes(cells.cell_names.tolist().index(name))


def test_defect_7_an_anchor_is_kept_where_there_is_a_goal(model, short):
    """Published, it is dropped without a word."""
    started = np.flatnonzero(short.obs["cell_type"] == GOAL.start)[0]
    anchor = short.genes(started)[2]
    shifts = perturb(model, short, Deletion(anchor=anchor), goal=GOAL)
    pairs = shifts.table["perturbed"][shifts.table["perturbed"].str.contains("+", regex=False)]
    assert len(pairs)
    assert pairs.str.startswith(f"{anchor}+").all()
    assert shifts.metadata["perturbation"]["anchor"] == anchor
    with pytest.raises(InputError, match="ACTB4"):
        perturb(model, short, Deletion(anchor="ACTB4"), goal=GOAL)


def test_defect_8_a_row_knows_its_cell_and_donor_so_that_donors_can_be_compared(model, short):
    """Published, neither is in the output. To go on, and on any device and several: see the sections above."""
    shifts = perturb(model, short, Deletion(), donor="donor")
    expected = dict(zip(short.cell_names, short.obs["donor"]))
    assert dict(zip(shifts.table["cell"], shifts.table["donor"])) == expected
    assert gf.shift_statistics(shifts)["n_donors"].max() == 3
