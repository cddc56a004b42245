"""What the tests of several processes launch: pretraining of a tiny model on sixty cells.

accelerate 1.15 takes CPU processes under DeepSpeed or FSDP for one process alone; `_on_cpus` tells it better.
"""

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import accelerate.state
import torch
from accelerate.utils import DistributedType

import geneformer_repro as gf
from geneformer_repro.config import load_config
from geneformer_repro.pretraining.settings import PretrainConfig

OPTIONS = [
    "size=tiny", "held_out=0.1", "training.epochs=2", "training.learning_rate=1e-3", "training.warmup_steps=0",
    "training.trainer.logging_steps=1",
]  # fmt: skip


@functools.cache
def sixty_cells(out: Path | None = None) -> gf.TokenizedDataset:
    """Return sixty real cells."""
    adata = gf.datasets.pbmc700()
    return gf.tokenize(adata[:60], gf.Vocabulary.fit(adata), out=out)


def _on_cpus() -> None:
    known = accelerate.state.PartialState._prepare_backend

    def prepare(self: object, *given: object, **options: object) -> object:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            return "gloo", DistributedType.MULTI_CPU
        return known(self, *given, **options)

    accelerate.state.PartialState._prepare_backend = prepare


def run(out: Path, options: Sequence[str]) -> None:
    """Pretrain; where DeepSpeed is asked for, start it first."""
    torch.set_num_threads(1)
    if any(option.startswith("trainer.deepspeed") for option in options):
        import deepspeed

        warnings.simplefilter("ignore")  # of its own and torch's making
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        _on_cpus()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled first, for a minute, and not needed
        deepspeed.init_distributed("gloo")
    gf.pretrain(sixty_cells(), load_config(PretrainConfig, None, [*OPTIONS, *options]), out=out)
