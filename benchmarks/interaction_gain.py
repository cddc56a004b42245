"""What networks over pairs say beyond the mean effects where the truth is known: without interaction there is nothing.

Run as ``python benchmarks/interaction_gain.py OUT [--new sample drug] [--interaction 0 1] [--screens 3]``. Made-up
screens (`_responses`), each dealt into three folds of new samples or new drugs, are learned by small networks of every
kind: those of Prasse et al., and our encoder with random weights on tokens of the samples, alone and beside their
expression; ridge and boosting stand by. The score is the correlation within what is new, mean effects taken off, and is
0 of the mean effects: over the drugs of a new sample, or over the samples of a new drug, whose potency its structure
tells and which is no interaction. Every sample met every drug: where some did not, plain means count a sample that met
the potent drugs as sensitive, and whoever parts the two is above them without any interaction (least squares by 0.40
within new drugs at 80 % of the pairs, by 0.01 at all). Prints its mean over the screens with a 95 % interval, and of
how many screens the tests of the tables (paired over samples, or drugs; over folds, corrected) call a method higher or
lower.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from _responses import SimulatedResponses, simulate_responses
from anndata import AnnData
from scipy.stats import t

import geneformer_repro as gf
from geneformer_repro.finetuning.evaluation import Evaluation
from geneformer_repro.finetuning.experiment import Experiment
from geneformer_repro.finetuning.kinds.response_methods import MEAN_EFFECTS, RESPONSE_METHODS
from geneformer_repro.finetuning.methods import NetworkMethod
from geneformer_repro.finetuning.pair_splits import make_pair_splits
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.settings.pairs import PairConfig
from geneformer_repro.finetuning.settings.splits import NewInTest, PairSplitConfig
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.responses import Responses

SIMPLE = (MEAN_EFFECTS, "ridge, PCA × drug", "gradient boosting, PCA ⊕ drug")
_ENCODER = {"model": "encoder", "drug_layers": (32,), "joint_layers": (64,), "fusion": "film", "sample_layers": (32,)}
_FILTERS, _OF_ATTENTION = (16, 16, 16), {"attention_heads": 2, "fusion_size": 8}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "Conv NN": {"model": "conv_nn", "embedding_size": 16, "filters": _FILTERS, "pool": 2},
    "PaccMann": {"model": "paccmann", "filters": (8, 8, 8), **_OF_ATTENTION, "joint_layers": (32, 16), "dropout": 0.1},
    "tDNN": {"model": "tdnn", "sample_layers": (64, 32), "drug_layers": (64, 32), "joint_layers": (64, 32)},
    "encoder": _ENCODER,
    "encoder and expression": {**_ENCODER, "expression_path": True},
}
"""Settings by name in the tables; the drugs are read as published, and as fingerprints by the encoder."""
GENES_READ = 34
"""Tokens of a sample, two of them ``<cls>`` and ``<eos>``: a sixth of the genes, so that which are there says much."""


def problem_of(simulated: SimulatedResponses, new: NewInTest, folds: int) -> PairProblem:
    """Pairs of a screen, with expression, tokens and structures."""
    samples = AnnData(simulated.expression)
    vocabulary = gf.Vocabulary.fit(samples, values="zscore", max_length=GENES_READ)
    return PairProblem.of(
        gf.tokenize(samples, vocabulary, values="zscore"),
        Responses(simulated.responses[["sample", "drug", "value"]].assign(n_replicates=1), "LN_IC50"),
        gf.Drugs.of_table(simulated.smiles.rename_axis("drug").rename("smiles").reset_index()),
        expression=simulated.expression,
        split_by=PairSplitConfig(by=new, folds=folds, test=0.3, validation=0.15),
    )


def random_encoder(problem: PairProblem) -> gf.Checkpoint:
    """An encoder of one block with random weights."""
    shape = bert_config("tiny", problem.vocabulary)
    shape.num_hidden_layers = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gf.Checkpoint(MaskedGeneModel(shape).eval(), problem.vocabulary, name="random encoder")


def compared(
    simulated: SimulatedResponses, new: NewInTest, networks: Sequence[str], work: Path, *, epochs: int, folds: int = 3
) -> Evaluation:
    """Train these networks and the simple methods on a screen, and score them on what is new."""
    problem = problem_of(simulated, new, folds)
    training = {"epochs": epochs, "batch_size": 64, "learning_rate": 0.01, "drugs_a_step": None}
    methods = []
    for name in networks:
        config = PairConfig(network=NETWORKS[name], training=training)
        start = random_encoder(problem) if config.network.model == "encoder" else None
        methods.append(NetworkMethod(name, name, start=start, config=config, step=f", {name}"))
    splits = make_pair_splits(problem.names, problem.strata, problem.identities, problem.split_by, seed=0)
    experiment = Experiment(problem, None, splits, methods[0].config, tuple(methods))
    with patch.dict(RESPONSE_METHODS, {name: RESPONSE_METHODS[name] for name in SIMPLE}, clear=True):
        findings = experiment.run(problem.features(None, None, None), work)
    return findings.evaluations["response"]


def beyond_mean_effects(evaluation: Evaluation, new: NewInTest) -> pd.DataFrame:
    """Return how far each method is above the mean effects within what is new, and what the tests say of it."""
    tests = evaluation.difference_tests
    of_new = tests[(tests["other"] == MEAN_EFFECTS) & (tests["score"] == f"pearson_within_{new}_normalised")]
    return of_new.pivot(index="method", columns="test", values=["difference", "p", "direction"])


def screens(out: Path, new: NewInTest, interaction: float, n_screens: int) -> pd.DataFrame:
    """Return a row a method of each screen, from OUT where an earlier call was done with it."""
    tables = []
    for seed in range(n_screens):
        path = out / f"{new}-{interaction:g}-{seed}.tsv"
        if not path.exists():
            simulated = simulate_responses(60, 20, interaction=interaction, measured=1.0, seed=seed)
            evaluation = compared(simulated, new, [*NETWORKS], out / path.stem, epochs=12)
            table = beyond_mean_effects(evaluation, new)
            table.columns = [" of ".join(column) for column in table.columns]
            table.reset_index().to_csv(path, sep="\t", index=False)
        tables.append(pd.read_csv(path, sep="\t").assign(screen=seed))
    return pd.concat(tables)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method: mean over the screens, its interval, and what tests call higher and lower how often."""
    order = [name for name in (*NETWORKS, *SIMPLE) if name in set(rows["method"])]
    grouped = rows.groupby("method")["difference of paired, groups"]
    mean, reach = grouped.mean(), t.ppf(0.975, grouped.size() - 1) * grouped.std() / np.sqrt(grouped.size())
    columns = {"beyond": mean, "low": mean - reach, "high": mean + reach}
    for test in ("paired, groups", "corrected, folds"):
        for direction in ("higher", "lower"):
            is_so = rows[f"direction of {test}"] == direction
            columns[f"{direction} ({test})"] = is_so.groupby(rows["method"]).sum()
    return pd.DataFrame(columns).loc[order].round(3)


def main() -> None:
    """Carry out the studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--new", nargs="+", default=["sample", "drug"])
    parser.add_argument("--interaction", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--screens", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(exist_ok=True)
    for new in arguments.new:
        for interaction in arguments.interaction:
            rows = screens(arguments.out, new, interaction, arguments.screens)
            print(f"new {new}s, interaction {interaction:g}", summary(rows).to_string(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
