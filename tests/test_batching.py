import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geneformer_repro as gf
from geneformer_repro.batching import LengthGroupedOrder, collate, evaluation_batches, token_budget_batches
from geneformer_repro.tokenizer.vocabulary import Vocabulary

PAD_LAST = {"ENSG1": 0, "ENSG2": 1, "<mask>": 2, "<pad>": 3}


class TestCollate:
    def test_a_row_holds_its_cell_and_then_padding(self, cells, vocabulary):
        several = [cells[i] for i in (0, 17, 4)]
        batch = collate(several, vocabulary)
        longest = max(map(len, several))
        for row, cell in enumerate(several):
            padding = longest - len(cell)
            np.testing.assert_array_equal(batch["input_ids"][row], [*cell, *[vocabulary.pad_token] * padding])
            np.testing.assert_array_equal(batch["attention_mask"][row], [1] * len(cell) + [0] * padding)

    def test_the_pooled_mask_is_true_for_genes_alone(self, cells, vocabulary):
        batch = collate([cells[i] for i in (0, 17, 4)], vocabulary)
        slow = [[token in set(vocabulary.tokens) for token in row] for row in batch["input_ids"].tolist()]
        np.testing.assert_array_equal(batch["pooled_mask"], slow)

    def test_cls_and_eos_are_attended_to_but_not_pooled(self, cells, vocabulary):
        batch = collate([cells[0]], vocabulary)
        ends = [0, -1]
        assert batch["attention_mask"][0, ends].tolist() == [1, 1]
        assert batch["pooled_mask"][0, ends].tolist() == [False, False]
        assert batch["pooled_mask"][0, 1:-1].all()

    def test_every_token_of_a_v1_cell_is_pooled(self, pbmc):
        cells = gf.tokenize(pbmc[:2], Vocabulary.fit(pbmc, series="V1"))
        batch = collate([cells[0], cells[1]], cells.vocabulary)
        np.testing.assert_array_equal(batch["pooled_mask"], batch["attention_mask"].bool())

    def test_padding_is_the_vocabularys_own_token(self):
        batch = collate([np.array([1, 0]), np.array([0])], Vocabulary.from_tokens(PAD_LAST, max_length=10))
        np.testing.assert_array_equal(batch["input_ids"], [[1, 0], [0, 3]])
        np.testing.assert_array_equal(batch["pooled_mask"], [[True, True], [True, False]])

    def test_cells_of_one_length_need_no_padding(self, cells, vocabulary):
        assert collate([cells[0][:9], cells[1][:9]], vocabulary)["attention_mask"].all()

    def test_tensors_are_what_the_model_takes(self, cells, vocabulary):
        batch = collate([cells[0]], vocabulary)
        assert {name: tensor.dtype for name, tensor in batch.items()} == {
            "input_ids": torch.int64,
            "attention_mask": torch.int64,
            "pooled_mask": torch.bool,
        }

    def test_the_cells_stay_as_they_are(self, cells, vocabulary):
        cell, before = cells[0], cells[0].copy()
        collate([cell, cells[1]], vocabulary)["input_ids"][:] = -1
        np.testing.assert_array_equal(cell, before)


def batches_of(lengths: np.ndarray, batch_size: int, seed: int = 0, epochs: int = 1) -> list[list[np.ndarray]]:
    """The batches of each epoch, as row numbers."""
    order = LengthGroupedOrder(lengths.tolist(), batch_size, torch.Generator().manual_seed(seed))
    cuts = range(batch_size, len(lengths), batch_size)
    return [np.split(np.array(list(order)), cuts) for _ in range(epochs)]


def n_padding(lengths: np.ndarray, batches: list[np.ndarray]) -> int:
    return sum(int((lengths[rows].max() - lengths[rows]).sum()) for rows in batches)


class TestLengthGroupedOrder:
    @given(
        lengths=st.lists(st.integers(1, 4096), min_size=1, max_size=300).map(np.array), batch_size=st.integers(1, 20)
    )
    def test_every_cell_comes_once(self, lengths, batch_size):
        (epoch,) = batches_of(lengths, batch_size)
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(len(lengths)))

    def test_it_is_as_long_as_there_are_cells(self):
        assert len(LengthGroupedOrder([5, 3, 8], 2)) == 3

    @pytest.mark.parametrize("n_cells", [700, 699, 61], ids=["many", "many_and_one_left_over", "few"])
    def test_cells_of_a_batch_are_of_similar_length(self, cells, n_cells):
        lengths = cells.lengths[:n_cells]
        (epoch,) = batches_of(lengths, 4)
        as_they_come = np.split(np.arange(n_cells), range(4, n_cells, 4))
        assert n_padding(lengths, epoch) < 0.5 * n_padding(lengths, as_they_come)

    def test_long_and_short_batches_come_mixed(self, cells):
        (epoch,) = batches_of(cells.lengths, 4)
        mean = [cells.lengths[rows].mean() for rows in epoch]
        assert abs(np.corrcoef(mean[:-1], mean[1:])[0, 1]) < 0.3

    def test_each_epoch_has_an_order_of_its_own(self, cells):
        first, second = batches_of(cells.lengths, 4, epochs=2)
        assert np.concatenate(first).tolist() != np.concatenate(second).tolist()

    @pytest.mark.parametrize("n_cells", [700, 64], ids=["many_cells", "few_cells"])
    def test_each_epoch_puts_other_cells_together(self, n_cells):
        lengths = np.arange(100, 100 + n_cells)
        first, second = ({frozenset(rows.tolist()) for rows in epoch} for epoch in batches_of(lengths, 4, epochs=2))
        assert len(first & second) < len(first) / 2

    def test_the_same_generator_gives_the_same_order(self, cells):
        once, again, other = (np.concatenate(batches_of(cells.lengths, 4, seed)[0]) for seed in (0, 0, 1))
        np.testing.assert_array_equal(once, again)
        assert (once != other).any()

    def test_without_a_generator_the_order_is_torchs_own(self, cells):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            order = list(LengthGroupedOrder(cells.lengths.tolist(), 4))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert list(LengthGroupedOrder(cells.lengths.tolist(), 4)) == order


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


class TestEvaluationBatches:
    def test_each_row_is_the_cell_of_its_number(self, cells, vocabulary):
        few = cells.select(range(30, 50))
        seen = []
        for rows, batch in evaluation_batches(few, 1000):
            assert batch["input_ids"].numel() <= 1000
            for row, tokens, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
                np.testing.assert_array_equal(tokens[mask.bool()], few[row])
            seen += rows.tolist()
        assert sorted(seen) == list(range(20))
