"""Pretraining on two processes beside one: the same steps, whatever spreads the work over processes.

Gradients are summed in another order, so that the last bits differ, and no more than those may.
"""

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.checkpoint import quiet_transformers
from geneformer_repro.config import load_config

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
LONG = (*ACCUMULATING, "epochs=4")
Launch = Callable[..., Path]
pytestmark = pytest.mark.slow


def command(*arguments: Any) -> list[str]:
    """Give torchrun's command line for two processes; it looks for a free port itself."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        *map(str, arguments),
    ]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def losses(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if '"loss"' in line and line.endswith("}")]


def launch_whole(out: Path, options: Sequence[str]) -> None:
    done = subprocess.run(
        command(HERE / "launched.py", out, *options), env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def launch_twice(out: Path, options: Sequence[str]) -> None:
    """Ask the launcher to stop after a few steps, and start it again."""
    log = out.with_name(out.name + ".partial") / "log.jsonl"
    with (out.parent / f"{out.name}.txt").open("w") as said:
        process = subprocess.Popen(
            command(HERE / "launched.py", out, *options), env=environment(), stdout=said, stderr=said
        )
        while len(losses(log)) < 3 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) != 0
    launch_whole(out, options)


@pytest.fixture(scope="module")
def launch(tmp_path_factory, worker_id) -> Launch:
    """Launch a run once, even where several workers of xdist test this file."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "several_processes"
    folder.mkdir(exist_ok=True)

    def once(name: str, options: Sequence[str], how: Callable[[Path, Sequence[str]], None] = launch_whole) -> Path:
        out = folder / name.replace(" ", "_")
        with (folder / f"{out.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():
                how(out, options)
        return out

    return once


@pytest.fixture(scope="module")
def launched() -> Any:
    """The script that is launched, as a module."""
    spec = importlib.util.spec_from_file_location("launched", HERE / "launched.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(launched, tmp_path_factory) -> Path:
    """One process, which sees in a batch what two see in theirs together."""
    out = tmp_path_factory.mktemp("one") / "base"
    gf.pretrain(
        launched.sixty_cells(), load_config(gf.PretrainConfig, None, [*launched.OPTIONS, *ONE_PROCESS]), out=out
    )
    return out


@pytest.fixture(scope="module", params=[*ENGINES, "accumulating"], ids=lambda name: name.replace(" ", "_"))
def name(request) -> str:
    if "DeepSpeed" in request.param:
        pytest.importorskip("deepspeed", reason="needs geneformer-repro[deepspeed]")
    return request.param


@pytest.fixture(scope="module")
def two(name: str, launch: Launch) -> Path:
    """Two processes, half the batch each."""
    if name == "accumulating":
        return launch(name, ACCUMULATING)
    return launch(name, ("batch_size=4", *ENGINES[name]))


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
    def whole(self, launch: Launch, engine: str) -> Path:
        return launch(f"whole {engine}", (*LONG, *ENGINES[engine]))

    @pytest.fixture
    def stopped(self, launch: Launch, engine: str) -> Path:
        """The launcher was asked to stop, and the same command given again."""
        return launch(f"stopped {engine}", (*LONG, *ENGINES[engine]), launch_twice)

    def test_it_was_stopped_and_saved(self, stopped):
        said = (stopped.parent / f"{stopped.name}.txt").read_text()
        assert "stopped by SIGTERM at step" in said
        begun = [line for line in (stopped / "log.jsonl").read_text().splitlines() if '"engine"' in line]
        assert [json.loads(line)["step"] > 0 for line in begun] == [False, True]

    def test_it_ends_with_the_weights_of_an_uninterrupted_run(self, stopped, whole):
        found = weights(stopped)
        for name, weight in weights(whole).items():
            np.testing.assert_array_equal(found[name], weight, err_msg=name)

    def test_it_has_the_losses_of_an_uninterrupted_run(self, stopped, whole):
        columns = ["step", "epoch", "loss", "grad_norm", "eval_loss"]
        found, expected = (pd.read_csv(folder / "history.tsv", sep="\t")[columns] for folder in (stopped, whole))
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        steps = [entry["step"] for entry in losses(stopped / "log.jsonl")]
        assert steps == [entry["step"] for entry in losses(whole / "log.jsonl")]


def test_accelerate_launches_the_command_with_the_configuration_that_ships(launched, one, tmp_path):
    """Configured for one GPU, told to do without."""
    cells = tmp_path / "cells.tok"
    adata = gf.datasets.pbmc700()
    gf.tokenize(adata[:60], gf.Vocabulary.fit(adata), out=cells)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--config_file", str(CONFIGS / "one_gpu.yaml"), "--cpu", "--mixed_precision", "no"]
    task = ["-m", "geneformer_repro", "pretrain", str(cells), "--set", *launched.OPTIONS, *ONE_PROCESS]
    task += ["-o", str(tmp_path / "base")]
    done = subprocess.run([*launcher, *task], env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = weights(tmp_path / "base"), weights(one)
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight, atol=2e-5, err_msg=name)
