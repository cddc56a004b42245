"""What a sample says of gene means: against slow references, and over many samples of screens whose truth is known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from _simulated_screens import N_DONORS, simulated

from geneformer_repro.in_silico import sampling
from geneformer_repro.in_silico.assisting_model import fitted
from geneformer_repro.in_silico.sampling import estimated, known_after, next_draw, passes_of_rounds

TOP = 5


def sampled(screen, n_passes, seed=0, top=TOP):
    """All rounds of a screen of which everything is known."""
    pairs, exact = screen.pairs, np.full(len(screen.exact_P), np.nan)
    draws = []
    rounds = passes_of_rounds(n_passes, pairs.n_genes)
    for number in range(len(rounds)):
        draw = next_draw(pairs, exact, draws, rounds, top, np.random.default_rng([seed, number]))
        exact[draw.drawn_P] = screen.exact_P[draw.drawn_P]
        draws.append(draw)
    return estimated(pairs, exact, draws, top), draws, exact


def means(screen, values_P):
    """Means over donors of means over cells, gene by gene."""
    table = pd.DataFrame({"gene": screen.pairs.gene_P, "donor": screen.pairs.cell_P % N_DONORS, "value": values_P})
    return table.groupby(["gene", "donor"])["value"].mean().groupby("gene").mean().to_numpy()


@pytest.fixture(scope="module")
def small():
    return simulated(n_cells=24, n_genes=30, seed=1)


# Drawing


@pytest.mark.parametrize("n_passes", [60, 200, 10_000])
def test_a_round_draws_as_many_as_it_has_and_none_twice(small, n_passes):
    _, draws, _ = sampled(small, n_passes)
    drawn = np.sum([draw.drawn_P for draw in draws], axis=0)
    assert drawn.max() == 1
    assert drawn.sum() == min(n_passes, len(small.exact_P))
    for draw in draws:
        np.testing.assert_allclose(small.pairs.by_gene(draw.chance_P), small.pairs.by_gene(draw.drawn_P), atol=1e-6)


def test_every_gene_has_a_pass_in_the_first_round_and_in_the_last(small):
    _, draws, _ = sampled(small, 60)
    assert [small.pairs.by_gene(draw.drawn_P).tolist() for draw in draws] == [[1] * 30, [1] * 30]
    _, draws, _ = sampled(small, 200)
    assert len(draws) == 5
    assert small.pairs.by_gene(draws[0].drawn_P).min() >= 1
    assert small.pairs.by_gene(draws[-1].drawn_P).min() >= 1


def test_pairs_are_drawn_as_often_as_their_chances_say(small):
    pairs, nothing = small.pairs, np.full(len(small.exact_P), np.nan)
    draws = [next_draw(pairs, nothing, [], [90], TOP, np.random.default_rng(seed)) for seed in range(1500)]
    chance_P = draws[0].chance_P
    often_P = np.mean([draw.drawn_P for draw in draws], axis=0)
    error_P = np.sqrt(np.maximum(chance_P * (1 - chance_P), 1e-12) / len(draws))
    assert np.abs((often_P - chance_P) / error_P).max() < 5
    assert np.ptp(chance_P) > 0.05


def test_passes_go_to_genes_near_the_edge_of_the_top():
    screen = simulated(n_cells=60, n_genes=60, gene_share=0.3, seed=2)
    result, draws, _ = sampled(screen, 900)
    exact_G = means(screen, screen.exact_P)
    late_G = screen.pairs.by_gene(known_after(draws[1:-1], len(screen.exact_P)))
    distance_G = np.min([np.abs(exact_G - edge) for edge in result.ranked.edges], axis=0)
    near = distance_G < np.quantile(distance_G, 0.3)
    assert late_G[near].mean() > 1.5 * late_G[~near].mean()


# Estimating


def slow_estimate(screen, draws, exact):
    """The difference estimator, gene by gene and pair by pair, after its formula."""
    pairs, n_pairs = screen.pairs, len(screen.exact_P)
    left, estimate = np.ones(pairs.n_genes), np.zeros(pairs.n_genes)
    known = draws[0].drawn_P.copy()
    for draw in draws[1:]:
        model = fitted(pairs, exact, known)
        for gene in range(pairs.n_genes):
            of_gene = [i for i in range(n_pairs) if pairs.gene_P[i] == gene]
            total, variance, sizes = 0.0, 0.0, []
            for i in of_gene:
                p, weight = draw.chance_P[i], pairs.weight_P[i]
                if known[i]:
                    total += weight * exact[i]
                    continue
                size = weight * model.scale_C[pairs.cell_P[i]]
                sizes.append(size)
                total += weight * (model.value_P[i] + ((exact[i] - model.value_P[i]) / p if draw.drawn_P[i] else 0))
                variance += (1 - p) / p * size**2 if p > 0 else np.inf
            of_one_pass = max(sum(sizes) ** 2 - sum(size**2 for size in sizes), 0.0)
            weight = left[gene]
            if draw is not draws[-1]:
                weight *= of_one_pass / (of_one_pass + variance) if of_one_pass else 0.0
            estimate[gene] += weight * total
            left[gene] -= weight
        known |= draw.drawn_P
    whole = pairs.by_gene(~known) == 0
    return np.where(whole, means(screen, exact), estimate)


def test_the_estimate_is_that_of_the_formula(small):
    result, draws, exact = sampled(small, 150)
    np.testing.assert_allclose(means(small, result.unbiased_P), slow_estimate(small, draws, exact), rtol=1e-9)


@pytest.mark.parametrize("correlation", [0.7, 0.0], ids=["first_order_tells_much", "first_order_tells_nothing"])
def test_over_many_samples_the_estimate_is_unbiased_though_rounds_follow_what_was_measured(correlation):
    screen = simulated(n_cells=24, n_genes=30, correlation=correlation, seed=3)
    errors = [
        means(screen, sampled(screen, 150, seed)[0].unbiased_P) - means(screen, screen.exact_P) for seed in range(150)
    ]
    z_G = np.mean(errors, axis=0) / (np.std(errors, axis=0, ddof=1) / np.sqrt(len(errors)))
    assert np.abs(z_G).max() < 4
    assert (z_G**2).mean() < 1.6


@pytest.mark.parametrize(
    ("correlation", "freedom"),
    [
        pytest.param(0.6, np.inf, id="normal"),
        pytest.param(0.6, 4.0, id="heavy_tails"),
        pytest.param(0.0, 4.0, id="useless"),
    ],
)
def test_intervals_hold_the_exact_means(correlation, freedom):
    held = []
    for seed in range(4):
        screen = simulated(n_cells=60, n_genes=150, correlation=correlation, freedom=freedom, seed=seed)
        result, _, _ = sampled(screen, len(screen.exact_P) // 5, seed, top=20)
        room_G = (
            sampling.Z
            * np.sqrt(screen.pairs.by_gene(result.variance_P))
            / screen.pairs.by_gene(np.ones(len(screen.exact_P)))
        )
        held.append(np.abs(means(screen, result.unbiased_P) - means(screen, screen.exact_P)) <= room_G + 1e-12)
    assert 0.92 < np.mean(held) < 0.985


def test_what_ranks_is_nearer_to_the_truth_than_a_plain_sample_and_than_first_order():
    screen = simulated(n_cells=60, n_genes=150, correlation=0.5, seed=5)
    exact_G = means(screen, screen.exact_P)
    result, _, _ = sampled(screen, len(screen.exact_P) // 5, top=20)
    rng, plain_G = np.random.default_rng(0), np.empty(150)
    for gene in range(150):
        of_gene = np.flatnonzero(screen.pairs.gene_P == gene)
        plain_G[gene] = screen.exact_P[rng.choice(of_gene, max(2, len(of_gene) // 5), replace=False)].mean()
    found = {
        name: len(set(np.argsort(values)[-20:]) & set(np.argsort(exact_G)[-20:]))
        for name, values in (
            ("sampled", result.ranked.mean_G), ("plain", plain_G), ("first", means(screen, screen.pairs.estimate_P))
        )
    }  # fmt: skip
    assert found["sampled"] >= 15
    assert found["sampled"] > found["plain"] + 4
    assert found["sampled"] > found["first"]
    unbiased_G = means(screen, result.unbiased_P)
    assert np.square(plain_G - exact_G).mean() > 3 * np.square(unbiased_G - exact_G).mean()
    highest_G, _ = result.ranked.decided()
    assert set(np.flatnonzero(highest_G == 1)) <= set(np.argsort(exact_G)[-20:])


def test_where_all_is_measured_all_is_known(small):
    result, _, _ = sampled(small, 10_000)
    np.testing.assert_array_equal(result.value_P, small.exact_P)
    np.testing.assert_allclose(result.unbiased_P, small.exact_P, rtol=1e-12)
    assert not result.variance_P.any()
    highest_G, lowest_G = result.ranked.decided()
    assert (highest_G == 1).sum() == (lowest_G == 1).sum() == TOP
    assert np.flatnonzero(highest_G == 1).tolist() == sorted(np.argsort(means(small, small.exact_P))[-TOP:].tolist())


def test_without_estimates_it_is_a_sample_all_the_same():
    screen = simulated(n_cells=40, n_genes=60, gene_share=0.3, seed=4)
    nothing = np.zeros(len(screen.exact_P))
    blind = screen._replace(pairs=dataclasses.replace(screen.pairs, estimate_P=nothing))
    result, _, _ = sampled(blind, 400)
    assert np.isnan(result.correlation)
    assert np.isfinite(result.unbiased_P).all()
    assert np.corrcoef(means(blind, result.value_P), means(blind, blind.exact_P))[0, 1] > 0.5


def test_the_rounds_spend_the_passes():
    assert passes_of_rounds(1000, 100) == [250, 183, 184, 183, 200]
    assert passes_of_rounds(200, 100) == [100, 100]
    assert sum(passes_of_rounds(2789, 645)) == 2789
