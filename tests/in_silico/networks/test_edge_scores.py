"""Scores of edges: golden values, slow references, and scores whose result is known beforehand."""

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.metrics import average_precision_score, roc_auc_score

from geneformer_repro.in_silico.networks import edge_scores as module
from geneformer_repro.in_silico.networks.edge_scores import (
    Ordered,
    Pairs,
    Stratified,
    ap_ratio_over_sources,
    auroc,
    auroc_over_sources,
    average_precision,
    bins_of,
    direction_auroc,
    drawn_sources,
    early_precision,
    epr_over_sources,
    exchanged,
    matched_bins,
    matched_over_sources,
    mean_over_sources,
    of_each_source,
    ranks_within,
    strata_of,
)

SCORES = np.array([0.9, 0.8, 0.8, 0.7, 0.5, 0.4, 0.4, 0.1])
EDGES = np.array([1, 0, 1, 1, 0, 0, 1, 0], dtype=bool)
CONSTANT = np.ones(8)


def made(seed=0, shape=(8, 50), share=0.15, values=12):
    """Pairs of all but a few genes, scores with ties, edges."""
    rng = np.random.default_rng(seed)
    pairs = Pairs.of(rng.random(shape) < 0.95)
    return pairs, rng.integers(0, values, len(pairs)).astype(float), rng.random(len(pairs)) < share


def test_golden_values():
    np.testing.assert_allclose(auroc(SCORES, EDGES), 0.75, rtol=1e-12)
    np.testing.assert_allclose(average_precision(SCORES, EDGES), 0.747023809524, atol=1e-12)
    np.testing.assert_allclose(average_precision(SCORES, EDGES) / EDGES.mean(), 1.494047619048, atol=1e-12)
    np.testing.assert_allclose(early_precision(SCORES, EDGES), 0.75, rtol=1e-12)
    np.testing.assert_allclose(early_precision(SCORES, EDGES, k=2), 0.75, rtol=1e-12)


def test_the_way_of_beeline_takes_all_pairs_that_share_the_last_score():
    np.testing.assert_allclose(early_precision(SCORES, EDGES, k=2, ties="beeline"), 2 / 3, rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "is_auroc", "is_ap", "is_ep"),
    [(CONSTANT, 0.5, 0.5, 0.5), (EDGES.astype(float), 1, 1, 1), (-EDGES.astype(float), 0, 0.5, 0)],
    ids=["constant", "perfect", "reversed"],
)
def test_what_scores_that_know_nothing_everything_or_the_opposite_come_to(scores, is_auroc, is_ap, is_ep):
    assert auroc(scores, EDGES) == is_auroc
    assert average_precision(scores, EDGES) == is_ap
    assert early_precision(scores, EDGES) == is_ep


def test_early_precision_of_a_constant_is_chance_and_of_a_perfect_score_one_over_the_density():
    density = EDGES.mean()
    assert early_precision(CONSTANT, EDGES) / density == 1
    assert early_precision(EDGES.astype(float), EDGES) / density == 1 / density


def test_a_perfect_ranking_of_distinct_scores_has_average_precision_one():
    scores = np.arange(8)[np.argsort(np.argsort(EDGES, kind="stable"))].astype(float)
    assert average_precision(scores, EDGES) == 1


def test_area_and_precision_are_those_of_scikit_learn():
    _, scores, is_edge = made()
    np.testing.assert_allclose(auroc(scores, is_edge), roc_auc_score(is_edge, scores), rtol=1e-12)
    np.testing.assert_allclose(average_precision(scores, is_edge), average_precision_score(is_edge, scores), rtol=1e-12)
    ordered = Ordered(scores)
    np.testing.assert_allclose(ordered.auroc(np.flatnonzero(is_edge)), auroc(scores, is_edge), rtol=1e-12)


def test_matched_area_is_the_weighted_mean_over_strata_taken_one_by_one():
    pairs, scores, is_edge = made()
    bins = np.random.default_rng(1).integers(0, 4, pairs.n_targets)
    stratum = strata_of(pairs, bins)
    above = below = 0.0
    for source in range(pairs.n_sources):
        for one in range(4):
            here = (pairs.source == source) & (bins[pairs.target] == one)
            n_edges, n_others = is_edge[here].sum(), (~is_edge[here]).sum()
            if n_edges and n_others:
                above += n_edges * n_others * roc_auc_score(is_edge[here], scores[here])
                below += n_edges * n_others
    stratified = Stratified(scores, stratum, pairs.source, pairs.n_sources)
    np.testing.assert_allclose(stratified.auroc(np.flatnonzero(is_edge)), above / below, rtol=1e-12)


def test_ranks_within_are_those_of_each_stratum_alone():
    from scipy.stats import rankdata

    _, scores, _ = made(2)
    stratum = np.random.default_rng(2).integers(0, 5, len(scores))
    ranks = ranks_within(scores, stratum)
    for one in range(5):
        np.testing.assert_array_equal(ranks[stratum == one], rankdata(scores[stratum == one]))


def test_a_source_has_an_area_of_its_own_from_five_edges_on():
    pairs, scores, is_edge = made()
    of_sources = of_each_source(scores, is_edge, pairs)
    for source in range(pairs.n_sources):
        here = pairs.source == source
        if is_edge[here].sum() >= 5:
            np.testing.assert_allclose(of_sources[source], roc_auc_score(is_edge[here], scores[here]), rtol=1e-12)
        else:
            assert np.isnan(of_sources[source])
    assert 0 < np.isnan(of_sources).sum() < pairs.n_sources


def repeated(draw, pairs):
    """Rows of the pairs when each source is there as often as it was drawn."""
    return np.concatenate([np.flatnonzero(pairs.source == source).repeat(n) for source, n in enumerate(draw)])


def test_intervals_are_those_of_drawing_sources_and_scoring_again():
    pairs, scores, is_edge = made(3)
    bins = bins_of(np.arange(pairs.n_targets, dtype=float), 3)
    draws = drawn_sources(pairs.n_sources, np.random.default_rng(0), 40)
    stratified = Stratified(scores, strata_of(pairs, bins), pairs.source, pairs.n_sources)
    matched, drawn = matched_over_sources(stratified, np.flatnonzero(is_edge), draws)
    whole, slowly_matched = [], []
    for draw in draws:
        rows = repeated(draw, pairs)
        whole.append(roc_auc_score(is_edge[rows], scores[rows]))
        wins, weight = stratified.of_sources(np.flatnonzero(is_edge))
        slowly_matched.append((draw * wins).sum() / (draw * weight).sum())
    found = auroc_over_sources(scores, is_edge, pairs, draws)
    np.testing.assert_allclose(found, [roc_auc_score(is_edge, scores), *np.percentile(whole, [2.5, 97.5])], rtol=1e-12)
    np.testing.assert_allclose(drawn, slowly_matched, rtol=1e-12)
    assert matched.low < matched.value < matched.high


def test_the_mean_over_sources_leaves_out_those_without_a_value():
    draws = drawn_sources(4, np.random.default_rng(0), 2000)
    found = mean_over_sources(np.array([0.4, np.nan, 0.6, 0.8]), draws)
    np.testing.assert_allclose(found.value, 0.6)
    assert 0.4 <= found.low < 0.6 < found.high <= 0.8


def test_a_score_without_direction_finds_none():
    score = np.random.default_rng(0).random(30)
    assert direction_auroc(score, score) == 0.5
    assert direction_auroc(score + 1, score) > 0.9
    np.testing.assert_allclose(direction_auroc(score, score + 0.1) + direction_auroc(score + 0.1, score), 1)


def test_bins_keep_equal_values_together_and_are_of_like_size():
    values = np.repeat(np.arange(10), 8).astype(float)
    bins = bins_of(values, 4)
    assert all(len(set(bins[values == value])) == 1 for value in range(10))
    assert bins_of(np.random.default_rng(0).random(1000), 20).tolist().count(7) == 50
    assert len(set(matched_bins(np.random.default_rng(0).random(800), np.random.default_rng(1).random(800)))) == 80


def test_labels_exchanged_within_strata_give_uniform_p_values_of_the_matched_area():
    rng = np.random.default_rng(0)
    pairs = Pairs.of(~np.eye(12, 120, dtype=bool))
    detection = np.repeat(np.linspace(0, 1, 5), 24)
    bins, p_values, plain = bins_of(detection, 5), [], []
    chance = np.exp(3 * detection[pairs.target])  # often detected targets are curated more often, whatever the score
    for _ in range(150):
        scores = 3 * detection[pairs.target] + rng.normal(size=len(pairs))
        edges = np.sort(rng.choice(len(pairs), 150, replace=False, p=chance / chance.sum()))
        stratified = Stratified(scores, strata_of(pairs, bins), pairs.source, pairs.n_sources)
        null = [stratified.auroc(one) for one in exchanged(pairs, edges, bins, rng, n=99)]
        p_values.append((1 + sum(value >= stratified.auroc(edges) for value in null)) / 100)
        plain.append(Ordered(scores).auroc(edges))
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(plain) > 0.65


@pytest.mark.parametrize("ties", ["expected", "beeline"])
def test_intervals_of_precision_are_those_of_pairs_written_as_often_as_their_source_is_drawn(ties, monkeypatch):
    monkeypatch.setattr(module, "_EDGES_AT_ONCE", 7)
    pairs, scores, is_edge = made(3)
    draws = drawn_sources(pairs.n_sources, np.random.default_rng(0), 40)
    slow = {"ap": [], "epr": []}
    for draw in draws:
        rows = np.repeat(np.arange(len(pairs)), draw[pairs.source])
        density = is_edge[rows].mean()
        slow["ap"].append(average_precision_score(is_edge[rows], scores[rows]) / density)
        slow["epr"].append(early_precision(scores[rows], is_edge[rows], ties=ties) / density)
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in slow.items()}
    ap = ap_ratio_over_sources(scores, is_edge, pairs, draws)
    epr = epr_over_sources(scores, is_edge, pairs, draws, ties=ties)
    np.testing.assert_allclose(ap[1:], ends["ap"], rtol=1e-5)
    np.testing.assert_allclose(epr[1:], ends["epr"], rtol=1e-9)
    assert ap.value == average_precision(scores, is_edge) / is_edge.mean()
    assert ap.low < ap.value < ap.high
