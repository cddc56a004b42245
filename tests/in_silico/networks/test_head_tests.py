"""Tests of heads: none found for labels that mean nothing, those that are planted found."""

from itertools import permutations
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.head_tests import (
    HeadTests,
    matched_tests,
    permutation_p,
    pooled_tests,
    strata_of,
)

N_GENES, N_LABELLED, N_HEADS, N_DONORS, CELLS_A_DONOR = 400, 60, 24, 6, 20
LAYER = np.repeat(np.arange(6), 4)


class _Simulated(NamedTuple):
    attended: np.ndarray
    """Genes × heads, the mean over donors of the mean over cells."""
    place: np.ndarray
    detection: np.ndarray
    labelled: np.ndarray
    tokens: np.ndarray
    """Tokens × heads."""
    gene_of_token: np.ndarray

    def tested(self) -> HeadTests:
        strata = strata_of(self.place, self.detection)
        return matched_tests(self.attended, self.labelled, strata, LAYER, rng=np.random.default_rng(0))

    def pooled_share(self) -> float:
        return float(np.mean(pooled_tests(self.tokens, self.labelled[self.gene_of_token]).fdr < 0.05))


def _simulated(seed: int, *, earlier: float = 0.0, effect: float = 0.0) -> _Simulated:
    """Draw heads with an effect of each gene and a liking for early places, or late ones; 5 may like labelled genes."""
    rng = np.random.default_rng(seed)
    labelled = np.zeros(N_GENES, dtype=bool)
    labelled[rng.choice(N_GENES, N_LABELLED, replace=False)] = True
    front = rng.normal(size=N_GENES) - earlier * labelled
    detection = np.clip(rng.beta(2, 12, N_GENES), 0.05, 1)
    of_gene = rng.normal(0, 0.3, (N_GENES, N_HEADS)) + effect * labelled[:, None] * (np.arange(N_HEADS) < 5)
    early = rng.choice([-1.0, 1.0], N_HEADS) * 0.5
    sums, n, places = np.zeros((N_DONORS, N_GENES, N_HEADS)), np.zeros((N_DONORS, N_GENES)), np.zeros(N_GENES)
    tokens, genes_of = [], []
    for donor in np.repeat(np.arange(N_DONORS), CELLS_A_DONOR):
        genes = np.flatnonzero(rng.random(N_GENES) < detection)
        genes = genes[np.argsort(front[genes] + rng.normal(0, 0.5, len(genes)))]
        place = np.arange(len(genes))
        values = (
            of_gene[genes] + early * (0.5 - place / len(genes))[:, None] + rng.normal(0, 0.5, (len(genes), N_HEADS))
        )
        sums[donor, genes] += values
        n[donor, genes] += 1
        places[genes] += place
        tokens.append(values)
        genes_of.append(genes)
    of_donors = np.divide(sums, n[..., None], out=np.zeros_like(sums), where=n[..., None] > 0)
    n_cells, seen = n.sum(0), n.sum(0) > 0
    attended = of_donors.sum(0)[seen] / np.sum(n > 0, axis=0)[seen, None]
    genes_of_tokens = (np.cumsum(seen) - 1)[np.concatenate(genes_of)]
    place = places[seen] / n_cells[seen]
    return _Simulated(attended, place, n_cells[seen], labelled[seen], np.concatenate(tokens), genes_of_tokens)


# What is found


@pytest.mark.parametrize("earlier", [0.0, 0.5], ids=["anywhere", "earlier"])
@pytest.mark.parametrize("seed", range(5))
def test_labels_that_mean_nothing_find_no_head(seed: int, earlier: float) -> None:
    tested = _simulated(seed, earlier=earlier).tested()
    assert tested.share == 0
    assert tested.share_p_value == 1


def test_a_pooled_rank_sum_finds_heads_for_labels_that_mean_nothing() -> None:
    shares = {
        earlier: [_simulated(seed, earlier=earlier).pooled_share() for seed in range(2)] for earlier in (0.0, 0.5)
    }
    assert np.mean(shares[0.0]) > 0.15
    assert np.mean(shares[0.5]) > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_planted_heads_are_found(seed: int) -> None:
    tested = _simulated(seed, effect=0.3).tested()
    found = (tested.fdr < 0.05) & (tested.difference > 0)
    assert found[:5].sum() >= 4
    assert found[5:].sum() <= 1
    assert tested.share_p_value == pytest.approx(1 / 1001)
    assert tested.trend < 0  # the planted heads are those of the first layers


def test_p_values_of_labels_that_mean_nothing_are_a_twentieth_below_a_twentieth() -> None:
    p_values = np.concatenate([_simulated(seed).tested().p_value for seed in range(10, 18)])
    assert np.mean(p_values < 0.05) < 0.1


# The numbers


def test_a_rank_sum_is_the_published_one() -> None:
    """TF against others: U 20, exact two-sided p 0.114285714286."""
    labelled, others = [1.4, 1.1, 1.3, 0.9], [1, 0.8, 0.7, 1.2, 0.95, 0.6]
    exact = mannwhitneyu(labelled, others, method="exact")
    assert (exact.statistic, exact.pvalue) == (20, pytest.approx(0.114285714286, rel=1e-11))
    tested = pooled_tests(np.array([*labelled, *others])[:, None], np.arange(10) < 4)
    plain = mannwhitneyu(labelled, others, method="asymptotic", use_continuity=False)
    assert tested.p_value[0] == pytest.approx(plain.pvalue, rel=1e-12)


def test_a_pooled_test_is_scipys_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    values, labelled = rng.integers(0, 5, (60, 3)).astype(float), rng.random(60) < 0.3
    expected = mannwhitneyu(values[labelled], values[~labelled], method="asymptotic", use_continuity=False).pvalue
    np.testing.assert_allclose(pooled_tests(values, labelled).p_value, expected, rtol=1e-10)


def test_a_difference_is_of_others_that_are_spread_over_strata_as_the_labelled_are() -> None:
    rng = np.random.default_rng(1)
    attended, strata, labelled = rng.normal(size=(30, 2)), np.repeat([0, 1, 2], 10), rng.random(30) < 0.3
    labelled[strata == 2] = False
    tested = matched_tests(attended, labelled, strata, np.zeros(2), rng=rng, n_permutations=10)
    expected = np.zeros(2)
    for stratum in (0, 1):
        ours, theirs = labelled & (strata == stratum), ~labelled & (strata == stratum)
        expected += ours.sum() * (attended[ours].mean(0) - attended[theirs].mean(0))
    np.testing.assert_allclose(tested.difference, expected / labelled.sum(), rtol=1e-12)
    assert np.isnan(tested.trend)


def test_p_is_that_of_all_permutations_one_by_one() -> None:
    """Two of four genes of one stratum: six labellings, which many draws meet equally often."""
    attended, labelled = np.array([[3.0], [1.0], [0.5], [0.0]]), np.array([True, True, False, False])
    one = np.zeros(4, dtype=int)
    tested = matched_tests(attended, labelled, one, one[:1], rng=np.random.default_rng(0), n_permutations=4_000)
    values = [attended[list(order), 0] for order in permutations(range(4))]
    sizes = [abs(drawn[:2].mean() - drawn[2:].mean()) for drawn in values]
    assert tested.p_value[0] == pytest.approx(np.mean(np.array(sizes) >= tested.difference[0] - 1e-12), abs=0.02)


def test_permuted_labels_find_hardly_a_head_where_true_ones_find_the_planted() -> None:
    tested = _simulated(3, effect=0.3).tested()
    assert tested.null_share.shape == (1_000,)
    assert tested.share >= 4 / 24
    assert tested.null_share.mean() < 0.01


def test_a_trend_is_scipys() -> None:
    simulated = _simulated(4)
    tested = simulated.tested()
    assert tested.trend == pytest.approx(spearmanr(tested.difference, LAYER).statistic)
    assert 0.001 < tested.trend_p_value <= 1


def test_strata_hold_equally_many_genes_of_like_place_and_detection() -> None:
    rng = np.random.default_rng(5)
    place, detection = rng.uniform(0, 1_000, 400), rng.random(400)
    strata = strata_of(place, detection)
    assert np.bincount(strata).tolist() == [20] * 20
    for i in range(9):
        assert place[strata // 2 == i].max() < place[strata // 2 == i + 1].min()
        assert detection[strata == 2 * i].max() < detection[strata == 2 * i + 1].min()


def test_a_permutation_p_counts_the_observed_one() -> None:
    assert permutation_p(2.0, np.array([*[3.0] * 3, *[1.0] * 996])) == 0.004


def test_labels_without_others_like_them_are_refused() -> None:
    labelled, rng = np.array([True, True, False, False]), np.random.default_rng(0)
    with pytest.raises(InputError, match="2 of 4 genes are labelled, and no other gene has a like place"):
        matched_tests(np.ones((4, 1)), labelled, np.array([0, 0, 1, 1]), np.zeros(1), rng=rng)
    with pytest.raises(InputError, match="0 of 4 tokens are of labelled genes"):
        pooled_tests(np.ones((4, 1)), np.zeros(4, dtype=bool))
