"""Hiding is masking a key everywhere; deleting is hiding and a shift; medians are where they are said to be."""

import numpy as np
import pytest
import torch
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico.engine import Engine, PerturbedCell, Prediction
from geneformer_repro.in_silico.explanations.answers import OfCell, View, log_odds, unchanged
from geneformer_repro.in_silico.explanations.occlusions import (
    ask,
    at_median,
    deleted,
    hidden,
    masked,
    median_places,
    occlusions,
    operation,
)
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.perturbation import Deletion, Edits
from geneformer_repro.model import bert_config
from geneformer_repro.reading import Reader
from geneformer_repro.targets import Classes

CLASSES = ("B", "T", "NK")


@pytest.fixture
def classifier(vocabulary):
    """An untrained classifier of three classes, with weights large enough to make cells differ."""
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    return gf.Checkpoint(CellClassifier(config, Head((Classes("kind", CLASSES),))).eval(), vocabulary, name="kinds")


@pytest.fixture
def answer(classifier):
    return OfCell(classifier.model, OutputAnswer(classifier.model.head.targets, 0, (0, 2)))


@pytest.fixture
def few(cells):
    """Three cells of unlike length, their tokens."""
    order = np.argsort(cells.lengths, kind="stable")
    return [cells[int(row)] for row in order[[0, 2, 5]]]


def view(genes, margin=1):
    ids = np.array([7] * margin + list(genes) + [8] * margin)
    weight = np.array([0] * margin + [1] * len(genes) + [0] * margin, dtype=np.float32)
    return View(ids, np.arange(len(ids)), weight, -1, margin)


def stock_answer(classifier, tokens, is_hidden, classes=(0, 2)):
    """Log-odds by eager stock BERT with an attention mask, the hidden tokens left out of the mean."""
    stock = BertModel(
        classifier.model.config,
        add_pooling_layer=False,
    )
    stock.config._attn_implementation = "eager"
    stock.load_state_dict(classifier.model.bert.state_dict(), strict=False)
    ids_1L, is_seen_1L = torch.from_numpy(tokens.astype(np.int64))[None], torch.from_numpy(~is_hidden)[None]
    with torch.no_grad():
        hidden_LD = stock.eval()(ids_1L, attention_mask=is_seen_1L.long()).last_hidden_state[0]
        is_gene = classifier.vocabulary.genes_of(tokens) >= 0
        pooled_D = hidden_LD[torch.from_numpy(is_gene & ~is_hidden)].mean(0)
        logits = classifier.model.classifier(pooled_D).double()
    others = [[j for j in range(len(CLASSES)) if j != k] for k in classes]
    return np.array([float(logits[k] - logits[rest].logsumexp(0)) for k, rest in zip(classes, others, strict=True)])


def test_hidden_genes_are_keys_that_stock_bert_masks_in_every_block(classifier, answer, few, vocabulary):
    reader = Reader.of(classifier, device="cpu")
    for tokens in few:
        whole = unchanged(tokens, vocabulary, answer)
        sets = [np.array([0]), np.array([3, 4, 9]), np.arange(whole.n_genes - 2)]
        found = ask(reader, answer, [whole, *(hidden(whole, places) for places in sets)])
        for places, of_view in zip([np.array([], dtype=int), *sets], found, strict=True):
            is_hidden = np.isin(np.arange(len(tokens)), places + 1)
            np.testing.assert_allclose(of_view, stock_answer(classifier, tokens, is_hidden), atol=2e-5)


def test_masked_genes_are_masks_that_do_not_count_in_the_vector(classifier, answer, few, vocabulary):
    reader, tokens = Reader.of(classifier, device="cpu"), few[0]
    whole, places = unchanged(tokens, vocabulary, answer), np.array([0, 4])
    out, counted = (
        ask(reader, answer, [masked(whole, places, mask_token=vocabulary.mask_token, pooled=pooled)])[0]
        for pooled in (False, True)
    )
    ids_T = torch.from_numpy(tokens.astype(np.int64))
    ids_T[places + 1] = vocabulary.mask_token
    for found, weight in ((out, 0.0), (counted, 1.0)):
        weight_T = torch.tensor([0.0, *[1.0] * whole.n_genes, 0.0])
        weight_T[places + 1] = weight
        with torch.no_grad():
            logits = classifier.model(ids_T, [len(tokens)], weights=weight_T).logits
        np.testing.assert_allclose(found, log_odds(logits, (0, 2), None)[0], atol=1e-5)


def test_deletion_is_that_of_screens(classifier, few, vocabulary):
    """Of two classes only, log-odds are the logit of the probability that a screen reports."""
    torch.manual_seed(1)
    two = CellClassifier(classifier.model.config, Head((Classes("kind", CLASSES[:2]),))).eval()
    checkpoint = gf.Checkpoint(two, vocabulary)
    reader, answer = Reader.of(checkpoint, device="cpu"), OfCell(two, OutputAnswer(two.head.targets, 0, (0,)))
    ours = occlusions(reader, answer, few, vocabulary, operation("delete", vocabulary))
    engine = Engine(reader, vocabulary, "mean", Prediction(two, 0), None, 500)
    edits = Edits(Deletion(), vocabulary)
    for attribution, outcome in zip(
        ours, engine.run([PerturbedCell(cell, edits.variants(cell)) for cell in few]), strict=True
    ):
        before, after = outcome.before_NS[:, 0], outcome.before_NS[:, 0] + outcome.value_NS[:, 0]
        fall = np.log(before / (1 - before)) - np.log(after / (1 - after))
        np.testing.assert_allclose(attribution.value_GS[:, 0], fall, atol=1e-4)


def test_hiding_equals_deleting_for_a_model_whose_positions_are_all_alike(classifier, answer, few, vocabulary):
    with torch.no_grad():
        classifier.model.bert.embeddings.position_embeddings.weight[:] = 0.3
    reader = Reader.of(classifier, device="cpu")
    by_hiding, by_deleting = (
        occlusions(reader, answer, few, vocabulary, operation(operator, vocabulary)) for operator in ("hide", "delete")
    )
    for one, other in zip(by_hiding, by_deleting, strict=True):
        assert np.abs(one.value_GS).max() > 0.01
        np.testing.assert_allclose(one.value_GS, other.value_GS, atol=1e-5)


def test_with_positions_hiding_is_not_deleting(classifier, answer, few, vocabulary):
    reader = Reader.of(classifier, device="cpu")
    one, other = (
        occlusions(reader, answer, few[:1], vocabulary, operation(operator, vocabulary))[0].value_GS
        for operator in ("hide", "delete")
    )
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("max_tokens", [64, 1000, 20_000])
def test_the_size_of_batches_changes_nothing(classifier, answer, few, vocabulary, max_tokens):
    small = Reader.of(classifier, device="cpu", max_tokens=max_tokens)
    usual = Reader.of(classifier, device="cpu")
    for one, other in zip(
        occlusions(small, answer, few, vocabulary, operation("hide", vocabulary)),
        occlusions(usual, answer, few[::-1], vocabulary, operation("hide", vocabulary))[::-1],
        strict=True,
    ):
        np.testing.assert_allclose(one.value_GS, other.value_GS, atol=1e-5)
        np.testing.assert_allclose(one.before_S, other.before_S, atol=1e-5)


def test_operators_on_a_cell_of_five_genes():
    cell = view([20, 21, 22, 23, 24])
    without = hidden(cell, np.array([1, 3]))
    assert without.ids_L.tolist() == [7, 20, 22, 24, 8]
    assert without.positions_L.tolist() == [0, 1, 3, 5, 6]
    assert deleted(cell, np.array([1, 3])).positions_L.tolist() == [0, 1, 2, 3, 4]
    behind = masked(cell, np.array([0, 4]), mask_token=1)
    assert behind.ids_L.tolist() == [7, 1, 21, 22, 23, 1, 8]
    assert behind.weight_L.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert masked(cell, np.array([0, 4]), mask_token=1, pooled=True).weight_L.tolist() == [0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("places", "medians", "expected"),
    [
        pytest.param([0], {20: 3}, [21, 22, 23, 20, 24], id="back"),
        pytest.param([4], {24: 0}, [24, 20, 21, 22, 23], id="to the front"),
        pytest.param([1], {21: 1}, [20, 21, 22, 23, 24], id="stays"),
        pytest.param([1], {21: 9}, [20, 22, 23, 24, 21], id="beyond the end"),
        pytest.param([1], {}, [20, 21, 22, 23, 24], id="no median"),
        pytest.param([0, 4], {20: 2, 24: 2}, [21, 22, 20, 24, 23], id="two of one median"),
        pytest.param([0, 1], {20: 9, 21: 9}, [22, 23, 24, 20, 21], id="two beyond the end"),
    ],
)
@pytest.mark.parametrize("margin", [0, 1], ids=["without special tokens", "with special tokens"])
def test_genes_move_to_their_median_places(places, medians, expected, margin):
    median = np.full(30, -1)
    for gene, place in medians.items():
        median[gene] = place
    moved = at_median(view([20, 21, 22, 23, 24], margin), np.array(places), median=median)
    assert moved.ids_L.tolist() == [7] * margin + expected + [8] * margin
    assert moved.positions_L.tolist() == list(range(5 + 2 * margin))


def test_median_places_are_those_of_the_cells_that_express_a_gene(vocabulary):
    genes = vocabulary.tokens[:4]
    special = vocabulary.special_tokens
    cells = [
        np.array([special["<cls>"], *genes[of_cell], special["<eos>"]])
        for of_cell in ([0, 1, 2], [1, 0], [2, 1, 0], [1, 2])
    ]
    median = median_places(cells, vocabulary)
    assert median[genes].tolist() == [1, 0, 1, -1]  # of 0: 0, 1, 2; of 1: 1, 0, 1, 0 rounded down; of 2: 2, 0, 1


def test_a_group_is_taken_away_at_once(classifier, answer, few, vocabulary):
    reader, cell = Reader.of(classifier, device="cpu"), few[0]
    genes = cell[vocabulary.genes_of(cell) >= 0]
    absent = np.setdiff1d(vocabulary.tokens, genes)[:3]
    groups = {"some": genes[[1, 5]], "one": genes[[2]], "absent": absent, "all": genes}
    hide = operation("hide", vocabulary)
    (of_groups,) = occlusions(reader, answer, [cell], vocabulary, hide, groups=groups)
    (of_genes,) = occlusions(reader, answer, [cell], vocabulary, hide)
    whole = unchanged(cell, vocabulary, answer)
    by_hand = ask(reader, answer, [whole, hidden(whole, np.array([1, 5]))])
    np.testing.assert_allclose(of_groups.value_GS[0], by_hand[0] - by_hand[1], atol=1e-5)
    np.testing.assert_allclose(of_groups.value_GS[1], of_genes.value_GS[2], atol=1e-5)
    assert np.isnan(of_groups.value_GS[2:]).all()
    assert len(of_genes.value_GS) == len(genes)
