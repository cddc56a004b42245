"""Optuna and Ray Tune, which propose settings and try each through `transformers.Trainer.hyperparameter_search`."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer

from geneformer_repro.checkpoint import quiet_transformers
from geneformer_repro.config import ConfigError
from geneformer_repro.errors import MissingExtraError
from geneformer_repro.finetuning.networks import SELECTION, Training
from geneformer_repro.training.loop import random_states_kept, trainer_of_trials

Objective = Callable[[dict[str, float]], float]
SEARCHED_BY_ENGINES: Mapping[str, str] = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_steps",
    "decay": "lr_scheduler_type",
}
"""Settings that `Trainer.hyperparameter_search` can set, and what `TrainingArguments` calls them."""


@random_states_kept()
def search_settings(
    training: Training, space: Mapping[str, Any], *, n_trials: int, engine: Literal["optuna", "ray"], work: Path
) -> list[dict[str, Any]]:
    """Let Optuna or Ray Tune propose settings, each tried in a run of its own by `Trainer.hyperparameter_search`.

    Parameters
    ----------
    training
        Makes the same model anew for each trial, and scores it on validation rows.
    space
        For a setting a list of values, or ``low``, ``high`` and perhaps ``log``.
    n_trials
        How many. Optuna keeps its trials in `work` and goes on with them.
    engine
        Who proposes.
    work
        Folder of the trials.

    Returns
    -------
    For each trial its settings and the best score of its epochs, under the name `SELECTION`.

    Raises
    ------
    ConfigError
        The space has a setting that `TrainingArguments` does not hold.
    MissingExtraError
        The engine is not installed.
    """
    others = sorted(set(space) - set(SEARCHED_BY_ENGINES))
    if others:
        raise ConfigError(
            f"space: {', '.join(map(repr, others))} cannot be searched by {engine}, only "
            f"{', '.join(SEARCHED_BY_ENGINES)}. Use search.engine='random'."
        )
    assert training.score is not None, "without validation rows there is nothing to choose by"
    trainer, n_steps = trainer_of_trials(training.make_model, training.as_run(work=work, step="search"))
    in_steps = {name: _in_steps(name, values, n_steps) for name, values in space.items()}
    with quiet_transformers():
        return (_by_optuna if engine == "optuna" else _by_ray)(trainer, in_steps, n_trials, work)


def _in_steps(name: str, values: Any, n_steps: int) -> Any:
    """Turn shares of all steps into numbers of steps."""
    if name != "warmup_steps":
        return values
    if isinstance(values, Mapping):
        whole = {end: _in_steps(name, [values[end]], n_steps)[0] for end in ("low", "high")}
        return {**values, **whole, "high": max(whole["high"], whole["low"] + 1)}
    return [round(value * n_steps) if value < 1 else int(value) for value in values]


def _best_so_far(trainer: Trainer) -> Objective:
    """Judge a trial by the best of its epochs, as the run that follows keeps that one; never by the untrained model."""

    def objective(scores: dict[str, float]) -> float:
        if trainer.state.global_step == 0:
            return -math.inf
        before = trainer.state.best_metric
        return max(scores[f"eval_{SELECTION}"], -math.inf if before is None else before)

    return objective


def _by_optuna(trainer: Trainer, space: Mapping[str, Any], n_trials: int, work: Path) -> list[dict[str, Any]]:
    try:
        import optuna
    except ImportError as error:
        needed = "search.engine='optuna' needs Optuna: pip install 'geneformer-repro[optuna]'."
        raise MissingExtraError(needed) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def propose(trial: Any) -> dict[str, Any]:
        return {SEARCHED_BY_ENGINES[name]: _suggested(trial, name, values) for name, values in space.items()}

    storage = f"sqlite:///{work.resolve() / 'optuna.db'}"
    study = optuna.create_study(study_name="search", storage=storage, load_if_exists=True, direction="maximize")
    done = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    if done < n_trials:
        trainer.hyperparameter_search(
            propose,
            _best_so_far(trainer),
            n_trials=n_trials - done,
            direction="maximize",
            backend="optuna",
            study_name="search",
            storage=storage,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=trainer.args.seed + done),  # else it proposes the same again
            pruner=optuna.pruners.NopPruner(),
        )
    trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return [{**trial.params, SELECTION: trial.value} for trial in trials]


def _suggested(trial: Any, name: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        return trial.suggest_categorical(name, list(values))
    if isinstance(values["low"], int) and isinstance(values["high"], int):
        return trial.suggest_int(name, values["low"], values["high"], log=bool(values.get("log")))
    return trial.suggest_float(name, values["low"], values["high"], log=bool(values.get("log")))


def _by_ray(trainer: Trainer, space: Mapping[str, Any], n_trials: int, work: Path) -> list[dict[str, Any]]:
    try:
        from ray import tune
    except ImportError as error:
        raise MissingExtraError("search.engine='ray' needs Ray Tune: pip install 'geneformer-repro[ray]'.") from error

    def sampler(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return tune.choice(list(values))
        if isinstance(values["low"], int) and isinstance(values["high"], int):
            return tune.randint(values["low"], values["high"] + 1)
        return (tune.loguniform if values.get("log") else tune.uniform)(values["low"], values["high"])

    best: Any = trainer.hyperparameter_search(
        lambda _: {SEARCHED_BY_ENGINES[name]: sampler(values) for name, values in space.items()},
        _best_so_far(trainer),
        n_trials=n_trials,
        direction="maximize",
        backend="ray",
        storage_path=str(work.resolve()),
        name="ray",
        verbose=0,
    )
    return [
        {
            **{name: trial.config[SEARCHED_BY_ENGINES[name]] for name in space},
            SELECTION: trial.last_result["objective"],
        }
        for trial in best.run_summary.trials
    ]
