"""Random search over expression networks by successive halving: many are trained a little, few of them for long.

Every setting is drawn once, from the seed and the number of its trial. A rung trains its networks anew for `reduction`
times as long as the one before, and the best part of them goes on to the next. Anew, because then a trial's row says
what `train_expression` gives for these settings and this seed, and a rung keeps a number a network in place of weights
and moments (of 750 networks 4 GB); that costs a third more than going on would.

A search is given training and validation rows, and no others. The validation score of the best of many trials is
flattered by the choice: it is for choosing, and stands in the table of trials alone.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import geneformer_repro.processes as processes
from geneformer_repro.config import names_in
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.files import read_json, write_json
from geneformer_repro.finetuning.expression_training import Examples, Score, Trainee, stacks_of, trained_stacks
from geneformer_repro.finetuning.search import draw_settings
from geneformer_repro.finetuning.settings.samples import ExpressionTrainConfig, HalvingConfig
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.progress import progress
from geneformer_repro.sharing import by_processes, die_with, on_ray
from geneformer_repro.unfinished import is_whole, keep

logger = logging.getLogger(__name__)

_SHARES_A_WORKER = 8
"""Into so many shares of about the same work the stacks of a rung are dealt for each worker, the longest first, so that
all end at about the same time."""
_ROWS_OF_A_STEP = 40
"""What a step costs beside its rows (weights are changed), in rows."""
_GENE_CHOICES = (500, 1_000, 2_000, 5_000, 10_000, 20_000)
_BATCH_CHOICES = (32, 64, 128, 256, 512)


@dataclass(frozen=True, eq=False)
class Halved:
    """What a search came to.

    Attributes
    ----------
    trials
        A row a trial, the best first: ``trial``, each setting that was searched, the last ``rung`` that it was trained
        in (from 1), the ``epochs`` of that, the ``epoch`` and the ``step`` of its best ``score`` there (missing where
        none was finite; only scores of one rung compare), ``seconds`` of the processor in all rungs, and ``chosen``.
    network, training
        The best settings, in the configurations that were given.
    """

    trials: pd.DataFrame
    network: ExpressionConfig
    training: ExpressionTrainConfig


def default_space(n_genes: int, n_rows: int) -> dict[str, Any]:
    """Return what is searched where nothing is said: a network of any size, for so many genes and training rows."""
    return {
        "layers": [1, 2, 3, 4],
        "width": {"low": 16, "high": 1024, "log": True},
        "activation": ["relu", "selu", "tanh"],
        "dropout": {"low": 0.0, "high": 0.7},
        "batch_norm": [False, True],
        "n_genes": [*(n for n in _GENE_CHOICES if n < n_genes), n_genes],
        "optimiser": ["adam", "adamw", "sgd"],
        "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "l1": {"low": 1e-6, "high": 1e-1, "log": True},
        "l2": {"low": 1e-6, "high": 1e-1, "log": True},
        "batch_size": [*(size for size in _BATCH_CHOICES if size < n_rows), 0],
    }


def halve(
    training: Examples,
    validation: Examples,
    head: Head,
    config: HalvingConfig,
    *,
    work: Path,
    network: ExpressionConfig | None = None,
    train: ExpressionTrainConfig | None = None,
    score: Score | None = None,
    seed: int = 0,
    workers: int | None = None,
    ray: bool = False,
) -> Halved:
    """Search the settings of an expression network.

    Parameters
    ----------
    training, validation
        Rows that are learned from, and that choose; their scale is that of all genes.
    head
        What the networks learn.
    config
        How many networks, and what is searched.
    work
        Folder of the search, which belongs to work that is under way (`unfinished`): stacks that are finished are not
        trained again, and what makes two searches the same stands in the plan of that work.
    network, train
        Settings that are not searched; by default their own defaults.
    score
        As for `train_expression`; it goes to other processes.
    seed
        Of the draws: of settings, weights, dropout and the order of rows.
    workers
        Processes that share the stacks of a rung; by default this one alone. Each computes in one thread, so the result
        is the same for any number.
    ray
        Share them on Ray instead; `workers` is then the most at a time.

    Raises
    ------
    ConfigError
        A drawn value is out of the bounds of its setting.
    InputError
        A worker died, or not a single network came to a finite score.
    """
    space = dict(config.space) or default_space(len(training.scale.gene_names), len(training))
    of_rungs = _Trials(training, validation, head, config, network or ExpressionConfig(),
                       train or ExpressionTrainConfig(), score, seed, space, work)  # fmt: skip
    rows: dict[int, dict[str, Any]] = {trial: {"seconds": 0.0} for trial in range(1, config.n_trials + 1)}
    goes_on = list(rows)
    total = sum(size * config.epochs(rung) for rung, size in enumerate(config.sizes))
    with progress("search", total=total, unit="epochs") as bar:
        for rung, size in enumerate(config.sizes):
            goes_on = sorted(goes_on, key=lambda trial: _merit(rows[trial]))[:size]
            for results in of_rungs.trained(rung, sorted(goes_on), workers=workers, ray=ray):
                for trial, result in results.items():
                    seconds = rows[trial]["seconds"] + result.pop("seconds")
                    rows[trial] = {**result, "seconds": round(seconds, 3)}
                bar.update(len(results) * config.epochs(rung))
            best = min(goes_on, key=lambda trial: _merit(rows[trial]))
            said = {"event": "rung", "rung": rung + 1, "networks": size, "epochs": config.epochs(rung)}
            logger.info(json.dumps({**said, "best_trial": best, "score": rows[best]["score"]}))
    if rows[best]["score"] is None:
        raise InputError(
            f"None of {config.n_trials} networks came to a finite score. Lower learning_rate in halving.space, and "
            "look at the labels."
        )
    order = sorted(rows, key=_order_of(rows))
    table = pd.DataFrame(
        [{"trial": trial, **of_rungs.settings(trial), **rows[trial], "chosen": trial == best} for trial in order]
    )
    return Halved(table.astype({"score": float}), *of_rungs.configs(best))


def _merit(row: Mapping[str, Any]) -> float:
    """Return what is the lower, the better a trial did in its last rung; before the first all are alike."""
    score = row.get("score", 0.0)
    return math.inf if score is None else -score


def _order_of(rows: Mapping[int, Mapping[str, Any]]) -> Callable[[int], tuple[int, float]]:
    return lambda trial: (-rows[trial]["rung"], _merit(rows[trial]))


@dataclass(frozen=True, eq=False)
class _Trials:
    """The trials of a search, each made of the seed and its number wherever it is trained."""

    training: Examples
    validation: Examples
    head: Head
    config: HalvingConfig
    network: ExpressionConfig
    train: ExpressionTrainConfig
    score: Score | None
    seed: int
    space: Mapping[str, Any]
    work: Path

    def settings(self, trial: int) -> dict[str, Any]:
        """Draw the settings of a trial."""
        return draw_settings(self.space, np.random.default_rng([self.seed, trial]))

    def configs(self, trial: int) -> tuple[ExpressionConfig, ExpressionTrainConfig]:
        """Return the configurations of a trial, for as long a training as they say themselves."""
        settings = self.settings(trial)
        of_network, of_training = (
            {name: value for name, value in settings.items() if name in names_in(kind)}
            for kind in (ExpressionConfig, ExpressionTrainConfig)
        )
        return dataclasses.replace(self.network, **of_network), dataclasses.replace(self.train, **of_training)

    def trainee(self, trial: int, rung: int) -> Trainee:
        """Make the network of a trial, to be trained as long as a rung does."""
        network, train = self.configs(trial)
        seed = int(np.random.SeedSequence([self.seed, trial]).generate_state(1)[0])
        scale = self.training.scale.first(network.n_genes)
        train = dataclasses.replace(train, epochs=self.config.epochs(rung), min_steps=self.config.min_steps(rung))
        return Trainee(ExpressionNetwork(network, self.head, scale, seed=seed), train, seed)

    def trained(
        self, rung: int, trials: Sequence[int], *, workers: int | None, ray: bool
    ) -> Iterator[dict[int, dict[str, Any]]]:
        """Train the networks of a rung that no earlier call has; yield what they came to, some at a time."""
        folder = self.work / f"rung-{rung + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        stacks = [[trials[i] for i in stack] for stack in stacks_of(self.trainee(trial, rung) for trial in trials)]
        finished = [is_whole(_file(folder, stack)) for stack in stacks]
        yield from (_read(_file(folder, stack)) for stack, done in zip(stacks, finished, strict=True) if done)
        left = [stack for stack, done in zip(stacks, finished, strict=True) if not done]
        if not ray and (workers or 1) == 1:
            with processes.one_thread():
                for stack in left:
                    self.train_share(rung, [stack])
                    yield _read(_file(folder, stack))
            return
        works = {stack[0]: sum(self.work_of(trial, rung) for trial in stack) for stack in left}
        shares = _dealt(left, works, _SHARES_A_WORKER * (workers or os.cpu_count() or 1))
        do = partial(_train_elsewhere, self, None if ray else os.getpid(), rung)
        done_shares = on_ray(shares, do, workers) if ray else by_processes(shares, do, workers or 1)
        for share, _ in done_shares:
            yield from (_read(_file(folder, stack)) for stack in share)

    def work_of(self, trial: int, rung: int) -> float:
        """Return about what it costs to train a network: its weights times rows, and steps, that it sees."""
        network, train = self.configs(trial)
        n_columns = len(self.training.scale.first(network.n_genes))
        n_weights = network.width * (n_columns + (network.layers - 1) * network.width)
        batch_size = train.batch_size or len(self.training)
        n_steps = max(
            self.config.epochs(rung) * math.ceil(len(self.training) / batch_size), self.config.min_steps(rung)
        )
        return float(n_weights * n_steps * (batch_size + _ROWS_OF_A_STEP))

    def train_share(self, rung: int, stacks: Sequence[Sequence[int]]) -> None:
        """Train stacks, and keep what each came to as soon as it is finished."""
        trials = [trial for stack in stacks for trial in stack]
        trainees = [self.trainee(trial, rung) for trial in trials]
        folder = self.work / f"rung-{rung + 1}"
        for numbers, trained in trained_stacks(
            trainees, self.training, self.validation, score=self.score, seed=self.seed
        ):
            rows = {}
            for number, of_trial in zip(numbers, trained, strict=True):
                best = of_trial.history[of_trial.history["epoch"] == of_trial.epoch]
                rows[str(trials[number])] = {
                    "rung": rung + 1,
                    "epochs": self.config.epochs(rung),
                    "epoch": of_trial.epoch,
                    "step": int(best["step"].sum()),
                    "score": of_trial.score if math.isfinite(of_trial.score) else None,
                    "seconds": of_trial.seconds,
                }
            keep(_file(folder, [trials[number] for number in numbers]), partial(write_json, content=rows))


def _dealt(stacks: list[list[int]], works: Mapping[int, float], n_shares: int) -> list[list[list[int]]]:
    """Deal stacks into shares of about equal work, the longest first; `works` has each by its first trial."""
    most = sum(works.values()) / n_shares
    shares: list[list[list[int]]] = []
    room = 0.0
    for stack in sorted(stacks, key=lambda stack: -works[stack[0]]):
        if works[stack[0]] > room:
            shares.append([])
            room = most
        shares[-1].append(stack)
        room -= works[stack[0]]
    return shares


def _file(folder: Path, stack: Sequence[int]) -> Path:
    """Name the part that a stack is: by its first trial, which no other stack of the rung has."""
    return folder / f"stack-{stack[0]}.json"


def _read(path: Path) -> dict[int, dict[str, Any]]:
    return {int(trial): row for trial, row in read_json(path).items()}


def _train_elsewhere(trials: _Trials, parent: int | None, rung: int, stacks: Sequence[Sequence[int]]) -> None:
    if parent is not None:
        die_with(parent)
    torch.set_num_threads(1)
    trials.train_share(rung, stacks)
