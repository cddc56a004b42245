"""Searching settings: seeded random search here, Optuna or Ray Tune through `transformers.Trainer`.

A trial sees training and validation cells only; the test cells are not even handed over. The validation score of the
best of many trials is flattered by the choice, so it is reported nowhere but in the table of trials.
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.config import with_settings
from geneformer_repro.files import read_json, write_json
from geneformer_repro.finetuning.networks import SELECTION, best_entry
from geneformer_repro.finetuning.problems.problem import EncoderProblem, Problem
from geneformer_repro.finetuning.search_engines import search_settings
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.unfinished import is_whole, keep

logger = logging.getLogger(__name__)


def draw_settings(space: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Draw a value of every setting of a space."""
    return {name: _draw(values, rng) for name, values in space.items()}


def _draw(values: Any, rng: np.random.Generator) -> Any:
    if not isinstance(values, Mapping):
        return values[int(rng.integers(len(values)))]
    low, high = values["low"], values["high"]
    drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if values.get("log") else rng.uniform(low, high)
    whole = isinstance(low, int) and isinstance(high, int)
    return round(drawn) if whole else float(drawn)


def search(problem: Problem, start: Any, config: Any, split: Split, *, work: Path) -> tuple[Any, pd.DataFrame]:
    """Try settings; return the configuration with the best ones, and a row a trial.

    Parameters
    ----------
    problem
        Training and validation rows, no others.
    start
        The pretrained model.
    config
        Has a section ``search``: what is searched, and in the others what is not.
    split
        Which rows of the problem are which.
    work
        Folder of the trials; those that are finished are not repeated.

    Returns
    -------
    The configuration, and ``trial``, each setting, the best validation ``selection`` and the ``epoch`` it was reached
    at; the best trial first.
    """
    how = config.search
    if how.engine == "random":
        rows = _at_random(problem, start, config, split, work)
    else:
        assert isinstance(problem, EncoderProblem)
        training = problem.training(start, config, split)
        rows = search_settings(training, how.searched, n_trials=how.trials, engine=how.engine, work=work)
    table = pd.DataFrame([{"trial": i, **row} for i, row in enumerate(rows, start=1)])
    table = table.sort_values(SELECTION, ascending=False, kind="stable", ignore_index=True)
    return best_settings([table], config), table


def best_settings(tables: Sequence[pd.DataFrame], config: Any) -> Any:
    """Return the configuration with the settings that did best on validation cells, over all folds that tried them."""
    names = list(config.search.searched)
    mean = pd.concat(tables).groupby(names, sort=False)[SELECTION].mean().reset_index()
    best = mean.iloc[int(mean[SELECTION].to_numpy().argmax())]
    return with_settings(config, **{name: _plain(best[name]) for name in names})


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _at_random(problem: Problem, start: Any, config: Any, split: Split, work: Path) -> list[dict[str, Any]]:
    rows = []
    for number in range(1, config.search.trials + 1):
        folder, done = work / f"trial-{number}", work / f"trial-{number}.json"
        if not processes.agreed(partial(is_whole, done)):
            settings = draw_settings(config.search.searched, np.random.default_rng([config.seed, number]))
            _, history = problem.train(
                start,
                with_settings(config, **settings),
                split,
                work=folder,
                step=f"trial {number} of {config.search.trials}",
            )
            row = {**settings, **_best(history)}
            logger.info(json.dumps({"event": "trial", "trial": number, **row}))
            processes.agreed(partial(keep, done, partial(write_json, content=row)))
        processes.agreed(partial(shutil.rmtree, folder, ignore_errors=True))
        rows.append(processes.agreed(partial(read_json, done)))
    return rows


def _best(history: pd.DataFrame) -> dict[str, float]:
    best = best_entry(history)
    return {SELECTION: float(best[f"eval_{SELECTION}"]), "epoch": float(best["epoch"])}
