"""Searching settings: seeded random search here, Optuna or Ray Tune through `transformers.Trainer`.

A trial sees training and validation cells only; the test cells are not even handed over. The validation score of the
best of many trials is flattered by the choice, so it is reported nowhere but in the table of trials.
"""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.config import ConfigError, require
from geneformer_repro.errors import did_you_mean
from geneformer_repro.files import read_json, write_json
from geneformer_repro.finetuning.networks import SELECTION, NetworkConfig, best_entry
from geneformer_repro.finetuning.problems.problem import EncoderProblem, Problem
from geneformer_repro.finetuning.search_engines import search_settings
from geneformer_repro.unfinished import is_whole, keep

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=NetworkConfig)
DEFAULT_SPACE: Mapping[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.3},
    "warmup_steps": {"low": 0.0, "high": 0.2},
    "decay": ["linear", "cosine"],
}
"""Searched where no space is given; ranges after the published one."""
_NOT_SEARCHED = ("seed", "trainer", "task_weights")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which settings to search, and how."""

    trials: int = 0
    """Settings to try before fine-tuning, each on the training cells, judged on the validation cells; 0 for none."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """What is searched: for a setting a list of values, or a range { low = 1e-5, high = 1e-3, log = true }. Empty:
    learning rate, weight decay, warm-up and decay."""
    engine: Literal["random", "optuna", "ray"] = "random"
    """Who proposes settings: a seeded random draw, or Optuna or Ray Tune (extras of these names)."""

    def __post_init__(self) -> None:
        require(self.trials >= 0, self, "trials", "at least 0")
        require(self.engine in ("random", "optuna", "ray"), self, "engine", "'random', 'optuna' or 'ray'")
        if self.space and not self.trials:
            raise ConfigError(f"{type(self).__name__}.space is given, but trials is 0; say how many to try.")
        for name, values in self.space.items():
            _require_searchable(type(self), name, values)
            self._require_each_to_be_one(name, values)

    def _require_each_to_be_one(self, name: str, values: Any) -> None:
        """Refuse what is no value of a setting before the trial that would draw it."""
        if name not in {one.name for one in dataclasses.fields(self)}:
            return
        for value in [values["high"]] if isinstance(values, Mapping) else values:
            try:
                dataclasses.replace(self, trials=0, space={}, **{name: value})
            except ConfigError as error:
                raise ConfigError(f"{type(self).__name__}.space: {name} cannot be {value!r}: {error}") from error


def _require_searchable(config_type: type, name: str, values: Any) -> None:
    known = {one.name for one in dataclasses.fields(NetworkConfig)} - set(_NOT_SEARCHED)
    if name not in known:
        raise ConfigError(
            f"{config_type.__name__}.space: {name!r} cannot be searched. {did_you_mean(name, sorted(known))}"
        )
    if isinstance(values, Mapping):
        low, high = values.get("low"), values.get("high")
        if (
            not (isinstance(low, (int, float)) and isinstance(high, (int, float)))
            or not set(values) <= {"low", "high", "log"}
            or not (math.isfinite(low) and math.isfinite(high) and low < high)
            or (values.get("log") and low <= 0)
        ):
            raise ConfigError(
                f"{config_type.__name__}.space: {name} must be a range {{ low = …, high = … }} of numbers with low < "
                f"high (above 0 with log = true), found {dict(values)!r}."
            )
    elif not isinstance(values, (list, tuple)) or not len(values):
        raise ConfigError(
            f"{config_type.__name__}.space: {name} must be a list of values or a range {{ low = …, high = … }}, found "
            f"{values!r}."
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


def search(
    problem: Problem,
    start: Any,
    config: Config,
    *,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    work: Path,
) -> tuple[Config, pd.DataFrame]:
    """Try settings; return the configuration with the best ones, and a row a trial.

    Parameters
    ----------
    problem
        Training and validation rows, no others.
    start
        The pretrained model.
    config
        A `SearchConfig` and `NetworkConfig` in one: what is not searched, and what is.
    train_rows, validation_rows
        Which rows of the problem are which.
    work
        Folder of the trials; those that are finished are not repeated.

    Returns
    -------
    The configuration, and ``trial``, each setting, the best validation ``selection`` and the ``epoch`` it was reached
    at; the best trial first.
    """
    assert isinstance(config, SearchConfig)
    space = config.space or DEFAULT_SPACE
    if config.engine == "random":
        rows = _at_random(problem, start, config, space, train_rows, validation_rows, work)
    else:
        assert isinstance(problem, EncoderProblem)
        training = problem.training(start, config, train_rows=train_rows, validation_rows=validation_rows)
        assert training.score is not None
        rows = search_settings(
            training.make_model,
            training.examples,
            collate=training.collate,
            evaluate=training.score,
            config=config,
            best_by=SELECTION,
            space=space,
            n_trials=config.trials,
            engine=config.engine,
            work=work,
            step="search",
        )
    table = pd.DataFrame([{"trial": i, **row} for i, row in enumerate(rows, start=1)])
    table = table.sort_values(SELECTION, ascending=False, kind="stable", ignore_index=True)
    return best_settings([table], config), table


def searched_settings(config: SearchConfig) -> tuple[str, ...]:
    """Name the settings that a search decides; none without one."""
    return tuple(config.space or DEFAULT_SPACE) if config.trials else ()


def best_settings(tables: Sequence[pd.DataFrame], config: Config) -> Config:
    """Return the configuration with the settings that did best on validation cells, over all folds that tried them."""
    assert isinstance(config, SearchConfig)
    names = list(searched_settings(config))
    if not names:
        return config
    mean = pd.concat(tables).groupby(names, sort=False)[SELECTION].mean().reset_index()
    best = mean.iloc[int(mean[SELECTION].to_numpy().argmax())]
    return dataclasses.replace(config, **{name: _plain(best[name]) for name in names})


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _at_random(
    problem: Problem,
    start: Any,
    config: Config,
    space: Mapping[str, Any],
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    work: Path,
) -> list[dict[str, Any]]:
    assert isinstance(config, SearchConfig)
    rows = []
    for number in range(1, config.trials + 1):
        folder, done = work / f"trial-{number}", work / f"trial-{number}.json"
        if not processes.agreed(partial(is_whole, done)):
            settings = draw_settings(space, np.random.default_rng([config.seed, number]))
            _, history = problem.train(
                start,
                dataclasses.replace(config, **settings),
                train_rows=train_rows,
                validation_rows=validation_rows,
                work=folder,
                step=f"trial {number} of {config.trials}",
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
