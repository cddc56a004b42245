"""Rows that are samples with a value for each gene: expression networks, and what simple methods make of the matrix.

A network that has learned other cohorts goes on with its weights, but takes each gene's mean and spread from the
training samples at hand: another cohort, or platform, lies elsewhere. That is standardisation within the cohort; it
looks at no label, so zero-shot has it too.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

import geneformer_repro.processes as processes
from geneformer_repro.config import with_settings
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionInputs, ExpressionNetwork, InputScale, dealt_outputs
from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.expression_training import Examples, Trainee, train_expression
from geneformer_repro.finetuning.methods import NetworkMethod
from geneformer_repro.finetuning.networks import SELECTION, best_entry, trained_once
from geneformer_repro.finetuning.problems.problem import Problem, as_lines
from geneformer_repro.finetuning.settings.samples import SampleNetworkConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import BLOCKS
from geneformer_repro.targets import SurvivalTime, Target
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.matrices import dense
from geneformer_repro.training.log import write_log

logger = logging.getLogger(__name__)

EXPRESSION, SIDE_BY_SIDE = "expression network", "encoder and expression side by side"
"""What networks that look at the matrix of an encoder's samples are called in tables."""
BESIDE_VERSION = 2
"""Raised when these say other things of the same samples, so that a run which an earlier version began is not gone on
with."""
_MOST_GENES = 2000
DRAWS = 20
"""Times that each block of a network's inputs is dealt out anew, to tell what it is worth."""


@dataclass(frozen=True, eq=False)
class ExpressionProblem(Problem):
    """Samples with a value for each gene."""

    inputs: ExpressionInputs
    targets: tuple[Target, ...]
    labels: np.ndarray
    obs: pd.DataFrame
    """The obs columns of the samples, indexed by their names."""
    group: str | None = None
    row: ClassVar[str] = "sample"

    @property
    def names(self) -> np.ndarray:
        """Name of each sample."""
        return self.obs.index.to_numpy(dtype=str)

    @property
    def groups(self) -> np.ndarray | None:
        """Group of each sample."""
        return None if self.group is None else as_labels(self.obs[self.group]).to_numpy()

    def select(self, rows: np.ndarray) -> ExpressionProblem:
        """Return the problem of some of the samples."""
        chosen = {"inputs": self.inputs.select(rows), "labels": self.labels[rows], "obs": self.obs.iloc[rows]}
        return dataclasses.replace(self, **chosen)

    def content(self) -> Iterator[bytes]:
        """Yield the samples' names and values."""
        yield as_lines(self.names)
        for block, values in self.inputs.values.items():
            yield as_lines([block, *self.inputs.names[block]])
            yield np.ascontiguousarray(values, dtype=np.float32).tobytes()

    def train(
        self,
        start: ExpressionNetwork | None,
        config: SampleNetworkConfig,
        split: Split,
        *,
        pretrained: bool = True,
        work: Path,
        step: str,
    ) -> tuple[ExpressionNetwork, pd.DataFrame]:
        """Train at each of the rates for as many steps; keep what is best on the validation samples.

        `start` is the network to go on from; None, or `pretrained` False, begins with random weights. Without
        validation samples there is one rate, and the last step is kept.
        """
        begun = self.begun(start if pretrained else None, config, split.train)

        def train_here() -> tuple[ExpressionNetwork, pd.DataFrame]:
            if not config.training.steps:
                network, history = copy.deepcopy(begun), pd.DataFrame({"epoch": [0.0]})
            else:
                network, history = self._best_of_rates(begun, config, split, step)
            entries = [{"event": "epoch", **row} for row in history.to_dict("records")]
            processes.agreed(lambda: write_log(work, entries))
            return network, history

        processes.agreed(lambda: work.mkdir(parents=True, exist_ok=True))
        network, history = trained_once(work, train_here, like=lambda: copy.deepcopy(begun))
        outputs = torch.from_numpy(network.outputs(self.inputs.select(split.train))).double()
        network.head = _fitted(network.head, outputs, torch.from_numpy(self.labels[split.train]))
        return network, history

    def begun(
        self, start: ExpressionNetwork | None, config: SampleNetworkConfig, rows: np.ndarray
    ) -> ExpressionNetwork:
        """Return the network that training begins with; what is usual of each column is that of these samples.

        So is what clinical columns count (`_begin_clinical`), where the network has a path for them.
        """
        inputs, head = self.inputs.select(rows), Head(self.head_targets(rows))
        if start is not None:
            assert start.head.n_outputs == head.n_outputs
            network = copy.deepcopy(start)
            network.head, network.scale = head, start.scale.refitted(inputs)
        else:
            scale = InputScale.fit(inputs, n_genes=config.network.n_genes, clip=config.network.clip)
            network = ExpressionNetwork(config.network, head, scale, seed=config.seed)
        if "covariates" in network.scale.names:
            self._begin_clinical(network, rows, config.seed)
        return network

    def _begin_clinical(self, network: ExpressionNetwork, rows: np.ndarray, seed: int) -> None:
        """Let the network begin at a simple model of clinical columns and of what it says without them.

        Of survival that is Cox's under a ridge penalty. From zero the columns' path learns next to nothing in as few
        steps as a network needs; and what the network says, of others' patients or of random weights, may be of any
        size, so the model tells it how much to count.
        """
        scaled_NI = network.scale(self.inputs.select(rows))
        columns_NP, said_NK = scaled_NI[:, network.scale.columns("covariates")], network.outputs(scaled_NI)
        ends = np.cumsum([target.n_outputs for target in network.head.targets])
        for end, (kind, labels) in zip(ends, self.of_kinds(rows), strict=True):
            labelled = ~np.isnan(labels).any(axis=1)
            said_N, output = said_NK[labelled, end - 1].astype(np.float64), end - 1
            spread = said_N.std() or 1.0
            weights = kind.straight_path(
                np.column_stack([said_N / spread, columns_NP[labelled]]), labels[labelled], seed
            )
            if weights is not None:
                network.begin_path(output, weights[0] / spread, weights[1:])

    def _best_of_rates(
        self, begun: ExpressionNetwork, config: SampleNetworkConfig, split: Split, step: str
    ) -> tuple[ExpressionNetwork, pd.DataFrame]:
        chooses, epochs = len(split.validation) > 0, itertools.count()
        assert chooses or len(config.training.rates) == 1
        training, validation = (
            Examples.of(begun.scale, self.inputs.select(rows), self.labels[rows], self._balance(rows))
            for rows in (split.train, split.validation if chooses else split.train)
        )
        settings = [dataclasses.replace(config.training, learning_rate=rate) for rate in config.training.rates]
        trained = train_expression(
            [Trainee(begun, setting, config.seed) for setting in settings],
            training,
            validation,
            score=None if chooses else lambda _: float(next(epochs)),  # the last one is the best
            steps=config.training.steps,
            seed=config.seed,
        )
        scores = [-math.inf if one.network is None else one.score for one in trained]
        best = trained[int(np.argmax(scores))]
        if best.network is None:
            raise InputError(
                f"{step}: no learning rate of training.rates={config.training.rates} led to finite numbers. Try "
                "lower ones."
            )
        rate = config.training.rates[int(np.argmax(scores))]
        history = best.history.rename(columns={"score": f"eval_{SELECTION}", "validation_loss": "eval_loss"})
        seconds = round(sum(one.seconds for one in trained), 3)
        told = history.assign(epoch=history["epoch"].astype(float), learning_rate=rate, seconds=seconds)
        return best.network, told

    def settled(self, config: SampleNetworkConfig, histories: Sequence[pd.DataFrame]) -> SampleNetworkConfig:
        """Return the rate that was best most often, and as many steps as were best on average."""
        best = pd.DataFrame([best_entry(history) for history in histories])
        steps, rate = round(float(best["step"].median())), float(best["learning_rate"].mode()[0])
        return with_settings(config, steps=max(1, steps), rates=(rate,))

    def with_labels(self, config: SampleNetworkConfig, n: int) -> SampleNetworkConfig:
        """Return the configuration as it is: its steps are those of any number of samples."""
        return config

    def _balance(self, rows: np.ndarray) -> np.ndarray:
        """Return what every batch should hold alike: the strata."""
        return np.unique(self.strata[rows], return_inverse=True)[1]

    def ask(self, network: ExpressionNetwork, rows: np.ndarray) -> np.ndarray:
        """Return what the network's outputs mean for some samples, then what they mean with blocks dealt out anew."""
        inputs = self.inputs.select(rows)
        outputs = [network.outputs(inputs)]
        if len(self._blocks) > 1:
            dealt = dealt_outputs(network, inputs, within_N=self._compared_within(rows), draws=DRAWS)
            outputs += [of_draw for block in self._blocks for of_draw in dealt[block]]
        return np.column_stack([network.head.meaning(torch.from_numpy(each)).numpy() for each in outputs])

    def predictions(self, said: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return what outputs mean for each sample, with its inputs as they are."""
        return said[:, : self._n_meanings]

    def dealt(self, said: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return what outputs mean once a block is dealt out anew among samples of a cohort."""
        if len(self._blocks) == 1:
            return {}
        dealt = said[:, self._n_meanings :].reshape(len(said), len(self._blocks), DRAWS, self._n_meanings)
        return dict(zip(self._blocks, dealt.transpose(1, 2, 0, 3), strict=True))

    @property
    def _blocks(self) -> list[str]:
        return [block for block in BLOCKS if block in self.inputs.values]

    @property
    def _n_meanings(self) -> int:
        return sum(target.n_meanings for target in self.targets)

    def _compared_within(self, rows: np.ndarray) -> np.ndarray:
        numbers = np.stack([kind.compared_within(labels) for kind, labels in self.of_kinds(rows)])
        return np.unique(numbers, axis=1, return_inverse=True)[1].ravel()

    def with_covariates(self, names: Sequence[str]) -> ExpressionProblem:
        """Return the same samples with a block of clinical columns, those of `obs` with these names."""
        values, columns = clinical_block(self.obs[list(names)])
        given = self.inputs
        inputs = dataclasses.replace(
            given, values={**given.values, "covariates": values}, names={**given.names, "covariates": columns}
        )
        return dataclasses.replace(self, inputs=inputs)

    def features(self, start: Any, config: Any, counts: Any) -> Features:
        """Return the matrix as it is, the vectors where there are such, and the clinical columns."""
        covariates = list(config.compare.covariates)
        return Features.of_samples(
            self.inputs.values["expression"],
            embedding=self.inputs.values.get("embedding"),
            covariates=self.obs[covariates] if covariates else None,
        )


def beside_encoder(
    features: Features, targets: Sequence[Target], labels: np.ndarray, obs: pd.DataFrame, *, seed: int
) -> tuple[NetworkMethod, ...]:
    """Return networks that look at the expression of an encoder's samples: alone, and side by side with its vectors.

    They learn survival by Cox's partial likelihood, which an encoder, that sees some samples at a time, cannot.

    Parameters
    ----------
    features
        What simple methods look at; without expression there are no such networks.
    targets, labels, obs
        Of the samples.
    seed
        Of the networks.
    """
    if features.expression is None:
        return ()
    targets = [replace(one, learned_by="cox") if isinstance(one, SurvivalTime) else one for one in targets]
    blocks = {"expression": dense(features.expression), "embedding": np.asarray(features.embedding, dtype=np.float32)}
    names = {block: tuple(f"{block} {i}" for i in range(values.shape[1])) for block, values in blocks.items()}
    if features.covariates is not None:
        blocks["covariates"], names["covariates"] = clinical_block(features.covariates)
    methods = []
    for name, left_out in ((EXPRESSION, ("embedding", "covariates")), (SIDE_BY_SIDE, ())):
        read = [block for block in blocks if block not in left_out]
        inputs = ExpressionInputs({block: blocks[block] for block in read}, {block: names[block] for block in read})
        skip = tuple(block for block in ("covariates", "expression") if block in read) if not left_out else ()
        config = SampleNetworkConfig(seed=seed, network={"n_genes": _MOST_GENES, "skip": skip})
        problem = ExpressionProblem(inputs, tuple(targets), labels, obs)
        methods.append(
            NetworkMethod(
                name, name.replace(" ", "-"), pretrained=False, step=f", {name}", config=config, problem=problem
            )
        )
    return tuple(methods)


def clinical_block(columns: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return clinical columns as numbers for the straight path, (samples, columns) float32, and their names.

    Of a column of numbers itself, NaN where one is missing; of labels a column ``NAME=LABEL`` each, 1 where a sample
    has it, so that one whose label is missing has zeros. No row depends on another: what is usual, and which columns
    vary at all, a network learns of its training samples, so a label that these lack counts nothing.
    """
    values: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if pd.api.types.is_numeric_dtype(column.dtype):
            values[str(name)] = column.to_numpy(dtype=np.float32, na_value=np.nan)
            continue
        labels = as_labels(column)
        values |= {f"{name}={label}": (labels == label).to_numpy(np.float32) for label in sorted(set(labels.dropna()))}
    made = np.column_stack([np.empty((len(columns), 0), dtype=np.float32), *values.values()])
    return made, tuple(values)


def _fitted(head: Head, outputs_NK: torch.Tensor, labels_NS: torch.Tensor) -> Head:
    """Return the head with what outputs for training samples must yet tell its targets."""
    parts = zip(head.targets, head.split(outputs_NK), head.split_labels(labels_NS), strict=True)
    return dataclasses.replace(head, targets=tuple(target.fitted(outputs, labels) for target, outputs, labels in parts))
