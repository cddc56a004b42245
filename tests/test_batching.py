import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geneformer_repro as gf
from geneformer_repro.attention import Cells
from geneformer_repro.batching import StepBatches, end_to_end, token_budget_batches
from geneformer_repro.tokenizer.vocabulary import Vocabulary


class TestEndToEnd:
    def test_cells_lie_one_behind_the_other(self, cells, vocabulary):
        several = [cells[i] for i in (0, 17, 4)]
        batch = end_to_end(several, vocabulary)
        assert batch.lengths == tuple(map(len, several))
        for tokens, cell in zip(batch.input_ids_T.split(batch.lengths), several, strict=True):
            np.testing.assert_array_equal(tokens, cell)

    def test_rows_are_those_given_or_counted(self, cells, vocabulary):
        assert end_to_end([cells[3], cells[5]], vocabulary).rows.tolist() == [0, 1]
        assert end_to_end([cells[3], cells[5]], vocabulary, np.array([3, 5])).rows.tolist() == [3, 5]

    def test_genes_alone_are_genes(self, cells, vocabulary):
        batch = end_to_end([cells[i] for i in (0, 17, 4)], vocabulary)
        slow = [token in set(vocabulary.tokens) for token in batch.input_ids_T.tolist()]
        np.testing.assert_array_equal(batch.genes_T, slow)
        first = batch.genes_T.split(batch.lengths)[0]
        assert first[[0, -1]].tolist() == [False, False], "<cls> and <eos> do not count in a cell's vector"

    def test_every_token_of_a_v1_cell_is_a_gene(self, pbmc):
        cells = gf.tokenize(pbmc[:2], Vocabulary.fit(pbmc, series="V1"))
        assert end_to_end([cells[0], cells[1]], cells.vocabulary).genes_T.all()

    def test_tensors_are_what_the_model_takes(self, cells, vocabulary):
        batch = end_to_end([cells[0]], vocabulary)
        assert (batch.input_ids_T.dtype, batch.genes_T.dtype) == (torch.int64, torch.bool)
        assert set(batch.inputs) == {"input_ids", "lengths", "weights"}

    def test_the_cells_stay_as_they_are(self, cells, vocabulary):
        cell, before = cells[0], cells[0].copy()
        end_to_end([cell, cells[1]], vocabulary).input_ids_T[:] = -1
        np.testing.assert_array_equal(cell, before)


def epoch_of(lengths: np.ndarray, epoch: int = 0, **options: Any) -> list[list[np.ndarray]]:
    """The steps of an epoch: the rows of each of its batches, those of all processes."""
    processes = []
    for process in range(options.get("n_processes", 1)):
        batches = StepBatches(lengths, process=process, **options)
        batches.set_epoch(epoch)
        drawn = list(batches)
        assert len(drawn) == len(batches)
        assert {of for batch in drawn for _, of in batch} == {epoch}
        processes.append([np.array([row for row, _ in batch]) for batch in drawn])
    a_step = options.get("batches_a_step", 1)
    at_once = list(zip(*processes, strict=True))
    return [[rows for batch in at_once[i : i + a_step] for rows in batch] for i in range(0, len(at_once), a_step)]


def cells_of(steps: list[list[np.ndarray]]) -> list[list[int]]:
    """The cells of each step, whoever trains on them."""
    return [sorted(np.concatenate(batches).tolist()) for batches in steps]


def n_padding(lengths: np.ndarray, batches: list[np.ndarray]) -> int:
    return sum(int((lengths[rows].max() - lengths[rows]).sum()) for rows in batches)


budgets_of_batches = st.one_of(
    st.fixed_dictionaries({"batch_size": st.sampled_from([1, 2, 3, 5, 12, 20])}),
    st.fixed_dictionaries({"max_tokens": st.integers(4096, 40_000)}),
)


class TestStepBatches:
    @settings(deadline=None, database=None)
    @given(
        lengths=st.lists(st.integers(1, 4096), min_size=12, max_size=300).map(np.array),
        n_processes=st.integers(1, 4),
        batches_a_step=st.integers(1, 3),
        budget=budgets_of_batches,
    )
    def test_every_cell_comes_once_an_epoch_and_no_batch_is_empty(self, lengths, n_processes, batches_a_step, budget):
        steps = epoch_of(lengths, n_processes=n_processes, batches_a_step=batches_a_step, **budget)
        assert {len(batches) for batches in steps} == {n_processes * batches_a_step}
        assert all(len(rows) for batches in steps for rows in batches)
        np.testing.assert_array_equal(
            np.sort(np.concatenate([rows for batches in steps for rows in batches])), np.arange(len(lengths))
        )

    @pytest.mark.parametrize(
        ("n_cells", "options"),
        [
            pytest.param(13, {"n_processes": 2, "batch_size": 1}, id="one_cell_a_batch_and_one_left_over"),
            pytest.param(7, {"n_processes": 3, "batches_a_step": 2, "batch_size": 1}, id="one_more_than_a_step"),
            pytest.param(6, {"n_processes": 3, "batches_a_step": 2, "batch_size": 12}, id="as_many_as_batches"),
            pytest.param(17, {"n_processes": 8, "batch_size": 2}, id="one_more_than_two_each"),
        ],
    )
    def test_no_batch_is_empty_where_cells_do_not_divide(self, n_cells, options):
        """An empty batch would stop the process that gets it, and the others with it."""
        steps = epoch_of(np.arange(10, 10 + n_cells), **options)
        assert all(len(rows) for batches in steps for rows in batches)
        assert sorted(itertools.chain(*cells_of(steps))) == list(range(n_cells))

    @pytest.mark.parametrize(
        "shares",
        [
            pytest.param({"n_processes": 2, "batch_size": 12}, id="two_processes"),
            pytest.param({"n_processes": 4, "batch_size": 6}, id="four_processes"),
            pytest.param({"batches_a_step": 3, "batch_size": 8}, id="gradient_accumulation"),
            pytest.param({"n_processes": 2, "batches_a_step": 2, "batch_size": 6}, id="both"),
        ],
    )
    @pytest.mark.parametrize("epoch", [0, 3])
    def test_a_step_is_of_the_same_cells_however_it_is_shared(self, cells, shares, epoch):
        alone = epoch_of(cells.lengths, epoch, batch_size=24)
        assert cells_of(epoch_of(cells.lengths, epoch, **shares)) == cells_of(alone)

    def test_a_budget_in_tokens_can_be_shared_too(self, cells):
        alone = epoch_of(cells.lengths, max_tokens=8000)
        assert cells_of(epoch_of(cells.lengths, max_tokens=4000, n_processes=2)) == cells_of(alone)
        assert cells_of(epoch_of(cells.lengths, max_tokens=2000, batches_a_step=4)) == cells_of(alone)

    @pytest.mark.parametrize("options", [{"batch_size": 12}, {"max_tokens": 4000}], ids=["cells", "tokens"])
    def test_steps_and_batches_are_of_equal_tokens_within_a_cell(self, cells, options):
        lengths = cells.lengths
        steps = epoch_of(lengths, n_processes=2, **options)
        mean = lengths.sum() / len(steps)
        for batches in steps:
            of_step = sum(lengths[rows].sum() for rows in batches)
            assert abs(of_step - mean) < lengths.max()
            for rows in batches:
                assert abs(lengths[rows].sum() - of_step / 2) < lengths[np.concatenate(batches)].max()

    def test_a_batch_has_the_cells_asked_for_on_average(self, cells):
        steps = epoch_of(cells.lengths, batch_size=12)
        assert len(steps) == int(np.ceil(len(cells) / 12))
        batches = StepBatches(cells.lengths, batch_size=12)
        assert batches.tokens_a_batch == round(cells.lengths.sum() / len(steps))

    def test_a_batch_has_no_more_than_the_tokens_asked_for_on_average(self, cells):
        batches = StepBatches(cells.lengths, max_tokens=5000)
        total = cells.lengths.sum()
        assert batches.n_tokens == total
        assert batches.tokens_a_batch == round(total / len(batches)) <= 5000 < total / (len(batches) - 1)

    def test_cells_of_a_step_are_of_similar_length(self, cells):
        steps = epoch_of(cells.lengths, batch_size=12)
        as_they_come = np.split(np.arange(len(cells)), range(12, len(cells), 12))
        found = n_padding(cells.lengths, [rows for batches in steps for rows in batches])
        assert found < 0.5 * n_padding(cells.lengths, as_they_come)

    def test_long_and_short_steps_come_mixed(self, cells):
        mean = [cells.lengths[rows].mean() for (rows,) in epoch_of(cells.lengths, batch_size=4)]
        assert np.std(mean) > 0.5 * cells.lengths.std()
        assert abs(np.corrcoef(mean[:-1], mean[1:])[0, 1]) < 0.3

    def test_attention_on_real_cells_needs_little_padding(self, cells):
        assert 0 < StepBatches(cells.lengths, batch_size=12).padding() < 0.05

    def test_padding_is_that_of_the_batches(self, cells):
        batches = [cells.lengths[rows] for (rows,) in epoch_of(cells.lengths, batch_size=12)]
        computed = sum(sum(lengths) / (1 - Cells(lengths.tolist()).padding()) for lengths in batches)
        expected = 1 - cells.lengths.sum() / computed
        assert StepBatches(cells.lengths, batch_size=12).padding() == pytest.approx(expected)

    def test_cells_of_one_length_need_no_padding(self):
        assert StepBatches([70] * 50, batch_size=7).padding() == 0

    def test_each_epoch_has_an_order_of_its_own(self, cells):
        first, again, second = (cells_of(epoch_of(cells.lengths, epoch)) for epoch in (0, 0, 1))
        assert first == again
        assert first != second

    def test_each_seed_has_an_order_of_its_own(self, cells):
        first, second = (cells_of(epoch_of(cells.lengths, seed=seed)) for seed in (0, 1))
        assert first != second
        assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(len(cells)))

    @pytest.mark.parametrize("n_cells", [700, 64], ids=["many_cells", "few_cells"])
    def test_each_epoch_puts_other_cells_together(self, n_cells):
        lengths = np.arange(100, 100 + n_cells)
        first, second = (
            {frozenset(rows) for rows in cells_of(epoch_of(lengths, epoch, batch_size=4))} for epoch in (0, 1)
        )
        assert len(first & second) < len(first) / 2

    def test_an_epoch_does_not_depend_on_those_before(self, cells):
        batches = StepBatches(cells.lengths)
        list(batches)
        batches.set_epoch(5)
        went_on = list(batches)
        fresh = StepBatches(cells.lengths)
        fresh.set_epoch(5)
        assert list(fresh) == went_on

    def test_no_other_source_of_randomness_is_used(self, cells):
        before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        list(StepBatches(cells.lengths))
        np.testing.assert_array_equal(torch.get_rng_state(), before)
        np.testing.assert_array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002

    def test_fewer_cells_than_batches_of_a_step_are_refused(self):
        with pytest.raises(gf.InputError, match="5 cells are fewer than the 6 batches that make a step"):
            StepBatches([9] * 5, n_processes=2, batches_a_step=3)

    def test_a_budget_below_the_longest_cell_is_refused(self):
        message = "max_tokens=99 is less than the longest cell, 100 tokens. Give more"
        with pytest.raises(gf.InputError, match=message):
            StepBatches([5, 100, 7], max_tokens=99)
        assert len(StepBatches([5, 100, 7], max_tokens=100)) == 2


def rows_of(steps: list[list[np.ndarray]]) -> np.ndarray:
    """All cells of an epoch, as often as they came."""
    return np.concatenate([rows for batches in steps for rows in batches])


class TestDrawingByWeight:
    """`weights`: an epoch of as many cells as there are, drawn with replacement."""

    @pytest.fixture
    def weights(self, cells) -> np.ndarray:
        """The monocytes three times as often as other cells, and the first ten cells never."""
        weights = np.where(cells.obs["cell_type"].str.contains("Mono"), 3.0, 1.0)
        weights[:10] = 0
        return weights

    def test_an_epoch_has_as_many_cells_as_there_are(self, cells, weights):
        rows = rows_of(epoch_of(cells.lengths, weights=weights))
        assert len(rows) == len(cells)
        assert len(np.unique(rows)) < len(rows), "some should have come twice"

    def test_cells_come_in_the_proportions_of_their_weights(self, cells, weights):
        rows = np.concatenate([rows_of(epoch_of(cells.lengths, epoch, weights=weights)) for epoch in range(20)])
        for weight in (1.0, 3.0):
            expected = weights[weights == weight].sum() / weights.sum()
            error = np.sqrt(expected * (1 - expected) / len(rows))
            assert abs((weights[rows] == weight).mean() - expected) < 4 * error
        counts = np.bincount(rows, minlength=len(cells))
        assert not counts[:10].any()
        assert (counts[10:] > 0).all()

    def test_only_the_proportions_count(self, cells, weights):
        once, tenfold = (cells_of(epoch_of(cells.lengths, weights=factor * weights)) for factor in (1, 8))
        assert once == tenfold

    def test_it_follows_from_seed_and_epoch(self, cells, weights):
        first, again, second, other = (
            cells_of(epoch_of(cells.lengths, epoch, seed=seed, weights=weights))
            for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
        )
        assert first == again
        assert len({str(one) for one in (first, second, other)}) == 3

    @pytest.mark.parametrize(
        "shares",
        [
            pytest.param({"n_processes": 2, "batch_size": 12}, id="two_processes"),
            pytest.param({"batches_a_step": 3, "batch_size": 8}, id="gradient_accumulation"),
        ],
    )
    def test_a_step_is_of_the_same_cells_however_it_is_shared(self, cells, weights, shares):
        alone = epoch_of(cells.lengths, 3, batch_size=24, weights=weights)
        assert cells_of(epoch_of(cells.lengths, 3, weights=weights, **shares)) == cells_of(alone)

    @pytest.mark.parametrize("options", [{"batch_size": 12}, {"max_tokens": 4000}], ids=["cells", "tokens"])
    def test_steps_are_of_equal_tokens_within_a_cell(self, cells, weights, options):
        lengths = cells.lengths
        of_step = [lengths[rows].sum() for (rows,) in epoch_of(lengths, weights=weights, **options)]
        np.testing.assert_allclose(of_step, np.mean(of_step), atol=lengths.max())

    def test_the_budget_is_that_of_the_cells_which_are_expected(self, cells):
        """Long cells drawn more often make an epoch of more tokens, and so of more steps."""
        weights = cells.lengths > np.median(cells.lengths)
        drawn = [cells.lengths[rows_of(epoch_of(cells.lengths, epoch, weights=weights))].sum() for epoch in range(20)]
        batches = StepBatches(cells.lengths, max_tokens=5000, weights=weights)
        assert np.mean(drawn) > 1.05 * cells.lengths.sum()
        assert batches.n_tokens == pytest.approx(np.mean(drawn), rel=0.01)
        assert batches.tokens_a_batch == round(batches.n_tokens / len(batches)) <= 5000

    def test_no_batch_is_empty_where_one_cell_is_drawn_all_the_time(self):
        steps = epoch_of(np.array([9, 400, 30, 80, 7, 50, 60]), n_processes=3, batch_size=1, weights=np.eye(7)[1])
        assert all(rows.tolist() and set(rows.tolist()) == {1} for batches in steps for rows in batches)


lengths_of_cells = st.lists(st.integers(1, 4096), min_size=1, max_size=60).map(np.array)
budgets = st.integers(1, 20_000)


class TestTokenBudget:
    @given(lengths=lengths_of_cells, max_tokens=budgets)
    def test_every_cell_is_in_one_batch(self, lengths, max_tokens):
        rows = np.concatenate(list(token_budget_batches(lengths, max_tokens)))
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(lengths)))

    @given(lengths=lengths_of_cells, max_tokens=budgets)
    def test_no_batch_exceeds_the_budget_but_one_long_cell_alone(self, lengths, max_tokens):
        for rows in token_budget_batches(lengths, max_tokens):
            assert len(rows) == 1 or len(rows) * lengths[rows].max() <= max_tokens

    @given(lengths=lengths_of_cells, max_tokens=budgets)
    def test_no_batch_but_the_last_has_room_for_another_cell(self, lengths, max_tokens):
        for rows in list(token_budget_batches(lengths, max_tokens))[:-1]:
            assert (len(rows) + 1) * lengths[rows].max() > max_tokens

    @given(lengths=lengths_of_cells, max_tokens=budgets)
    def test_the_longest_cells_come_first(self, lengths, max_tokens):
        rows = np.concatenate(list(token_budget_batches(lengths, max_tokens)))
        assert (np.diff(lengths[rows]) <= 0).all()

    @pytest.mark.parametrize(
        ("lengths", "max_tokens", "batches"),
        [
            pytest.param([3, 5, 4], 10, [[1, 2], [0]], id="longest_first"),
            pytest.param([4, 4, 4], 8, [[0, 1], [2]], id="equal_lengths_keep_their_order"),
            pytest.param([9, 2, 2], 4, [[0], [1, 2]], id="a_cell_over_the_budget_is_alone"),
            pytest.param([2, 2], 1, [[0], [1]], id="one_by_one"),
            pytest.param([], 8, [], id="no_cells"),
            pytest.param([9, 0], 8, [[0], [1]], id="a_cell_without_tokens"),
        ],
    )
    def test_batches_are_these(self, lengths, max_tokens, batches):
        found = token_budget_batches(np.array(lengths, dtype=np.int64), max_tokens)
        assert [rows.tolist() for rows in found] == batches

    def test_real_cells_need_little_padding(self, cells):
        padded = sum(len(rows) * cells.lengths[rows].max() for rows in token_budget_batches(cells.lengths, 16_384))
        assert padded < 1.05 * cells.lengths.sum()


def test_rows_that_are_alike_come_together_each_once_an_epoch_and_otherwise_in_each():
    alike = np.random.default_rng(0).integers(0, 40, 2000)
    batches = StepBatches(np.ones(2000), batch_size=100, alike=alike, alike_a_step=5)
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        epochs.append([[row for row, _ in batch] for batch in batches])
        assert sorted(row for batch in epochs[-1] for row in batch) == list(range(2000))
        assert max(len(set(alike[batch])) for batch in epochs[-1]) <= 7
        assert {len(batch) for batch in epochs[-1]} == {100}
    assert epochs[0] != epochs[1]
    shares = [list(StepBatches(np.ones(2000), batch_size=50, alike=alike, alike_a_step=5, process=i, n_processes=2))
              for i in range(2)]  # fmt: skip
    together = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    alone = StepBatches(np.ones(2000), batch_size=100, alike=alike, alike_a_step=5)
    assert together == [sorted(batch) for batch in alone]
