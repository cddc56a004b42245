"""Expression networks side by side against one after the other, and what a search of 750 configurations costs.

Run as ``python benchmarks/expression_search.py [expression.parquet clinical.parquet]``: tables of samples × genes and
of ``cohort``, ``cdr_PFI.time`` and ``cdr_PFI``; without them as many samples are made up. CPU seconds of one thread.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from geneformer_repro.expression import ExpressionInputs, ExpressionNetwork, InputScale
from geneformer_repro.finetuning.expression_training import Examples, Trainee, train_expression
from geneformer_repro.finetuning.halving import halve
from geneformer_repro.finetuning.settings.samples import ExpressionTrainConfig, HalvingConfig
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.targets import SurvivalTime

HEAD = Head((SurvivalTime("PFI", "PFI.time", (365.0, 1825.0), 1825.0, "cox"),))


def tables(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return expression, and time, event and cohort."""
    if not arguments.tables:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(3842, 1526))
        labels = [rng.exponential(np.exp(-values[:, 0])) + 0.01, rng.random(3842) < 0.35, rng.integers(8, size=3842)]
        return values, np.column_stack(labels).astype(float)
    expression, clinical = (pd.read_parquet(path) for path in arguments.tables)
    clinical = clinical.reindex(expression.index)
    labels = clinical[["cdr_PFI.time", "cdr_PFI"]].assign(cohort=pd.factorize(clinical["cohort"])[0]).to_numpy(float)
    has_label = (labels[:, 0] > 0) & ~np.isnan(labels).any(axis=1) & (clinical["cohort"] != "lusc").to_numpy()
    return expression.to_numpy()[has_label], labels[has_label]


def examples(values: np.ndarray, labels: np.ndarray) -> tuple[Examples, Examples]:
    """Deal four fifths of the rows to training, the others to validation."""
    inputs = ExpressionInputs({"expression": values}, {"expression": tuple(f"G{i}" for i in range(values.shape[1]))})
    train, held_out = np.split(np.random.default_rng(0).permutation(len(values)), [len(values) * 4 // 5])
    scale = InputScale.fit(inputs.select(train))
    return (
        Examples.of(scale, inputs.select(train), labels[train], labels[train, 1]),
        Examples.of(scale, inputs.select(held_out), labels[held_out]),
    )


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return what a call costs the processor."""
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(training: Examples, validation: Examples, *, width: int, batch_size: int, runs: int) -> None:
    """Print how much faster 16 networks are trained side by side."""
    epochs = 1 if batch_size else 10
    trainees = [
        Trainee(
            ExpressionNetwork(ExpressionConfig(width=width), HEAD, training.scale, seed=seed),
            ExpressionTrainConfig(epochs=epochs, batch_size=batch_size, patience=0),
            seed,
        )
        for seed in range(16)
    ]
    ratios, milliseconds = [], []
    for _ in range(runs):
        together = cpu_seconds(lambda: train_expression(trainees, training, validation))
        alone = cpu_seconds(lambda: [train_expression([each], training, validation) for each in trainees])
        ratios.append(alone / together)
        milliseconds.append(1000 * together / len(trainees) / epochs)
    print(
        f"  {width} wide, batches of {batch_size or 'all'}: {statistics.median(milliseconds):.0f} ms a network's pass, "
        f"{statistics.median(ratios):.2f} × ({min(ratios):.2f}–{max(ratios):.2f}) one after the other"
    )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", type=Path)
    parser.add_argument("--trials", type=int, default=75)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training, validation = examples(*tables(arguments))
    print(f"{len(training):,} + {len(validation):,} samples × {len(training.scale):,} genes, 16 networks of 2 layers")
    for batch_size in (32, 256, 0):
        for width in (24, 100, 200):
            compare(training, validation, width=width, batch_size=batch_size, runs=arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        config = HalvingConfig(n_trials=arguments.trials)
        seconds = cpu_seconds(lambda: halve(training, validation, HEAD, config, work=Path(folder)))
    of_all = seconds * 750 / arguments.trials
    print(f"{arguments.trials} trials in rungs of {config.sizes}: {seconds:.0f} s, of 750 about {of_all:.0f} s")


if __name__ == "__main__":
    main()
