"""Screens against stock BERT one variant at a time, against the published results, and against themselves cut off."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro import DataFormatError, Deletion, GoalState, InputError, ShiftTable, perturb
from geneformer_repro.in_silico import screen as module
from geneformer_repro.model import MaskedGeneModel, bert_config

COLUMNS = ["cell", "perturbed", "affected", "state", "rank", "value"]
GOAL = GoalState("cell_type", "CD56+ NK", "CD19+ B", ["CD34+"])
CTSL, CTSS = "ENSG00000164733", "ENSG00000163131"
OTHER = gf.Vocabulary.from_tokens({"<pad>": 0, "<mask>": 1, "ENSG00000000003": 2})


@pytest.fixture(scope="module")
def short(_pbmc):
    """The blood cells, only their first dozen genes: a screen is small, and every code path the same."""
    vocabulary = gf.Vocabulary.fit(_pbmc, max_length=14)
    return gf.tokenize(_pbmc, vocabulary, obs=["cell_type", "n_counts"])


@pytest.fixture(scope="module")
def ragged(cells):
    """Four cells of a few genes each, no two of the same number."""
    table = cells.table.select([0, 1, 2, 3]).to_pandas()
    table["input_ids"] = [tokens[[*range(n + 1), -1]] for n, tokens in zip((9, 4, 6, 11), table["input_ids"])]
    table["length"] = table["input_ids"].map(len)
    source = type(cells.table).from_pandas(table, preserve_index=False)
    return gf.TokenizedDataset(source, cells.vocabulary, cells.spec)


@pytest.fixture
def model(short, checkpoint):
    """The tiny model for the short cells."""
    return dataclasses.replace(checkpoint, vocabulary=short.vocabulary)


def untrained(vocabulary):
    return gf.Checkpoint(MaskedGeneModel(bert_config("tiny", vocabulary)).eval(), vocabulary)


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


class SlowScreen:
    """One forward of stock BERT a variant, in float64."""

    def __init__(self, checkpoint, layer, pooling):
        self.bert = type(checkpoint.model.bert)(checkpoint.model.config, add_pooling_layer=False).double().eval()
        self.bert.load_state_dict(checkpoint.model.bert.state_dict())
        self.vocabulary, self.layer, self.pooling = checkpoint.vocabulary, layer, pooling

    def hidden(self, tokens):
        with torch.inference_mode():
            every = self.bert(torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states
        return every[len(every) - 1 + self.layer][0].numpy()

    def genes(self, tokens):
        return [i for i, token in enumerate(tokens) if token not in self.vocabulary.special_tokens.values()]

    def vector(self, tokens):
        hidden = self.hidden(tokens)
        return hidden[0] if self.pooling == "cls" else np.mean([hidden[i] for i in self.genes(tokens)], axis=0)

    def similarity(self, tokens, left):
        if self.pooling == "cls":
            return cosine(self.vector(tokens), self.vector(left))
        before, after = self.hidden(tokens), self.hidden(left)
        place = {token: i for i, token in enumerate(tokens)}
        return np.mean([cosine(before[place[left[i]]], after[i]) for i in self.genes(left)])

    def rows(self, cells, states=None):
        """Every row of a deletion screen: of the similarity, or of the shift to each state's vector."""
        for name, tokens in zip(cells.cell_names, cells):
            for rank, position in enumerate(self.genes(tokens)):
                left = np.delete(tokens, position)
                gene = self.vocabulary.gene_ids[int(self.vocabulary.genes_of(tokens[[position]])[0])]
                if states is None:
                    yield name, gene, None, None, rank, self.similarity(tokens, left)
                    continue
                for state, vector in states.items():
                    shift = cosine(self.vector(left), vector) - cosine(self.vector(tokens), vector)
                    yield name, gene, None, state, rank, shift


def assert_same_screen(found, expected, atol=1e-6):
    """The same rows in the same order, values within rounding."""
    pd.testing.assert_frame_equal(found.drop(columns="value"), expected.drop(columns="value"), check_dtype=False)
    np.testing.assert_allclose(found["value"], expected["value"], atol=atol, rtol=0)


# What a value is


@pytest.mark.parametrize("layer", [0, -1, -3])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_screen_without_a_goal_is_the_slow_one(checkpoint, ragged, pooling, layer):
    expected = pd.DataFrame(SlowScreen(checkpoint, layer, pooling).rows(ragged), columns=COLUMNS)
    shifts = perturb(checkpoint, ragged, Deletion(), layer=layer, pooling=pooling)
    assert_same_screen(shifts.table, expected)
    assert shifts.measure == "cosine similarity"
    assert len(shifts) == sum(ragged.lengths) - 2 * len(ragged)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_screen_with_a_goal_is_the_slow_one(checkpoint, ragged, pooling, layer):
    slow = SlowScreen(checkpoint, layer, pooling)
    types = ["here", "here", "there", "elsewhere"]
    source = ragged.table.remove_columns(["cell_type"]).add_column("cell_type", types)
    labelled = dataclasses.replace(ragged, table=source)
    vectors = [slow.vector(tokens) for tokens in labelled]
    states = {"here": (vectors[0] + vectors[1]) / 2, "there": vectors[2], "elsewhere": vectors[3]}
    expected = pd.DataFrame(slow.rows(labelled.select([0, 1]), states), columns=COLUMNS)
    goal = GoalState("cell_type", "here", "there", ["elsewhere"])
    shifts = perturb(checkpoint, labelled, Deletion(), goal=goal, layer=layer, pooling=pooling)
    assert_same_screen(shifts.table, expected)
    assert shifts.measure == "cosine shift"


def test_values_differ_from_gene_to_gene(model, short):
    values = perturb(model, short.select([0]), Deletion()).table["value"]
    assert values.between(0, 1).all()
    assert values.nunique() == len(values)


def test_the_default_pooling_is_cls_where_cells_have_one(model, short):
    assert perturb(model, short.select([0]), Deletion()).metadata["pooling"] == "cls"


@pytest.mark.parametrize("goal", [None, GOAL], ids=["no goal", "goal"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_size_of_a_batch_does_not_change_a_value(model, short, goal, pooling):
    few = short if goal else short.select(range(4))
    whole, single = (
        perturb(model, few, Deletion(), goal=goal, pooling=pooling, max_cells=3, max_tokens=size)
        for size in (10_000, 1)
    )
    assert_same_screen(single.table, whole.table)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_deleting_one_gene_by_name_is_its_row_of_the_whole_screen(model, short, pooling):
    few = short.select(range(12))
    each = perturb(model, few, Deletion(), pooling=pooling).table
    gene = each["perturbed"].mode()[0]
    name = few.vocabulary.gene_names[few.vocabulary.position[gene]]
    alone = perturb(model, few, Deletion([name]), pooling=pooling).table
    assert_same_screen(alone, each[each["perturbed"] == gene].reset_index(drop=True))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_set_of_genes_is_deleted_together_in_the_cells_that_have_them_all(model, short, pooling):
    few = short.select(range(30))
    pair = few.genes(0)[1:3]
    table = perturb(model, few, Deletion(pair), pooling=pooling).table
    slow = SlowScreen(model, -1, pooling)
    tokens = few.vocabulary.tokens_of(pair)
    holding = [i for i in range(30) if set(tokens) <= set(few[i])]
    assert table["cell"].tolist() == few.cell_names[holding].tolist()
    assert table["perturbed"].unique().tolist() == ["+".join(pair)]
    assert table["rank"].isna().all()
    expected = [slow.similarity(few[i], few[i][~np.isin(few[i], tokens)]) for i in holding]
    np.testing.assert_allclose(table["value"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("series", ["V1", "V2"])
def test_a_cell_of_one_gene_never_gives_a_value_that_is_no_number(pbmc, series):
    vocabulary = gf.Vocabulary.fit(pbmc, series=series, max_length=5)
    first = gf.tokenize(pbmc, vocabulary).select([0, 1])
    table = first.table.to_pandas()
    table["input_ids"] = [tokens[[0, 1, -1] if vocabulary.has_cls else [0]] for tokens in table["input_ids"]]
    table["length"] = table["input_ids"].map(len)
    alone = dataclasses.replace(first, table=type(first.table).from_pandas(table, preserve_index=False))
    checkpoint = untrained(vocabulary)
    for pooling in ("mean", "cls") if vocabulary.has_cls else ("mean",):
        try:
            values = perturb(checkpoint, alone, Deletion(), pooling=pooling).table["value"]
        except InputError as error:
            assert "gene" in str(error)  # noqa: PT017 - to refuse is right as well
        else:
            assert values.notna().all()


# The published results


def published(golden, name):
    """Cell-level rows of a published run, genes by id."""
    table = pd.read_parquet(golden.folder / f"{name}.parquet")
    gene = dict(zip(golden.vocabulary.tokens, golden.vocabulary.gene_ids, strict=True))
    table = table[(table["file"] == "cell") & (table["affected"] == "cell_emb")]
    return table.assign(perturbed=table["perturbed"].map(lambda tokens: "+".join(gene[token] for token in tokens)))


def comparable(table):
    """Sorted within (state, perturbed): ties in length leave the published order of cells open."""
    keys = ["state", "perturbed", "value"]
    return table[keys].fillna({"state": ""}).sort_values(keys, ignore_index=True)


@pytest.mark.parametrize(
    ("name", "genes", "layer", "with_goal"),
    [
        pytest.param("isp_delete_all_layer-1", "each", -1, False, id="all, layer -1"),
        pytest.param("isp_delete_all_layer0", "each", 0, False, id="all, layer 0"),
        pytest.param("isp_delete_goal", "each", -1, True, id="all, towards a goal"),
        pytest.param("isp_delete_one", [CTSL], -1, False, id="one gene"),
        pytest.param("isp_delete_group", [CTSL, CTSS], -1, False, id="two genes together"),
        # The published run of that name was given one gene, see its .json.
        pytest.param("isp_delete_group_goal", [CTSL], -1, True, id="one gene, towards a goal"),
    ],
)
def test_values_are_those_of_the_published_package(golden, name, genes, layer, with_goal):
    goal = GoalState("disease", "dcm", "nf", ["hcm"], golden.state_vectors()) if with_goal else None
    found = comparable(perturb(golden.checkpoint, golden.cells, Deletion(genes), goal=goal, layer=layer).table)
    expected = comparable(published(golden, name))
    pd.testing.assert_frame_equal(found[["state", "perturbed"]], expected[["state", "perturbed"]])
    np.testing.assert_allclose(found["value"], expected["value"], atol=1e-5, rtol=0)


# Goals


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("layer", [0, -1])
def test_the_vector_of_a_state_is_the_mean_of_its_cells(model, short, pooling, layer):
    adata = gf.embed(model, short, layer=layer, pooling=pooling)
    means = {state: adata[adata.obs["cell_type"] == state].X.mean(axis=0) for state in GOAL.states}
    goals = (GOAL, dataclasses.replace(GOAL, embeddings=means))
    screens = [
        perturb(model, short, Deletion(), goal=goal, layer=layer, pooling=pooling, max_cells=2) for goal in goals
    ]
    assert_same_screen(screens[0].table, screens[1].table)


def test_given_state_vectors_are_used_instead_of_the_means(model, short):
    own = dict(gf.embed_states(model, short, GOAL.obs, pooling="cls", states=GOAL.states).T.items())
    screens = [
        perturb(model, short, Deletion(), goal=dataclasses.replace(GOAL, embeddings=given), max_cells=2)
        for given in (None, own, {state: -vector for state, vector in own.items()})
    ]
    assert_same_screen(screens[0].table, screens[1].table)
    np.testing.assert_allclose(screens[2].table["value"], -screens[0].table["value"], atol=1e-6)


def test_only_cells_of_the_start_state_are_perturbed(model, short):
    shifts = perturb(model, short, Deletion(), goal=GOAL)
    assert shifts.table["cell"].unique().tolist() == short.cell_names[short.obs["cell_type"] == "CD56+ NK"].tolist()
    assert shifts.table["state"].unique().tolist() == list(GOAL.states)
    assert shifts.metadata["goal"] == {
        "obs": "cell_type", "start": "CD56+ NK", "goal": "CD19+ B", "alternatives": ["CD34+"],
    }  # fmt: skip


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
        pytest.param(GoalState("donor", "donor0", "donor9"), r"No cell has donor = 'donor9'.*'donor0'", id="goal"),
        pytest.param(
            GoalState("donor", "donor0", "donor1", ["x"]), r"'x'\. There are: 'donor0', 'donor1'", id="alternative"
        ),
        pytest.param(given(donor0=np.ones(64)), r"embeddings lack the states \['donor1'\]", id="a vector missing"),
        pytest.param(given(donor0=np.ones(3), donor1=np.ones(3)), r"\b3\b.*\b64\b|\b64\b.*\b3\b", id="another model's"),
    ],
)
def test_a_goal_that_does_not_fit_the_cells_is_refused(checkpoint, cells, goal, message):
    with pytest.raises(InputError, match=message):
        perturb(checkpoint, cells, Deletion(), goal=goal, max_cells=1)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        pytest.param(("a", "a"), "must be different states, found 'a', 'a'", id="start is goal"),
        pytest.param(("a", "b", ["b"]), "must be different states, found 'a', 'b', 'b'", id="goal is an alternative"),
        pytest.param(("dcm", "nf", "hcm"), r"alternatives.*\['hcm'\]", id="one alternative without brackets"),
    ],
)
def test_a_goal_that_contradicts_itself_is_refused(states, message):
    with pytest.raises(InputError, match=message):
        GoalState("disease", *states)


# Which cells


def test_max_cells_takes_a_random_choice_that_the_seed_decides(model, short):
    chosen = [perturb(model, short, Deletion(), max_cells=5, seed=seed).table["cell"].unique() for seed in (0, 0, 1)]
    assert [len(names) for names in chosen] == [5, 5, 5]
    assert chosen[0].tolist() == chosen[1].tolist() != chosen[2].tolist()
    order = pd.Index(short.cell_names).get_indexer(chosen[0])
    assert (np.diff(order) > 0).all()


def test_max_cells_above_their_number_takes_all(model, short):
    few = short.select(range(3))
    assert perturb(model, few, Deletion(), max_cells=99).table["cell"].nunique() == 3


def test_max_cells_counts_cells_that_can_be_perturbed(model, short):
    gene = perturb(model, short.select(range(40)), Deletion()).table["perturbed"].value_counts().index[0]
    table = perturb(model, short.select(range(40)), Deletion([gene]), max_cells=4).table
    assert len(table) == 4


def test_the_model_and_the_cells_stay_as_they_are(model, short):
    before = model.fingerprint, short.table.to_pandas()
    perturb(model, short.select([0]), Deletion(), pooling="mean")
    assert model.fingerprint == before[0]
    pd.testing.assert_frame_equal(short.table.to_pandas(), before[1])


def unexpressed(short):
    """A gene of the vocabulary that none of the first three cells has among its first."""
    return next(gene for gene in short.vocabulary.gene_ids if not any(gene in short.genes(i) for i in range(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"layer": 1}, r"layer must lie between -3 .* and 0 \(the last block\), found 1", id="layer above"),
        pytest.param({"layer": -4}, r"layer must lie between -3 .*found -4", id="layer below"),
        pytest.param({"pooling": "max"}, "pooling must be one of 'mean', 'cls', found 'max'", id="pooling"),
        pytest.param({"max_cells": 0}, "max_cells must be at least 1, found 0", id="no cells"),
        pytest.param(
            {"perturbation": Deletion(["ACTB4"])}, "1 of 1 genes are not in the vocabulary.*'ACTB4'", id="gene"
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_and_leave_nothing_behind(model, short, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        perturb(model, short.select(range(3)), **{"perturbation": Deletion(), "out": tmp_path / "s.parquet"} | options)
    assert not list(tmp_path.iterdir())


def test_genes_that_no_cell_expresses_are_refused_by_name(model, short):
    absent = unexpressed(short)
    with pytest.raises(InputError, match=f"No cell expresses all of '{absent}'"):
        perturb(model, short.select(range(3)), Deletion([absent]))
    goal = GoalState("cell_type", *short.obs["cell_type"].iloc[:3].unique()[:2])
    with pytest.raises(InputError, match=r"No cell in state '.+' expresses all of"):
        perturb(model, short.select(range(3)), Deletion([absent]), goal=goal)


def test_cells_of_another_vocabulary_are_refused(model, cells):
    with pytest.raises(gf.VocabularyMismatchError, match="the dataset and checkpoint tiny have different vocabularies"):
        perturb(dataclasses.replace(model, vocabulary=OTHER), cells, Deletion())


def test_cls_is_refused_where_cells_have_none(pbmc):
    vocabulary = gf.Vocabulary.fit(pbmc, series="V1", max_length=12)
    with pytest.raises(InputError, match="pooling='cls' needs cells that begin with <cls>"):
        perturb(untrained(vocabulary), gf.tokenize(pbmc, vocabulary), Deletion(), pooling="cls")


def test_no_cells_are_refused_in_our_words(model, short):
    with pytest.raises(InputError, match="no cells"):
        perturb(model, short.select([]), Deletion())


# Files


def test_a_table_is_the_same_after_save_and_open(model, short, tmp_path):
    for goal, perturbation in ((None, Deletion()), (GOAL, Deletion()), (None, Deletion(short.genes(0)[:2]))):
        shifts = perturb(model, short, perturbation, goal=goal, max_cells=2)
        shifts.save(tmp_path / "shifts.parquet", overwrite=True)
        opened = ShiftTable.open(tmp_path / "shifts.parquet")
        pd.testing.assert_frame_equal(opened.table, shifts.table)
        assert opened.metadata == shifts.metadata
        assert opened.measure == shifts.measure


def test_a_file_holds_its_columns_and_format(model, short, tmp_path):
    perturb(model, short.select([0]), Deletion(), out=tmp_path / "shifts.parquet")
    schema = pq.read_schema(tmp_path / "shifts.parquet")
    assert schema.names == COLUMNS
    header = json.loads(schema.metadata[b"geneformer_repro"])
    assert header["format"] == "geneformer_repro/shifts/1"


def test_metadata_says_what_made_the_table(model, short):
    shifts = perturb(model, short, Deletion(), max_cells=2, seed=5)
    assert {key: value for key, value in shifts.metadata.items() if key != "gene_names"} == {
        "measure": "cosine similarity",
        "goal": None,
        "perturbation": "Deletion",
        "genes": "each",
        "layer": -1,
        "pooling": "cls",
        "checkpoint": model.fingerprint,
        "cells": short.fingerprint,
        "n_cells": 2,
        "seed": 5,
    }
    vocabulary = short.vocabulary
    assert shifts.metadata["gene_names"] == {
        gene: vocabulary.gene_names[vocabulary.position[gene]] for gene in sorted(shifts.table["perturbed"].unique())
    }


@pytest.mark.parametrize("goal", [None, GOAL], ids=["no goal", "goal"])
def test_the_file_holds_what_is_returned_in_memory(model, short, tmp_path, goal):
    memory = perturb(model, short, Deletion(), goal=goal, max_cells=3)
    returned = perturb(model, short, Deletion(), goal=goal, max_cells=3, out=tmp_path / "shifts.parquet")
    opened = ShiftTable.open(tmp_path / "shifts.parquet")
    for other in (returned, opened):
        pd.testing.assert_frame_equal(other.table, memory.table, check_dtype=False)
        assert other.metadata == memory.metadata
    assert [path.name for path in tmp_path.iterdir()] == ["shifts.parquet"]


@pytest.mark.parametrize("content", ["text", "folder", "missing", "foreign", "other version"])
def test_a_file_that_is_no_shift_table_is_refused(tmp_path, content):
    path = tmp_path / "shifts.parquet"
    if content == "text":
        path.write_text("cell,value\n")
    elif content == "folder":
        path.mkdir()
    elif content == "foreign":
        pd.DataFrame({"cell": ["a"], "value": [1.0]}).to_parquet(path)
    elif content == "other version":
        header = {"geneformer_repro": json.dumps({"format": "geneformer_repro/shifts/99"})}
        pq.write_table(pa.table({"cell": ["a"]}).replace_schema_metadata(header), path)
    found = {"text": "not a readable", "missing": "not a readable", "other version": "'geneformer_repro/shifts/99'"}
    message = found.get(content, "found None")
    with pytest.raises(DataFormatError, match=rf"shifts\.parquet: .*{message}.*Expected the output of perturb"):
        ShiftTable.open(path)


def test_an_output_that_exists_is_refused_or_replaced(model, short, tmp_path):
    out = tmp_path / "shifts.parquet"
    out.write_text("earlier")
    with pytest.raises(FileExistsError, match=r"shifts\.parquet already exists.*overwrite=True"):
        perturb(model, short.select([0]), Deletion(), out=out)
    assert out.read_text() == "earlier"
    perturb(model, short.select([0]), Deletion(), out=out, overwrite=True)
    assert len(ShiftTable.open(out)) == 12


# Cut off


class StoppedError(RuntimeError):
    """Stands for a crash."""


@pytest.fixture
def small_parts(monkeypatch):
    """Five parts of two cells where there would be one."""
    monkeypatch.setattr(module, "CELLS_A_PART", 2)


def stop_at_cell(patch, n):
    """Crash in the n-th cell that is perturbed; return the list of the cells that were."""
    rows_of_cell, done = module._Screen._rows_of_cell, []

    def stopping(self, bert, n_blocks, states_SD, row):
        if len(done) == n:
            raise StoppedError
        done.append(row)
        return rows_of_cell(self, bert, n_blocks, states_SD, row)

    patch.setattr(module._Screen, "_rows_of_cell", stopping)
    return done


@pytest.fixture
def cut_off(model, short, tmp_path, monkeypatch, small_parts):
    """Output of a screen of ten cells that crashed in its fourth part."""
    out = tmp_path / "shifts.parquet"
    with monkeypatch.context() as patch:
        stop_at_cell(patch, 7)
        with pytest.raises(StoppedError):
            perturb(model, short, Deletion(), goal=GOAL, max_cells=10, out=out)
    return out


def test_a_screen_that_was_cut_off_ends_like_an_uninterrupted_one(model, short, tmp_path, cut_off, monkeypatch):
    assert not cut_off.exists()
    assert sorted(path.name for path in cut_off.with_name("shifts.parquet.partial").iterdir()) == [
        "part-000000.parquet", "part-000001.parquet", "part-000002.parquet", "plan.json",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        redone = stop_at_cell(patch, -1)
        resumed = perturb(model, short, Deletion(), goal=GOAL, max_cells=10, out=cut_off)
    assert len(redone) == 4
    whole = perturb(model, short, Deletion(), goal=GOAL, max_cells=10, out=tmp_path / "whole.parquet")
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
    assert cut_off.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shifts.parquet", "whole.parquet"]


def test_half_a_part_that_a_killed_process_left_is_not_read(model, short, cut_off):
    (cut_off.with_name("shifts.parquet.partial") / ".part-000003.tmp-1.parquet").write_bytes(b"PAR1")
    resumed = perturb(model, short, Deletion(), goal=GOAL, max_cells=10, out=cut_off)
    whole = perturb(model, short, Deletion(), goal=GOAL, max_cells=10)
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)


@pytest.mark.parametrize("lost", [[0], [1], [0, 2]], ids=str)
def test_only_parts_that_are_missing_are_done_again(model, short, cut_off, monkeypatch, lost):
    whole = perturb(model, short, Deletion(), goal=GOAL, max_cells=10)
    for part in lost:
        (cut_off.with_name("shifts.parquet.partial") / f"part-{part:06d}.parquet").unlink()
    redone = stop_at_cell(monkeypatch, -1)
    resumed = perturb(model, short, Deletion(), goal=GOAL, max_cells=10, out=cut_off)
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
    assert len(redone) == 4 + 2 * len(lost)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        pytest.param({"layer": 0}, "layer: -1 there, 0 now", id="layer"),
        pytest.param({"pooling": "mean"}, "pooling: 'cls' there, 'mean' now", id="pooling"),
        pytest.param({"goal": None}, "measure: 'cosine shift' there, 'cosine similarity' now", id="goal"),
        pytest.param({"max_cells": 9}, "n_cells: 10 there, 9 now", id="max_cells"),
        pytest.param({"seed": 1}, "seed: 0 there, 1 now", id="seed"),
    ],
)
def test_an_unfinished_screen_with_other_settings_is_refused_with_the_difference(
    model, short, cut_off, changes, difference
):
    with pytest.raises(FileExistsError, match=rf"screen with other settings \({difference}\).*overwrite=True"):
        perturb(model, short, Deletion(), **{"goal": GOAL, "max_cells": 10, "out": cut_off} | changes)


def test_an_unfinished_screen_of_another_model_is_refused(model, short, cut_off):
    with torch.no_grad():
        model.model.bert.embeddings.word_embeddings.weight += 1
    with pytest.raises(FileExistsError, match="checkpoint: "):
        perturb(model, short, Deletion(), goal=GOAL, max_cells=10, out=cut_off)


def test_an_unfinished_screen_of_other_cells_is_refused(model, short, cut_off):
    with pytest.raises(FileExistsError, match="cells: "):
        perturb(model, short.select(range(600)), Deletion(), goal=GOAL, max_cells=10, out=cut_off)


def test_an_unfinished_screen_towards_other_state_vectors_is_refused(model, short, cut_off):
    elsewhere = dataclasses.replace(GOAL, embeddings={state: np.ones(64) for state in GOAL.states})
    with pytest.raises(FileExistsError, match=r"goal\.embeddings: None there"):
        perturb(model, short, Deletion(), goal=elsewhere, max_cells=10, out=cut_off)


def test_an_unfinished_screen_with_other_settings_gives_way_to_overwrite(model, short, cut_off):
    table = perturb(model, short, Deletion(), goal=GOAL, layer=0, max_cells=10, out=cut_off, overwrite=True).table
    expected = perturb(model, short, Deletion(), goal=GOAL, layer=0, max_cells=10).table
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


KILLED = """
import os, signal, sys
import geneformer_repro as gf
from geneformer_repro.in_silico import screen

screen.CELLS_A_PART = 2
write = screen._PartFolder.write

def write_and_die(self, part, table):
    write(self, part, table)
    if part == 1:
        os.kill(os.getpid(), signal.SIGKILL)

screen._PartFolder.write = write_and_die
folder = sys.argv[1]
gf.perturb(gf.Checkpoint.from_pretrained(folder + "/model"), gf.TokenizedDataset.open(folder + "/cells"), gf.Deletion(),
           max_cells=10, out=folder + "/shifts.parquet")
"""


def test_a_screen_that_was_killed_goes_on_where_it_stopped(pbmc, model, tmp_path, monkeypatch, small_parts):
    cells = gf.tokenize(pbmc, model.vocabulary, out=tmp_path / "cells")
    model.save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "shifts.parquet").exists()
    redone = stop_at_cell(monkeypatch, -1)
    resumed = perturb(model, cells, Deletion(), max_cells=10, out=tmp_path / "shifts.parquet")
    assert len(redone) == 6
    assert_same_screen(resumed.table, perturb(model, cells, Deletion(), max_cells=10).table)
