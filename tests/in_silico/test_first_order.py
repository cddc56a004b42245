"""First-order estimates against stock BERT in float64, and the screens that refine them against exact ones."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro import Activation, Deletion, GoalState, Inhibition, InputError, Overexpression, RankShift, perturb
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico import screen as module
from geneformer_repro.in_silico.engine import Engine, Nearness, PerturbedCell, Prediction
from geneformer_repro.in_silico.first_order import derivatives, first_order
from geneformer_repro.in_silico.perturbation import Edits
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.reading import Reader
from geneformer_repro.targets import Classes, Number

STATES = ("CD56+ NK", "CD19+ B", "CD34+")
GOAL = GoalState("cell_type", STATES[0], STATES[1], STATES[2:])
CELL_TYPE, AGE = Classes("cell_type", ("B", "NK", "T")), Number("age", mean=40.5, sd=12.0)
KINDS = [Deletion(), Overexpression(), Activation(), Inhibition(quartiles=2), RankShift(to=(0, 0.3, 1))]
ROW = ["cell", "perturbed", "state", "dose", "rank"]


@pytest.fixture(scope="module")
def short(_pbmc):
    """The blood cells, their first dozen genes."""
    return gf.tokenize(_pbmc, gf.Vocabulary.fit(_pbmc, max_length=14), obs=["cell_type"])


@pytest.fixture
def model(short, checkpoint):
    """The tiny model for the short cells."""
    return dataclasses.replace(checkpoint, vocabulary=short.vocabulary)


@pytest.fixture
def classifier(model):
    """Makes a classifier of a class and a number, with the tiny model's encoder."""

    def make(pooling="mean"):
        torch.manual_seed(1)
        headed = CellClassifier(model.model.config, Head((CELL_TYPE, AGE), pooling)).eval()
        headed.bert.load_state_dict(model.model.bert.state_dict(), strict=pooling != "pooler")
        return dataclasses.replace(model, model=headed)

    return make


@pytest.fixture
def tokens(short):
    """Two cells of different lengths."""
    whole = short[0]
    return [torch.from_numpy(np.append(whole[:n], whole[-1])).long() for n in (8, 5)]


@pytest.fixture
def nearness():
    """To three states, of a pooling."""
    vectors = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    return lambda pooling: Nearness(vectors, pooling)


def near():
    """Towards three states whose vectors are given."""
    vectors = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    return dataclasses.replace(GOAL, embeddings=dict(zip(STATES, vectors.numpy(), strict=True)))


def engine_of(checkpoint, score, *, n_blocks=3, max_tokens=4096):
    reader = Reader.of(checkpoint, layer=n_blocks - 3, max_tokens=max_tokens, device="cpu")
    return Engine(reader, checkpoint.vocabulary, pooling="mean", score=score, affected=None, max_genes=12)


class Slow:
    """A cell's score by stock BERT in float64: each token present to a degree, its embedding moved."""

    def __init__(self, checkpoint, score, n_blocks=3):
        self.bert = BertModel(checkpoint.model.config, add_pooling_layer=False).double().eval()
        weights = checkpoint.model.bert.state_dict()
        self.bert.load_state_dict({name: one for name, one in weights.items() if not name.startswith("pooler.")})
        self.special = torch.tensor(list(checkpoint.vocabulary.special_tokens.values()))
        self.score, self.n_blocks = score, n_blocks

    def __call__(self, tokens, presence, moved):
        words = self.bert.embeddings.word_embeddings(tokens) + moved
        mask = presence.log().expand(1, 1, len(tokens), -1)
        every = self.bert(inputs_embeds=words[None], attention_mask=mask, output_hidden_states=True).hidden_states
        hidden = every[self.n_blocks][0]
        return self.read(hidden, presence * ~torch.isin(tokens, self.special))

    def read(self, hidden, weight):
        if isinstance(self.score, Nearness):
            vector = self.pool(hidden, weight, self.score.pooling)
            return torch.stack(
                [vector @ state / vector.norm() / state.norm() for state in self.score.states_SD.double()]
            )
        head, layer = self.score.model.head, self.score.model.classifier
        vector = self.pool(hidden, weight, head.pooling)
        output = vector @ layer.weight.double().T + layer.bias.double()
        return output[:3].softmax(0) if self.score.target == 0 else output[3:] * AGE.sd + AGE.mean

    def pool(self, hidden, weight, pooling):
        if pooling == "cls":
            return hidden[0]
        if pooling == "pooler":
            dense = self.score.model.bert.pooler.dense
            return (hidden[0] @ dense.weight.double().T + dense.bias.double()).tanh()
        if pooling == "attention":
            weight = weight * (hidden @ self.score.model.attention_pool.weight[0].double()).exp()
        return weight @ hidden / weight.sum()

    def at_rest(self, tokens):
        """What it is called with where nothing is changed."""
        return torch.ones(len(tokens)).double(), torch.zeros(len(tokens), self.bert.config.hidden_size).double()

    def slope(self, tokens, along):
        """How fast the scores change as presence and embeddings go along a direction: a central difference."""
        step = 1e-5
        with torch.no_grad():
            above, below = (
                self(tokens, *[one + sign * step * by for one, by in zip(self.at_rest(tokens), along, strict=True)])
                for sign in (1, -1)
            )
        return (above - below) / (2 * step)

    def slopes(self, tokens, state):
        """Those of one score, all at once: by the presence, (L,), and by the embedding, (L, D), of each token."""
        at_rest = [one.requires_grad_() for one in self.at_rest(tokens)]
        return torch.autograd.grad(self(tokens, *at_rest)[state], at_rest)


def score_of(kind, pooling, classifier, nearness):
    """One of the three scores, and a checkpoint whose encoder it reads."""
    checkpoint = classifier(pooling)
    return checkpoint, nearness(pooling) if kind == "near" else Prediction(
        checkpoint.model, ["class", "number"].index(kind)
    )


every_score = pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("near", "mean"),
        ("near", "cls"),
        *[(kind, pooling) for kind in ("class", "number") for pooling in ("mean", "cls", "attention")],
        ("class", "pooler"),
    ],
)


# The slopes


@pytest.mark.parametrize(
    ("kind", "pooling"), [("near", "mean"), ("near", "cls"), ("class", "attention"), ("number", "mean")]
)
def test_slopes_are_finite_differences_of_stock_bert(classifier, nearness, tokens, kind, pooling):
    checkpoint, score = score_of(kind, pooling, classifier, nearness)
    n_blocks = 2 if kind == "near" else 3
    slow = Slow(checkpoint, score, n_blocks)
    lengths = [len(one) for one in tokens]
    _, by_presence, by_embedded = derivatives(
        engine_of(checkpoint, score, n_blocks=n_blocks), torch.cat(tokens), lengths
    )
    by_presence, by_embedded = by_presence.T, by_embedded.transpose(0, 1)
    for one, presence_LS, embedded_LSD in zip(
        tokens, by_presence.split(lengths), by_embedded.split(lengths), strict=True
    ):
        each = torch.eye(len(one)).double()
        somewhere = torch.randn(len(one), 64, generator=torch.Generator().manual_seed(3)).double()
        assert_close(presence_LS, [slow.slope(one, (at, 0 * somewhere)) for at in each])
        expected = [slow.slope(one, (0 * at, at[:, None] * somewhere)) for at in each]
        assert_close(torch.linalg.vecdot(embedded_LSD, somewhere[:, None].float()), expected)


def assert_close(found, expected):
    """Within single precision of the largest."""
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-4, atol=1e-4 * np.abs(np.array(expected)).max())


@every_score
def test_with_all_present_the_score_is_that_of_the_exact_screen(classifier, nearness, short, kind, pooling):
    checkpoint, score = score_of(kind, pooling, classifier, nearness)
    engine, perturbed = engine_of(checkpoint, score), perturbed_cells(Deletion(), short, 3)
    for estimated, exact in zip(first_order(engine, perturbed), engine.run(perturbed), strict=True):
        np.testing.assert_allclose(estimated.before_NS, exact.before_NS, rtol=1e-5, atol=1e-6)


def perturbed_cells(perturbation, cells, n_cells):
    edits = Edits(perturbation, cells.vocabulary)
    return [PerturbedCell(cells[i], edits.variants(cells[i])) for i in range(n_cells)]


# The estimate


def by_definition(slow, cell, state, margin):
    """Each token's slope times how far its position moved, less the slope by the presence of those that are gone."""
    tokens, position = torch.from_numpy(cell.tokens).long(), slow.bert.embeddings.position_embeddings.weight.detach()
    n_genes = len(tokens) - 2 * margin
    by_presence, by_embedded = slow.slopes(tokens, state)
    for row in range(len(cell.variants)):
        places = [place + margin for place in cell.variants.order(row, n_genes)]
        order = [0, *places, len(tokens) - 1] if margin else places
        change = 0.0
        for now, before in enumerate(order):
            change += float(by_embedded[before] @ (position[now] - position[before]))
        for gone in set(range(len(tokens))) - set(order):
            change -= float(by_presence[gone])
        yield change


@pytest.mark.parametrize(
    ("perturbation", "kind", "pooling"),
    [
        *((perturbation, "near", ("mean", "cls")[i % 2]) for i, perturbation in enumerate(KINDS)),
        *((perturbation, "class", "attention") for perturbation in KINDS[:2]),
    ],
)
def test_an_estimate_is_its_definition(classifier, nearness, short, perturbation, kind, pooling):
    checkpoint, score = score_of(kind, pooling, classifier, nearness)
    perturbed, slow = perturbed_cells(perturbation, short, 2), Slow(checkpoint, score)
    for cell, found in zip(perturbed, first_order(engine_of(checkpoint, score), perturbed), strict=True):
        assert found.value_NS.shape == (len(cell.variants), score.width)
        for state, values in enumerate(found.value_NS.T):
            assert_close(values, list(by_definition(slow, cell, state, margin=1)))


@pytest.mark.parametrize("perturbation", KINDS, ids=lambda one: type(one).__name__)
def test_it_is_in_cells_without_special_tokens_as_well(pbmc, nearness, perturbation):
    vocabulary = gf.Vocabulary.fit(pbmc, series="V1", max_length=12)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    plain = gf.Checkpoint(MaskedGeneModel(config).eval(), vocabulary)
    [cell], score = perturbed_cells(perturbation, gf.tokenize(pbmc, vocabulary), 1), nearness("mean")
    [found] = first_order(engine_of(plain, score), [cell])
    assert_close(found.value_NS[:, 1], list(by_definition(Slow(plain, score), cell, 1, margin=0)))


def test_neither_other_cells_nor_the_size_of_a_batch_change_an_estimate(model, nearness, short):
    perturbed = perturbed_cells(RankShift(to=(0, 1)), short.select(range(5)), 5)
    perturbed = [
        PerturbedCell(cell.tokens, cell.variants.select(np.arange(n, len(cell.variants))))
        for n, cell in enumerate(perturbed)
    ]
    seen = []
    together = first_order(engine_of(model, nearness("mean")), perturbed, seen.append)
    alone = first_order(engine_of(model, nearness("mean"), max_tokens=1), perturbed, seen.append)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.value_NS, other.value_NS, rtol=1e-4, atol=1e-7)
    assert len(seen) == 1 + len(perturbed)
    assert seen[0] == sum(seen[1:]) == sum(len(cell.variants) for cell in perturbed)


def test_the_parameters_get_no_gradient(model, nearness, short):
    first_order(engine_of(model, nearness("mean")), perturbed_cells(Deletion(), short, 1))
    assert all(parameter.grad is None for parameter in model.model.parameters())


@pytest.fixture
def hardly_placed(pbmc, checkpoint):
    """Cells of 64 tokens, and a model to which their order matters little: each change is small."""
    cells = gf.tokenize(pbmc, gf.Vocabulary.fit(pbmc, max_length=64), obs=["cell_type"])
    with torch.no_grad():
        checkpoint.model.bert.embeddings.position_embeddings.weight.mul_(0.01)
    return dataclasses.replace(checkpoint, vocabulary=cells.vocabulary), cells


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    ("perturbation", "lowest"), [(Deletion(), 0.8), (RankShift(to=(0, 1)), 0.9)], ids=["deletion", "moves"]
)
def test_where_changes_are_small_it_ranks_genes_as_an_exact_screen_does(hardly_placed, perturbation, lowest, pooling):
    options = {"goal": GOAL, "pooling": pooling, "max_cells": 3, "method": "first_order"}
    shifts = perturb(*hardly_placed, perturbation, **options)
    assert shifts.table["exact"].all()
    agreement = shifts.metadata["first_order"]["spearman"]
    assert list(agreement) == list(STATES[1:])
    assert min(of_state["lowest"] for of_state in agreement.values()) > lowest


def test_where_order_hardly_matters_moves_are_as_large_as_estimated(hardly_placed):
    table = perturb(*hardly_placed, RankShift(to=(0, 1)), goal=GOAL, max_cells=2, method="first_order").table
    slope = np.polyfit(table["estimate"], table["value"], 1)[0]
    np.testing.assert_allclose(slope, 1, atol=0.05)


def test_in_bfloat16_it_is_nearly_the_same(model, short):
    whole, half = (
        perturb(model, short, Deletion(), goal=near(), max_cells=4, method="first_order", dtype=dtype).table
        for dtype in ("float32", "bfloat16")
    )
    assert np.corrcoef(whole["estimate"], half["estimate"])[0, 1] > 0.98


# Screens


@pytest.fixture
def screens(model, short):
    """Of the same cells: exact, estimated, and with the two strongest genes refined in both directions."""
    options = {"goal": near(), "pooling": "mean", "max_cells": 7}
    first = options | {"method": "first_order"}
    exact, *others = [perturb(model, short, Deletion(), **how) for how in (options, first, first | {"refine": 2})]
    towards = exact.table[exact.table["state"] != GOAL.start].reset_index(drop=True)
    return [gf.ShiftTable(towards, exact.metadata), *others]


def test_a_screen_has_the_rows_of_an_exact_one_but_for_the_start_and_the_estimates_beside(screens):
    exact, estimated, refined = (screen.table for screen in screens)
    assert estimated.columns.tolist() == [*exact.columns.drop("shams"), "estimate"]
    for table in (estimated, refined):
        pd.testing.assert_frame_equal(table[ROW], exact[ROW])
        np.testing.assert_allclose(table["before"], exact["before"], atol=1e-6)
    np.testing.assert_array_equal(refined["estimate"], estimated["estimate"])
    assert [screen.metadata["method"] for screen in screens] == ["exact", "first_order", "first_order"]
    assert [screen.metadata["refine"] for screen in screens] == [0, 0, 2]


def test_a_row_is_what_an_exact_screen_finds_or_marked_as_an_estimate(screens):
    exact, *others = (screen.table for screen in screens)
    for table in others:
        sure = table["exact"]
        assert sure.nunique() == 2
        np.testing.assert_allclose(table["value"][sure], exact["value"][sure], atol=1e-6)
        np.testing.assert_array_equal(table["value"][~sure], table["estimate"][~sure])


def test_three_cells_are_checked_whole(screens):
    for screen in screens[1:]:
        checked = screen.metadata["first_order"]["checked_cells"]
        assert len(set(checked)) == module.CHECKED_CELLS == 3
        assert screen.table["exact"][screen.table["cell"].isin(checked)].all()
    estimated = screens[1]
    assert set(estimated.table["cell"][estimated.table["exact"]]) == set(
        estimated.metadata["first_order"]["checked_cells"]
    )


def unchecked(screen):
    rows = screen.table[~screen.table["cell"].isin(screen.metadata["first_order"]["checked_cells"])]
    return [of_cell for _, of_cell in rows.groupby("cell")]


def ends(rows, n):
    """The perturbed genes with the lowest and highest estimates."""
    order = rows.sort_values("estimate", kind="stable")["perturbed"]
    return {*order[:n], *order[-n:]}


def test_the_strongest_in_both_directions_towards_the_goal_are_refined(screens):
    rest = unchecked(screens[2])
    assert len(rest) == 4
    for rows in rest:
        assert set(rows["perturbed"][rows["exact"]]) == ends(rows[rows["state"] == GOAL.goal], 2)
        assert (rows.groupby("perturbed")["exact"].nunique() == 1).all(), "all states of a variant, or none"


def test_of_a_classifier_the_strongest_of_each_class_are_refined(classifier, short):
    options = {"target": "cell_type", "max_cells": 5, "method": "first_order"}
    screen = perturb(classifier("attention"), short, Deletion(), refine=1, **options)
    exact = perturb(classifier("attention"), short, Deletion(), target="cell_type", max_cells=5)
    for rows in unchecked(screen):
        wanted = set().union(*(ends(of_class, 1) for _, of_class in rows.groupby("state")))
        assert set(rows["perturbed"][rows["exact"]]) == wanted
    assert list(screen.metadata["first_order"]["spearman"]) == list(CELL_TYPE.classes)
    sure = screen.table["exact"]
    np.testing.assert_allclose(screen.table["value"][sure], exact.table["value"][sure], atol=1e-5)


def test_of_a_number_the_strongest_changes_are_refined(classifier, short):
    options = {"target": "age", "max_cells": 4, "method": "first_order"}
    screen = perturb(classifier(), short, RankShift(to=0), refine=2, **options)
    [rows] = unchecked(screen)
    assert set(rows["perturbed"][rows["exact"]]) == ends(rows, 2)
    assert list(screen.metadata["first_order"]["spearman"]) == ["age"]


def test_refining_more_genes_than_a_cell_has_is_the_exact_screen(model, short, screens):
    options = {"goal": near(), "pooling": "mean", "max_cells": 7, "method": "first_order"}
    table = perturb(model, short, Deletion(), refine=99, **options).table
    assert table["exact"].all()
    np.testing.assert_allclose(table["value"], screens[0].table["value"], atol=1e-6)


def test_the_agreement_is_that_of_estimates_and_values_over_the_genes_of_each_checked_cell(screens):
    exact, screen = screens[0].table, screens[2]
    found = screen.metadata["first_order"]
    assert list(found["spearman"]) == list(STATES[1:])
    for state, agreement in found["spearman"].items():
        ranks = []
        for cell in found["checked_cells"]:
            rows = (exact["cell"] == cell) & (exact["state"] == state)
            ranks.append(spearmanr(exact["value"][rows], screen.table["estimate"][rows]).statistic)
        expected = {"median": np.median(ranks), "lowest": min(ranks), "highest": max(ranks)}
        assert agreement == pytest.approx(expected, abs=0.02)  # two values may change places in their last digit


def test_cells_of_two_genes_have_no_agreement(model, short):
    table = short.table.select(range(2)).to_pandas()
    table["input_ids"], table["length"] = [tokens[[0, 1, 2, -1]] for tokens in table["input_ids"]], 4
    table["cell_type"] = GOAL.start
    source = type(short.table).from_pandas(table, preserve_index=False)
    cells = gf.TokenizedDataset(source, short.vocabulary, short.spec)
    found = perturb(model, cells, Deletion(), goal=near(), method="first_order").metadata["first_order"]
    assert sorted(found["checked_cells"]) == sorted(cells.cell_names)
    unknown = {"median": None, "lowest": None, "highest": None}
    assert found["spearman"] == dict.fromkeys(STATES[1:], unknown)


def test_genes_of_a_list_have_their_rows_of_the_whole_screen(model, short):
    few = short.select(np.flatnonzero(short.obs["cell_type"] == GOAL.start)[:6])
    each = perturb(model, few, Deletion(), goal=near(), method="first_order").table
    genes = each["perturbed"].value_counts().index[:2].tolist()
    listed = perturb(model, few, Deletion(genes, combine="singly"), goal=near(), method="first_order").table
    rows = each[each["perturbed"].isin(genes)].set_index(["cell", "perturbed", "state"])["estimate"]
    found = listed.set_index(["cell", "perturbed", "state"])["estimate"]
    assert len(found) == len(rows) > 6
    np.testing.assert_allclose(found, rows[found.index], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("refine", [0, 1])
def test_cut_off_and_called_again_it_ends_with_the_same_bytes(model, short, tmp_path, monkeypatch, refine):
    monkeypatch.setattr(module, "CELLS_A_PART", 2)
    options = {"goal": near(), "max_cells": 7, "method": "first_order", "refine": refine}
    whole = perturb(model, short, Deletion(), out=tmp_path / "whole.parquet", **options)
    n_parts = []

    def stop_at_the_third(*arguments):
        n_parts.append(1)
        if len(n_parts) == 3:
            raise KeyboardInterrupt
        return first_order(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "first_order", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            perturb(model, short, Deletion(), out=tmp_path / "cut.parquet", **options)
    resumed = perturb(model, short, Deletion(), out=tmp_path / "cut.parquet", **options)
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert len(list(resumed.blocks())) == 4
    in_memory = perturb(model, short, Deletion(), **options)
    pd.testing.assert_frame_equal(in_memory.table, whole.table, check_exact=True)
    assert in_memory.metadata == whole.metadata


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"method": "first_order"}, "needs goal= or target=.*similarity to itself has slope 0", id="no goal"
        ),
        pytest.param(
            {"goal": GOAL, "method": "linear"}, "'exact', 'first_order' or 'sampled', found 'linear'", id="method"
        ),
        pytest.param(
            {"goal": GOAL, "method": "first_order", "refine": -1}, "at least 0.*found -1", id="refine below 0"
        ),
        pytest.param({"goal": GOAL, "refine": 3}, "refine.*is for method='first_order'; found 3", id="refine of exact"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, short, options, message):
    with pytest.raises(InputError, match=message):
        perturb(model, short, Deletion(), **options)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(lambda genes: Deletion(genes), id="a list together"),
        pytest.param(lambda genes: Deletion(genes, combine="pairs"), id="pairs"),
        pytest.param(lambda genes: Deletion(genes[1:], anchor=genes[0]), id="an anchor"),
        pytest.param(lambda genes: Overexpression(genes, combine="singly"), id="genes that may be inserted"),
        pytest.param(lambda genes: Deletion(genes[:1]) + RankShift(genes[1:], to=0), id="composed"),
    ],
)
def test_more_than_one_expressed_gene_at_a_time_is_refused(model, short, kind):
    genes = short.genes(int(np.flatnonzero(short.obs["cell_type"] == GOAL.start)[0]))[:3]
    with pytest.raises(InputError, match=r"estimates one expressed gene at a time.*Use method='exact'"):
        perturb(model, short, kind(list(genes)), goal=GOAL, method="first_order")
