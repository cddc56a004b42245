"""A plan is arithmetic: what it counts is what networks have, and what its table says is what it says."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.batching import pack
from geneformer_repro.cli import _parser, main
from geneformer_repro.config import load_config
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.plan import (
    DEVICES,
    START_SECONDS,
    Task,
    Work,
    _kept,
    duration,
    in_words,
    lengths_of,
    planned,
    scale_tables,
)
from geneformer_repro.pretraining.masking import mask_genes
from geneformer_repro.sizes import SIZES, flops, n_parameters

ROOT = Path(__file__).parents[1]
A_MILLION = Work(task="pretrain", cells=10**6, length=1000, max_length=2048, device="h100")


def plan(**changes):
    return planned(dataclasses.replace(A_MILLION, **changes))


class TestSizes:
    @pytest.mark.parametrize("size", SIZES)
    def test_parameters_are_those_of_the_network(self, size, vocabulary):
        with torch.device("meta"):
            model = MaskedGeneModel(bert_config(size, vocabulary))
        counted = n_parameters(SIZES[size], n_tokens=vocabulary.size, n_positions=vocabulary.max_length)
        assert counted == sum(parameter.numel() for parameter in model.parameters())

    def test_a_shape_is_counted_as_its_configuration(self, vocabulary):
        lengths = np.array([3, 70])
        assert flops(SIZES["V1-40M"], lengths) == flops(bert_config("V1-40M", vocabulary), lengths)


class TestOperations:
    def test_those_of_pretraining_are_those_that_its_share_of_the_peak_counts(self):
        found = plan(length=2048).operations
        one = 3 * flops(SIZES["V1-10M"], np.array([2048]), read=0.15, n_outputs=25_426)
        assert found == pytest.approx(3 * 10**6 * one)

    def test_a_screen_reads_every_cell_once_for_each_of_its_genes(self):
        screen, reading = (plan(task=task, length=2048).operations for task in ("perturb", "embed"))
        assert screen == pytest.approx(2048 * reading)

    @pytest.mark.parametrize("length", [100, 867, 2000, 2048])
    def test_cells_have_the_length_that_was_asked_for_and_none_is_longer(self, length):
        lengths = lengths_of(dataclasses.replace(A_MILLION, length=length))
        assert lengths.mean() == pytest.approx(length)
        assert lengths.max() <= 2048 * 1.01

    def test_they_are_spread_as_real_cells_are(self, shared):
        real = np.minimum(_genes_a_cell(shared / "data" / "pbmc3k" / "pbmc3k.h5ad"), 2048).astype(float)
        typical = lengths_of(dataclasses.replace(A_MILLION, length=real.mean()))
        assert (typical**2).mean() == pytest.approx((real**2).mean(), rel=0.1)


def _genes_a_cell(path):
    import anndata as ad

    return np.diff(ad.read_h5ad(path).X.indptr)


class TestMemory:
    def test_what_blocks_keep_for_the_backward_pass_is_about_what_is_counted(self, cells):
        torch.manual_seed(0)
        config = bert_config("V1-10M", cells.vocabulary)
        model = MaskedGeneModel(config).train()
        rng = np.random.default_rng(0)
        batch = pack([mask_genes(cells[i], cells.vocabulary, probability=0.15, rng=rng) for i in range(4)])
        kept, own = {}, {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch["input_ids"], labels=batch["labels"], lengths=batch["lengths"])
        n_bytes = sum(size for where, size in kept.items() if where not in own)
        counted = 4 * len(batch["input_ids"]) * _kept(A_MILLION)
        assert 0.5 * counted < n_bytes < 1.3 * counted

    def test_of_batches_that_do_not_fit_several_make_a_step(self):
        small = dataclasses.replace(A_MILLION, size="V2-316M", length=4096, max_length=4096, device="cpu")
        found = planned(small)
        assert found.accumulated > 1
        assert found.batch_tokens * found.accumulated >= 18 * 4096
        assert found.fits
        assert f"gradient_accumulation_steps={found.accumulated}" in found.launch

    def test_what_fits_nowhere_says_so(self):
        found = plan(size="V2-316M", length=150_000, max_length=150_000, device="a100")
        assert not found.fits
        assert "more than the 80 GB there are" in in_words(found)


class TestTime:
    @staticmethod
    def working(**changes):
        return plan(**changes).seconds - START_SECONDS

    @pytest.mark.parametrize("task", get_args(Task))
    def test_twice_the_cells_take_twice_the_time(self, task):
        assert self.working(task=task, cells=2 * 10**6) == pytest.approx(2 * self.working(task=task))

    @pytest.mark.parametrize("task", ["embed", "perturb", "first-order"])
    def test_eight_devices_read_eight_times_as_fast(self, task):
        assert self.working(task=task, device="8xh100") == pytest.approx(self.working(task=task) / 8)

    def test_summing_gradients_between_machines_costs_time(self):
        large = {"size": "V2-316M", "length": 100}
        assert self.working(device="64xh100", **large) > 1.5 * self.working(**large) / 64
        assert self.working(device="64xh100", **large) < self.working(device="8xh100", **large)

    def test_small_batches_wait_for_their_kernels(self):
        assert self.working(length=10) > 5 * self.working(length=1000) / 100

    @pytest.mark.parametrize("task", get_args(Task))
    @pytest.mark.parametrize("device", DEVICES)
    def test_what_was_measured_is_told_from_what_is_projected(self, task, device):
        assert plan(task=task, device=device).is_measured == (device == "cpu")
        said = in_words(plan(task=task, device=device))
        assert ("projected" in said) == (device != "cpu")
        assert "measured" in said

    def test_another_size_than_the_measured_one_is_projected(self):
        found = plan(device="cpu", size="V1-40M")
        assert not found.is_measured
        assert "projected" in in_words(found)

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (0.5, "0.5 s"),
            (119, "119 s"),
            (600, "10 min"),
            (8000, "2.2 h"),
            (1e6, "12 days"),
            (1e11, "3,169 years"),
        ],
    )
    def test_a_time_is_told_in_the_unit_that_fits(self, seconds, said):
        assert duration(seconds) == said


class TestLaunch:
    @pytest.mark.parametrize("device", ["cpu", "h100", "8xa100", "64xa100"])
    @pytest.mark.parametrize("task", get_args(Task))
    @pytest.mark.parametrize("size", ["V1-10M", "V2-316M"])
    def test_the_command_is_understood(self, task, device, size):
        launch = plan(task=task, device=device, size=size, length=1500, max_length=4096).launch
        launcher, _, command = launch.rpartition("geneformer-repro " if "geneformer-repro " in launch else "_repro ")
        assert bool(launcher) == ("x" in device and task != "tokenize")
        arguments = _parser().parse_args(shlex.split(command))
        if task == "pretrain":
            config = load_config(gf.PretrainConfig, None, arguments.set)
            assert config.size == size
            assert config.training.recipe == size[:2]

    def test_a_short_run_has_a_short_warm_up(self):
        assert "warmup_steps=0.05" in plan(cells=1000).launch
        assert "warmup_steps" not in plan(cells=10**9).launch

    @pytest.mark.parametrize("task", ["pretrain", "finetune"])
    def test_a_tiny_network_is_trained_as_it_learns(self, task):
        tiny = plan(task=task, size="tiny", cells=2000, length=700)
        assert "training.max_tokens=2800 training.learning_rate=2e-3" in tiny.launch
        assert tiny.batch_tokens == 2800

    def test_it_names_configurations_that_there_are(self):
        for device in ("8xa100", "64xa100"):
            (path,) = re.findall(r"--config_file (\S+)", plan(device=device).launch)
            assert (ROOT / path).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "dream"}, "There is no task 'dream'"),
        ({"size": "V1-10"}, "There is no size 'V1-10'. Did you mean 'V1-10M'"),
        ({"device": "8xb100"}, "There is no device '8xb100'. There are: cpu, a100, h100, h200; several: 8xa100."),
        ({"device": "0xa100"}, "There is no device '0xa100'"),
        ({"device": "2xcpu"}, "only one machine of two cores was measured"),
        ({"cells": 0}, "cells must be at least 1, found 0"),
        ({"epochs": 0}, "epochs must be above 0, found 0"),
        ({"length": 3000}, "Cells of 3000 tokens on average cannot be 2048 at most"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, message):
    with pytest.raises(gf.InputError, match=re.escape(message)):
        plan(**changes)


def test_the_command_says_what_the_plan_comes_to(capsys):
    command = ["plan", "perturb", "--first-order", "--cells", "3e5", "--length", "900", "--device", "2xh200"]
    assert main(command) == 0
    work = Work(task="first-order", cells=300_000, length=900, max_length=2048, device="2xh200")
    assert capsys.readouterr().out == in_words(planned(work)) + "\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["plan", "embed", "--cells", "3"], "A plan needs --cells and --length"),
        (
            ["plan", "embed", "--cells", "3", "--length", "9", "--first-order"],
            "--first-order is of perturb, not of embed",
        ),
    ],
)
def test_a_command_that_lacks_something_is_refused(command, message, capsys):
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_the_tables_of_the_documentation_are_those_that_the_command_prints(capsys):
    assert main(["plan", "tables"]) == 0
    tables = capsys.readouterr().out.strip()
    assert tables == scale_tables()
    assert tables in (ROOT / "docs" / "scale.md").read_text()
