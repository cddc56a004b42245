"""Surrogates of games whose weights are known, and of cells whose answer is."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico.explanations.answers import MaskedGene, OfCell, unchanged
from geneformer_repro.in_silico.explanations.occlusions import ask, hidden, median_places, occlusions, operation
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.explanations.surrogate import (
    Sampling,
    draw_masks,
    nearness,
    surrogate,
    surrogates,
    weighted_r2,
    weighted_ridge,
)
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.reading import Reader
from geneformer_repro.targets import Classes

FEW = Sampling(n_masks=400, n_draws=2)
EVERY_MASK = np.array(np.meshgrid(*[[True, False]] * 3, indexing="ij")).reshape(3, -1).T


def game(mask_KU):
    """One unit, and a pair that only counts together."""
    return 0.2 + 0.5 * mask_KU[:, 0] + 0.3 * (mask_KU[:, 1] & mask_KU[:, 2])


def rng(seed=0):
    return np.random.default_rng(seed)


# The fit


def test_the_weights_of_a_game_of_three_units():
    weight_K = nearness(EVERY_MASK, sigma=0.5)
    n_gone = (~EVERY_MASK).sum(1)
    expected = [1, 0.641180388430, 0.169013315406, 0.018315638889]
    np.testing.assert_allclose([weight_K[n_gone == n][0] for n in range(4)], expected, atol=1e-12)
    ridge = weighted_ridge(EVERY_MASK, game(EVERY_MASK)[:, None], weight_K, 0.001)
    np.testing.assert_allclose(ridge.intercept_S, [0.0146254295412], atol=1e-12)
    expected = [0.495391281951, 0.233132422713, 0.233132422713]
    np.testing.assert_allclose(ridge.weight_US[:, 0], expected, atol=1e-12)
    r2_S = weighted_r2(game(EVERY_MASK)[:, None], ridge(EVERY_MASK), weight_K)
    np.testing.assert_allclose(r2_S, [0.947807234563], atol=1e-12)


def test_it_is_scikit_learns_ridge_of_each_number_with_its_own_penalty():
    mask_KU, answer_KS = draw_masks(50, 7, rng()), rng(1).normal(size=(50, 2))
    weight_K, penalty_S = rng(2).uniform(size=50), np.array([0.01, 3.0])
    found = weighted_ridge(mask_KU, answer_KS, weight_K, penalty_S)
    for state, penalty in enumerate(penalty_S):
        expected = Ridge(alpha=penalty, solver="svd").fit(mask_KU, answer_KS[:, state], sample_weight=weight_K)
        np.testing.assert_allclose(found.weight_US[:, state], expected.coef_, atol=1e-10)
        np.testing.assert_allclose(found.intercept_S[state], expected.intercept_, atol=1e-10)


def test_masks_leave_out_between_none_and_half_and_never_all():
    mask_KU = draw_masks(20_000, 40, rng())
    np.testing.assert_allclose((~mask_KU).mean(), 0.25, atol=0.005)
    share_K = (~mask_KU).mean(1)
    np.testing.assert_allclose(np.quantile(share_K, [0.25, 0.75]), [0.125, 0.375], atol=0.02)
    assert draw_masks(5_000, 1, rng()).all()
    assert draw_masks(5_000, 2, rng(), most_dropped=0.99).any(1).all()


@pytest.mark.parametrize(("n_units", "expected"), [(5, 1000), (50, 1000), (51, 1020), (300, 6000)])
def test_masks_are_in_proportion_to_units(n_units, expected):
    assert Sampling().masks(n_units) == expected
    assert Sampling(n_draws=3).n_passes(n_units) == 3 * expected + 1
    assert Sampling(n_masks=30).masks(n_units) == 30


# Of any function


def test_of_a_linear_function_the_weights_are_its_own_and_explain_all():
    weight_US = rng().normal(size=(12, 2))
    found = surrogate(lambda mask_KU: 3 + mask_KU @ weight_US, 12, rng(1), sampling=FEW)
    np.testing.assert_allclose(found.weight_US, weight_US, atol=1e-3)
    np.testing.assert_allclose(found.before_S, 3 + weight_US.sum(0))
    np.testing.assert_allclose(found.r2_S, 1, atol=1e-5)
    np.testing.assert_allclose(found.stability_S, 1, atol=1e-12)
    assert found.sd_US.max() < 1e-3
    assert found.is_ranked.all()


def test_where_near_masks_count_more_the_weights_are_those_of_the_neighbourhood():
    """A unit that only matters far away, where most others are gone, has next to no weight."""

    def far(mask_KU):
        return mask_KU[:, 0] * 1.0 + mask_KU[:, 1] * ((~mask_KU).mean(1) > 0.4)

    near, even = (surrogate(far, 20, rng(), sampling=Sampling(n_draws=1, sigma=sigma)) for sigma in (0.1, 10))
    assert abs(near.weight_US[1, 0]) < 0.02 < abs(even.weight_US[1, 0])
    np.testing.assert_allclose(near.weight_US[0, 0], 1, atol=0.02)


def test_of_noise_nothing_is_explained_and_nothing_ranked():
    found = surrogate(lambda mask_KU: rng(len(mask_KU)).normal(size=len(mask_KU)), 30, rng(), sampling=FEW)
    assert found.r2_S < 0.1
    assert not found.is_ranked.any()


def test_a_function_that_no_unit_changes_has_weights_of_zero_and_no_r2():
    found = surrogate(lambda mask_KU: np.full(len(mask_KU), 2.0), 4, rng(), sampling=FEW)
    np.testing.assert_allclose(found.weight_US, 0, atol=1e-12)
    assert np.isnan(found.r2_S).all()
    assert not found.is_ranked.any()


def test_what_is_explained_well_but_by_other_units_each_time_is_not_ranked():
    """R² is that of one strong unit; the order of the fifty others is chance."""

    def one_of_many(mask_KU):
        noise = np.sin(1e6 * (mask_KU @ rng(5).normal(size=mask_KU.shape[1])))
        return 10.0 * mask_KU[:, 0] + noise

    found = surrogate(one_of_many, 51, rng(), sampling=Sampling(n_masks=200, n_draws=3))
    assert found.r2_S > 0.8
    assert found.stability_S < 0.5
    assert not found.is_ranked.any()


def test_the_standard_deviation_is_that_over_draws_and_draws_are_new_masks():
    seen = []

    def noted(mask_KU):
        seen.append(mask_KU.copy())
        return game(mask_KU)

    found = surrogate(noted, 3, rng(), sampling=Sampling(n_masks=100, n_draws=3))
    assert [len(mask_KU) for mask_KU in seen] == [100, 100, 100, 1]
    assert not (seen[0] == seen[1]).all()
    assert (found.sd_US[1:] > 0).all()
    again = surrogate(game, 3, rng(), sampling=Sampling(n_masks=100, n_draws=3))
    np.testing.assert_array_equal(found.weight_US, again.weight_US)
    assert np.isnan(surrogate(game, 3, rng(), sampling=Sampling(n_masks=100, n_draws=1)).sd_US).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_masks": 3}, "n_masks must be at least 20, found 3"),
        ({"n_draws": 0}, "n_draws must be at least 1"),
        ({"most_dropped": 1.0}, "most_dropped is a share above 0 and below 1, found 1.0"),
        ({"held_out": 0}, "held_out is a share"),
        ({"sigma": 0}, "sigma must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Sampling(**settings)


# Of cells


@pytest.fixture(scope="module")
def short(_pbmc):
    """The blood cells, their first two dozen genes."""
    return gf.tokenize(_pbmc, gf.Vocabulary.fit(_pbmc, max_length=26), obs=["cell_type"])


@pytest.fixture(scope="module")
def question(short):
    """A reader, and log-odds of two classes."""
    torch.manual_seed(0)
    config = bert_config("tiny", short.vocabulary)
    config.initializer_range = 0.2
    model = CellClassifier(config, Head((Classes("kind", ("B", "T", "NK")),))).eval()
    return Reader.of(gf.Checkpoint(model, short.vocabulary), device="cpu"), OfCell(
        model, OutputAnswer(model.head.targets, 0, (0, 1))
    )


@dataclasses.dataclass(frozen=True)
class Present:
    """Sum over the genes that are there of a number each has: a game with a known answer."""

    number_V: torch.Tensor
    names = ("sum",)
    layer = 0
    first_only = masks = False
    asked = None
    described = "a sum"

    def __call__(self, hidden_TD, shown):
        return torch.stack([of.sum() for of in (self.number_V[shown.ids_T] * shown.weight_T).split(shown.lengths)])[
            :, None
        ]


def test_of_a_sum_over_genes_each_gene_has_its_number(question, short):
    number_V = torch.from_numpy(rng().normal(size=short.vocabulary.size).astype(np.float32))
    cells = [short[0], np.append(short[1][:7], short[1][-1])]
    found = surrogates(question[0], Present(number_V), cells, short.vocabulary, hidden, [rng(), rng()], sampling=FEW)
    for cell, fit in zip(cells, found, strict=True):
        np.testing.assert_allclose(fit.weight_US[:, 0], number_V[cell[1:-1].astype(np.int64)], atol=1e-3)
        np.testing.assert_allclose(fit.before_S, number_V[cell[1:-1].astype(np.int64)].sum(), atol=1e-4)


def test_of_a_classifier_weights_rank_genes_nearly_as_hiding_each_does(question, short):
    reader, answer = question
    [fit] = surrogates(reader, answer, [short[0]], short.vocabulary, hidden, [rng()], sampling=FEW)
    [alone] = occlusions(reader, answer, [short[0]], short.vocabulary, hidden)
    np.testing.assert_allclose(fit.before_S, alone.before_S, atol=1e-4)
    for state in range(2):
        assert spearmanr(fit.weight_US[:, state], alone.value_GS[:, state]).statistic > 0.6


def test_a_cell_has_its_own_masks_whoever_is_explained_beside_it(question, short):
    reader, answer, cells, shown = *question, [short[0], short[1]], []
    together = surrogates(
        reader, answer, cells, short.vocabulary, hidden, [rng(0), rng(1)], shown.append, sampling=Sampling(n_masks=50)
    )
    alone = surrogates(reader, answer, cells[1:], short.vocabulary, hidden, [rng(1)], sampling=Sampling(n_masks=50))
    np.testing.assert_allclose(together[1].weight_US, alone[0].weight_US, rtol=1e-4, atol=1e-6)
    assert sum(shown) == 2 * Sampling(n_masks=50).n_passes(24)


def test_genes_of_a_group_leave_together_and_those_of_none_never(question, short):
    ids = short[0][1:-1].astype(np.int64)
    number_V = torch.zeros(short.vocabulary.size)
    number_V[ids[:4]] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    absent = np.setdiff1d(short.vocabulary.tokens, ids)[:3]
    groups = {"a": ids[[0, 1]], "b": ids[[2, 3]], "c": ids[4:9], "not there": absent}
    [fit] = surrogates(
        question[0], Present(number_V), [short[0]], short.vocabulary, hidden, [rng()], groups=groups, sampling=FEW
    )
    np.testing.assert_allclose(fit.weight_US[:3, 0], [3, 12, 0], atol=0.02)
    assert np.isnan(fit.weight_US[3]).all()
    [none] = surrogates(
        question[0], Present(number_V), [short[0]], short.vocabulary, hidden, [rng()], groups={"not there": absent}
    )
    assert np.isnan(none.weight_US).all()
    assert not none.is_ranked.any()
    np.testing.assert_allclose(none.before_S, 15)


def test_a_gene_stays_as_long_as_one_of_its_groups_does(question, short):
    ids = short[0][1:-1].astype(np.int64)
    number_V = torch.zeros(short.vocabulary.size)
    number_V[ids[0]] = 1.0
    seen = []

    def spying(view, places):
        seen.append(places)
        return hidden(view, places)

    groups = {"a": ids[[0, 1]], "b": ids[[0, 2]]}
    surrogates(
        question[0], Present(number_V), [short[0]], short.vocabulary, spying, [rng()], groups=groups,
        sampling=Sampling(n_masks=50, n_draws=1),
    )  # fmt: skip
    assert {tuple(places) for places in seen} == {(1,), (2,)}  # a mask keeps one of the two


def test_the_gene_that_is_asked_about_stays(short):
    torch.manual_seed(0)
    base = gf.Checkpoint(MaskedGeneModel(bert_config("tiny", short.vocabulary)).eval(), short.vocabulary)
    answer = MaskedGene(base.model, int(short[0][4]), ("it",))
    reader = Reader.of(base, device="cpu")
    [fit] = surrogates(
        reader, answer, [short[0]], short.vocabulary, hidden, [rng()], sampling=Sampling(n_masks=50, n_draws=1)
    )
    assert np.flatnonzero(np.isnan(fit.weight_US[:, 0])).tolist() == [3]
    np.testing.assert_allclose(fit.before_S, ask(reader, answer, [unchanged(short[0], short.vocabulary, answer)])[0])


def test_moving_genes_to_their_median_places_is_another_game(question, short):
    median = median_places((short[row] for row in range(100)), short.vocabulary)
    to_median = operation("median_rank", short.vocabulary, median=median)
    reader, answer = question
    options = {"sampling": Sampling(n_masks=100, n_draws=1)}
    moved, gone = (
        surrogates(reader, answer, [short[0]], short.vocabulary, operator, [rng()], **options)[0]
        for operator in (to_median, hidden)
    )
    np.testing.assert_allclose(moved.before_S, gone.before_S, atol=1e-5)
    assert np.abs(moved.weight_US - gone.weight_US).max() > 0.01


def test_a_cell_of_more_than_300_genes_needs_groups(cells, vocabulary, question):
    long = np.append(cells[int(np.argmax(cells.lengths))], [])
    assert len(long) > 302
    with pytest.raises(InputError, match=r"a cell has \d+ genes \(at most 300\)\. Name sets of genes"):
        surrogates(*question, [long], vocabulary, hidden, [rng()])
    with pytest.raises(InputError, match="at most 300 units, and 301 sets"):
        surrogates(*question, [], vocabulary, hidden, [], groups={str(i): np.array([5]) for i in range(301)})
