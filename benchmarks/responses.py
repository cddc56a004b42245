"""Networks over pairs: each sample and drug of a batch read once, against pair by pair; and how batches are dealt.

The same network takes the same batches either way, so the losses are the same, and are compared. Times are those of the
processor, ours and the alternative in turn. The alternative reads every pair's own genes and SMILES, as published.

python benchmarks/responses.py gdsc_ccle                      # an epoch of Conv NN either way, three times in turn
python benchmarks/responses.py gdsc_ccle --steps 40           # so many steps of it
python benchmarks/responses.py gdsc_ccle --same-weights       # every step's loss and gradients either way
python benchmarks/responses.py gdsc_ccle --dealt 8 32 128 0   # validation score by drugs a step; 0: any
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _side_by_side import machine

from geneformer_repro.batching import StepBatches
from geneformer_repro.drugs import Drugs
from geneformer_repro.finetuning.pair_splits import make_pair_splits
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.settings.pairs import PairConfig
from geneformer_repro.finetuning.settings.splits import PairSplitConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.pair_reading import PairSides
from geneformer_repro.processes import peak_memory_gb
from geneformer_repro.responses import Responses

ONCE, PAIRS = "each sample and drug once", "pair by pair"


def problem_of(folder: Path, n_pairs: int) -> PairProblem:
    """LN_IC50 of GDSC, so many pairs at random, with expression and SMILES."""
    table = pd.read_parquet(folder / "gdsc_response.parquet").dropna(subset=["ln_ic50"])
    pairs = table.groupby(["cell_key", "drug"], observed=True)["ln_ic50"].agg(["mean", "size"]).reset_index()
    pairs.columns = pd.Index(["sample", "drug", "value", "n_replicates"])
    expression = pd.read_parquet(folder / "gdsc_expression.parquet")
    drugs = Drugs.of_table(folder / "smiles.tsv")
    is_known = pairs["sample"].isin(expression.index) & pairs["drug"].isin(drugs.names)
    chosen = pairs[is_known].sample(n_pairs, random_state=0).astype({"sample": str, "drug": str})
    return PairProblem.of(expression, Responses(chosen, "LN_IC50"), drugs)


class Steps:
    """Batches of a problem, in the order of training."""

    def __init__(self, problem: PairProblem, network: PairNetwork, rows: np.ndarray, config: PairConfig) -> None:
        self.problem, self.rows = problem, rows
        self.sides: PairSides = problem.sides(network)
        self.naive = problem.naive(network, np.arange(len(problem.pairs)))
        drugs = config.training.drugs_a_step
        self.batches = StepBatches(
            np.ones(len(rows)),
            batch_size=config.training.batch_size,
            seed=config.seed,
            alike=None if drugs is None else problem.pairs[rows, 1],
            alike_a_step=drugs or 1,
        )

    def epoch(self, number: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of a pass."""
        self.batches.set_epoch(number)
        for numbered in self.batches:
            rows = self.rows[[row for row, _ in numbered]]
            batch = self.sides.batch(self.problem.pairs[rows])
            batch["labels"] = torch.from_numpy(self.problem.labels[rows]).float()
            batch["naive"] = torch.from_numpy(self.naive[rows]).float()
            yield batch


def pair_by_pair(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the same batch with a sample and a drug of its own for each pair."""
    sample_P, drug_P = batch["pairs"].unbind(1)
    every = torch.arange(len(sample_P))[:, None].expand(-1, 2)
    return batch | {"values": batch["values"][sample_P], "drugs": batch["drugs"][drug_P], "pairs": every}


def trained(network: PairNetwork, batches: Iterator[dict[str, Any]], *, once: bool) -> tuple[float, list[float]]:
    """Seconds of the processor for these steps, and their losses."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    losses, seconds = [], 0.0
    network.train()
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        began = time.process_time()
        loss = network(**(batch if once else pair_by_pair(batch))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - began
        losses.append(loss.item())
    return seconds, losses


def in_double(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the same batch in double precision."""
    return {name: each.double() if each.is_floating_point() else each for name, each in batch.items()}


def speed(problem: PairProblem, steps: int | None, runs: int, model: str, batch_size: int) -> None:
    settings = {"batch_size": batch_size}
    config = PairConfig(network={"model": model, "dropout": 0.0}, training=settings)
    rows = np.arange(len(problem.pairs))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _, once in itertools.product(range(runs), (True, False)):
        network = problem.begun(None, config, rows)
        dealt = Steps(problem, network, rows, config)
        took, losses = trained(network, itertools.islice(dealt.epoch(), steps), once=once)
        seconds[once].append(took)
        name = ONCE if once else PAIRS
        print(f"  {name}: {took:.1f} s of {len(losses):,} steps; peak memory {peak_memory_gb():.2f} GB", flush=True)
        if once:
            of_once = losses
    largest = max(abs(a - b) for a, b in zip(of_once, losses, strict=True))
    print(f"\n{model}, {len(of_once):,} steps of {batch_size} pairs of about {config.training.drugs_a_step} drugs")
    of_all = len(rows) * problem.inputs.values["expression"].shape[1] * 4 / 1e9
    print(f"  pairs x genes would be {of_all:.1f} GB")
    for once, name in ((True, ONCE), (False, PAIRS)):
        print(f"  {name:<28} {statistics.median(seconds[once]):8.1f} s  {[round(s, 1) for s in seconds[once]]}")
    ratios = sorted(b / a for a, b in zip(seconds[True], seconds[False], strict=True))
    print(f"  ratio {ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f}; losses differ by {largest:.1e}")


def equality(problem: PairProblem, steps: int | None, model: str, batch_size: int) -> None:
    """Print by how much loss and gradients differ, the weights of every step being the same, in double precision."""
    config = PairConfig(network={"model": model, "dropout": 0.0}, training={"batch_size": batch_size})
    rows = np.arange(len(problem.pairs))
    network = problem.begun(None, config, rows).double()
    dealt = Steps(problem, network, rows, config)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    network.train()
    losses, gradients = [], []
    for batch in map(in_double, itertools.islice(dealt.epoch(), steps)):
        of_both = []
        for each in (pair_by_pair(batch), batch):
            loss = network(**each).loss
            optimizer.zero_grad()
            loss.backward()
            of_both.append((loss.item(), [weight.grad.clone() for weight in network.parameters()]))
        (loss_pairs, apart), (loss_once, together) = of_both
        losses.append(abs(loss_pairs - loss_once))
        norm = sum(each.square().sum() for each in together).sqrt()
        between = sum((a - b).square().sum() for a, b in zip(apart, together, strict=True)).sqrt()
        gradients.append((between / norm).item())
        optimizer.step()
    print(f"{model}, {len(losses)} steps, either way from the same weights, in double precision")
    print(f"  losses differ by at most {max(losses):.1e}, gradients by at most {max(gradients):.1e} of their norm")


def composition(problem: PairProblem, dealt: list[int], epochs: int, by: str, batch_size: int, model: str) -> None:
    """Print the validation score after each pass, by how many drugs the pairs of a step are."""
    split_by = PairSplitConfig(by=by, test=0.2, validation=0.2)  # type: ignore[arg-type]
    problem = PairProblem(**{**vars(problem), "split_by": split_by})
    split: Split = make_pair_splits(
        problem.names, np.zeros(len(problem.pairs)).astype(str), problem.identities, split_by, seed=0
    )[0]
    truth = problem.labels[split.validation, 0]
    for drugs in dealt:
        config = PairConfig(
            network={"model": model}, training={"drugs_a_step": drugs or None, "batch_size": batch_size}
        )
        network = problem.begun(None, config, split.train)
        steps = Steps(problem, network, split.train, config)
        naive = problem.naive(network, split.validation)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
        found, seconds = [], 0.0
        n_steps = epochs * len(steps.batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_steps)
        for epoch in range(epochs):
            network.train()
            for batch in steps.epoch(epoch):
                began = time.process_time()
                optimizer.zero_grad()
                network(**batch).loss.backward()
                optimizer.step()
                schedule.step()
                seconds += time.process_time() - began
            said = network.head.meaning(steps.sides.outputs(network, problem.pairs[split.validation], naive))[
                :, 0
            ].numpy()
            left = np.corrcoef(said - naive, truth - naive)[0, 1]
            found.append(f"{left:.3f} ({np.sqrt(np.mean((said - truth) ** 2)):.3f})")
        print(f"  {by}: {drugs or 'any'} drugs a step, {seconds:.0f} s: {' '.join(found)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with gdsc_response.parquet and its neighbours")
    parser.add_argument("--pairs", type=int, default=250_000)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="conv_nn")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--dealt", type=int, nargs="+", default=None)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--by", default="sample")
    parser.add_argument("--same-weights", action="store_true")
    given = parser.parse_args()
    print(machine())
    problem = problem_of(given.folder, given.pairs)
    print(f"{len(problem.pairs):,} pairs, {len(problem.sample_names)} samples, {len(problem.drugs)} drugs")
    if given.dealt:
        composition(problem, given.dealt, given.epochs, given.by, given.batch_size, given.model)
    elif given.same_weights:
        equality(problem, given.steps, given.model, given.batch_size)
    else:
        speed(problem, given.steps, given.runs, given.model, given.batch_size)


if __name__ == "__main__":
    main()
