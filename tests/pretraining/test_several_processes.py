"""Pretraining on two processes beside one: the same steps, whatever spreads the work over processes.

Gradients are summed in another order, so that the last bits differ, and no more than those may. All processes are forks
of this interpreter, those of torchrun too, which is run once, to be asked to stop: three new ones import for 30 s.
"""

import importlib.util
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from forking import forked, several, status_of
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from transformers import BertForMaskedLM, Trainer

import geneformer_repro as gf
from geneformer_repro import cli
from geneformer_repro.checkpoint import quiet_transformers

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
ONE_PROCESS = ("batch_size=8",)
ENGINES = {
    "DDP": (),
    "DeepSpeed ZeRO-1": (f"trainer.deepspeed={CONFIGS / 'zero1.json'}",),
    "DeepSpeed ZeRO-2": (f"trainer.deepspeed={CONFIGS / 'zero2.json'}",),
    "DeepSpeed ZeRO-3": (f"trainer.deepspeed={CONFIGS / 'zero3.json'}",),
}
ACCUMULATING = ("batch_size=2", "trainer.gradient_accumulation_steps=2")
PACKAGE = "geneformer_repro"
TORCHRUN = ["--standalone", "--nproc_per_node", "2"]
"""Two processes, and a port that it finds itself."""
pytestmark = pytest.mark.slow


def losses(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if '"loss"' in line and line.endswith("}")]


class Run:
    """Runs of the script that is launched, as forks of this interpreter, each once."""

    def __init__(self, script: Any, folder: Path) -> None:
        self.script, self.folder = script, folder

    def in_two(self, name: str, options: Sequence[str]) -> Path:
        """Two processes, to the end."""
        out = self.folder / name.replace(" ", "_")
        if not out.exists():
            several(lambda _: self.script.run(out, options), self.folder)
        return out

    def stopped_in_two(self, name: str, options: Sequence[str]) -> Path:
        """One of the processes is asked to stop, and both are started again."""
        out = self.folder / name.replace(" ", "_")
        if not out.exists():
            said = several(lambda rank: self._asking(os.getpid, rank, out, options), self.folder, expected=143)
            (self.folder / f"{out.name}.txt").write_text("".join(said))
            self.in_two(name, options)
        return out

    def _asking(self, whom: Callable[[], int], rank: int, out: Path, options: Sequence[str]) -> None:
        """Run, and ask somebody to stop, once, before the fourth step."""
        step, asked = Trainer.training_step, []

        def step_or_ask(trainer: Trainer, *given: Any) -> Any:
            if rank == 1 and trainer.state.global_step == 3 and not asked:
                asked.append(whom())
                os.kill(asked[0], signal.SIGTERM)
                time.sleep(0.5)  # a launcher passes it on; the other process waits for this one's gradients
            return step(trainer, *given)

        Trainer.training_step = step_or_ask
        self.script.run(out, options)

    def launched_and_stopped(self, name: str, options: Sequence[str]) -> Path:
        """Ask torchrun to stop, and start its processes again."""
        out = self.folder / name.replace(" ", "_")
        if not out.exists():
            assert status_of(forked(lambda: self._torchrun(out, options), self.folder / "torchrun.log")) != 0
            said = "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))
            (self.folder / f"{out.name}.txt").write_text(said)
            self.in_two(name, options)
        return out

    def _torchrun(self, out: Path, options: Sequence[str]) -> None:
        """Run torchrun, which starts forks where it would start interpreters."""

        def start(handler: SubprocessHandler, command: Sequence[str], env: dict[str, str]) -> Fork:
            def launched() -> None:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's own until here
                os.environ.update(env)
                AcceleratorState._reset_state(reset_partial_state=True)
                PartialState._reset_state()
                self._asking(os.getppid, handler.local_rank_id, out, options)

            return Fork(forked(launched, self.folder / f"process{handler.local_rank_id}.log"))

        SubprocessHandler._popen = start
        torchrun.main([*TORCHRUN, str(HERE / "launched.py")])


class Fork:
    """What torchrun asks of a process that it has started."""

    def __init__(self, pid: int) -> None:
        self.pid, self.status = pid, None

    def poll(self) -> int | None:
        if self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if done else None
        return self.status

    def wait(self, timeout: float) -> None:
        self.status = status_of(self.pid, seconds=timeout) if self.status is None else self.status


@pytest.fixture(scope="module")
def script() -> Any:
    """The script that is launched, as a module."""
    spec = importlib.util.spec_from_file_location("launched", HERE / "launched.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.sixty_cells()  # forks have them from the start, and what DeepSpeed loads late
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.simplefilter("ignore")
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    return module


@pytest.fixture(scope="module")
def run(script, tmp_path_factory) -> Run:
    return Run(script, tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def one(script, run) -> Path:
    """One process, which sees in a batch what two see in theirs together."""
    out = run.folder / "one"
    script.run(out, ONE_PROCESS)
    return out


@pytest.fixture(scope="module", params=[*ENGINES, "accumulating"], ids=lambda name: name.replace(" ", "_"))
def name(request) -> str:
    if "DeepSpeed" in request.param:
        pytest.importorskip("deepspeed", reason="needs geneformer-repro[deepspeed]")
    return request.param


@pytest.fixture(scope="module")
def two(name: str, run: Run) -> Path:
    """Two processes, half the batch each."""
    return run.in_two(name, ACCUMULATING if name == "accumulating" else ("batch_size=4", *ENGINES[name]))


def weights(folder: Path) -> dict[str, np.ndarray]:
    model = gf.Checkpoint.from_pretrained(folder).model
    return {name: weight.detach().numpy() for name, weight in model.state_dict().items()}


class TestEveryEngine:
    def test_the_log_names_the_engine_and_counts_the_processes(self, two, name):
        first = json.loads((two / "log.jsonl").read_text().splitlines()[0])
        assert (first["engine"], first["processes"]) == ("DDP" if name == "accumulating" else name, 2)

    def test_every_loss_is_that_of_one_process(self, two, one):
        found, expected = (pd.read_csv(folder / "history.tsv", sep="\t") for folder in (two, one))
        for column in ("loss", "eval_loss"):
            assert expected[column].notna().sum() > 2
            np.testing.assert_allclose(found[column].dropna(), expected[column].dropna(), atol=1e-5, rtol=0)
        np.testing.assert_array_equal(found["step"][found["loss"].notna()], expected["step"][expected["loss"].notna()])

    def test_the_weights_are_those_of_one_process(self, two, one):
        found = weights(two)
        for name, weight in weights(one).items():
            np.testing.assert_allclose(found[name], weight, atol=2e-5, rtol=0, err_msg=name)

    def test_the_scores_are_those_of_one_process(self, two, one):
        """Processes share the held-out cells."""
        found, expected = (pd.read_csv(folder / "scores.tsv", sep="\t", index_col=0) for folder in (two, one))
        np.testing.assert_allclose(found["loss"], expected["loss"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_the_checkpoint_opens_in_stock_transformers_with_the_same_weights(self, two):
        with quiet_transformers():
            stock = BertForMaskedLM.from_pretrained(two).state_dict()
        for name, weight in weights(two).items():
            np.testing.assert_array_equal(stock[name].numpy(), weight, err_msg=name)

    def test_no_step_is_logged_twice(self, two):
        steps = [entry["step"] for entry in losses(two / "log.jsonl")]
        assert steps == sorted(set(steps))

    def test_nothing_else_is_left(self, two):
        assert not two.with_name(two.name + ".partial").exists()


class TestStoppedAndGoneOnWith:
    @pytest.fixture(params=["DDP", "DeepSpeed ZeRO-3"], ids=lambda engine: engine.replace(" ", "_"))
    def engine(self, request) -> str:
        if "DeepSpeed" in request.param:
            pytest.importorskip("deepspeed", reason="needs geneformer-repro[deepspeed]")
        return request.param

    @pytest.fixture
    def whole(self, run: Run, engine: str) -> Path:
        return (
            run.in_two("accumulating", ACCUMULATING)
            if engine == "DDP"
            else run.in_two(engine, ("batch_size=4", *ENGINES[engine]))
        )

    @pytest.fixture
    def stopped(self, run: Run, engine: str) -> Path:
        """The launcher, or one of the processes, was asked to stop, and the same command given again."""
        if engine == "DDP":
            return run.launched_and_stopped("stopped DDP", ACCUMULATING)
        return run.stopped_in_two(f"stopped {engine}", ("batch_size=4", *ENGINES[engine]))

    def test_it_was_stopped_and_saved(self, stopped):
        said = (stopped.parent / f"{stopped.name}.txt").read_text()
        assert "stopped by SIGTERM at step" in said
        begun = [line for line in (stopped / "log.jsonl").read_text().splitlines() if '"engine"' in line]
        assert [json.loads(line)["step"] > 0 for line in begun] == [False, True]

    def test_it_ends_with_the_weights_of_an_uninterrupted_run(self, stopped, whole):
        found = weights(stopped)
        for name, weight in weights(whole).items():
            np.testing.assert_array_equal(found[name], weight, err_msg=name)

    def test_it_has_the_history_of_an_uninterrupted_run(self, stopped, whole):
        assert (stopped / "history.tsv").read_bytes() == (whole / "history.tsv").read_bytes()
        steps = [entry["step"] for entry in losses(stopped / "log.jsonl")]
        assert steps == [entry["step"] for entry in losses(whole / "log.jsonl")]


def test_accelerate_starts_the_command_with_the_configuration_that_ships(script, one, tmp_path):
    """Configured for one GPU, told to do without; what its launcher would start, as a fork."""
    cells, out = tmp_path / "cells.tok", tmp_path / "base"
    script.sixty_cells(out=cells)
    task = ["pretrain", str(cells), "--set", *script.OPTIONS, *ONE_PROCESS, "-o", str(out)]
    ours = ["--config_file", str(CONFIGS / "one_gpu.yaml"), "--cpu", "--mixed_precision", "no"]
    arguments = launch_command_parser().parse_args([*ours, "-m", PACKAGE, *task])
    arguments, _, _ = _validate_launch_command(arguments)
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    assert command == [sys.executable, "-m", PACKAGE, *task]

    def as_launched() -> None:
        os.environ.update(environment)
        assert cli.main(command[3:]) == 0

    assert status_of(forked(as_launched, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    found = weights(out)
    for name, weight in weights(one).items():
        np.testing.assert_allclose(found[name], weight, atol=2e-5, err_msg=name)
