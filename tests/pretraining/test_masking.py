import numpy as np
import pytest
import torch
from padding import padded

import geneformer_repro as gf
from geneformer_repro.encoder import IGNORED
from geneformer_repro.pretraining.masking import Masked, cell_rng, mask_genes
from geneformer_repro.tokenizer.vocabulary import Vocabulary

STANDARD_ERRORS = 5


@pytest.fixture(scope="module")
def tokens(cells: gf.TokenizedDataset) -> np.ndarray:
    """All 700 cells, padded: about 200,000 genes."""
    return padded(list(cells), cells.vocabulary)["input_ids"].numpy()


@pytest.fixture(scope="module")
def is_gene(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    return np.isin(tokens, vocabulary.tokens)


@pytest.fixture(scope="module")
def masked(tokens: np.ndarray, vocabulary: Vocabulary) -> Masked:
    return mask_genes(tokens, vocabulary, probability=0.15, rng=np.random.default_rng(0))


def assert_share(events: np.ndarray, expected: float) -> None:
    """The share lies within sampling error of what was expected."""
    error = np.sqrt(expected * (1 - expected) / len(events))
    assert abs(events.mean() - expected) < STANDARD_ERRORS * error


class TestProportions:
    def test_fifteen_per_cent_of_the_genes_are_chosen(self, masked, is_gene):
        assert_share((masked.labels != IGNORED)[is_gene], 0.15)

    @pytest.mark.parametrize("probability", [0.05, 0.5])
    def test_another_share_can_be_asked_for(self, tokens, is_gene, vocabulary, probability):
        masked = mask_genes(tokens, vocabulary, probability=probability, rng=np.random.default_rng(0))
        assert_share((masked.labels != IGNORED)[is_gene], probability)

    def test_eighty_per_cent_of_the_chosen_are_shown_as_mask(self, masked, vocabulary):
        assert_share(masked.input_ids[masked.labels != IGNORED] == vocabulary.mask_token, 0.8)

    def test_ten_per_cent_of_the_chosen_are_shown_as_they_are(self, masked, vocabulary):
        chosen = masked.labels != IGNORED
        by_chance = 0.1 / len(vocabulary)
        assert_share(masked.input_ids[chosen] == masked.labels[chosen], 0.1 + by_chance)

    def test_ten_per_cent_of_the_chosen_are_shown_as_another_gene(self, masked, vocabulary):
        chosen = masked.labels != IGNORED
        shown, true = masked.input_ids[chosen], masked.labels[chosen]
        assert_share((shown != vocabulary.mask_token) & (shown != true), 0.1 - 0.1 / len(vocabulary))

    def test_every_gene_is_as_likely_to_be_drawn(self, masked, vocabulary):
        chosen = masked.labels != IGNORED
        shown, true = masked.input_ids[chosen], masked.labels[chosen]
        drawn = shown[(shown != vocabulary.mask_token) & (shown != true)]
        counts = np.bincount(drawn, minlength=vocabulary.size)[vocabulary.tokens]
        expected = counts.mean()
        chi_square = ((counts - expected) ** 2 / expected).sum()
        degrees = len(vocabulary) - 1
        assert abs(chi_square - degrees) < STANDARD_ERRORS * np.sqrt(2 * degrees)

    def test_each_gene_is_chosen_for_itself(self, masked, is_gene):
        chosen = (masked.labels != IGNORED)[:, 1:-1]
        both_genes = is_gene[:, 1:-2] & is_gene[:, 2:-1]
        assert_share((chosen[:, :-1] & chosen[:, 1:])[both_genes], 0.15**2)

    def test_all_genes_can_be_chosen(self, tokens, is_gene, vocabulary):
        masked = mask_genes(tokens[:5], vocabulary, probability=1.0, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(masked.labels != IGNORED, is_gene[:5])


class TestSpecialTokens:
    def test_they_are_never_chosen_nor_changed(self, masked, tokens, is_gene):
        assert (~is_gene).sum() > 2 * len(tokens)
        assert (masked.labels[~is_gene] == IGNORED).all()
        np.testing.assert_array_equal(masked.input_ids[~is_gene], tokens[~is_gene])

    def test_they_are_never_drawn(self, masked, is_gene, vocabulary):
        shown = masked.input_ids[is_gene]
        assert set(shown.tolist()) <= {*vocabulary.tokens.tolist(), vocabulary.mask_token}

    def test_only_tokens_of_genes_are_drawn_where_tokens_have_gaps(self):
        names = {"<pad>": 50, "<mask>": 0, "<cls>": 3, "<eos>": 99, "ENSG1": 7, "ENSG2": 40, "ENSG3": 98}
        gapped = Vocabulary.from_tokens(names, max_length=500)
        tokens = np.array([3, *[7, 40, 98] * 100, 99, 50, 50])
        masked = mask_genes(tokens, gapped, probability=0.9, rng=np.random.default_rng(0))
        assert set(masked.input_ids[1:301].tolist()) == {0, 7, 40, 98}
        assert masked.input_ids[[0, 301, 302, 303]].tolist() == [3, 99, 50, 50]

    def test_a_mask_that_is_there_already_is_no_target(self, vocabulary):
        tokens = np.full(100, vocabulary.mask_token)
        masked = mask_genes(tokens, vocabulary, probability=0.99, rng=np.random.default_rng(0))
        assert (masked.labels == IGNORED).all()


class TestLabels:
    def test_a_label_is_the_true_token(self, masked, tokens):
        chosen = masked.labels != IGNORED
        np.testing.assert_array_equal(masked.labels[chosen], tokens[chosen])

    def test_what_has_no_label_is_shown_as_it_is(self, masked, tokens):
        others = masked.labels == IGNORED
        np.testing.assert_array_equal(masked.input_ids[others], tokens[others])

    def test_the_input_stays_as_it_is(self, tokens, vocabulary):
        given = tokens.copy()
        mask_genes(given, vocabulary, probability=0.9, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(given, tokens)

    @pytest.mark.parametrize("shape", [(240,), (6, 40), (2, 3, 40)], ids=["one", "two", "three_dimensions"])
    def test_any_shape_is_masked_alike(self, tokens, vocabulary, shape):
        flat = tokens[0, 1:241]
        expected = mask_genes(flat, vocabulary, probability=0.15, rng=np.random.default_rng(3))
        shaped = mask_genes(flat.reshape(shape), vocabulary, probability=0.15, rng=np.random.default_rng(3))
        assert shaped.input_ids.shape == shaped.labels.shape == shape
        np.testing.assert_array_equal(shaped.input_ids.flatten(), expected.input_ids)
        np.testing.assert_array_equal(shaped.labels.flatten(), expected.labels)


class TestRandomness:
    def test_the_same_generator_gives_the_same_masks(self, masked, tokens, vocabulary):
        again = mask_genes(tokens, vocabulary, probability=0.15, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(again.input_ids, masked.input_ids)
        np.testing.assert_array_equal(again.labels, masked.labels)

    def test_another_seed_gives_other_masks(self, masked, tokens, vocabulary):
        other = mask_genes(tokens, vocabulary, probability=0.15, rng=np.random.default_rng(1))
        assert (other.labels != masked.labels).any()

    def test_a_generator_that_goes_on_gives_other_masks(self, tokens, vocabulary):
        rng = np.random.default_rng(0)
        first, second = (mask_genes(tokens, vocabulary, probability=0.15, rng=rng) for _ in range(2))
        assert (first.labels != second.labels).any()

    def test_no_other_source_of_randomness_is_used(self, tokens, vocabulary):
        before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        mask_genes(tokens[:5], vocabulary, probability=0.15, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(torch.get_rng_state(), before)
        np.testing.assert_array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002


def chosen_in(cells: gf.TokenizedDataset, row: int, rng: np.random.Generator) -> np.ndarray:
    return mask_genes(cells[row], cells.vocabulary, probability=0.15, rng=rng).labels != IGNORED


class TestRandomnessOfACell:
    def test_a_cell_in_an_epoch_is_masked_alike_whatever_came_before(self, cells):
        expected = mask_genes(cells[7], cells.vocabulary, probability=0.15, rng=cell_rng(1, 2, 7))
        for row in (3, 9):
            chosen_in(cells, row, cell_rng(1, 2, row))
        again = mask_genes(cells[7], cells.vocabulary, probability=0.15, rng=cell_rng(1, 2, 7))
        np.testing.assert_array_equal(again.input_ids, expected.input_ids)
        np.testing.assert_array_equal(again.labels, expected.labels)

    @pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["seed", "epoch", "row"])
    def test_another_seed_epoch_or_row_hides_other_genes_of_the_same_cell(self, cells, other):
        assert (chosen_in(cells, 0, cell_rng(0, 0, 0)) != chosen_in(cells, 0, cell_rng(*other))).any()

    def test_no_two_of_many_seeds_epochs_and_rows_are_alike(self):
        settings = [
            (seed, epoch, row) for seed in (0, 1, 42) for epoch in (0, 1, 2, 100) for row in (0, 1, 2, 100, 30_000_000)
        ]
        numbers = {tuple(cell_rng(*setting).integers(2**63, size=2).tolist()) for setting in settings}
        assert len(numbers) == len(settings)

    def test_a_corpus_of_a_hundred_million_cells_shares_nothing_between_epochs(self):
        last, next_first = cell_rng(0, 0, 10**8), cell_rng(0, 1, 0)
        assert (last.random(100) != next_first.random(100)).all()

    def test_cells_are_masked_independently(self, cells):
        n = 250
        row_of = [row for row in range(len(cells)) if len(cells[row]) > n]
        chosen = np.stack([chosen_in(cells, row, cell_rng(0, 0, row))[1:n] for row in row_of])
        assert_share(chosen.flatten(), 0.15)
        assert_share((chosen[1:] & chosen[:-1]).flatten(), 0.15**2)

    def test_epochs_mask_a_cell_independently(self, cells):
        chosen = np.stack([chosen_in(cells, 0, cell_rng(0, epoch, 0))[1:-1] for epoch in range(300)])
        assert_share(chosen.flatten(), 0.15)
        assert_share((chosen[1:] & chosen[:-1]).flatten(), 0.15**2)

    def test_each_gene_of_a_cell_is_hidden_in_some_epoch(self, cells):
        hidden = sum(chosen_in(cells, 0, cell_rng(0, epoch, 0)).astype(int) for epoch in range(300))
        is_gene = cells.vocabulary.genes_of(cells[0]) >= 0
        np.testing.assert_array_equal(hidden > 0, is_gene)
