"""Flips of donors' signs: all of few, what they find, and that they know of genes that go together."""

import numpy as np

from geneformer_repro.in_silico.explanations.preranked import beyond_strata, flips_of_donors, matched_percentile
from geneformer_repro.in_silico.explanations.running_sums import Members, enriched


def test_all_flips_of_six_donors_are_taken():
    values = np.random.default_rng(0).normal(loc=[0, 0, 3, -3], size=(6, 4))
    one, other = (flips_of_donors(values, n_permutations=1_000, rng=np.random.default_rng(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)
    every = np.stack(np.meshgrid(*[[-1, 1]] * 6), axis=-1).reshape(-1, 6) @ values
    np.testing.assert_allclose(one, (np.abs(every) >= np.abs(values.sum(0)) - 1e-9).mean(axis=0))
    np.testing.assert_allclose(one[2:], 1 / 32)


def test_flips_know_that_genes_go_together_and_exchanges_do_not():
    """Genes of a set share a factor that differs from donor to donor, and over donors from 0 by chance alone."""
    rng = np.random.default_rng(0)
    members, stratum = Members.of([np.arange(30)], 300), np.zeros(300, dtype=np.int64)
    by_flips, by_exchange = [], []
    for _ in range(60):
        effects = rng.normal(size=(8, 300))
        effects[:, :30] += 1.5 * rng.normal(size=(8, 1))
        of_set = beyond_strata(effects, stratum)[:, :30].mean(axis=1, keepdims=True)
        by_flips.append(flips_of_donors(of_set, n_permutations=200, rng=rng)[0])
        by_exchange.append(enriched(effects.mean(0), members, stratum, n_permutations=200, rng=rng).p_value[0])
    assert np.mean(np.array(by_exchange) < 0.05) > 0.3
    assert np.mean(np.array(by_flips) < 0.05) < 0.15


def test_what_is_beyond_strata_has_no_mean_in_any_and_nothing_where_a_donor_lacks_a_gene():
    effects = np.random.default_rng(0).normal(size=(3, 40))
    effects[1, ::4] = np.nan
    stratum = np.arange(40) % 3
    beyond = beyond_strata(effects, stratum)
    assert (beyond[1, ::4] == 0).all()
    for one in range(3):
        np.testing.assert_allclose(beyond[:, stratum == one].sum(axis=1), 0, atol=1e-12)


def test_a_percentile_within_a_stratum_does_not_know_of_others():
    score, stratum = np.array([1.0, 2.0, 3.0, 10.0, 10.0, 40.0]), np.array([0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(matched_percentile(score, stratum), [-2 / 3, 0, 2 / 3, -1 / 3, -1 / 3, 2 / 3])
