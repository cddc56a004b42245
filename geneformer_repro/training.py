"""The only training loop: `transformers.Trainer`, with what it lacks.

Batches are of equal tokens, the same cells whatever the number of processes; the loss of a step is the mean over what
all of its batches score; the held-out score is the task's own. Everything random follows from seed, epoch and step, so
a run that was cut off, at any step, goes on as if it had not been. Checkpoints are written aside, listed with their
digests, then renamed; a damaged one is passed over. Every log entry is a line of JSON and a point in TensorBoard.
"""

import copy
import itertools
import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import IntervalStrategy

from geneformer_repro import processes
from geneformer_repro.batching import StepBatches
from geneformer_repro.checkpoint import quiet_transformers
from geneformer_repro.config import ConfigError, require
from geneformer_repro.errors import InputError, MissingExtraError
from geneformer_repro.files import (
    damage,
    new_file,
    read_json,
    write_json,
    write_manifest,
)

logger = logging.getLogger(__name__)

LOG_FILE, TENSORBOARD = "log.jsonl", "tensorboard"
SAVE_SECONDS = 600
"""A run that is not told how often to save does so every ten minutes, and at the end of each epoch."""
Decay = Literal["linear", "cosine", "constant_with_warmup"]


class Interrupted(SystemExit):
    """A run was asked to stop, by a signal; it saved what it had, and goes on when the same command is given again."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(128 + number)
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; what pretraining and fine-tuning share. Each sets its own defaults."""

    epochs: float
    """Passes over the training cells."""
    batch_size: int = 12
    """Cells of a batch, one on each device a step: so many of mean length, since batches are of equal tokens."""
    max_tokens: int | None = None
    """Tokens of a batch, in place of `batch_size`; less needs less memory."""
    learning_rate: float
    """Highest learning rate."""
    decay: Decay = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: float
    """Steps over which the learning rate rises; below 1, a share of all steps."""
    weight_decay: float = 0.001
    """AdamW's decoupled weight decay."""
    seed: int = 0
    """Of initial weights, split, order and masks."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Any field of `transformers.TrainingArguments`; wins over the fields above."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, self, "epochs", "above 0")
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.max_tokens is None or self.max_tokens >= 1, self, "max_tokens", "at least 1")
        require(self.learning_rate > 0, self, "learning_rate", "above 0")
        require(self.warmup_steps >= 0, self, "warmup_steps", "at least 0")
        require(self.decay in get_args(Decay), self, "decay", f"one of {', '.join(map(repr, get_args(Decay)))}")


class ParameterGroup(NamedTuple):
    """Parameters that learn alike."""

    name: str
    """For the log."""
    parameters: list[nn.Parameter]
    """Those of the model that is trained."""
    rate: float = 1.0
    """Their learning rate, as a multiple of the run's."""
    begins: float = 0.0
    """Share of all steps before which they are frozen: without gradient, and without moments in the optimiser."""

    def first_step(self, n_steps: int) -> int:
        """Steps of a run of so many before which they are frozen."""
        return int(self.begins * n_steps)


class CellExamples(Dataset):
    """Cells for the data loader: whatever `get` returns for a number and an epoch.

    `rows` names them in messages; `weights` says how often each is drawn, else every cell comes once an epoch.
    """

    def __init__(
        self,
        lengths: Iterable[int],
        get: Callable[[int, int], Any],
        *,
        rows: Iterable[int] | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.lengths, self._get, self.weights = np.asarray(list(lengths), dtype=np.int64), get, weights
        self.rows = np.arange(len(self.lengths)) if rows is None else np.asarray(list(rows))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row_and_epoch: tuple[int, int]) -> Any:
        return self._get(*row_and_epoch)


def join_processes(config: TrainConfig) -> None:
    """Join the other processes of the run as its fields of `TrainingArguments` say, before anything else asks of them.

    Raises
    ------
    InputError
        Several processes were launched, but they are no group; or the device does not have the backend.
    """
    processes.join(timeout=config.trainer.get("ddp_timeout"), backend=config.trainer.get("ddp_backend"))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the rate of a large matrix product on a device, in floating-point operations a second.

    Takes about a quarter of a second; the best of several tries, as other work slows some.
    """
    side, best = 256, 0.0
    deadline = time.perf_counter() + 0.25
    while time.perf_counter() < deadline:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        began = time.perf_counter()
        (a @ b)[0, 0].item()
        seconds = time.perf_counter() - began
        best = max(best, 2 * side**3 / seconds)
        if seconds < 0.02 and side < 8192:
            side *= 2
    return best


def train(
    model: PreTrainedModel,
    examples: CellExamples,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    config: TrainConfig,
    groups: Sequence[ParameterGroup] = (),
    best_by: str | None = None,
    flops_an_epoch: float | None = None,
    work: Path,
    step: str,
) -> tuple[PreTrainedModel, pd.DataFrame]:
    """Train a model, from the last step that `work` holds.

    Parameters
    ----------
    model
        Its forward returns a ``loss`` for what `collate` makes: a sum divided by ``num_items_in_batch``, the number of
        labels of the whole step. Changed.
    examples
        The training cells.
    collate
        Examples to a batch.
    evaluate
        Scores the model on held-out cells, before the first and after every epoch; names without prefix. Every process
        calls it.
    config
        Epochs, rates and the like.
    groups
        All parameters that learn; default those of the model that require a gradient, at one rate.
    best_by
        Held-out score, larger is better, whose best epoch is kept; None keeps the last.
    flops_an_epoch
        Floating-point operations of an epoch, forward and backward, to tell the share of the machine's peak.
    work
        Folder for checkpoints, ``log.jsonl`` and TensorBoard's files.
    step
        Word before the progress bar.

    Returns
    -------
    The trained model, whole on every process (`model` itself unless DeepSpeed or FSDP cut that into shards), and one
    row a log entry: ``step``, ``epoch``, ``loss`` (training, since the last entry) and ``eval_…`` scores.

    Raises
    ------
    ConfigError
        ``config.trainer`` names a field that `TrainingArguments` does not have, or asks for DeepSpeed or FSDP where the
        groups leave out, slow down or delay a part of the model.
    InputError
        The loss is not finite (the batch is in `work`), the device has too little memory, or there are fewer cells
        than batches a step.
    Interrupted
        The process received SIGTERM, or Ctrl-C; what was done is saved.
    """
    arguments = _arguments(config, best_by, work)
    if any(group.begins for group in groups):
        arguments.ddp_find_unused_parameters = True
    batches = _batches(arguments, examples, config)
    _set_steps(arguments, config, batches.n_steps)
    try:
        trainer = _Trainer(
            model=model, args=arguments, train_dataset=examples, eval_dataset=examples, data_collator=collate
        )
    except RuntimeError as error:
        if "report_to" not in config.trainer:
            raise
        raise MissingExtraError(f"trainer.report_to: {error} pip install 'geneformer-repro[wandb]'.") from error
    whole = copy.deepcopy(model) if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled else None
    work.mkdir(parents=True, exist_ok=True)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if whole is not None and groups:
        _require_one_rate(model, groups)
    trainer.prepare(evaluate, batches, groups, work, step)
    trainer.add_callback(_Save(trainer, every_seconds=None if _says_when_to_save(config) else SAVE_SECONDS))
    trainer.add_callback(_Show(trainer, flops_an_epoch))
    last = _last_checkpoint(work)
    if last:
        arguments.eval_on_start = False  # its score is in the history that is restored
        logger.info("%s: goes on from %s.", step, last)
    with quiet_transformers(), trainer.stopping_on_signals():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    trained = (
        _whole(trainer, whole)
        if whole is not None
        else trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    )
    return trained, pd.DataFrame(trainer.state.log_history)


SEARCHED_BY_ENGINES: Mapping[str, str] = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_steps",
    "decay": "lr_scheduler_type",
}
"""Settings that `Trainer.hyperparameter_search` can set, and what `TrainingArguments` calls them."""


def search_settings(
    make_model: Callable[[], tuple[PreTrainedModel, Sequence[ParameterGroup]]],
    examples: CellExamples,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    config: TrainConfig,
    best_by: str,
    space: Mapping[str, Any],
    n_trials: int,
    engine: Literal["optuna", "ray"],
    work: Path,
    step: str,
) -> list[dict[str, Any]]:
    """Let Optuna or Ray Tune propose settings, each tried in a run of its own by `Trainer.hyperparameter_search`.

    Parameters
    ----------
    make_model
        Makes the same model anew for each trial, with its groups.
    examples, collate, evaluate, config, best_by, work, step
        As for `train`.
    space
        For a setting a list of values, or ``low``, ``high`` and perhaps ``log``.
    n_trials
        How many. Optuna keeps its trials in `work` and goes on with them.
    engine
        Who proposes.

    Returns
    -------
    For each trial its settings and the best score of its epochs, under the name `best_by`.

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
            f"{', '.join(SEARCHED_BY_ENGINES)}. Use engine='random'."
        )
    arguments = _arguments(config, best_by, work)
    arguments.load_best_model_at_end, arguments.save_strategy = False, IntervalStrategy.NO
    batches = _batches(arguments, examples, config)
    _set_steps(arguments, config, batches.n_steps)
    n_steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(batches.n_steps * config.epochs)

    def model_init() -> PreTrainedModel:
        model, trainer.groups = make_model()
        return model

    trainer = _Trainer(
        model=make_model()[0], args=arguments, train_dataset=examples, eval_dataset=examples, data_collator=collate
    )
    trainer.model_init = model_init
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.prepare(evaluate, batches, (), work, step)
    work.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        return (_by_optuna if engine == "optuna" else _by_ray)(
            trainer, {name: _in_steps(name, values, n_steps) for name, values in space.items()}, n_trials, best_by
        )


def _in_steps(name: str, values: Any, n_steps: int) -> Any:
    """Turn shares of all steps into numbers of steps."""
    if name != "warmup_steps":
        return values
    if isinstance(values, Mapping):
        whole = {end: _in_steps(name, [values[end]], n_steps)[0] for end in ("low", "high")}
        return {**values, **whole, "high": max(whole["high"], whole["low"] + 1)}
    return [round(value * n_steps) if value < 1 else int(value) for value in values]


def _best_so_far(trainer: "_Trainer", best_by: str) -> Callable[[dict[str, float]], float]:
    """Judge a trial by the best of its epochs, as the run that follows keeps that one."""
    return lambda scores: max(scores[f"eval_{best_by}"], trainer.state.best_metric or -math.inf)


def _by_optuna(trainer: "_Trainer", space: Mapping[str, Any], n_trials: int, best_by: str) -> list[dict[str, Any]]:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("engine='optuna' needs Optuna: pip install 'geneformer-repro[optuna]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def propose(trial: Any) -> dict[str, Any]:
        return {SEARCHED_BY_ENGINES[name]: _suggested(trial, name, values) for name, values in space.items()}

    storage = f"sqlite:///{trainer.work.resolve() / 'optuna.db'}"
    study = optuna.create_study(study_name="search", storage=storage, load_if_exists=True, direction="maximize")
    done = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    if done < n_trials:
        trainer.hyperparameter_search(
            propose,
            _best_so_far(trainer, best_by),
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
    return [{**trial.params, best_by: trial.value} for trial in trials]


def _suggested(trial: Any, name: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        return trial.suggest_categorical(name, list(values))
    if isinstance(values["low"], int) and isinstance(values["high"], int):
        return trial.suggest_int(name, values["low"], values["high"], log=bool(values.get("log")))
    return trial.suggest_float(name, values["low"], values["high"], log=bool(values.get("log")))


def _by_ray(trainer: "_Trainer", space: Mapping[str, Any], n_trials: int, best_by: str) -> list[dict[str, Any]]:
    try:
        from ray import tune
    except ImportError as error:
        raise MissingExtraError("engine='ray' needs Ray Tune: pip install 'geneformer-repro[ray]'.") from error

    def sampler(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return tune.choice(list(values))
        if isinstance(values["low"], int) and isinstance(values["high"], int):
            return tune.randint(values["low"], values["high"] + 1)
        return (tune.loguniform if values.get("log") else tune.uniform)(values["low"], values["high"])

    best: Any = trainer.hyperparameter_search(
        lambda _: {SEARCHED_BY_ENGINES[name]: sampler(values) for name, values in space.items()},
        _best_so_far(trainer, best_by),
        n_trials=n_trials,
        direction="maximize",
        backend="ray",
        storage_path=str(trainer.work.resolve()),
        name="ray",
        verbose=0,
    )
    trials = best.run_summary.trials
    return [
        {
            **{name: trial.config[SEARCHED_BY_ENGINES[name]] for name in space},
            best_by: trial.last_result["objective"],
        }
        for trial in trials
    ]


def _batches(arguments: TrainingArguments, examples: CellExamples, config: TrainConfig) -> StepBatches:
    return StepBatches(
        examples.lengths,
        batch_size=arguments.per_device_train_batch_size,
        max_tokens=config.max_tokens,
        process=arguments.process_index,
        n_processes=arguments.world_size,
        batches_a_step=arguments.gradient_accumulation_steps,
        seed=arguments.seed,
        weights=examples.weights,
    )


def _require_one_rate(model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Raise unless all of the model learns all the time at one rate; weights in shards are gathered no other way."""
    n_alike = sum(len(group.parameters) for group in groups if group.rate == 1 and not group.begins)
    if n_alike < len(list(model.parameters())):
        raise ConfigError(
            "Under DeepSpeed and FSDP all of a model learns, at one rate; here a part is frozen, or learns later or at "
            "another rate. Start the run without them (on several GPUs: configs/ddp.yaml), or with transfer='full'."
        )


def _says_when_to_save(config: TrainConfig) -> bool:
    return bool({"save_strategy", "save_steps"} & set(config.trainer))


def _last_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint that is whole; the first process looks, the others believe it."""
    return processes.agreed(lambda: _newest_whole(work))


def _newest_whole(work: Path) -> Path | None:
    folders = sorted(work.glob("checkpoint-*"), key=lambda folder: -int(folder.name.removeprefix("checkpoint-")))
    for folder in folders:
        reason = damage(folder)
        if not reason:
            return folder
        logger.warning("%s is damaged (%s) and passed over.", folder, reason)
    return None


def _arguments(config: TrainConfig, best_by: str | None, work: Path) -> TrainingArguments:
    has_gpu = torch.cuda.is_available()
    chosen: dict[str, Any] = {
        "output_dir": str(work),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.decay,
        "weight_decay": config.weight_decay,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "eval_strategy": "epoch",
        "eval_on_start": True,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
        "use_cpu": not torch.accelerator.is_available() and "deepspeed" not in config.trainer,
        "dataloader_pin_memory": has_gpu,
        "dataloader_num_workers": 4 if has_gpu else 0,
        "disable_tqdm": True,
    }
    if best_by:
        chosen |= {"load_best_model_at_end": True, "metric_for_best_model": best_by, "greater_is_better": True}
    try:
        arguments = TrainingArguments(**chosen | dict(config.trainer))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: transformers.TrainingArguments refuses these fields: {error}") from error
    if arguments.n_gpu > 1:
        logger.warning(
            "One process uses one of the %d GPUs. For all: accelerate launch --config_file configs/ddp.yaml -m "
            "geneformer_repro ….",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1  # Trainer would cut batches by their first axis, which here is tokens
    emulated = torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if arguments.bf16 and arguments.device.type == "cpu" and emulated:
        logger.warning("trainer.bf16: this CPU computes bfloat16 by emulation, far slower than float32. Leave it out.")
    return arguments


def _set_steps(arguments: TrainingArguments, config: TrainConfig, steps_an_epoch: int) -> None:
    """Set what depends on the number of steps: how often to log, and the warm-up."""
    given = dict(config.trainer)
    n_steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps_an_epoch * arguments.num_train_epochs)
    if "logging_steps" not in given:
        arguments.logging_steps = min(100, max(1, steps_an_epoch // 8))
    if {"warmup_steps", "warmup_ratio"} & set(given):
        return
    arguments.warmup_steps = (
        round(config.warmup_steps * n_steps) if config.warmup_steps < 1 else int(config.warmup_steps)
    )
    if arguments.warmup_steps >= n_steps:
        raise ConfigError(
            f"warmup_steps is {config.warmup_steps:g} but the run has only {n_steps} steps, so the learning "
            f"rate would never reach {config.learning_rate:g}. "
            "Give fewer steps, or a share of all steps such as warmup_steps=0.1."
        )


class _Loader(DataLoader):
    """A data loader that tells its batches the epoch, as Trainer expects."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class _Trainer(Trainer):
    model: PreTrainedModel
    train_dataset: CellExamples
    bar: tqdm

    def prepare(
        self,
        score: Callable[[nn.Module], dict[str, float]],
        batches: StepBatches,
        groups: Sequence[ParameterGroup],
        work: Path,
        step: str,
    ) -> None:
        """Take what Trainer's constructor has no place for."""
        self.score, self.batches, self.groups, self.work, self.step = score, batches, groups, work, step
        self.model_accepts_loss_kwargs = True
        self.aside_seconds = 0.0
        """Spent on scoring and saving so far."""
        self.stop_asked = 0
        """The signal that asked to stop."""
        self._saving = False
        self._micro_step = 0

    # Batches and steps

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        return _Loader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def get_batch_samples(self, *given: Any, **options: Any) -> Any:
        self._micro_step = 0
        return super().get_batch_samples(*given, **options)

    def create_optimizer(self, *given: Any) -> torch.optim.Optimizer:
        if self.optimizer is None and any(group.rate != 1 for group in self.groups):
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer(self._optimizer_groups(), **options)
        return super().create_optimizer(*given)

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        """Cut each group into parameters with weight decay and without, as Trainer does the whole model."""
        decaying = set(self.get_decay_parameter_names(self.model))
        decays = {parameter: name in decaying for name, parameter in self.model.named_parameters()}
        cut = [
            {
                "params": [parameter for parameter in group.parameters if decays[parameter] == decay],
                "weight_decay": self.args.weight_decay if decay else 0.0,
                "lr": self.args.learning_rate * group.rate,
            }
            for group in self.groups
            for decay in (True, False)
        ]
        return [group for group in cut if group["params"]]

    def _freeze_or_begin(self) -> None:
        """Let groups take part from their step on; by the number of the step alone, as a resumed run knows no other."""
        for group in self.groups:
            if group.begins:
                has_begun = self.state.global_step >= group.first_step(self.state.max_steps)
                for parameter in group.parameters:
                    parameter.requires_grad_(has_begun)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *given: Any, **options: Any) -> Tensor:
        self._freeze_or_begin()
        place = [self.args.seed, self.state.global_step, self._micro_step, self.args.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))  # dropout
        try:
            loss = super().training_step(model, inputs, *given, **options)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise InputError(self._too_large()) from error
            raise
        if not torch.isfinite(loss):
            raise InputError(f"{self._diverged(f'The loss became {loss.item()}')} {self._keep(inputs)}")
        self._micro_step += 1
        return loss

    def _too_large(self) -> str:
        budget, n_batches = self.batches.tokens_a_batch, self.args.gradient_accumulation_steps
        return (
            f"Out of memory with batches of {budget:,} tokens. Try max_tokens={budget // 2}; with "
            f"trainer.gradient_accumulation_steps={2 * n_batches} a step stays as large as it was."
        )

    def _diverged(self, what: str) -> str:
        return (
            f"{what} at step {self.state.global_step}; lower the learning rate ({self.args.learning_rate:g}), "
            f"or lengthen the warm-up ({self.args.warmup_steps} steps)."
        )

    def _keep(self, inputs: dict[str, Any]) -> str:
        """Save a batch for inspection, say where."""
        path = self.work / f"not_finite_step{self.state.global_step}_process{self.args.process_index}.safetensors"
        tensors = {name: torch.as_tensor(value).cpu().contiguous() for name, value in inputs.items()}
        done = self.state.global_step % self.batches.n_steps * self.args.gradient_accumulation_steps
        numbers = next(itertools.islice(self.batches, done + self._micro_step, None))
        with new_file(path, overwrite=True) as aside:
            save_file(tensors | {"rows": torch.from_numpy(self.train_dataset.rows[[i for i, _ in numbers]])}, aside)
        return f"The batch, with the row numbers of its cells, is in {path}."

    # Scores

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        began = time.perf_counter()
        self.model.eval()
        with torch.no_grad():
            scores = {f"{metric_key_prefix}_{name}": value for name, value in self.score(self.model).items()}
        wrong = [name for name, value in scores.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(self._diverged(f"{wrong[0]} became {scores[wrong[0]]}"))
        self.aside_seconds += time.perf_counter() - began
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.work / "saving") if self._saving else str(super()._get_output_dir(trial))

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *given: Any, **options: Any) -> None:
        self._tr_loss = tr_loss  # transformers 4 keeps it to itself
        super()._maybe_log_save_evaluate(tr_loss, *given, **options)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write aside, list the files with their digests, then rename."""
        began = time.perf_counter()
        name = f"checkpoint-{self.state.global_step}"
        aside = self.work / "saving"
        loss = processes.sum_over(self._tr_loss.clone()).item() / self.args.world_size
        if self.args.process_index == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self.work / f"checkpoint-{self.state.best_global_step}")
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            self.state.save_to_json(str(aside / name / "trainer_state.json"))
            write_json(aside / name / "loss.json", {"sum": loss, "since_step": self._globalstep_last_logged})
            write_manifest(aside / name)
            shutil.rmtree(self.work / name, ignore_errors=True)
            (aside / name).rename(self.work / name)
            aside.rmdir()
            self._drop_old_checkpoints()
        self.accelerator.wait_for_everyone()
        self.aside_seconds += time.perf_counter() - began

    def _drop_old_checkpoints(self) -> None:
        folders = sorted(self.work.glob("checkpoint-*"), key=lambda one: int(one.name.removeprefix("checkpoint-")))
        best = self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint)
        for folder in folders[: -self.args.save_total_limit if self.args.save_total_limit else 0]:
            if folder != best:
                shutil.rmtree(folder)

    def restore_loss(self) -> None:
        """Go on with the mean of the losses since the last log entry."""
        path = self.work / f"checkpoint-{self.state.global_step}" / "loss.json"
        if self.state.global_step and path.exists() and hasattr(self, "_tr_loss"):
            kept = read_json(path)
            self._tr_loss += kept["sum"]
            self._globalstep_last_logged = kept["since_step"]

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Note SIGTERM and the first Ctrl-C instead of dying of them; the step that is under way is finished first."""

        def note(number: int, _: Any) -> None:
            if number == self.stop_asked == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_asked = number

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Leave out the decoder, which is stored once, as the embedding."""
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if ".decoder." not in key]
        super()._issue_warnings_after_load(load_result)


def _whole(trainer: "_Trainer", like: PreTrainedModel) -> PreTrainedModel:
    """Gather a model that is cut into shards, in float32, on every process."""
    if trainer.is_deepspeed_enabled:
        from deepspeed.utils import safe_get_full_fp32_param

        named = trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters()
        weights = {name: safe_get_full_fp32_param(weight) for name, weight in named}
    else:
        named = trainer.model.named_parameters()
        weights = {name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight for name, weight in named}
    with torch.no_grad():
        for name, weight in like.named_parameters():
            weight.copy_(weights[name])
    return like


class _Save(TrainerCallback):
    """Saves every so many seconds, and when the process is asked to stop; all processes decide the same."""

    def __init__(self, trainer: _Trainer, every_seconds: float | None) -> None:
        self._trainer, self._every_seconds = trainer, every_seconds
        self._stopping = 0
        """The signal after which it leaves."""
        self._after_scoring = False
        """At the end of an epoch it saves after the score, so that what is saved has it."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()
        self._trainer.restore_loss()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = self._every_seconds is not None and time.monotonic() - self._saved > self._every_seconds
        wish = 1 + self._trainer.stop_asked if self._trainer.stop_asked else int(due)
        if args.world_size > 1:
            wishes = torch.tensor(wish, device=args.device)
            torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
            wish = int(wishes.item())
        control.should_save |= wish > 0
        self._stopping = max(wish - 1, 0)
        self._after_scoring = control.should_save and state.global_step % self._trainer.batches.n_steps == 0
        if self._after_scoring:
            control.should_save = False
        elif self._stopping:
            control.should_evaluate = False

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save |= self._after_scoring

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()
        if self._stopping:
            by = signal.Signals(self._stopping).name
            message = (
                f"{self._trainer.step}: stopped by {by} at step {state.global_step} of {state.max_steps}; saved. "
                "The same command goes on from there."
            )
            if state.is_world_process_zero:
                self._trainer.bar.close()  # so that the message has a line of its own
                logger.warning(message)
            raise Interrupted(message, self._stopping)


class _Show(TrainerCallback):
    """A bar that counts tokens; a line of JSON and points of TensorBoard for every log entry."""

    def __init__(self, trainer: _Trainer, flops_an_epoch: float | None) -> None:
        self._trainer, self._flops_an_epoch = trainer, flops_an_epoch
        self._log = trainer.work / LOG_FILE
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        batches = self._trainer.batches
        self._tokens_a_step = batches.n_tokens / batches.n_steps
        self._cells_a_step = len(self._trainer.train_dataset) / batches.n_steps
        self._flops_a_step = (self._flops_an_epoch or 0) / batches.n_steps
        precision = self._trainer.accelerator.mixed_precision
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        self._peak = peak_flops(args.device, self._dtype) * args.world_size if self._flops_an_epoch else None
        done = state.global_step or -1  # a run that begins anew scores step 0 again
        _keep_lines_until(self._log, done)
        self._announce(args, state)
        self._board = SummaryWriter(str(self._trainer.work / TENSORBOARD), purge_step=done + 1)
        self._bar = self._trainer.bar = tqdm(
            total=round(state.max_steps * self._tokens_a_step),
            initial=round(state.global_step * self._tokens_a_step),
            desc=self._trainer.step,
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
        )
        self._began, self._before = time.perf_counter(), self._trainer.aside_seconds
        self._last_step, self._last_seconds = state.global_step, 0.0

    def _announce(self, args: TrainingArguments, state: TrainerState) -> None:
        """Say what runs, how."""
        batches = self._trainer.batches
        facts = {
            "event": self._trainer.step,
            "step": state.global_step,
            "engine": _engine(self._trainer),
            "processes": args.world_size,
            "device": str(args.device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "steps": state.max_steps,
            "tokens_a_batch": batches.tokens_a_batch,
            "padding": round(batches.padding(), 4) if args.device.type == "cpu" else 0.0,
            "peak_flops": self._peak,
            "learning": [
                {
                    "name": group.name,
                    "parameters": sum(parameter.numel() for parameter in group.parameters),
                    "rate": group.rate,
                    "from_step": group.first_step(state.max_steps),
                }
                for group in self._trainer.groups
            ],
        }
        logger.info(json.dumps(facts))
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar.update(round(state.global_step * self._tokens_a_step) - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        seconds = time.perf_counter() - self._began - self._trainer.aside_seconds + self._before
        entry = {"event": self._trainer.step, "step": state.global_step, **(logs or {}), "seconds": round(seconds, 2)}
        entry |= self._rates(state.global_step, seconds)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in entry.items():
            if isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._board.add_scalar(name.replace("eval_", "held_out/"), value, state.global_step)
        self._board.flush()
        for name, shown in (("loss", "loss"), ("eval_loss", "held-out")):
            if name in entry:
                self._shown[shown] = f"{entry[name]:.3f}"
        if "cells_per_second" in entry:
            self._shown["cells/s"] = f"{entry['cells_per_second']:.3g}"
        if "share_of_peak" in entry:
            self._shown["of peak"] = f"{entry['share_of_peak']:.0%}"
        self._bar.set_postfix(self._shown, refresh=False)

    def _rates(self, step: int, seconds: float) -> dict[str, float]:
        """Rates since the last entry of a training loss, scoring and saving not counted."""
        steps_a_second = (step - self._last_step) / max(seconds - self._last_seconds, 1e-9)
        if step == self._last_step:
            return {}
        self._last_step, self._last_seconds = step, seconds
        found = {
            "tokens_per_second": round(steps_a_second * self._tokens_a_step, 1),
            "cells_per_second": round(steps_a_second * self._cells_a_step, 2),
            "peak_memory_gb": round(processes.peak_memory_gb(), 2),
        }
        if self._peak:
            found["share_of_peak"] = round(steps_a_second * self._flops_a_step / self._peak, 3)
        return found

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar.close()
            self._board.close()


def _engine(trainer: _Trainer) -> str:
    """Name what spreads the work over processes."""
    if trainer.is_deepspeed_enabled:
        return f"DeepSpeed ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_fsdp_enabled:
        return f"FSDP{getattr(trainer.accelerator.state.fsdp_plugin, 'fsdp_version', 1)}"
    return "DDP" if trainer.args.world_size > 1 else "one process"


def _keep_lines_until(log: Path, step: int) -> None:
    """Drop the lines of steps that a run which goes on will do again."""
    if not log.exists():
        return
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _is_until(line, step)]
    with new_file(log, overwrite=True) as aside:
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _is_until(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except ValueError:  # a line that a crash cut off
        return False
