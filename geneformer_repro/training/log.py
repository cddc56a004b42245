"""What a run tells while it goes: a bar that counts tokens, a line of JSON and TensorBoard's points for every entry.

Rates are those of training alone: what is spent aside, on scoring and saving, is taken off the clock.
"""

import functools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import geneformer_repro.processes as processes
from geneformer_repro.batching import StepBatches
from geneformer_repro.files import new_file
from geneformer_repro.progress import Bar
from geneformer_repro.training.config import TrainingRun

logger = logging.getLogger(__name__)

LOG_FILE, TENSORBOARD = "log.jsonl", "tensorboard"


def write_log(work: Path, entries: Iterable[Mapping[Any, object]]) -> None:
    """Write the log of a run that was short, all at once: a line of JSON for every entry."""
    (work / LOG_FILE).write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")


class Stopwatch:
    """Seconds since it was started, without what was spent aside."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.perf_counter() - self._began

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stand still within the block."""
        before = self.seconds
        try:
            yield
        finally:
            self._began = time.perf_counter() - before


class Show(TrainerCallback):
    """A bar that counts tokens; a line of JSON and points of TensorBoard for every log entry. Of the first process."""

    def __init__(
        self, run: TrainingRun, batches: StepBatches, stopwatch: Stopwatch, *, engine: str, dtype: torch.dtype
    ) -> None:
        self._run, self._batches, self._stopwatch, self._engine, self._dtype = run, batches, stopwatch, engine, dtype
        self._log = run.work / LOG_FILE
        self._shown: dict[str, str] = {}
        self._open = ExitStack()
        n_steps = batches.n_steps
        self._tokens_a_step, self._cells_a_step = batches.n_tokens / n_steps, len(run.examples) / n_steps
        self._flops_a_step = (run.flops_an_epoch or 0) / n_steps

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say what runs, how; show the bar."""
        self._peak = peak_flops(args.device, self._dtype) * args.world_size if self._flops_a_step else None
        done = state.global_step or -1  # a run that begins anew scores step 0 again
        _keep_lines_until(self._log, done)
        self._announce(args, state)
        board = SummaryWriter(str(self._run.work / TENSORBOARD), purge_step=done + 1)
        bar = Bar(
            self._run.step,
            total=round(state.max_steps * self._tokens_a_step),
            unit="tokens" if self._run.row == "cell" else f"{self._run.row}s",
            done=round(state.global_step * self._tokens_a_step),
            unit_scale=True,
        )
        self._board, self._bar = self._open.enter_context(board), self._open.enter_context(bar)
        self._stopwatch.start()
        self._last_step, self._last_seconds = state.global_step, 0.0

    def _announce(self, args: TrainingArguments, state: TrainerState) -> None:
        """Say what runs, how."""
        facts = {
            "event": self._run.step,
            "step": state.global_step,
            "engine": self._engine,
            "processes": args.world_size,
            "device": str(args.device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "steps": state.max_steps,
            "tokens_a_batch": self._batches.tokens_a_batch,
            "padding": round(self._batches.padding(), 4) if args.device.type == "cpu" else 0.0,
            "peak_flops": self._peak,
            "learning": [
                {
                    "name": group.name,
                    "parameters": sum(parameter.numel() for parameter in group.parameters),
                    "rate": group.rate,
                    "from_step": group.first_step(state.max_steps),
                }
                for group in self._run.groups
            ],
        }
        logger.info(json.dumps(facts))
        self._write(facts)

    def _write(self, entry: Mapping[str, object]) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the step's tokens."""
        self._bar.update(round(state.global_step * self._tokens_a_step) - self._bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """Write an entry, with the time it took and rates."""
        seconds = self._stopwatch.seconds
        entry = {"event": self._run.step, "step": state.global_step, **event["logs"], "seconds": round(seconds, 2)}
        entry |= self._rates(state.global_step, seconds)
        self._write(entry)
        for name, value in entry.items():
            if isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._board.add_scalar(name.replace("eval_", "held_out/"), value, state.global_step)
        self._board.flush()
        for name, shown, form in (
            ("loss", "loss", ".3f"),
            ("eval_loss", "held-out", ".3f"),
            *([("cells_per_second", "cells/s", ".3g")] if self._run.row == "cell" else []),
            ("share_of_peak", "of peak", ".0%"),
        ):
            if name in entry:
                self._shown[shown] = format(entry[name], form)
        self._bar.set_postfix(self._shown, refresh=False)

    def _rates(self, step: int, seconds: float) -> dict[str, float]:
        """Rates since the last entry of a training loss."""
        steps_a_second = (step - self._last_step) / max(seconds - self._last_seconds, 1e-9)
        if step == self._last_step:
            return {}
        self._last_step, self._last_seconds = step, seconds
        rates = {
            "tokens_per_second": round(steps_a_second * self._tokens_a_step, 1),
            "cells_per_second": round(steps_a_second * self._cells_a_step, 2),
            "peak_memory_gb": round(processes.peak_memory_gb(), 2),
        }
        if self._peak:
            rates["share_of_peak"] = round(steps_a_second * self._flops_a_step / self._peak, 3)
        return rates

    def close(self) -> None:
        """End the bar, so that what is said next has a line of its own; more than once does nothing."""
        self._open.close()


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the rate of a large matrix product on a device, in floating-point operations a second; once a process.

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
