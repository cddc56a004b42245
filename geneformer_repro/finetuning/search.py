"""Searching settings: seeded random search here, Optuna or Ray Tune through `transformers.Trainer`.

A trial sees training and validation cells only; the test cells are not even handed over. The validation score of the
best of many trials is flattered by the choice, so it is reported nowhere but in the table of trials.
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.config import ConfigError, names_in, require, require_types, with_settings
from geneformer_repro.errors import did_you_mean
from geneformer_repro.files import read_json, write_json
from geneformer_repro.finetuning.networks import SELECTION, NetworkConfig, best_entry
from geneformer_repro.finetuning.problems.problem import EncoderProblem, Problem
from geneformer_repro.finetuning.search_engines import search_settings
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.unfinished import is_whole, keep

logger = logging.getLogger(__name__)

DEFAULT_SPACE: Mapping[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.3},
    "warmup_steps": {"low": 0.0, "high": 0.2},
    "decay": ["linear", "cosine"],
}
"""Searched where no space is given; ranges after the published one."""
_NOT_SEARCHED = ("trainer", "task_weights")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which settings to search, and how."""

    section: ClassVar[str] = "search"
    trials: int = 0
    """Settings to try before fine-tuning, each on the training cells, judged on the validation cells; 0 for none."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """What is searched: for a setting (by its name without section) a list of values, or a range
    { low = 1e-5, high = 1e-3, log = true }. Empty: learning rate, weight decay, warm-up and decay."""
    engine: Literal["random", "optuna", "ray"] = "random"
    """Who proposes settings: a seeded random draw, or Optuna or Ray Tune (extras of these names)."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.trials >= 0, self, "trials", "at least 0")
        if self.space and not self.trials:
            raise ConfigError("search.space is given, but search.trials is 0; say how many to try.")
        for name, values in self.space.items():
            require_list_or_range(name, values)

    @property
    def searched(self) -> Mapping[str, Any]:
        """The values or range of each setting that is searched; none without trials."""
        return (self.space or DEFAULT_SPACE) if self.trials else {}

    def require_searchable(self, config: NetworkConfig) -> None:
        """Refuse what is no setting of a configuration, or no value of it, before the trial that would draw it."""
        of_sections = [names_in(type(part)) for part in (config.training, config.transfer)]
        searchable = sorted({"pooling"}.union(*of_sections) - set(_NOT_SEARCHED))
        for name, values in self.space.items():
            if name not in searchable:
                raise ConfigError(f"search.space: {name!r} cannot be searched. {did_you_mean(name, searchable)}")
            for value in [values["high"]] if isinstance(values, Mapping) else values:
                try:
                    with_settings(config, **{name: value, "trials": 0, "space": {}})
                except ConfigError as error:
                    raise ConfigError(f"search.space: {name} cannot be {value!r}: {error}") from error


def require_list_or_range(name: str, values: Any) -> None:
    """Raise unless a setting of a space is a list of values, or a range."""
    if isinstance(values, Mapping):
        low, high = values.get("low"), values.get("high")
        if (
            not (isinstance(low, (int, float)) and isinstance(high, (int, float)))
            or not set(values) <= {"low", "high", "log"}
            or not (math.isfinite(low) and math.isfinite(high) and low < high)
            or (values.get("log") and low <= 0)
        ):
            raise ConfigError(
                f"search.space: {name} must be a range {{ low = …, high = … }} of numbers with low < high (above 0 "
                f"with log = true), found {dict(values)!r}."
            )
    elif not isinstance(values, (list, tuple)) or not len(values):
        raise ConfigError(
            f"search.space: {name} must be a list of values or a range {{ low = …, high = … }}, found {values!r}."
        )


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
