"""Self-supervised learning on single-cell transcriptomes, after Geneformer.

Names are imported when they are first touched, so ``import geneformer_repro`` brings neither torch nor AnnData.
"""

import random
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geneformer_repro import datasets
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.embedding import embed, embed_states
    from geneformer_repro.errors import DataFormatError, InputError, VocabularyMismatchError
    from geneformer_repro.finetuning.finetune import FinetuneConfig, Finetuned, finetune
    from geneformer_repro.finetuning.genes import FinetunedGenes, GeneFinetuneConfig, finetune_genes
    from geneformer_repro.finetuning.predict import predict
    from geneformer_repro.finetuning.study import TransferStudy, TransferStudyConfig, transfer_study
    from geneformer_repro.in_silico.perturbation import Activation, Deletion, Inhibition, Overexpression, RankShift
    from geneformer_repro.in_silico.pictures import plot_screen, write_screen_report
    from geneformer_repro.in_silico.question import GoalState
    from geneformer_repro.in_silico.screen import perturb
    from geneformer_repro.in_silico.shift_table import ShiftTable
    from geneformer_repro.in_silico.statistics import shift_statistics
    from geneformer_repro.mapping import integration_scores, map_to_reference
    from geneformer_repro.pretraining.pretrain import PretrainConfig, pretrain
    from geneformer_repro.tokenizer.dataset import TokenizedDataset
    from geneformer_repro.tokenizer.quality import CellFilter
    from geneformer_repro.tokenizer.tokenize import tokenize
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

_HOME = {
    "Activation": "in_silico.perturbation",
    "CellFilter": "tokenizer.quality",
    "Checkpoint": "checkpoint",
    "DataFormatError": "errors",
    "Deletion": "in_silico.perturbation",
    "FinetuneConfig": "finetuning.finetune",
    "Finetuned": "finetuning.finetune",
    "FinetunedGenes": "finetuning.genes",
    "GeneFinetuneConfig": "finetuning.genes",
    "GoalState": "in_silico.question",
    "Inhibition": "in_silico.perturbation",
    "InputError": "errors",
    "Overexpression": "in_silico.perturbation",
    "PretrainConfig": "pretraining.pretrain",
    "RankShift": "in_silico.perturbation",
    "ShiftTable": "in_silico.shift_table",
    "TokenizedDataset": "tokenizer.dataset",
    "TransferStudy": "finetuning.study",
    "TransferStudyConfig": "finetuning.study",
    "Vocabulary": "tokenizer.vocabulary",
    "VocabularyMismatchError": "errors",
    "embed": "embedding",
    "embed_states": "embedding",
    "finetune": "finetuning.finetune",
    "finetune_genes": "finetuning.genes",
    "integration_scores": "mapping",
    "map_to_reference": "mapping",
    "perturb": "in_silico.screen",
    "plot_screen": "in_silico.pictures",
    "predict": "finetuning.predict",
    "pretrain": "pretraining.pretrain",
    "shift_statistics": "in_silico.statistics",
    "tokenize": "tokenizer.tokenize",
    "transfer_study": "finetuning.study",
    "write_screen_report": "in_silico.pictures",
}

__all__ = [
    "Activation",
    "CellFilter",
    "Checkpoint",
    "DataFormatError",
    "Deletion",
    "FinetuneConfig",
    "Finetuned",
    "FinetunedGenes",
    "GeneFinetuneConfig",
    "GoalState",
    "Inhibition",
    "InputError",
    "Overexpression",
    "PretrainConfig",
    "RankShift",
    "ShiftTable",
    "TokenizedDataset",
    "TransferStudy",
    "TransferStudyConfig",
    "Vocabulary",
    "VocabularyMismatchError",
    "datasets",
    "embed",
    "embed_states",
    "finetune",
    "finetune_genes",
    "integration_scores",
    "map_to_reference",
    "perturb",
    "plot_screen",
    "predict",
    "pretrain",
    "shift_statistics",
    "tokenize",
    "transfer_study",
    "write_screen_report",
]

try:
    __version__ = version("geneformer-repro")
except PackageNotFoundError:
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    if name == "datasets":
        return import_module(f"{__name__}.datasets")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    state = random.getstate()
    try:
        found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    finally:
        random.setstate(state)  # scikit-learn loads a library that draws from it
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
