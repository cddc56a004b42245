"""The simulated regulation that networks are tried on: targets go with their factor, decoys are alike in all else."""

import numpy as np
import pytest
from _planted_regulation import HAVE_FACTOR, SWITCHED_OFF, SWITCHED_ON, TYPES, simulate

N_CELLS = 12_000


@pytest.fixture(scope="module", params=[True, False], ids=["regulated", "null"])
def planted(request):
    return request.param, simulate(N_CELLS, regulated=request.param, seed=1)


def test_targets_are_switched_on_within_each_type_and_decoys_are_not(planted):
    regulated, (cells, pairs) = planted[0], (planted[1].cells, planted[1].pairs)
    has = cells.to_df() > 0
    for type_ in TYPES:
        here = has[cells.obs["type"] == type_]
        with_factor = np.array([here.loc[here[a], b].mean() for a, b in zip(pairs["source"], pairs["target"])])
        without = np.array([here.loc[~here[a], b].mean() for a, b in zip(pairs["source"], pairs["target"])])
        is_edge = pairs["is_edge"] & regulated
        np.testing.assert_allclose(with_factor[is_edge], SWITCHED_ON, atol=0.04)
        np.testing.assert_allclose(without[is_edge], SWITCHED_OFF, atol=0.05)
        np.testing.assert_allclose((with_factor - without)[~is_edge], 0, atol=0.08)


def test_detection_and_counts_tell_no_target_from_a_decoy(planted):
    cells, pairs = planted[1].cells, planted[1].pairs
    counts = cells.to_df()
    detection = (counts > 0).mean()
    assert cells.obs["type"].value_counts().tolist() == [N_CELLS / 3] * 3
    np.testing.assert_allclose(detection[pairs["source"].unique()], HAVE_FACTOR, atol=0.02)
    np.testing.assert_allclose(detection[pairs["target"].unique()], 0.6, atol=0.02)
    # a gene's counts where it is there, relative to their median, have one distribution
    spread = counts.where(counts > 0).apply(lambda of_gene: (of_gene / of_gene.median()).std())
    of_targets, of_decoys = (spread[pairs.loc[pairs["is_edge"] == kind, "target"].unique()] for kind in (True, False))
    assert abs(of_targets.mean() - of_decoys.mean()) < 3 * np.hypot(of_targets.sem(), of_decoys.sem())


def test_a_factor_is_paired_with_its_ten_targets_and_thirty_decoys():
    pairs = simulate(10).pairs
    assert pairs.groupby("source")["is_edge"].agg(["sum", "size"]).to_numpy().tolist() == [[10, 40]] * 4
    assert not set(pairs.loc[pairs["is_edge"], "target"]) & set(pairs.loc[~pairs["is_edge"], "target"])


def test_the_same_seed_draws_the_same_cells():
    first, again, other = (simulate(50, seed=seed).cells.X.toarray() for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
