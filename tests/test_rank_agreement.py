"""Agreement of rankings: golden values."""

import numpy as np

from geneformer_repro.agreement import chance_jaccard, jaccard_of_tops, spearman

A, B = np.array([3.0, 1, 2, 2, 5, 4, 0, 0]), np.array([2.0, 1, 3, 0, 4, 5, 0, 1])


def test_golden_values():
    np.testing.assert_allclose(spearman(A, B), 0.774390243902, atol=1e-12)
    assert jaccard_of_tops(A, B, 3) == 0.5  # of equal values the first


def test_a_constant_ranking_has_no_correlation():
    assert np.isnan(spearman(A, np.ones(8)))


def test_chance_is_the_index_of_the_expected_overlap():
    rng = np.random.default_rng(0)
    found = [jaccard_of_tops(rng.random(400), rng.random(400), 40) for _ in range(400)]
    np.testing.assert_allclose(np.mean(found), chance_jaccard(40, 400), rtol=0.05)
