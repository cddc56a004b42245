"""What only a GPU shows: kernels, bfloat16, workflows and several devices agree with the CPU and with stock BERT.

Skipped without a GPU. ``GPU_TESTS_ON=cpu`` runs them on the CPU, to see that they would run; several devices are left
out then, since tests of several processes do that. `benchmarks/on_a_gpu.sh` runs these and others marked ``gpu``.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from padding import padded
from scipy.stats import spearmanr
from transformers import BertForMaskedLM, Trainer

import geneformer_repro as gf
from geneformer_repro.attention import Cells, attend, attend_shown
from geneformer_repro.config import with_settings
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.pretraining.masking import mask_genes

DRY = os.environ.get("GPU_TESTS_ON") == "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or DRY), reason="needs a GPU (GPU_TESTS_ON=cpu tries them here)"),
]
DEVICE = "cpu" if DRY else "cuda"
NEAR = {"rtol": 1e-3, "atol": 1e-3}
"""Single precision in another order of sums."""
GOAL = gf.GoalState("cell_type", "CD14+ Monocyte", "CD19+ B")


@pytest.fixture(scope="module")
def few(cells: gf.TokenizedDataset) -> gf.TokenizedDataset:
    """A dozen cells of two types."""
    return cells.select(
        np.concatenate([np.flatnonzero(cells.obs["cell_type"] == state)[:6] for state in (GOAL.start, GOAL.goal)])
    )


@pytest.fixture
def masked(few: gf.TokenizedDataset) -> dict[str, torch.Tensor]:
    """Three cells, padded, with genes hidden, and their labels."""
    inputs = padded([few[i][:length] for i, length in enumerate((60, 41, 23))], few.vocabulary)
    hidden = mask_genes(inputs["input_ids"].numpy(), few.vocabulary, probability=0.15, rng=np.random.default_rng(0))
    return inputs | {name: torch.from_numpy(array) for name, array in hidden._asdict().items()}


@pytest.fixture
def wide(few: gf.TokenizedDataset) -> MaskedGeneModel:
    """Two blocks as wide as those of V1-10M, in training, without dropout."""
    torch.manual_seed(0)
    config = bert_config("V1-10M", few.vocabulary)
    config.num_hidden_layers = 2
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.initializer_range = 0.1
    return MaskedGeneModel(config).train()


def gradients(model: torch.nn.Module, batch: dict[str, torch.Tensor], device: str, *, bf16: bool = False):
    """Loss, and all gradients laid end to end, on the CPU."""
    model = copy.deepcopy(model).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
    loss.backward()
    found = {name: p.grad.flatten().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), torch.cat([found[name] for name in sorted(found)]).numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Size of the difference, as a share."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


class TestNetwork:
    def test_loss_and_gradients_are_those_of_stock_bert_on_the_cpu(self, wide, masked):
        theirs = BertForMaskedLM(wide.config).train()
        theirs.load_state_dict(wide.state_dict())
        loss, found = gradients(wide, masked, DEVICE)
        expected_loss, expected = gradients(theirs, masked, "cpu")
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert distance(found, expected) < 1e-3

    def test_those_in_bfloat16_are_near(self, wide, masked):
        loss, found = gradients(wide, masked, DEVICE, bf16=True)
        expected_loss, expected = gradients(wide, masked, "cpu")
        assert loss == pytest.approx(expected_loss, rel=0.02)
        assert distance(found, expected) < 0.1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
    def test_the_mean_over_drawn_dropouts_is_attention_without(self, dtype):
        lengths = Cells((64, 40, 70))
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(174, 2, 32, generator=generator).to(DEVICE, dtype) for _ in range(3)]
        torch.manual_seed(0)
        drawn = torch.stack(
            [attend(*tensors, queries=lengths, keys=lengths, dropout=0.2).float().cpu() for _ in range(200)]
        ).numpy()
        exact = attend(*(tensor.float().cpu() for tensor in tensors), queries=lengths, keys=lengths).numpy()
        errors = drawn.std(0) / np.sqrt(len(drawn))
        assert drawn.std(0).min() > 0
        beyond = np.abs(drawn.mean(0) - exact) - (0.02 if dtype == torch.bfloat16 else 0)
        assert (beyond / errors).max() < 6

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
    def test_gradients_of_attention_in_bfloat16_are_near_those_in_single_precision(self):
        lengths = Cells((64, 1, 300))
        generator = torch.Generator().manual_seed(0)
        exact = [torch.randn(365, 4, 64, generator=generator, requires_grad=True) for _ in range(3)]
        half = [tensor.detach().to(DEVICE, torch.bfloat16).requires_grad_() for tensor in exact]
        weighting = torch.randn(365, 4, 64, generator=generator)
        found, expected = (
            torch.autograd.grad((attend(*of, queries=lengths, keys=lengths).cpu().float() * weighting).sum(), of)
            for of in (half, exact)
        )
        for one, other in zip(found, expected, strict=True):
            assert distance(one.float().cpu().numpy(), other.numpy()) < 0.03

    def test_what_an_observer_sees_is_what_it_sees_on_the_cpu(self):
        lengths = Cells((64, 20))
        tensors = [torch.randn(84, 2, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        found, expected = (
            attend_shown(*(tensor.to(device) for tensor in tensors), lengths)[1] for device in (DEVICE, "cpu")
        )
        np.testing.assert_allclose(found.log_sum_TH.cpu(), expected.log_sum_TH, **NEAR)


class TestReading:
    def test_embeddings_are_those_of_the_cpu(self, checkpoint, few):
        found, expected = (gf.embed(checkpoint, few, device=device).X for device in (DEVICE, "cpu"))
        np.testing.assert_allclose(found, expected, **NEAR)

    def test_embeddings_in_bfloat16_are_near(self, checkpoint, few):
        found = gf.embed(checkpoint, few, device=DEVICE, dtype="bfloat16").X
        assert 0 < distance(found, gf.embed(checkpoint, few, device="cpu").X) < 0.05

    @pytest.mark.parametrize("method", ["exact", "first_order"])
    def test_a_screen_is_that_of_the_cpu(self, checkpoint, few, method):
        found, expected = (self.shifts(checkpoint, few, device=device, method=method) for device in (DEVICE, "cpu"))
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-4)

    def test_a_screen_in_bfloat16_ranks_genes_alike(self, checkpoint, few):
        found = self.shifts(checkpoint, few, device=DEVICE, dtype="bfloat16")
        assert spearmanr(found, self.shifts(checkpoint, few, device="cpu")).statistic > 0.8

    @staticmethod
    def shifts(checkpoint, few, **options):
        return gf.perturb(checkpoint, few, gf.Deletion(), goal=GOAL, max_cells=2, **options).table["value"].to_numpy()


def pretrained(out: Path, cells: gf.TokenizedDataset, *, epochs: int = 2, **trainer: object) -> gf.Checkpoint:
    changes = {"size": "tiny", "epochs": epochs, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 0.1}
    config = with_settings(gf.PretrainConfig(), **changes, trainer=trainer)
    return gf.pretrain(cells, config, out=out)


def weights(checkpoint: gf.Checkpoint) -> np.ndarray:
    return torch.cat([p.detach().cpu().flatten() for p in checkpoint.model.parameters()]).numpy()


@pytest.fixture(scope="module")
def sixty(cells: gf.TokenizedDataset) -> gf.TokenizedDataset:
    return cells.select(range(60))


@pytest.fixture(scope="module")
def base(sixty: gf.TokenizedDataset, tmp_path_factory) -> gf.Checkpoint:
    """Pretrained for two passes."""
    return pretrained(tmp_path_factory.mktemp("runs") / "base", sixty)


@pytest.mark.usefixtures("few_trees", "few_resamples", "blank_pictures")
class TestTraining:
    @pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
    def test_pretraining_learns(self, sixty, tmp_path, bf16):
        pretrained(tmp_path / "base", sixty, bf16=bf16)
        lines = [json.loads(line) for line in (tmp_path / "base" / "log.jsonl").read_text().splitlines()]
        assert lines[0]["device"].startswith(DEVICE)
        assert lines[0]["dtype"] == ("bfloat16" if bf16 else "float32")
        scores = [line["eval_loss"] for line in lines if "eval_loss" in line]
        assert scores[-1] < scores[0] - 0.03

    def test_a_run_that_was_cut_off_ends_as_one_that_was_not(self, base, sixty, tmp_path, monkeypatch):
        step, cut = Trainer.training_step, []

        def step_or_stop(trainer, *given):
            if trainer.state.global_step == 10 and not cut:
                cut.append(True)
                raise KeyboardInterrupt
            return step(trainer, *given)

        monkeypatch.setattr(Trainer, "training_step", step_or_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrained(tmp_path / "again", sixty)
        again = pretrained(tmp_path / "again", sixty)
        assert cut
        np.testing.assert_allclose(weights(again), weights(base), **NEAR)

    def test_a_fine_tuned_classifier_says_the_same_on_the_cpu(self, base, few, tmp_path):
        config = gf.FinetuneConfig(
            target="cell_type", baselines=False, split={"allow_seen": True}, training={"epochs": 2, "batch_size": 4}
        )
        found = gf.finetune(base, few, config, out=tmp_path / "clf").checkpoint
        one, other = (
            gf.predict(found, few, device=device).select_dtypes("number").to_numpy() for device in (DEVICE, "cpu")
        )
        np.testing.assert_allclose(one, other, **NEAR)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
class TestSeveralDevices:
    """All of them at once, launched as a user does."""

    def test_a_run_on_all_devices_ends_near_that_on_one(self, sixty, tmp_path):
        n = torch.cuda.device_count()
        sixty.save(tmp_path / "cells.tok")
        settings = ["size=tiny", "training.epochs=2", "training.learning_rate=2e-3", "training.warmup_steps=0.1"]
        losses = []
        for name, processes in (("one", 1), ("all", n)):
            command = ["pretrain", "cells.tok", "--set", *settings, f"training.batch_size={8 * n // processes}"]
            self.launched(processes, [*command, "-o", name], tmp_path)
            lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
            losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
        np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)

    def test_a_screen_shared_by_all_devices_is_that_of_one(self, base, few, tmp_path):
        base.save(tmp_path / "base")
        few.save(tmp_path / "cells.tok")
        command = ["perturb", "base", "cells.tok", "--max-cells", "4"]
        tables = []
        for name, processes in (("one", 1), ("all", torch.cuda.device_count())):
            self.launched(processes, [*command, "-o", f"{name}.parquet"], tmp_path)
            tables.append(gf.ShiftTable.open(tmp_path / f"{name}.parquet").table["value"].to_numpy())
        np.testing.assert_allclose(tables[1], tables[0], **NEAR)

    @staticmethod
    def launched(n: int, command: list[str], folder: Path) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        only = {"CUDA_VISIBLE_DEVICES": "0"} if n == 1 else {}
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "geneformer_repro", *command],
            cwd=folder, env=os.environ | only, capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(autouse=True)
def _as_at_the_start():
    """Forget what accelerate knows, as a run that was cut off leaves it."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
