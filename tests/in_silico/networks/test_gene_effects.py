"""Effects of both genes of a pair, against published numbers, a least-squares solution and planted edges."""

import numpy as np
import pytest

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks import gene_effects as module
from geneformer_repro.in_silico.networks.gene_effects import gene_effects, median_of

_SUMS = {
    "AB": (2.8, 2), "AC": (3.6, 2), "AD": (0.9, 1), "BA": (2.7, 2), "BC": (1.2, 1),
    "CA": (2.25, 2), "CB": (0.9, 1), "CD": (0.9, 1), "DA": (1.5, 1), "DC": (0.3, 1),
}  # fmt: skip
_RESIDUALS = {
    "AB": -0.056942611999, "AC": 0.259007051152, "AD": -0.404128878306, "BA": -0.159424984120, "BC": 0.318849968240,
    "CA": -0.259007051152, "CB": 0.113885223997, "CD": 0.404128878306, "DA": 0.836864070543, "DC": -0.836864070543,
}  # fmt: skip


def _square(values: dict[str, float]) -> np.ndarray:
    square = np.full((4, 4), np.nan)
    for pair, value in values.items():
        square["ABCD".index(pair[0]), "ABCD".index(pair[1])] = value
    return square


def _golden() -> tuple[np.ndarray, np.ndarray]:
    """Three cells' lifts, summed up by hand."""
    weights = _square({pair: np.log2(total / n) for pair, (total, n) in _SUMS.items()})
    return weights, np.nan_to_num(_square({pair: n for pair, (_, n) in _SUMS.items()}))


def _drawn(rng: np.random.Generator, *, edge: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of 12 × 40 pairs with gene effects and noise, counts, and where an edge was planted."""
    weights = rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, 40) + rng.normal(0, 0.1, (12, 40))
    edges = rng.random((12, 40)) < 0.05
    weights = weights + edge * edges
    weights[rng.random((12, 40)) < 0.2] = np.nan
    return weights, rng.integers(5, 200, (12, 40)), edges


def test_residuals_of_a_plain_fit_are_the_published_ones() -> None:
    effects = gene_effects(*_golden(), masked_refits=0)
    np.testing.assert_allclose(effects.residual, _square(_RESIDUALS), atol=1e-12)


def test_weighted_residuals_sum_to_zero_by_source_and_by_target() -> None:
    weights, counts = _golden()
    weighted = gene_effects(weights, counts, masked_refits=0).residual * counts
    np.testing.assert_allclose(np.nansum(weighted, 0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nansum(weighted, 1), 0, atol=1e-12)


def test_the_plain_fit_is_the_weighted_least_squares_solution() -> None:
    weights, counts, _ = _drawn(np.random.default_rng(0))
    effects = gene_effects(weights, counts, masked_refits=0)
    a, b = np.nonzero(~np.isnan(weights))
    design = np.column_stack([np.eye(12)[a], np.eye(40)[b]])
    root = np.sqrt(counts[a, b])
    solution, *_ = np.linalg.lstsq(design * root[:, None], weights[a, b] * root, rcond=None)
    np.testing.assert_allclose(effects.residual[a, b], weights[a, b] - design @ solution, atol=1e-10)


def test_mean_effects_and_residual_add_up_to_the_weight() -> None:
    weights, counts, _ = _drawn(np.random.default_rng(1), edge=2.0)
    effects = gene_effects(weights, counts)
    np.testing.assert_allclose(effects.mean + effects.source[:, None] + effects.target + effects.residual, weights)


def test_masked_refits_keep_strong_edges_out_of_gene_effects() -> None:
    weights, counts, edges = _drawn(np.random.default_rng(2), edge=3.0)
    spread = {
        refits: np.nanstd(gene_effects(weights, counts, masked_refits=refits).residual[~edges]) for refits in (0, 2)
    }
    assert spread[0] > 0.15  # of which noise is 0.1
    assert spread[2] < 0.11


def test_what_most_pairs_of_a_gene_share_is_its_effect_not_edges() -> None:
    weights = np.random.default_rng(3).normal(0, 0.01, (6, 30))
    weights[2] += 5
    effects = gene_effects(weights, np.ones((6, 30)))
    assert effects.source[2] - np.delete(effects.source, 2).mean() == pytest.approx(5, abs=0.02)
    assert np.abs(effects.residual).max() < 0.1


def test_the_edges_are_what_is_far_and_leaving_them_out_is_the_fit_without_them() -> None:
    weights, counts, edges = _drawn(np.random.default_rng(2), edge=3.0)
    far = gene_effects(weights, counts).far
    assert (far[edges & ~np.isnan(weights)]).all()
    assert far[~edges].mean() < 0.05
    without = gene_effects(np.where(far, np.nan, weights), counts, masked_refits=0)
    masked = gene_effects(weights, counts, masked=far)
    np.testing.assert_allclose(masked.source, without.source, atol=1e-9)
    np.testing.assert_allclose(masked.residual[~far], without.residual[~far], atol=1e-9)


def test_a_gene_all_of_whose_pairs_are_masked_has_no_effect() -> None:
    weights, counts, _ = _drawn(np.random.default_rng(2))
    masked = np.zeros(weights.shape, dtype=bool)
    masked[4] = True
    effects = gene_effects(weights, counts, masked=masked)
    assert np.flatnonzero(np.isnan(effects.source)).tolist() == [4]
    assert np.isnan(effects.residual[4]).all()


@pytest.mark.parametrize("masked_refits", [0, 2])
def test_a_gene_without_pairs_has_no_effect_rather_than_none_of_it(masked_refits: int) -> None:
    weights, counts, _ = _drawn(np.random.default_rng(4))
    weights[3], counts[:, 7] = np.nan, 0
    effects = gene_effects(weights, counts, masked_refits=masked_refits)
    assert np.flatnonzero(np.isnan(effects.source)).tolist() == [3]
    assert np.flatnonzero(np.isnan(effects.target)).tolist() == [7]
    assert np.isnan(effects.residual[:, 7]).all()


def test_neither_the_unit_nor_the_scale_of_counts_matters() -> None:
    weights, counts, _ = _drawn(np.random.default_rng(5), edge=1.0)
    effects, scaled = gene_effects(weights, counts), gene_effects(10 * weights, 1000 * counts)
    np.testing.assert_allclose(10 * effects.residual, scaled.residual, atol=1e-9)
    assert (effects.far == scaled.far).all()
    assert effects.far.any()


def test_explained_variance_is_one_of_pure_gene_effects_and_about_none_of_noise() -> None:
    rng = np.random.default_rng(6)
    counts = np.ones((50, 200))
    pure = gene_effects(rng.normal(size=(50, 1)) + rng.normal(size=200), counts)
    noise = gene_effects(rng.normal(size=(50, 200)), counts, masked_refits=0)
    assert pure.explained == pytest.approx(1)
    assert noise.explained == pytest.approx(250 / 10_000, abs=0.01)  # a parameter in forty values


@pytest.mark.parametrize(
    ("weights", "counts", "message"),
    [
        pytest.param(np.zeros((2, 3)), np.ones((3, 2)), "of sources × targets, found", id="shapes_differ"),
        pytest.param(np.full((2, 3), np.nan), np.ones((2, 3)), "No pair has a weight", id="all_missing"),
        pytest.param(np.ones((2, 3)), np.zeros((2, 3)), "lower min_cells", id="no_cells"),
        pytest.param(np.full((2, 3), np.inf), np.ones((2, 3)), "infinite", id="infinite"),
        pytest.param(np.ones((2, 3)), -np.ones((2, 3)), "negative", id="negative_count"),
    ],
)
def test_what_cannot_be_fitted_is_refused(weights: np.ndarray, counts: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gene_effects(weights, counts)


@pytest.mark.parametrize("at_once", [3, 2**18], ids=["counted again and again", "counted once"])
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.random.default_rng(0).normal(size=1_001), id="an odd number"),
        pytest.param(np.random.default_rng(1).lognormal(0, 8, 1_000), id="an even number over many sizes"),
        pytest.param(np.repeat([0.0, 5.0, 7.0], [400, 30, 400]), id="ties"),
        pytest.param(np.repeat([-1.0, 2.0], 50), id="the middle ones far apart"),
        pytest.param(np.array([4.0]), id="one"),
    ],
)
def test_a_median_of_blocks_is_that_of_all_values(values, at_once, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", at_once)
    monkeypatch.setattr(module, "_BINS", 16)
    assert median_of(lambda: np.array_split(np.random.default_rng(2).permutation(values), 7)) == np.median(values)
