"""Means of places, against the whole matrix; and bins that have too few pairs."""

import numpy as np
import pytest
import torch

from geneformer_repro.attention import Cells, attend_shown
from geneformer_repro.errors import DataFormatError
from geneformer_repro.in_silico.networks.lifts import GeneTokens, log_lifts
from geneformer_repro.in_silico.networks.places import LEAST_PAIRS, Places, PlaceSums, place_bins

LENGTHS = [40, 300, 9]


def test_bins_are_finest_in_front():
    np.testing.assert_array_equal(place_bins(10), [0, 1, 1, 1, 2, 2, 2, 2, 2, 3])
    assert place_bins(2048)[-1] + 1 == 46
    assert place_bins(4096)[-1] + 1 == 64


@pytest.fixture(scope="module")
def lifts():
    """Of two blocks, three cells each; values have norms."""
    torch.manual_seed(0)
    cells = Cells(LENGTHS)
    blocks = [attend_shown(*torch.randn(3, sum(LENGTHS), 2, 8), cells)[1] for _ in range(2)]
    norm_TH = torch.rand(sum(LENGTHS), 2) + 0.1

    def of(layer, cell):
        start, stop = cells.starts[cell : cell + 2]
        tokens = GeneTokens(torch.arange(start + 1, stop - 1), torch.tensor([start, stop - 1]))
        return log_lifts(blocks[layer], tokens, norm_TH=norm_TH)

    return [[of(layer, cell) for cell in range(3)] for layer in range(2)]


def summed(lifts, *, of_logs):
    sums = PlaceSums(2, 2, 18, of_logs=of_logs, device=torch.device("cpu"))
    for cell in range(3):
        sums.count(LENGTHS[cell] - 2)
        for layer in range(2):
            sums.add(layer, lifts[layer][cell])
    return sums.result()


def pairs(lifts, layer, *, of_logs):
    """Every pair but those of a gene with itself: bins of query and key, and weights of both heads."""
    for cell, length in enumerate(LENGTHS):
        dense = lifts[layer][cell].dense().double().numpy()
        bins = place_bins(length - 2)
        for i, j in np.argwhere(~np.eye(length - 2, dtype=bool)):
            yield bins[i], bins[j], dense[:, i, j] if of_logs else 2 ** dense[:, i, j]


@pytest.mark.parametrize("of_logs", [True, False], ids=["log", "lift"])
def test_sums_are_those_over_every_pair(lifts, of_logs):
    found = summed(lifts, of_logs=of_logs)
    for layer in range(2):
        sums, n, square = np.zeros((2, 18, 18)), np.zeros((18, 18)), np.zeros(2)
        for query, key, weight in pairs(lifts, layer, of_logs=of_logs):
            sums[:, query, key] += weight
            square += weight**2
            n[query, key] += 1
        np.testing.assert_array_equal(found.n_BB, n)
        np.testing.assert_allclose(found.sum_NHBB[layer], sums, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(found.square_NH[layer], square, rtol=1e-5)


def test_spread_is_that_around_the_means_of_places(lifts):
    found = summed(lifts, of_logs=True)
    left, whole = [], []
    for query, key, weight in pairs(lifts, 1, of_logs=True):
        left.append(weight - found.means[1, :, query, key])
        whole.append(weight)
    np.testing.assert_allclose(found.spread[1], np.sqrt(np.mean(np.square(left), axis=0)), rtol=1e-4)
    explained = 1 - np.mean(np.square(left), axis=0) / np.var(whole, axis=0)
    np.testing.assert_allclose(found.explained[1], explained, atol=1e-4)


def made_of(n, mean=None):
    n = np.asarray(n)
    mean = np.arange(n.size, dtype=float).reshape(n.shape) if mean is None else mean
    return Places((mean * n)[None, None], np.ones((1, 1)), n, np.zeros((1, 1)))


def test_a_bin_of_few_pairs_takes_its_neighbours_in():
    n = np.full((5, 5), 100)
    n[0, 0], n[4, 4] = 0, LEAST_PAIRS - 1
    places = made_of(n)
    mean = places.means[0, 0]
    np.testing.assert_allclose(mean[1:4], np.arange(25.0).reshape(5, 5)[1:4])
    assert mean[0, 0] == pytest.approx((1 + 5 + 6) / 3)
    assert mean[4, 4] == pytest.approx((18 * 100 + 19 * 100 + 23 * 100 + 24 * 49) / 349)


def test_places_that_no_cell_reaches_are_as_the_nearest():
    n = np.zeros((6, 6), dtype=int)
    n[:2, :2] = 1000
    mean = made_of(n, np.full((6, 6), 3.0)).means
    np.testing.assert_allclose(mean, 3.0)


def test_fewer_pairs_than_a_bin_needs_are_one_bin():
    mean = made_of([[0, 4], [4, 8]]).means
    assert mean[0, 0, 0, 0] == pytest.approx((4 + 8 + 24) / 16)


def test_an_even_head_has_no_spread():
    places = Places(np.zeros((1, 1, 2, 2)), np.full((1, 1), 1e-20), np.full((2, 2), 100), np.zeros((1, 1)))
    assert places.spread == 0
    assert np.isnan(places.explained)


def test_saved_and_opened_it_is_the_same(lifts, tmp_path):
    places = summed(lifts, of_logs=True)
    places.save(tmp_path / "places.parquet")
    again = Places.open(tmp_path / "places.parquet")
    for name in ("sum_NHBB", "square_NH", "n_BB", "on_specials_NH", "means", "spread"):
        np.testing.assert_array_equal(getattr(again, name), getattr(places, name))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "places.parquet").write_text("no table")
    with pytest.raises(DataFormatError, match=r"places\.parquet: no table of places"):
        Places.open(tmp_path / "places.parquet")
