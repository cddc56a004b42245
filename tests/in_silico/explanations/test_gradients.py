"""Derivatives of token models against captum, eager stock BERT, and models whose answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import nn
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head
from geneformer_repro.in_silico.explanations.answers import (
    ClassOfGene,
    MaskedGene,
    OfCell,
    Towards,
    laid_out,
    unchanged,
)
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.explanations.gradients import (
    GRADIENT_METHODS,
    UNSIGNED,
    answer_spread,
    baseline_agreement,
    baseline_rows,
    gradients,
    n_passes,
)
from geneformer_repro.in_silico.explanations.occlusions import ask, masked, occlusions, operation
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.explanations.path_integrals import Integration
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.reading import Reader, batches_of
from geneformer_repro.targets import Classes, Number

KIND, AGE = Classes("kind", ("B", "T", "NK")), Number("age", mean=40.5, sd=12.0)
TWENTY = Integration(first_steps=20, most_steps=20)


@pytest.fixture(scope="module")
def short(_pbmc):
    """The blood cells, their first dozens of genes."""
    return gf.tokenize(_pbmc, gf.Vocabulary.fit(_pbmc, max_length=42), obs=["cell_type"])


@pytest.fixture(scope="module")
def few(short):
    """Three cells of 42, 20 and 9 tokens."""
    return [np.append(short[row][: n - 1], short[row][-1]) for row, n in enumerate((42, 20, 9))]


def weighty(vocabulary):
    """A tiny configuration with weights large enough to make genes differ."""
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    return config


@pytest.fixture(scope="module")
def classifier(short):
    """Makes a classifier of a class and a number; of one pooling always the same."""

    def make(pooling="mean"):
        model = CellClassifier(weighty(short.vocabulary), Head((KIND, AGE), pooling)).eval()
        return gf.Checkpoint(model, short.vocabulary, name="kinds")

    return make


@pytest.fixture(scope="module")
def questions(short, classifier):
    """By name a checkpoint, and an answer of it."""
    mean, cls, config = classifier(), classifier("cls"), weighty(short.vocabulary)
    genes = GeneClassifier(config, Head((KIND,), level="gene")).eval()
    gene = int(short[0][3])
    base, of_genes = (gf.Checkpoint(model.eval(), short.vocabulary) for model in (MaskedGeneModel(config), genes))
    start_D, *goal = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    return {
        "class": (mean, OfCell(mean.model, OutputAnswer(mean.model.head.targets, 0, (0, 2)))),
        "contrast, cls": (cls, OfCell(cls.model, OutputAnswer(cls.model.head.targets, 0, (1,), contrast=0))),
        "number": (mean, OfCell(mean.model, OutputAnswer(mean.model.head.targets, 1))),
        "goal, one block before": (base, Towards(start_D, torch.stack(goal), ("a", "b"), "c", "mean", -1)),
        "masked gene": (base, MaskedGene(base.model, gene, ("it",))),
        "class of a gene": (of_genes, ClassOfGene(of_genes.model, gene, "it", (0, 1))),
    }


QUESTIONS = ("class", "contrast, cls", "number", "goal, one block before", "masked gene", "class of a gene")
every_question = pytest.mark.parametrize("question", QUESTIONS)


def reader_of(checkpoint, answer, **options):
    return Reader.of(checkpoint, layer=answer.layer, device="cpu", **options)


def explained(question, cells, method, **settings):
    checkpoint, answer = question
    with_gene = [cell for cell in cells if answer.asked is None or answer.asked in cell]
    return gradients(reader_of(checkpoint, answer), answer, with_gene, checkpoint.vocabulary, method, **settings)


# Integrated gradients


def eager_bert(model):
    """Stock BERT with the same weights."""
    stock = BertModel(model.config, add_pooling_layer=False)
    stock.config._attn_implementation = "eager"
    stock.load_state_dict(model.bert.state_dict(), strict=False)
    return stock.eval()


def captums(checkpoint, tokens, classes, n_steps):
    """By captum on the word embeddings of eager stock BERT; of each class, (G, S)."""
    model, vocabulary = checkpoint.model, checkpoint.vocabulary
    stock = eager_bert(model)
    is_gene = torch.from_numpy(vocabulary.genes_of(tokens) >= 0)

    def answer(ids_NL):
        pooled_ND = stock(ids_NL).last_hidden_state[:, is_gene].mean(1)
        logits_NK = model.classifier(pooled_ND)[:, :3]
        rest = [[j for j in range(3) if j != k] for k in classes]
        odds = [logits_NK[:, k] - logits_NK[:, others].logsumexp(1) for k, others in zip(classes, rest, strict=True)]
        return torch.stack(odds, 1)

    ids_1L = torch.from_numpy(tokens.astype(np.int64))[None]
    start_1L = torch.where(is_gene, vocabulary.mask_token, ids_1L)
    layered = LayerIntegratedGradients(answer, stock.embeddings.word_embeddings)
    by_state = [
        layered.attribute(ids_1L, start_1L, target=state, n_steps=n_steps, method="riemann_middle").sum(-1)[0, is_gene]
        for state in range(len(classes))
    ]
    return torch.stack(by_state, -1).detach().numpy()


def test_integrated_gradients_equal_captum(questions, few):
    checkpoint, _ = questions["class"]
    found = explained(questions["class"], few, "integrated_gradients", integration=TWENTY)
    for cell, attribution in zip(few, found, strict=True):
        expected_GS = captums(checkpoint, cell, (0, 2), n_steps=20)
        np.testing.assert_allclose(attribution.value_GS, expected_GS, atol=1e-5 * np.abs(expected_GS).max())


@every_question
def test_they_add_up_to_the_difference_from_a_cell_of_masks(questions, few, question):
    checkpoint, answer = questions[question]
    cells = [cell for cell in few if answer.asked is None or answer.asked in cell]
    found = explained(questions[question], cells, "integrated_gradients")
    for cell, attribution in zip(cells, found, strict=True):
        view = unchanged(cell, checkpoint.vocabulary, answer)
        places = np.arange(view.n_genes)
        all_masks = masked(view, places, mask_token=checkpoint.vocabulary.mask_token, pooled=True)
        all_masks = all_masks._replace(weight_L=view.weight_L)
        whole_S, start_S = ask(reader_of(checkpoint, answer), answer, [view, all_masks])
        np.testing.assert_allclose(attribution.before_S, whole_S, atol=1e-4 * np.abs(whole_S).max())
        miss_S = np.abs(np.nansum(attribution.value_GS, 0) - (whole_S - start_S))
        bound_S = np.maximum(np.abs(whole_S - start_S), 0.1 * spread_of(questions[question], cells))
        np.testing.assert_allclose(attribution.gap_S, miss_S / bound_S, atol=1e-3)
        assert (attribution.gap_S <= 0.01).all()


def spread_of(question, cells):
    checkpoint, answer = question
    return answer_spread(reader_of(checkpoint, answer), answer, cells, checkpoint.vocabulary)


def test_the_spread_is_the_standard_deviation_of_the_answers(questions, few, short):
    checkpoint, answer = questions["class"]
    answers_BS = ask(reader_of(checkpoint, answer), answer, [unchanged(cell, short.vocabulary, answer) for cell in few])
    np.testing.assert_allclose(spread_of(questions["class"], few), answers_BS.std(0, ddof=1), rtol=1e-4)
    assert (spread_of(questions["class"], few[:1]) == 0).all()


@pytest.fixture(scope="module")
def trained(short):
    """A classifier of cell types, trained for seconds, and cells it has not seen."""
    labels = short.labels("cell_type")
    names = tuple(sorted(set(labels)))
    torch.manual_seed(0)
    model = CellClassifier(bert_config("tiny", short.vocabulary), Head((Classes("cell_type", names),)))
    number_N1 = torch.tensor([[float(names.index(label))] for label in labels])
    optimiser, rng = torch.optim.AdamW(model.parameters(), 2e-3), np.random.default_rng(0)
    for _ in range(60):
        rows = rng.choice(600, 32, replace=False)
        [batch] = batches_of(short, rows, 10**6)
        model(**batch.inputs, labels=number_N1[rows[batch.rows]]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return gf.Checkpoint(model.eval(), short.vocabulary), [short[row] for row in range(600, 650)]


def test_of_a_trained_classifier_nearly_all_cells_are_complete_within_128_steps(trained):
    checkpoint, cells = trained
    question = checkpoint, OfCell(checkpoint.model, OutputAnswer(checkpoint.model.head.targets, 0, (1,)))
    settings = Integration(most_steps=128)
    found = explained(question, cells, "integrated_gradients", integration=settings)
    difference = [np.ptp([one.before_S[0] for one in found]), np.nanmax([np.abs(one.value_GS).sum() for one in found])]
    assert min(difference) > 1  # nats: there is something to explain
    assert np.mean([one.gap_S[0] <= 0.01 for one in found]) >= 0.95


def test_a_gene_that_is_the_baseline_adds_nothing_and_special_tokens_have_no_share(questions, few, short):
    cell = few[1].copy()
    cell[4] = short.vocabulary.mask_token
    found = explained(questions["class"], [cell], "integrated_gradients", integration=TWENTY)[0]
    assert found.value_GS.shape == (18, 2)
    assert np.isnan(found.value_GS[3]).all()  # no gene
    assert np.isfinite(np.delete(found.value_GS, 3, axis=0)).all()


def test_the_mean_baseline_is_the_mean_row_of_each_place(questions, few):
    checkpoint, answer = questions["class"]
    reader = reader_of(checkpoint, answer)
    mean_PD = baseline_rows(reader, checkpoint.vocabulary, "mean", reference=few)
    table_VD = checkpoint.model.bert.embeddings.word_embeddings.weight.detach()
    assert len(mean_PD) == 40
    np.testing.assert_allclose(mean_PD[3], table_VD[[int(cell[4]) for cell in few]].mean(0), atol=1e-6)
    np.testing.assert_allclose(mean_PD[30], table_VD[int(few[0][31])], atol=1e-6)
    alone_PD = baseline_rows(reader, checkpoint.vocabulary, "mean", reference=few[:1])
    [nothing] = explained(questions["class"], few[:1], "integrated_gradients", baseline_PD=alone_PD)
    assert (nothing.value_GS == 0).all()  # it stands at its baseline


def test_a_baseline_that_does_not_reach_a_cells_end_is_refused(questions, few):
    checkpoint, answer = questions["class"]
    reader = reader_of(checkpoint, answer)
    short_PD = baseline_rows(reader, checkpoint.vocabulary, "mean", reference=few[1:])
    with pytest.raises(InputError, match="40 genes, and the cells over which the baseline is a mean have at most 18"):
        explained(questions["class"], few, "gradient_input", baseline_PD=short_PD)
    with pytest.raises(InputError, match="there is no reference cell"):
        baseline_rows(reader, checkpoint.vocabulary, "mean")
    with pytest.raises(InputError, match="baseline must be one of 'mask', 'mean', 'pad', found 'zero'"):
        baseline_rows(reader, checkpoint.vocabulary, "zero")


def test_baselines_agree_as_spearman_says():
    def of(*columns):
        return [Attribution(np.array(column, dtype=float)[:, None], np.zeros(1)) for column in columns]

    given = {"mask": of([1, 2, 3, np.nan], [1, 2, 3]), "mean": of([1, 2, 3, 9], [1, 3, 2]), "pad": of([2] * 4, [2] * 3)}
    found = baseline_agreement(given)
    assert list(found) == ["mask, mean", "mask, pad", "mean, pad"]
    np.testing.assert_allclose(found["mask, mean"], [0.75])
    assert np.isnan(found["mask, pad"]).all()


# A model that is known


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear function of the mean vector."""

    weight_DS: torch.Tensor
    names = ("a", "b")
    layer = -3
    first_only = masks = False
    asked = None
    described = "linear"

    def __call__(self, hidden_TD, shown):
        cells = zip(hidden_TD.split(shown.lengths), shown.weight_T.split(shown.lengths), strict=True)
        return torch.stack([(weight_L @ hidden_LD) / weight_L.sum() @ self.weight_DS for hidden_LD, weight_L in cells])


@pytest.fixture
def linear(short):
    """A model without blocks and norm: the sum of a token's embeddings is its hidden state."""
    model = MaskedGeneModel(weighty(short.vocabulary)).eval()
    model.bert.embeddings.LayerNorm = nn.Identity()
    weight_DS = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    return gf.Checkpoint(model, short.vocabulary), Linear(weight_DS)


def test_of_a_linear_model_integrated_gradients_gradient_and_masking_are_one(linear, few):
    checkpoint, answer = linear
    reader, vocabulary = reader_of(checkpoint, answer), checkpoint.vocabulary
    by_path, by_slope = (explained(linear, few, method) for method in ("integrated_gradients", "gradient_input"))
    in_mean = occlusions(reader, answer, few, vocabulary, operation("mask", vocabulary, pooled=True))
    out_of_mean = occlusions(reader, answer, few, vocabulary, operation("mask", vocabulary))
    place_PS = reader.position_embeddings(42) @ answer.weight_DS
    type_S = checkpoint.model.bert.embeddings.token_type_embeddings.weight[0].detach() @ answer.weight_DS
    mask_S = baseline_rows(reader, vocabulary)[0] @ answer.weight_DS
    for cell in range(3):
        path_GS, n = by_path[cell].value_GS, len(by_path[cell].value_GS)
        assert path_GS.std() > 0.01
        np.testing.assert_allclose(by_slope[cell].value_GS, path_GS, atol=1e-5)
        np.testing.assert_allclose(in_mean[cell].value_GS, path_GS, atol=1e-5)
        # out of the mean, the others are divided by one less: (own − mean) / (n − 1), own = n · path + mask's
        own_GS = n * path_GS + (mask_S + type_S + place_PS[1 : n + 1]).numpy()
        renormalised_GS = (own_GS - by_path[cell].before_S) / (n - 1)
        np.testing.assert_allclose(out_of_mean[cell].value_GS, renormalised_GS, atol=1e-5)


@every_question
def test_gradient_times_input_is_that_of_the_rows_of_stock_bert(questions, few, question):
    checkpoint, answer = questions[question]
    [found, *_] = explained(questions[question], few, "gradient_input")
    shown = laid_out([unchanged(few[0], checkpoint.vocabulary, answer)], torch.device("cpu"))
    table_VD = checkpoint.model.bert.embeddings.word_embeddings.weight.detach()
    rows_LD = table_VD[shown.ids_T].requires_grad_()
    hidden = eager_bert(checkpoint.model)(inputs_embeds=rows_LD[None], output_hidden_states=True).hidden_states
    hidden_LD = hidden[3 + answer.layer][0]
    for state, value in enumerate(answer(hidden_LD[:1] if answer.first_only else hidden_LD, shown)[0]):
        (slope_LD,) = torch.autograd.grad(value, rows_LD, retain_graph=True)
        expected_L = (slope_LD * (rows_LD - table_VD[checkpoint.vocabulary.mask_token])).sum(-1).detach()
        values_G, scale = found.value_GS[:, state], float(expected_L[1:-1].abs().max())
        known = ~np.isnan(values_G)
        np.testing.assert_allclose(values_G[known], expected_L[1:-1][torch.from_numpy(known)], atol=1e-5 * scale)
        assert (expected_L[1:-1][torch.from_numpy(~known)] == 0).all()  # <mask> stands at its baseline


# Attention


def eager(checkpoint, answer, tokens):
    """Attention of each block by eager stock BERT, (H, L, L), with A · ∂F/∂A of each state summed over queries."""
    shown = laid_out([unchanged(tokens, checkpoint.vocabulary, answer)], torch.device("cpu"))
    out = eager_bert(checkpoint.model)(shown.ids_T[None], output_attentions=True, output_hidden_states=True)
    n_blocks = 3 + answer.layer
    hidden_TD = out.hidden_states[n_blocks][0]
    value_S = answer(hidden_TD[:1] if answer.first_only else hidden_TD, shown)[0]
    blocks = out.attentions[:n_blocks]
    by_state = []
    for value in value_S:
        slopes = torch.autograd.grad(value, blocks, retain_graph=True)
        terms = [(a * by_a)[0].sum((0, 1)) for a, by_a in zip(blocks, slopes, strict=True)]
        by_state.append(torch.stack(terms).sum(0).detach().numpy())
    return [a[0].detach().double().numpy() for a in blocks], np.stack(by_state, -1)


@every_question
def test_attention_times_gradient_is_that_of_eager_attention_weights(questions, few, question):
    checkpoint, answer = questions[question]
    found = explained(questions[question], few, "attention_gradient")
    for cell, attribution in zip([c for c in few if answer.asked is None or answer.asked in c], found, strict=True):
        _, expected_LS = eager(checkpoint, answer, cell)
        expected_GS, known = expected_LS[1:-1], ~np.isnan(attribution.value_GS)
        assert known.sum() >= known.size - len(answer.names)
        scale = np.abs(expected_LS).max()
        np.testing.assert_allclose(attribution.value_GS[known], expected_GS[known], atol=1e-5 * scale)


def readout_of(answer, tokens):
    ids = tokens.tolist()
    if answer.first_only or answer.asked is not None:
        at = 0 if answer.asked is None else ids.index(answer.asked)
        return np.eye(len(ids))[at]
    return np.array([0, *[1 / (len(ids) - 2)] * (len(ids) - 2), 0])


@every_question
def test_rollout_and_attention_are_products_of_matrices(questions, few, question):
    checkpoint, answer = questions[question]
    cells = [cell for cell in few if answer.asked is None or answer.asked in cell]
    rolled, attended = (explained(questions[question], few, method) for method in ("rollout", "attention"))
    for cell, by_rollout, by_attention in zip(cells, rolled, attended, strict=True):
        blocks, _ = eager(checkpoint, answer, cell)
        product_LL = np.eye(len(cell))
        for weight_HLL in blocks:
            product_LL = (weight_HLL.mean(0) + np.eye(len(cell))) / 2 @ product_LL
        readout_L = readout_of(answer, cell)
        expected = readout_L @ product_LL, readout_L @ blocks[-1].mean(0)
        np.testing.assert_allclose(expected[0].sum(), 1, rtol=1e-6)
        for one, expected_L in zip((by_rollout, by_attention), expected, strict=True):
            known = ~np.isnan(one.value_GS[:, 0])
            assert known.sum() == len(cell) - 2 - answer.masks
            np.testing.assert_allclose(one.value_GS[known, 0], expected_L[1:-1][known], atol=1e-5)
            assert (one.value_GS[known] >= 0).all()
            assert np.isnan(one.before_S).all()


@pytest.mark.parametrize("method", UNSIGNED)
def test_without_special_tokens_the_shares_of_genes_sum_to_one(pbmc, method):
    vocabulary = gf.Vocabulary.fit(pbmc, series="V1", max_length=30)
    model = CellClassifier(weighty(vocabulary), Head((KIND,))).eval()
    question = gf.Checkpoint(model, vocabulary), OfCell(model, OutputAnswer(model.head.targets, 0, (0,)))
    cells = [gf.tokenize(pbmc[:3].copy(), vocabulary)[row] for row in range(3)]
    for one in explained(question, cells, method):
        np.testing.assert_allclose(one.value_GS.sum(0), 1, atol=1e-5)
    for whole in explained(question, cells, "integrated_gradients"):
        assert whole.gap_S[0] <= 0.01


# All of them


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_neither_other_cells_nor_the_size_of_a_batch_change_a_value(questions, short, method):
    cells, shown = [short[row] for row in range(40)], []
    checkpoint, answer = questions["class"]
    settings = {"integration": Integration(first_steps=2, most_steps=2)}
    together = explained(questions["class"], cells, method, show=shown.append, **settings)
    alone = gradients(
        reader_of(checkpoint, answer, max_tokens=100), answer, cells[-1:], short.vocabulary, method, **settings
    )
    scale = np.abs(alone[0].value_GS).max()
    np.testing.assert_allclose(together[-1].value_GS, alone[0].value_GS, atol=1e-5 * scale)
    assert sum(shown) == 40 * n_passes(method, settings["integration"])


@pytest.mark.parametrize("method", GRADIENT_METHODS[:3])
def test_derivatives_are_in_single_precision_whatever_the_network_computes_in(questions, few, method):
    checkpoint, answer = questions["class"]
    whole, half = (
        gradients(reader_of(checkpoint, answer, dtype=dtype), answer, few, checkpoint.vocabulary, method)
        for dtype in ("float32", "bfloat16")
    )
    for one, other in zip(whole, half, strict=True):
        np.testing.assert_array_equal(one.value_GS, other.value_GS)


def test_the_parameters_get_no_gradient(questions, few):
    for method in GRADIENT_METHODS:
        explained(questions["class"], few[2:], method, integration=TWENTY)
    assert all(parameter.grad is None for parameter in questions["class"][0].model.parameters())


def test_before_the_first_block_there_is_no_attention(linear, few):
    for method in ("attention_gradient", *UNSIGNED):
        with pytest.raises(InputError, match="no attention before the first block"):
            explained(linear, few, method)


def test_an_unknown_method_is_refused(questions, few):
    with pytest.raises(InputError, match=r"method must be one of 'gradient_input', .*found 'saliency'"):
        explained(questions["class"], few, "saliency")
