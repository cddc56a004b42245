"""Explanations of cells: what stands in the file, that it is the same however it was made, what is said and refused."""

import json
import logging
import os
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from explained_models import CLASSES, classifier_of, number_and_class, pretrained_of
from forking import forked, several, status_of

import geneformer_repro as gf
from geneformer_repro import GoalState, InputError
from geneformer_repro.in_silico import parted
from geneformer_repro.in_silico.explanations import explain as module
from geneformer_repro.in_silico.explanations.cell_methods import CellMethods
from geneformer_repro.in_silico.explanations.explain import explain
from geneformer_repro.in_silico.explanations.explanation import COLUMNS, SURROGATE_COLUMNS, Explanation
from geneformer_repro.in_silico.explanations.occlusions import OPERATORS
from geneformer_repro.in_silico.explanations.request import METHODS
from geneformer_repro.targets import Classes

SHORT = 12
"""Tokens of a cell: what is tested here does not depend on their number."""


@pytest.fixture(scope="module")
def short(cells, vocabulary, tmp_path_factory):
    """Forty blood cells of ten genes each."""
    folder = tmp_path_factory.mktemp("short") / "cells.tok"
    cells.select(range(40)).save(folder)
    return gf.TokenizedDataset.open(folder, max_length=SHORT)


@pytest.fixture
def classifier(vocabulary):
    return classifier_of(vocabulary)


def value_of(why, **chosen):
    """The values of some rows, by cell, gene and state."""
    table = why.table
    for name, value in chosen.items():
        table = table[table[name] == value]
    return table.set_index(["cell", "gene", "state"])["value"].sort_index()


# What stands in the file


def test_every_gene_of_every_cell_has_a_row_by_each_method_and_class(classifier, short):
    why = explain(
        classifier, short, methods=["hide", "integrated_gradients"], donor="donor", obs=["n_counts"], max_cells=4
    )
    table = why.table
    assert table.columns.tolist() == [*COLUMNS, "n_counts"]
    assert len(table) == 4 * 10 * 2 * 3
    assert why.methods == ("hide", "integrated_gradients")
    assert table["state"].unique().tolist() == list(CLASSES)
    chosen = [short.cell_names.tolist().index(cell) for cell in table["cell"].unique()]
    assert chosen == sorted(chosen)
    for row in chosen:
        of_cell = table[(table["cell"] == short.cell_names[row]) & (table["state"] == "CD19+ B")]
        assert of_cell["gene"].tolist() == short.genes(row) * 2
        assert of_cell["place"].tolist() == list(range(10)) * 2
        assert set(of_cell["donor"]) == {short.obs["donor"].iloc[row]}
        assert set(of_cell["n_counts"]) == {short.obs["n_counts"].iloc[row]}
    assert table.groupby("method")["exact"].all().to_dict() == {"hide": True, "integrated_gradients": False}
    assert table["gap"].isna().eq(table["method"] == "hide").all()


def test_values_and_what_they_are_the_change_of_are_the_answers(classifier, short):
    """By the classifier's own forward: of deletion the cell without a gene, which is a shorter cell."""
    why = explain(classifier, short.select([3]), state="Dendritic", methods=["delete"])
    (tokens,) = short.select([3])
    np.testing.assert_allclose(why.table["before"], odds_of(classifier, tokens), atol=1e-5)
    falls = [odds_of(classifier, tokens) - odds_of(classifier, np.delete(tokens, i)) for i in range(1, SHORT - 1)]
    np.testing.assert_allclose(why.table["value"], falls, atol=1e-5)
    assert why.metadata["measure"].startswith("log-odds of each cell_type")


def odds_of(classifier, tokens):
    """Log-odds of the third class."""
    weight = torch.tensor([0.0, *[1.0] * (len(tokens) - 2), 0.0])
    with torch.no_grad():
        logits = classifier.model(torch.from_numpy(tokens.astype(np.int64)), [len(tokens)], weights=weight).logits[0]
    return float(logits[2] - logits[:2].logsumexp(0))


def test_values_of_integrated_gradients_add_up(classifier, short):
    why = explain(classifier, short, state="CD19+ B", methods=["integrated_gradients"], max_cells=6)
    facts = why.metadata["completeness"]
    assert (facts["n_cells"], facts["n_failed"]) == (6, 0)
    assert 0 < facts["median_gap"] <= facts["largest_gap"] <= 0.01
    assert set(why.metadata["baseline_agreement"]) == {"mask, mean", "mask, pad", "mean, pad"}


def test_cells_that_do_not_add_up_are_listed_and_warned_of(classifier, short, caplog, monkeypatch):
    roughly = module.Integration(first_steps=1, most_steps=1, tolerance=1e-6)
    monkeypatch.setattr(module.Request, "integration", roughly)
    why = explain(classifier, short, state="CD19+ B", methods=["integrated_gradients"], max_cells=6)
    assert why.metadata["completeness"]["n_failed"] == 6
    assert why.metadata["completeness"]["failed"] == sorted(why.table["cell"].unique())
    assert "In 6 of 6 cells integrated gradients miss the difference" in caplog.text


def test_first_order_is_that_of_screens(vocabulary, short):
    """Of two classes a small change of the log-odds is that of the probability p over p (1 − p)."""
    checkpoint = classifier_of(vocabulary, Classes("cell_type", CLASSES[:2]))
    why = explain(checkpoint, short, state=CLASSES[0], methods=["first_order"])
    shifts = gf.perturb(checkpoint, short, gf.Deletion(), target="cell_type", method="first_order").table
    shifts = shifts[shifts["state"] == CLASSES[0]].set_index(["cell", "perturbed"])
    slope = shifts["estimate"] / (shifts["before"] * (1 - shifts["before"]))
    expected = -slope.loc[list(zip(why.table["cell"], why.table["gene"], strict=True))]
    assert expected.abs().max() > 0.1
    np.testing.assert_allclose(why.table["value"], expected, atol=1e-4)


def test_goal_states_are_explained_in_cells_of_the_start_state(vocabulary, short):
    goal = GoalState("cell_type", "CD14+ Monocyte", "Dendritic", alternatives=["CD19+ B"])
    why = explain(pretrained_of(vocabulary), short, goal=goal, donor="donor")
    start = short.cell_names[short.labels("cell_type") == "CD14+ Monocyte"]
    assert set(why.table["cell"]) == set(start)
    assert why.table["state"].unique().tolist() == ["Dendritic", "CD19+ B"]
    assert why.metadata["goal"]["start"] == "CD14+ Monocyte"
    assert why.metadata["how_good"] is None


def test_a_masked_gene_has_no_row_of_its_own(vocabulary, short):
    gene = short.genes(0)[2]
    why = explain(pretrained_of(vocabulary), short, gene=gene, methods=["hide", "first_order", "attention"])
    assert gene not in set(why.table["gene"])
    with_gene = [name for i, name in enumerate(short.cell_names) if gene in short.genes(i)]
    assert list(dict.fromkeys(why.table["cell"])) == with_gene
    assert len(why) == len(with_gene) * 9 * 3


def test_sets_are_taken_away_at_once_and_only_where_a_cell_has_one_of_their_genes(classifier, short, tmp_path):
    first, second = short.genes(0)[:2]
    gmt = tmp_path / "sets.gmt"
    gmt.write_text(f"both\t\t{first}\t{second}\nsecond\t\t{second}\tNOSUCHGENE\nabsent\t\tNOSUCHGENE\n")
    why = explain(classifier, short.select([0, 1]), state="CD19+ B", methods=["hide", "mask"], sets=gmt)
    of_first = why.table[why.table["cell"] == short.cell_names[0]]
    assert of_first["gene"].tolist() == ["both", "second"] * 2
    assert of_first["place"].isna().all()
    single = value_of(explain(classifier, short.select([0]), state="CD19+ B"))
    np.testing.assert_allclose(
        value_of(why, method="hide")[short.cell_names[0], "second"], single[short.cell_names[0], second], atol=1e-6
    )
    assert why.metadata["sets"] == {"both": sorted([first, second]), "second": [second]}
    assert why.metadata["unit"] == "set"


def test_places_of_reference_are_those_of_all_cells_not_of_those_that_are_drawn(classifier, short):
    """So that max_cells changes which cells are explained, and no value."""
    options = {"state": "CD19+ B", "methods": ["median_rank", "gradient_input"], "baseline": "mean"}
    every, some = (explain(classifier, short, max_cells=most, **options) for most in (None, 5))
    for method in options["methods"]:
        found = value_of(some, method=method)
        np.testing.assert_allclose(found, value_of(every, method=method).loc[found.index], atol=1e-4)


def test_masks_can_count_in_the_vector_of_a_cell(classifier, short):
    out, counted = (
        value_of(explain(classifier, short.select([0]), state="CD19+ B", methods=["mask"], pooled_masks=pooled))
        for pooled in (False, True)
    )
    assert np.abs(out - counted).max() > 0.01


def test_a_surrogate_says_how_far_it_is_to_be_believed(classifier, short, caplog):
    why = explain(classifier, short, state="CD19+ B", methods=["hide", "surrogate"], masks=60, max_cells=3)
    assert why.table.columns.tolist() == [*COLUMNS, *SURROGATE_COLUMNS]
    of_fits, of_others = (why.table[(why.table["method"] == "surrogate") == is_fit] for is_fit in (True, False))
    assert of_fits[list(SURROGATE_COLUMNS)].notna().all(axis=None)
    assert of_others[list(SURROGATE_COLUMNS)].isna().all(axis=None)
    said = why.metadata["surrogate"]["CD19+ B"]
    by_cell = of_fits.drop_duplicates("cell")
    assert (said["n_cells"], said["median_r2"]) == (3, by_cell["r2"].median())
    is_ranked = (by_cell["r2"] >= 0.3) & (by_cell["stability"] >= 0.5)
    assert said["n_ranked"] == is_ranked.sum()
    assert ("stands in poorly" in caplog.text) == (is_ranked.mean() < 0.5)


def test_the_masks_of_a_cell_do_not_depend_on_which_others_are_explained(classifier, short):
    options = {"state": "CD19+ B", "methods": ["surrogate"], "masks": 40}
    alone, among = (explain(classifier, short.select(rows), **options) for rows in ([2], [0, 1, 2]))
    found = value_of(among).loc[[short.cell_names[2]]]
    np.testing.assert_allclose(value_of(alone), found, atol=1e-5)


def test_a_surrogate_of_too_many_genes_is_refused_before_the_work(classifier, cells, monkeypatch):
    monkeypatch.setattr(CellMethods, "prepare", None)
    long = cells.select([int(np.argmax(cells.lengths))])
    with pytest.raises(InputError, match=r"A surrogate needs masks in proportion to its units.*sets="):
        explain(classifier, long, methods=["surrogate"])


def test_cells_without_special_tokens_are_explained_too(pbmc):
    vocabulary = gf.Vocabulary.fit(pbmc, series="V1", max_length=10)
    cells = gf.tokenize(pbmc, vocabulary, obs=["cell_type"]).select(range(3))
    checkpoint = classifier_of(vocabulary)
    why = explain(checkpoint, cells, state="CD19+ B", methods=[*OPERATORS, "first_order", "integrated_gradients"])
    assert len(why) == 3 * 10 * 6
    whole, gene = cells[0], why.table.iloc[4]
    odds = [log_odds_without_special(checkpoint, tokens) for tokens in (whole, np.delete(whole, 4))]
    of_deleted = why.table[(why.table["method"] == "delete") & (why.table["gene"] == gene["gene"])].iloc[0]
    np.testing.assert_allclose(of_deleted[["before", "value"]].astype(float), [odds[0], odds[0] - odds[1]], atol=1e-5)


def log_odds_without_special(checkpoint, tokens):
    """Log-odds of the second class of a cell that is all genes."""
    with torch.no_grad():
        logits = checkpoint.model(torch.from_numpy(tokens.astype(np.int64)), [len(tokens)]).logits[0]
    return float(logits[1] - logits[[0, 2]].logsumexp(0))


# The same, however it was made


def test_the_order_of_cells_and_the_size_of_batches_change_nothing(classifier, short):
    methods = ["hide", "median_rank", "first_order", "integrated_gradients", "attention_gradient", "rollout"]
    options = {"state": "CD19+ B", "methods": methods}
    usual = explain(classifier, short.select(range(4)), **options)
    other = explain(classifier, short.select(range(4)[::-1]), max_tokens=80, **options)
    for method in methods:
        one, another = value_of(usual, method=method), value_of(other, method=method)
        scale = np.abs(one).max()
        np.testing.assert_allclose(
            one / scale, another / scale, atol=1e-2 if method == "integrated_gradients" else 1e-5
        )


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of two cells where there would be one."""
    monkeypatch.setattr(module, "ROWS_A_PART", 2)


def options_of(tmp_path, name="why"):
    methods = ["hide", "gradient_input", "first_order", "attention"]
    return {
        "state": ["CD19+ B", "Dendritic"], "methods": methods, "donor": "donor", "obs": ["n_counts"], "max_cells": 7,
        "out": tmp_path / f"{name}.parquet",
    }  # fmt: skip


@pytest.mark.usefixtures("small_parts")
def test_on_disk_is_as_in_memory_part_by_part(classifier, short, tmp_path):
    options = options_of(tmp_path)
    on_disk = explain(classifier, short, **options)
    in_memory = explain(classifier, short, **{**options, "out": None})
    pd.testing.assert_frame_equal(on_disk.table, in_memory.table, check_exact=True)
    assert on_disk.metadata == in_memory.metadata
    assert [len(block) for block in Explanation.open(options["out"]).blocks(["cell"])] == [160, 160, 160, 80]


class StoppedError(RuntimeError):
    """Stands for a crash."""


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("n", [0, 1, 3])
def test_cut_off_and_called_again_it_ends_with_the_same_bytes(classifier, short, tmp_path, monkeypatch, n):
    explain(classifier, short, **options_of(tmp_path, "whole"))
    table, done = module._Explaining.table_of, []

    def stopping(self, part, show):
        if len(done) == n:
            raise StoppedError
        done.append(part.tolist())
        return table(self, part, show)

    with monkeypatch.context() as patch:
        patch.setattr(module._Explaining, "table_of", stopping)
        with pytest.raises(StoppedError):
            explain(classifier, short, **options_of(tmp_path, "cut"))
    explain(classifier, short, **options_of(tmp_path, "cut"))
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.parquet", "whole.parquet"]


@pytest.mark.usefixtures("small_parts")
def test_killed_it_goes_on_and_ends_with_the_same_bytes(classifier, short, tmp_path):
    table = module._Explaining.table_of

    def killed():
        def until_the_third(self, part, show):
            return os.kill(os.getpid(), signal.SIGKILL) if part[0] == 4 else table(self, part, show)

        module._Explaining.table_of = until_the_third
        explain(classifier, short, **options_of(tmp_path, "cut"))

    assert status_of(forked(killed, tmp_path / "log")) == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "cut.parquet.partial").glob("part*.parquet"))
    assert left == ["part-000000.parquet", "part-000001.parquet"]
    explain(classifier, short, **options_of(tmp_path, "cut"))
    explain(classifier, short, **options_of(tmp_path, "whole"))
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_two_processes_write_what_one_does(classifier, short, tmp_path):
    one, two = (options_of(tmp_path, name) | {"methods": ["integrated_gradients"]} for name in ("one", "two"))
    several(lambda rank: explain(classifier, short, device="cpu", **two), tmp_path)
    explain(classifier, short, **one)
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"state": "CD19+ B"}, "states"), ({"methods": ["hide"]}, "methods"), ({"max_cells": 6}, "n_cells"),
        ({"baseline": "pad"}, "methods.gradient_input.baseline"), ({"seed": 1}, "seed"),
    ],
)  # fmt: skip
def test_unfinished_work_with_other_settings_is_refused_and_the_difference_named(
    classifier, short, tmp_path, monkeypatch, change, named
):
    def stopping(self, part, show):
        if part[0]:
            raise StoppedError
        return table(self, part, show)

    table = module._Explaining.table_of
    with monkeypatch.context() as patch:
        patch.setattr(module._Explaining, "table_of", stopping)
        with pytest.raises(StoppedError):
            explain(classifier, short, **options_of(tmp_path))
    with pytest.raises(FileExistsError, match=rf"unfinished explanation with other settings \({named}"):
        explain(classifier, short, **{**options_of(tmp_path), **change})


# What is said


def test_a_classifier_that_guesses_is_said_to_guess_before_the_work(classifier, short, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        why = explain(classifier, short, donor="donor", state="CD19+ B")
    first = next(record for record in caplog.records if "explanations" in record.name)
    assert first.levelname == "WARNING"
    assert first.message.startswith("The model is no better than guessing on the rows explained: balanced accuracy")
    assert why.metadata["how_good"]["replicates"] == "donors"
    assert not why.metadata["how_good"]["better_than_guessing"]


def test_how_good_a_model_is_is_known_of_numbers_too(vocabulary, short):
    why = explain(classifier_of(vocabulary, *number_and_class()), short, target="n_counts")
    assert why.metadata["how_good"]["score"] == "Pearson correlation"
    assert why.metadata["how_good"]["n_rows"] == 40


def test_before_the_start_is_said_what_is_to_be_done_and_how_long_it_takes(classifier, short, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        explain(classifier, short, state="CD19+ B", max_tokens=14)
    messages = [record.message for record in caplog.records if record.name == module.__name__]
    assert messages[0].startswith("440 passes of 40 cells, about ")
    line = json.loads(caplog.records[-1].message)
    assert (line["event"], line["passes"]) == ("explain", 440)


# What is refused


def test_cells_that_the_model_was_trained_on_are_refused_unless_that_is_accepted(classifier, short):
    seen = np.sort(short.select([3, 5]).digests())
    trained = gf.Checkpoint(classifier.model, classifier.vocabulary, seen=seen, name="trained")
    with pytest.raises(InputError, match=r"2 of 40 cells to explain .*trained was trained on.*allow_seen=True"):
        explain(trained, short)
    assert len(explain(trained, short.select([0, 1]), state="CD19+ B")) == 20
    assert len(explain(trained, short.select([3]), state="CD19+ B", allow_seen=True)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["hid"]}, r"There is no method 'hid'.*hide"),
        ({"methods": "hide"}, r"methods must be a sequence; for one give \['hide'\]"),
        ({"methods": []}, "methods must name at least one"),
        ({"methods": ["hide", "hide"]}, "each once"),
        ({"methods": ["rollout"], "sets": {"a": ["CD74"]}}, "sets= takes groups of genes away at once"),
        ({"sets": {"a": ["NOSUCH"]}}, "None of the 1 genes of 1 sets is in the vocabulary"),
        ({"donor": "doner"}, "no obs column 'doner'.*donor"),
        ({"obs": ["nope"]}, "no obs column 'nope'"),
        ({"obs": ["donor", "donor"]}, "obs names a column twice"),
        ({"max_cells": 0}, "max_cells must be at least 1, found 0"),
        ({"steps": 0}, "first_steps must be at least 1"),
        ({"baseline": "zero"}, "baseline must be one of 'mask', 'mean', 'pad'"),
        ({"operator": "delete"}, "operator, of the surrogate, must be"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_work(classifier, short, options, message, monkeypatch):
    monkeypatch.setattr(CellMethods, "do", None)
    with pytest.raises(InputError, match=message):
        explain(classifier, short, **options)


def test_a_column_that_the_table_has_itself_is_refused(classifier, short):
    named = short.select(range(3))
    with pytest.raises(InputError, match=r"own column 'gene'; rename that of obs"):
        explain(classifier, named, obs=["gene"])


def test_several_processes_need_a_file_to_share(classifier, short, monkeypatch):
    monkeypatch.setattr(parted, "processes", SimpleNamespace(count=lambda: 2))
    with pytest.raises(InputError, match=r"Several processes share an explanation through its file; give out="):
        explain(classifier, short)


def test_an_output_that_exists_is_refused_or_replaced(classifier, short, tmp_path):
    out = tmp_path / "why.parquet"
    out.write_text("earlier")
    with pytest.raises(FileExistsError, match=r"why\.parquet already exists.*overwrite=True"):
        explain(classifier, short.select([0]), out=out)
    assert out.read_text() == "earlier"
    explain(classifier, short.select([0]), state="CD19+ B", out=out, overwrite=True)
    assert len(Explanation.open(out)) == 10


def test_every_method_has_settings_in_the_metadata_and_no_row_without_a_value(classifier, short):
    methods = [method for method in METHODS if method not in ("surrogate", "median")]
    why = explain(classifier, short.select([0]), state="CD19+ B", methods=methods)
    assert list(why.metadata["methods"]) == methods
    assert why.table["value"].notna().all()
    assert len(why) == 10 * len(methods)
