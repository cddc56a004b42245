"""What a label is, one file a kind: how it is read, split, scored, predicted without a network, and shown."""

from typing import Any

from geneformer_repro.finetuning.kinds.classes import ClassLabels
from geneformer_repro.finetuning.kinds.kind import Kind
from geneformer_repro.finetuning.kinds.numbers import NumberLabels
from geneformer_repro.finetuning.kinds.survival import SurvivalLabels
from geneformer_repro.targets import Classes, Number, SurvivalTime, Target


def kind_of(target: Target) -> Kind[Any]:
    """Return what an experiment must know of a target's labels."""
    match target:
        case Classes():
            return ClassLabels(target)
        case Number():
            return NumberLabels(target)
        case SurvivalTime():
            return SurvivalLabels(target)
    raise AssertionError(target)
