"""What explanations of cells cost, as multiples of one forward pass of a cell; and how soon they are complete.

V1-10M with the published vocabulary's 25,426 tokens and random weights, log-odds of one class, made-up cells of one
length; the methods in turn. Integrated gradients and the surrogate are timed with as few passes as they take.

OMP_NUM_THREADS=1 python benchmarks/explanations.py --cells 8 --genes 400                # about two minutes
OMP_NUM_THREADS=1 python benchmarks/explanations.py --complete "CD19+ B" "CD56+ NK"      # about three minutes a class
python benchmarks/explanations.py --hiding                                               # about a minute

`--complete` fine-tunes a tiny classifier on the blood cells that ship and counts the steps after which integrated
gradients of 50 cells it has not seen add up, for the log-odds of each class that is named. `--agree` (three minutes)
ranks the genes of six such cells by every method. `--hiding` puts `hide` beside the exact screen of deletions and two
stock ways to mask a gene: the published perturber's (`BertForMaskedLM`, all its logits and hidden states, batches of
100), and the encoder alone, in batches of ten.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from _side_by_side import in_turn, machine, rates, ratio
from perturbation import made_up
from scipy.stats import spearmanr
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico.engine import Engine, Nearness, PerturbedCell, Prediction, Score
from geneformer_repro.in_silico.explanations.answers import Answer, OfCell, Towards, laid_out, unchanged
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.explanations.gradients import (
    GRADIENT_METHODS,
    baseline_agreement,
    baseline_rows,
    gradients,
)
from geneformer_repro.in_silico.explanations.occlusions import ask, first_order, hidden, occlusions, operation
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.explanations.path_integrals import Integration
from geneformer_repro.in_silico.explanations.surrogate import USUAL, surrogates
from geneformer_repro.in_silico.perturbation import Deletion, Edits
from geneformer_repro.model import bert_config
from geneformer_repro.reading import Reader, batches_of
from geneformer_repro.targets import Classes

WITHIN = 0.01


def costs(size: str, n_cells: int, n_genes: int, runs: int) -> None:
    """Print the time of each method a cell, over that of a forward pass."""
    whole = made_up(size, n_genes)
    cells, vocabulary = [whole[row] for row in range(n_cells)], whole.vocabulary
    torch.manual_seed(0)
    model = CellClassifier(bert_config(size, vocabulary), Head((Classes("kind", ("a", "b", "c")),))).eval()
    answer = OfCell(model, OutputAnswer(model.head.targets, 0, (0,)))
    reader = Reader.of(gf.Checkpoint(model, vocabulary), device="cpu", max_tokens=4096)
    views = [unchanged(cell, vocabulary, answer) for cell in cells]
    without = [hidden(views[0], np.array([place])) for place in range(n_cells)]
    deletions = Edits(Deletion(), vocabulary).variants(cells[0]).select(np.arange(n_cells))
    engine = Engine(reader, vocabulary, "mean", Prediction(model, 0), None, n_genes)
    few = Integration(first_steps=2, most_steps=2)

    def method(name: str, **settings: object) -> Callable[[], object]:
        return lambda: gradients(reader, answer, cells, vocabulary, name, **settings)

    works = {
        "forward": lambda: ask(reader, answer, views),
        "hide, a gene": lambda: ask(reader, answer, without),
        "exact screen, a gene": lambda: engine.run([PerturbedCell(cells[0], deletions)]),
        "first_order": lambda: first_order(reader, answer, cells, vocabulary),
        "gradient_input": method("gradient_input"),
        "attention_gradient": method("attention_gradient"),
        "integrated_gradients, 2 steps": method("integrated_gradients", integration=few, spread_S=np.ones(1)),
        "rollout": method("rollout"),
        "attention": method("attention"),
    }
    seconds = in_turn(works, runs=runs)
    print(f"{machine()}\n{size}, {n_cells} cells of {n_genes} genes, {runs} runs: ms a cell, times a forward pass")
    for name, times in seconds.items():
        over = sorted(one / forward for one, forward in zip(times, seconds["forward"], strict=True))
        a_cell = 1e3 * statistics.median(times) / n_cells
        print(f"  {name:<30} {a_cell:8.1f}   {statistics.median(over):5.2f} ({over[0]:.2f}–{over[-1]:.2f})")


HIDDEN = 100
"""Genes of the cell that are hidden, or deleted."""


def hiding(size: str, n_genes: int, runs: int) -> None:
    """Print rates of hiding and of deleting genes beside stock, in turn: of a state, as in screens, and a class."""
    whole = made_up(size, n_genes)
    torch.manual_seed(0)
    config = bert_config(size, whole.vocabulary)
    model = CellClassifier(config, Head((Classes("kind", ("a", "b", "c")),))).eval()
    stock = BertForMaskedLM(config).eval()
    missing, unexpected = stock.bert.load_state_dict(model.bert.state_dict(), strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    states_SD = torch.randn(2, config.hidden_size)
    of_state = Towards(states_SD[0], states_SD[1:], ("b",), "a", "mean", layer=-1)
    of_class = OfCell(model, OutputAnswer(model.head.targets, 0, (0,)))
    print(machine())
    for answer, score in ((of_state, Nearness(states_SD, "mean")), (of_class, Prediction(model, 0))):
        cells = _Hidden(gf.Checkpoint(model, whole.vocabulary), whole[0], answer, score, stock)
        works = {
            "hide": cells.by_hide,
            "exact screen of deletions": cells.deleted,
            "stock, head and hidden states": lambda cells=cells: cells.by_stock(cells.of_screens, 100),
            "stock, encoder in tens": lambda cells=cells: cells.by_stock(cells.of_encoder, 10),
        }
        largest = np.abs(cells.by_hide()[: cells.n_stock] - cells.by_stock(cells.of_screens, 100)).max()
        seconds = in_turn(works, runs=runs)
        for name in list(works)[2:]:
            seconds[name] = [one * HIDDEN / cells.n_stock for one in seconds[name]]
        print(f"\n{size}, {HIDDEN} of {n_genes} genes of a cell, stock {cells.n_stock}; {answer.described}")
        rates(seconds, amount=HIDDEN, unit="genes")
        for name in list(works)[1:]:
            ratio(f"{name:<29}", seconds[name], seconds["hide"], "its time / hide's")
        print(f"  largest difference from stock {largest:.1e}")


class _Hidden:
    """A cell of which genes are hidden, in several ways."""

    n_stock = HIDDEN // 5

    def __init__(
        self, checkpoint: gf.Checkpoint, cell: np.ndarray, answer: Answer, score: Score, stock: BertForMaskedLM
    ) -> None:
        vocabulary = checkpoint.vocabulary
        self._reader = Reader.of(checkpoint, layer=answer.layer, device="cpu")
        self._cell, self._answer, self._stock = cell, answer, stock
        self._view = unchanged(cell, vocabulary, answer)
        self._engine = Engine(self._reader, vocabulary, "mean", score, None, len(cell))
        self._deletions = Edits(Deletion(), vocabulary).variants(cell).select(np.arange(HIDDEN))
        self._layer = checkpoint.token_model.config.num_hidden_layers + answer.layer

    def by_hide(self) -> np.ndarray:
        """Return the answers, by the way that `explain` takes."""
        views = [self._view, *(hidden(self._view, np.array([place])) for place in range(HIDDEN))]
        return ask(self._reader, self._answer, views)[1:, 0]

    def deleted(self) -> None:
        """Delete the same genes, as a screen does."""
        self._engine.run([PerturbedCell(self._cell, self._deletions)])

    def of_screens(self, ids_NL: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        """Return hidden states as the published perturber takes them: all layers and logits are made."""
        hidden_NLD: torch.Tensor = self._stock(ids_NL, mask_NL, output_hidden_states=True).hidden_states[self._layer]
        return hidden_NLD

    def of_encoder(self, ids_NL: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        """Return those of the last block, without logits."""
        hidden_NLD: torch.Tensor = self._stock.bert(ids_NL, mask_NL).last_hidden_state
        return hidden_NLD

    def by_stock(self, encode: Callable[..., torch.Tensor], batch_size: int) -> np.ndarray:
        """Return the answers where an attention mask hides a gene, each read from the device by itself."""
        values = []
        for places in torch.arange(self.n_stock).split(batch_size):
            mask_NL = torch.ones(len(places), len(self._cell), dtype=torch.long)
            mask_NL[range(len(places)), places] = 0
            with torch.no_grad():
                hidden_NLD = encode(torch.from_numpy(self._cell).expand(len(places), -1), mask_NL)
                shown = laid_out([self._view] * len(places), self._reader.device)
                weight_T = mask_NL.flatten().float()
                answer_NS = self._answer(hidden_NLD.flatten(0, 1), shown._replace(weight_T=weight_T))
            values += [of_one[0].item() for of_one in answer_NS]
        return np.array(values)


def complete(classes: list[str]) -> None:
    """Print how many cells are complete after how many steps, and how alike baselines are."""
    adata = gf.datasets.pbmc700()
    cells = gf.tokenize(adata, gf.Vocabulary.fit(adata), obs=["cell_type"])
    checkpoint, names = fine_tuned(cells, range(600))
    held_out = [cells[row] for row in range(650, 700)]
    print(f"{machine()}\ntiny, fine-tuned on 600 cells for cell type; 50 cells of {len(held_out[0])} tokens or so")
    reader = Reader.of(checkpoint, device="cpu")
    for name in classes:
        answer = OfCell(checkpoint.model, OutputAnswer(checkpoint.model.head.targets, 0, (names.index(name),)))
        for rule in ("midpoint", "gauss_legendre"):
            for steps in (18, 54):
                settings = Integration(rule=rule, first_steps=steps, most_steps=steps)
                found = gradients(
                    reader, answer, held_out, cells.vocabulary, "integrated_gradients", integration=settings
                )
                gap_B = np.array([one.gap_S[0] for one in found])
                print(
                    f"  {name:<15} {rule:<14} {steps:>3} steps: {np.mean(gap_B <= WITHIN):4.0%} within 1 %, "
                    f"median gap {np.median(gap_B):.4f}, largest {gap_B.max():.4f}"
                )
        began = time.perf_counter()
        found = {
            baseline: gradients(
                reader,
                answer,
                held_out,
                cells.vocabulary,
                "integrated_gradients",
                baseline_PD=baseline_rows(reader, cells.vocabulary, baseline, reference=list(cells)[:600]),
            )
            for baseline in ("mask", "mean", "pad")
        }
        gap_B = np.array([one.gap_S[0] for one in found["mask"]])
        alike = {pair: round(of[0], 2) for pair, of in baseline_agreement(found).items()}
        print(
            f"  {name:<15} as they come: {np.mean(gap_B <= WITHIN):.0%} within 1 %; Spearman between baselines "
            f"{alike}; {time.perf_counter() - began:.0f} s for three baselines"
        )


def agree() -> None:
    """Print how alike methods rank the genes of a cell, beside hiding each, and how good surrogates are."""
    adata = gf.datasets.pbmc700()
    cells = gf.tokenize(adata, gf.Vocabulary.fit(adata, max_length=122), obs=["cell_type"])
    checkpoint, names = fine_tuned(cells, range(600))
    asked = [cells[row] for row in range(650, 700) if len(cells[row]) == 122][:6]
    reader = Reader.of(checkpoint, device="cpu", max_tokens=4096)
    answer = OfCell(checkpoint.model, OutputAnswer(checkpoint.model.head.targets, 0, tuple(range(len(names)))))
    print(
        f"{machine()}\ntiny, fine-tuned on 600 cells; {len(asked)} cells of 120 genes, log-odds of {len(names)} classes"
    )
    found = {
        operator: values_of(occlusions(reader, answer, asked, cells.vocabulary, operation(operator, cells.vocabulary)))
        for operator in ("hide", "delete", "mask")
    }
    found["first_order"] = values_of(first_order(reader, answer, asked, cells.vocabulary))
    for method in GRADIENT_METHODS:
        found[method] = values_of(gradients(reader, answer, asked, cells.vocabulary, method))
    began = time.perf_counter()
    rngs = [np.random.default_rng(i) for i in range(len(asked))]
    fits = surrogates(reader, answer, asked, cells.vocabulary, hidden, rngs)
    n_passes = len(asked) * USUAL.n_passes(120)
    print(f"  surrogates: {1e3 * (time.perf_counter() - began) / n_passes:.1f} ms a pass, {n_passes:,} passes")
    found["surrogate"] = np.stack([fit.weight_US for fit in fits])
    for name, value_BGS in found.items():
        signed, sizes = (
            [
                spearmanr(sign(one_GS[:, state]), sign(hide_GS[:, state])).statistic
                for one_GS, hide_GS in zip(value_BGS, found["hide"], strict=True)
                for state in range(len(names))
            ]
            for sign in (np.array, np.abs)
        )
        print(f"  {name:<22} Spearman with hide: {np.median(signed):5.2f}, of sizes {np.median(sizes):5.2f}")
    for what, of in (("R²", [fit.r2_S for fit in fits]), ("stability", [fit.stability_S for fit in fits])):
        print(f"  surrogates, {what}: {np.min(of):.2f}, {np.median(of):.2f}, {np.max(of):.2f} (least, median, most)")


def values_of(attributions: Sequence[Attribution]) -> np.ndarray:
    """Return values of cells of one length, (cells, G, S)."""
    return np.stack([one.value_GS for one in attributions])


def fine_tuned(cells: gf.TokenizedDataset, rows: range) -> tuple[gf.Checkpoint, list[str]]:
    """Return a tiny classifier of cell types, twelve passes over some cells; and the types."""
    names = sorted(set(cells.labels("cell_type")))
    number_N1 = torch.tensor([[float(names.index(label))] for label in cells.labels("cell_type")])
    torch.manual_seed(0)
    model = CellClassifier(bert_config("tiny", cells.vocabulary), Head((Classes("cell_type", tuple(names)),)))
    optimiser, rng = torch.optim.AdamW(model.parameters(), 1e-3), np.random.default_rng(0)
    for _ in range(12):
        for some in np.split(rng.permutation(rows), 25):
            [batch] = batches_of(cells, some, 10**6)
            model(**batch.inputs, labels=number_N1[some[batch.rows]]).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    return gf.Checkpoint(model.eval(), cells.vocabulary), names


def main() -> None:
    """Measure costs, rates of hiding, agreement or completeness."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--size", default="V1-10M")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--complete", nargs="+", metavar="CLASS")
    parser.add_argument("--agree", action="store_true")
    parser.add_argument("--hiding", action="store_true")
    arguments = parser.parse_args()
    if arguments.agree:
        agree()
    elif arguments.hiding:
        hiding(arguments.size, arguments.genes, arguments.runs)
    elif arguments.complete:
        complete(arguments.complete)
    else:
        costs(arguments.size, arguments.cells, arguments.genes, arguments.runs)


if __name__ == "__main__":
    main()
