"""What is explained is what the model puts out, in the unit that is said; what it has not learned is refused."""

import numpy as np
import pytest
import torch
from explained_models import (
    CLASSES,
    COX,
    HAZARD,
    WEIBULL,
    classifier_of,
    gene_classifier_of,
    number_and_class,
    pretrained_of,
)
from scipy.special import logsumexp

import geneformer_repro as gf
from geneformer_repro import GoalState, InputError
from geneformer_repro.in_silico.explanations.answers import laid_out, unchanged
from geneformer_repro.in_silico.explanations.asked import Asked
from geneformer_repro.in_silico.explanations.occlusions import ask, hidden
from geneformer_repro.in_silico.explanations.output_answers import log_odds
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.reading import Reader, outputs_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few(cells):
    """Twenty of the blood cells."""
    return cells.select(range(20))


def answers_of(checkpoint, cells, **request):
    """The answers of all cells that can be asked, and the answer's names."""
    asked = Asked(Request(**request), checkpoint, cells)
    answer = asked.answer(CPU)
    reader = Reader.of(checkpoint, layer=asked.layer, device="cpu")
    views = [unchanged(cells[int(row)], cells.vocabulary, answer) for row in asked.rows()]
    return ask(reader, answer, views), answer


def logits_of(checkpoint, cells):
    return outputs_of(checkpoint.model, cells, checkpoint.model.head).double().numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention", "pooler"])
def test_a_class_is_explained_by_its_log_odds(few, vocabulary, pooling):
    checkpoint = classifier_of(vocabulary, pooling=pooling)
    found, answer = answers_of(checkpoint, few)
    assert answer.names == CLASSES
    probability = torch.from_numpy(logits_of(checkpoint, few)).softmax(1).numpy()
    np.testing.assert_allclose(found, np.log(probability / (1 - probability)), atol=1e-4)


def test_some_classes_in_the_order_asked_for(few, vocabulary):
    checkpoint = classifier_of(vocabulary)
    every, _ = answers_of(checkpoint, few)
    some, answer = answers_of(checkpoint, few, target="cell_type", state=["Dendritic", "CD14+ Monocyte"])
    assert answer.names == ("Dendritic", "CD14+ Monocyte")
    np.testing.assert_allclose(some, every[:, [2, 0]], atol=1e-6)


def test_a_contrast_is_a_difference_of_logits(few, vocabulary):
    checkpoint = classifier_of(vocabulary)
    logits = logits_of(checkpoint, few)
    one, answer = answers_of(checkpoint, few, state="CD19+ B", contrast="Dendritic")
    np.testing.assert_allclose(one[:, 0], logits[:, 1] - logits[:, 2], atol=1e-5)
    assert "against 'Dendritic'" in answer.described
    assert answers_of(checkpoint, few, contrast="Dendritic")[1].names == CLASSES[:2]


def test_log_odds_of_logits_far_apart_do_not_saturate():
    logits = torch.tensor([[80.0, -40.0, 10.0]])
    expected = [80 - logsumexp([-40, 10]), -40 - logsumexp([80, 10])]
    np.testing.assert_allclose(log_odds(logits, [0, 1], None), [expected], rtol=1e-6)


def test_a_number_is_explained_in_its_unit_and_beside_other_targets(few, vocabulary):
    checkpoint = classifier_of(vocabulary, *number_and_class())
    found, answer = answers_of(checkpoint, few, target="n_counts")
    assert answer.names == ("n_counts",)
    np.testing.assert_allclose(found[:, 0], logits_of(checkpoint, few)[:, 0] * 300 + 1000, rtol=1e-5)


def test_hazards_are_explained_by_minus_the_log_of_survival_at_the_horizon(few, vocabulary):
    checkpoint = classifier_of(vocabulary, HAZARD)
    found, answer = answers_of(checkpoint, few)
    hazard = np.logaddexp(0, logits_of(checkpoint, few))  # of a whole interval
    np.testing.assert_allclose(found[:, 0], hazard[:, 0] + hazard[:, 1] / 2, rtol=1e-4)  # 2 is midway from 1 to 3
    survival = HAZARD.meaning(torch.from_numpy(logits_of(checkpoint, few)))[:, 2].numpy()
    np.testing.assert_allclose(found[:, 0], -np.log(survival), rtol=1e-4)
    assert answer.described == "cumulative hazard of 'died' until 2, −log S"


def test_the_risk_of_a_certain_survivor_keeps_its_digits(few, vocabulary):
    """−log S, not the log of a number that has been rounded to 1."""
    checkpoint = classifier_of(vocabulary, HAZARD)
    with torch.no_grad():
        checkpoint.model.classifier.weight[:] *= 0.01
        checkpoint.model.classifier.bias[:] = -25.0
    found, _ = answers_of(checkpoint, few)
    np.testing.assert_allclose(found[:, 0], np.exp(logits_of(checkpoint, few)) @ [1, 0.5, 0], rtol=1e-3)


@pytest.mark.parametrize("target", [COX, WEIBULL], ids=["cox", "weibull"])
def test_other_risks_are_those_that_are_predicted(few, vocabulary, target):
    checkpoint = classifier_of(vocabulary, target)
    found, _ = answers_of(checkpoint, few)
    risk = target.meaning(torch.from_numpy(logits_of(checkpoint, few)))[:, :1]
    np.testing.assert_allclose(found, risk, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_goal_is_a_difference_of_cosines_as_a_screen_measures_them(cells, vocabulary, pooling):
    few, checkpoint = cells.select(range(60)), pretrained_of(vocabulary)
    goal = GoalState("cell_type", "CD14+ Monocyte", "Dendritic", alternatives=["CD19+ B"])
    found, answer = answers_of(checkpoint, few, goal=goal, pooling=pooling)
    assert answer.names == ("Dendritic", "CD19+ B")
    shifts = gf.perturb(checkpoint, few, gf.Deletion(), goal=goal, pooling=pooling, max_tokens=20_000).table
    before = shifts.drop_duplicates(["cell", "state"]).pivot(index="cell", columns="state", values="before")
    start = few.cell_names[few.labels("cell_type") == "CD14+ Monocyte"]
    expected = before.loc[start, ["Dendritic", "CD19+ B"]].sub(before.loc[start, "CD14+ Monocyte"], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_masked_gene_is_explained_by_the_log_probability_of_its_token(few, vocabulary):
    checkpoint, token = pretrained_of(vocabulary), int(few[0][5])
    name = vocabulary.gene_names[int(vocabulary.genes_of(np.array([token]))[0])]
    found, answer = answers_of(checkpoint, few, gene=name)
    with_gene = [tokens for tokens in few if token in tokens]
    assert len(found) == len(with_gene) > 1
    for value, tokens in zip(found[:, 0], with_gene, strict=True):
        is_gene = torch.from_numpy(tokens == token)
        ids_T = torch.from_numpy(tokens.astype(np.int64)).masked_fill(is_gene, vocabulary.mask_token)
        with torch.no_grad():
            logits_TV = checkpoint.model(ids_T, lengths=[len(tokens)]).logits
        np.testing.assert_allclose(value, logits_TV.log_softmax(-1)[is_gene, token][0], rtol=1e-4)
    assert answer.described == f"log probability of {name} at its place, which is masked, in nats"


def test_a_gene_is_explained_by_its_class_where_it_stands(few, vocabulary):
    checkpoint, token = gene_classifier_of(vocabulary), int(few[0][5])
    gene = vocabulary.gene_ids[int(vocabulary.genes_of(np.array([token]))[0])]
    found, answer = answers_of(checkpoint, few, gene=gene, state="receptor", contrast="other")
    with_gene = [tokens for tokens in few if token in tokens]
    for value, tokens in zip(found[:, 0], with_gene, strict=True):
        with torch.no_grad():
            ids_T = torch.from_numpy(tokens.astype(np.int64))
            logits_LK = checkpoint.model(ids_T, [len(tokens)]).logits
        (logits_K,) = logits_LK[torch.from_numpy(tokens == token)]
        np.testing.assert_allclose(value, logits_K[1] - logits_K[2], atol=1e-4)
    assert answer.names == ("receptor",)


def test_the_gene_that_is_asked_about_is_found_when_others_are_hidden(few, vocabulary):
    checkpoint, token = gene_classifier_of(vocabulary), int(few[0][5])
    asked = Asked(Request(gene=vocabulary.gene_ids[int(vocabulary.genes_of(np.array([token]))[0])]), checkpoint, few)
    whole = unchanged(few[0], vocabulary, asked.answer(CPU))
    shown = laid_out([whole, hidden(whole, np.array([0, 2])), hidden(whole, np.array([8]))], CPU)
    assert shown.ids_T[shown.asked_B].tolist() == [token] * 3
    assert whole.asked == 5


# What is refused


@pytest.mark.parametrize(
    ("make", "request_", "message"),
    [
        pytest.param(
            classifier_of, {"target": "cel_type"}, r"has no target 'cel_type'.*cell_type", id="a target not learned"
        ),
        pytest.param(classifier_of, {"state": "Dendritc"}, r"knows no cell_type 'Dendritc'.*Dendritic", id="no class"),
        pytest.param(
            classifier_of,
            {"state": "Dendritic", "contrast": "Dendritic"},
            "other than that of contrast",
            id="against itself",
        ),
        pytest.param(classifier_of, {"state": ["CD19+ B", "CD19+ B"]}, "each once", id="a class twice"),
        pytest.param(classifier_of, {"gene": "CD74"}, r"target= and gene= ask different things", id="a gene of cells"),
        pytest.param(classifier_of, {"pooling": "cls"}, "layer= and pooling= are for goal=", id="pooling of a target"),
        pytest.param(
            lambda vocabulary: classifier_of(vocabulary, *number_and_class()),
            {},
            "has the targets 'n_counts', 'cell_type'; name one",
            id="several targets",
        ),
        pytest.param(
            lambda vocabulary: classifier_of(vocabulary, *number_and_class()),
            {"target": "n_counts", "state": "Dendritic"},
            r"'n_counts' \(a number\) has none",
            id="a class of a number",
        ),
        pytest.param(
            pretrained_of,
            {"target": "cell_type"},
            "needs a classifier, and base tiny is a pretrained",
            id="not trained",
        ),
        pytest.param(pretrained_of, {}, "is a pretrained model: name the gene.*or goal=", id="nothing asked"),
        pytest.param(pretrained_of, {"gene": "CD7x"}, "'CD7x' is not in the vocabulary.*CD74", id="unknown gene"),
        pytest.param(gene_classifier_of, {}, "is a classifier of genes: name the gene", id="no gene"),
        pytest.param(
            gene_classifier_of,
            {"target": "rule", "gene": "CD74"},
            "has no target 'rule'.*role",
            id="another class of genes",
        ),
        pytest.param(
            pretrained_of,
            {"goal": GoalState("cell_type", "Dendritic", "CD19 B")},
            r"No cell has cell_type = 'CD19 B'.*CD19\+ B",
            id="a goal without cells",
        ),
        pytest.param(
            pretrained_of,
            {"goal": GoalState("cell_type", "Dendritic", "CD19+ B"), "gene": "CD74"},
            "goal= and gene= ask different things",
            id="goal and gene",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused(cells, vocabulary, make, request_, message):
    with pytest.raises(InputError, match=message):
        Asked(Request(**request_), make(vocabulary), cells)


def test_a_gene_that_no_cell_expresses_is_refused(few, vocabulary):
    absent = np.setdiff1d(vocabulary.tokens, np.concatenate(list(few)))
    gene = vocabulary.gene_ids[int(vocabulary.genes_of(absent[:1])[0])]
    with pytest.raises(InputError, match=f"No cell expresses {gene}"):
        Asked(Request(gene=gene), pretrained_of(vocabulary), few).rows()
