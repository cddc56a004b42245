"""What genes explain of heads, against least squares over every pair; and of genes that mean nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.attention import Cells, attend_shown
from geneformer_repro.in_silico.networks.attention_sums import calibrate, gene_tokens
from geneformer_repro.in_silico.networks.gene_shares import GeneSums
from geneformer_repro.in_silico.networks.lifts import GeneTokens, LogLifts, log_lifts
from geneformer_repro.in_silico.networks.places import Places, PlaceSums, place_bins
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.reading import Reader

CPU = torch.device("cpu")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def shares_of(cells, *, of_logs=True):
    """Of cells given as tokens of genes and log lifts of one block, and the means of their places."""
    n_heads, n_tokens = cells[0][1].query_QHE.shape[1], 1 + max(int(ids.max()) for ids, _ in cells)
    sums = PlaceSums(1, n_heads, 8, of_logs=of_logs, device=CPU)
    genes = GeneSums(1, n_heads, n_tokens, 8, device=CPU)
    genes.count([ids for ids, _ in cells])
    for number, (ids, lifts) in enumerate(cells):
        sums.count(len(ids))
        genes.add(0, number, sums.add(0, lifts))
    places = sums.result()
    return places, *(by[0] for by in genes.shares(places))


def explained_by(weights, columns):
    """Squares that indicators explain, by least squares, and how many numbers that fits."""
    design = np.concatenate([pd.get_dummies(column).to_numpy(float) for column in columns], axis=1)
    fitted = design @ np.linalg.lstsq(design, weights)[0]
    return fitted @ fitted, np.linalg.matrix_rank(design)


def slow_shares(cells, means_HBB, *, of_logs=True):
    """The same from every pair: design matrices of genes, and of the genes of each cell, as columns."""
    rows, weights = [], []
    for number, (ids, lifts) in enumerate(cells):
        dense, bins = lifts.dense().double().numpy(), place_bins(len(ids))
        dense = dense if of_logs else 2**dense
        left = dense - means_HBB[:, bins[:, None], bins]
        query, key = np.nonzero(~np.eye(len(ids), dtype=bool))
        weights.append(left[:, query, key])
        cell = np.full(len(key), number)
        rows.append(pd.DataFrame({"cell": cell, "key": ids[key], "query": ids[query], "n": len(ids)}))
    pairs, weights = pd.concat(rows, ignore_index=True), np.concatenate(weights, axis=1)
    total = ((weights - weights.mean(1, keepdims=True)) ** 2).sum(1)
    fitted = pairs["n"].to_numpy() >= 3
    pairs, weights = pairs[fitted], weights[:, fitted]
    in_cell = [pairs["cell"] * 1000 + pairs[role] for role in ("key", "query")]
    found = []
    for n_effects in (1, 2):
        for weight, of_all in zip(weights, total, strict=True):
            genes, n_genes = explained_by(weight, [pairs[role] for role in ("key", "query")[:n_effects]])
            tokens, n_tokens = explained_by(weight, in_cell[:n_effects])
            by_chance = (tokens - genes) / (n_tokens - n_genes) * (n_genes - 1)
            found.append((genes - weight.sum() ** 2 / len(weight) - by_chance) / of_all)
    return np.reshape(found, (2, -1))


def random_cells(lengths, n_genes, rng):
    torch.manual_seed(0)
    blocks = Cells(lengths)
    attention = attend_shown(*torch.randn(3, sum(lengths), 2, 4), blocks)[1]
    norm_TH = torch.rand(sum(lengths), 2) + 0.1
    cells = []
    for start, n in zip(blocks.starts, lengths, strict=False):
        tokens = GeneTokens(torch.arange(start + 1, start + n - 1), torch.tensor([start, start + n - 1]))
        cells.append((rng.permutation(n_genes)[: n - 2], log_lifts(attention, tokens, norm_TH=norm_TH)))
    return cells


@pytest.mark.parametrize("of_logs", [True, False], ids=["log", "lift"])
def test_shares_are_those_of_least_squares_over_every_pair(of_logs, rng):
    """Two kinds of cells without a common gene, and one of two genes, which is in no fit."""
    cells = random_cells([14, 20, 5, 11, 4], 22, rng)
    cells += [(ids + 30, lifts) for ids, lifts in random_cells([9, 12], 12, rng)]
    places, *found = shares_of(cells, of_logs=of_logs)
    np.testing.assert_allclose(found, slow_shares(cells, places.means[0], of_logs=of_logs), rtol=0, atol=1e-6)


def test_shares_of_a_model_are_those_of_its_matrices(vocabulary, pbmc):
    """In cells of the forty genes that most cells have."""
    common = np.argsort(-pbmc.X.getnnz(axis=0), kind="stable")[:40]
    few = gf.tokenize(pbmc[:6, np.sort(common)].copy(), vocabulary)
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    reader = Reader.of(gf.Checkpoint(MaskedGeneModel(config).eval(), vocabulary), device="cpu")
    gene, options = np.arange(vocabulary.size), {"n_states": 1, "n_bins": 30, "chosen_NH": np.ones((3, 2), dtype=bool)}
    places = calibrate(reader, few, np.arange(6), [0] * 6, gene_of_token=gene, **options).places
    (batch,) = reader.batches(few, np.arange(6))
    seen = []
    reader.hidden(batch.input_ids_T, batch.lengths, watch=lambda _, attention: seen.append(attention))
    for layer, attention in enumerate(seen):
        tokens = gene_tokens(batch, CPU)
        of_cells = [(batch.input_ids_T[each.genes_G].numpy(), log_lifts(attention, each)) for each in tokens]
        expected = slow_shares(of_cells, places.means[layer])
        found = [places.by_sources_NH[layer], places.by_genes_NH[layer]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert (expected > 0.05).any()


def made_cells(rng, of_token):
    """Forty cells of 20 to 40 of 60 genes, one channel: a key's effect, a query's, and noise of pairs."""
    cells = []
    for n in rng.integers(20, 41, size=40):
        ids = rng.permutation(60)[:n]
        key, query = of_token(ids)
        noise_QHE, noise_KHE = torch.from_numpy(rng.normal(size=(2, n, 1, 16)) / 4**0.5)
        lifts = LogLifts(
            noise_QHE, noise_KHE, torch.from_numpy(query)[:, None], torch.from_numpy(key)[:, None], noise_QHE[..., 0]
        )
        cells.append((ids, lifts))
    return cells


def test_genes_that_mean_something_have_their_share(rng):
    """Variances of 2 of keys, 1 of queries, 1 of pairs: a half, three quarters."""
    of_genes = rng.normal(size=(2, 60))
    of_genes = (of_genes - of_genes.mean(1, keepdims=True)) / of_genes.std(1, keepdims=True) * [[2**0.5], [1.0]]
    _, by_sources, by_genes = shares_of(made_cells(rng, lambda ids: of_genes[:, ids]))
    np.testing.assert_allclose([by_sources[0], by_genes[0]], [0.5, 0.75], atol=0.02)


def test_genes_that_differ_from_cell_to_cell_only_have_none(rng):
    """Half of the variance is of keys that keep a value through a cell, and not to the next; chance gives 2.5 %."""
    cells = made_cells(rng, lambda ids: rng.normal(size=(2, len(ids))))
    _, by_sources, by_genes = shares_of(cells)
    assert abs(by_sources[0]) < 0.012
    assert abs(by_genes[0]) < 0.012


def test_what_cannot_be_told_is_missing(rng):
    apart = [(np.arange(9), random_cells([11], 9, rng)[0][1]), (np.arange(20, 29), random_cells([11], 9, rng)[0][1])]
    assert np.isnan(shares_of(apart)[1:]).all()
    short = [(ids[:2], lifts) for ids, lifts in random_cells([4, 4], 2, rng)]
    assert np.isnan(shares_of(short)[1:]).all()
    even = [(ids, replace(lifts, key_KHE=lifts.key_KHE * 0, of_query_QH=lifts.of_query_QH * 0, of_key_KH=None))
            for ids, lifts in random_cells([9, 11], 12, rng)]  # fmt: skip
    assert np.isnan(shares_of(even)[1:]).all()


def test_shares_are_saved_with_places_and_older_files_have_none(rng, tmp_path):
    places, by_sources, by_genes = shares_of(random_cells([14, 20, 9], 22, rng))
    asked = replace(places, by_sources_NH=by_sources[None], by_genes_NH=np.array([[np.nan, by_genes[1]]]))
    for name, each in {"older": places, "asked": asked}.items():
        each.save(tmp_path / name)
        pd.testing.assert_frame_equal(Places.open(tmp_path / name).table(), each.table())
    assert {"explained_by_sources", "explained_by_genes"} <= {*asked.table()}
    assert not {"explained_by_sources", "explained_by_genes"} & {*places.table()}
