"""Which family of models a checkpoint is of, and its rows in the one form in which they are explained."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_repro.bags import BagNetwork
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.in_silico.explanations.again import Again, request_of
from geneformer_repro.in_silico.explanations.again_cells import CellsAgain
from geneformer_repro.in_silico.explanations.again_patients import PatientsAgain
from geneformer_repro.in_silico.explanations.again_values import again_by_values
from geneformer_repro.in_silico.explanations.explained import CellsExplained, Explained
from geneformer_repro.in_silico.explanations.explained_pairs import ExplainedPairs
from geneformer_repro.in_silico.explanations.explained_patients import ExplainedPatients
from geneformer_repro.in_silico.explanations.explained_samples import ExplainedSamples
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.pair_reading import read_pairs
from geneformer_repro.responses import Responses
from geneformer_repro.sample_reading import read_scaled
from geneformer_repro.tokenizer.dataset import TokenizedDataset

RowsGiven: TypeAlias = TokenizedDataset | ad.AnnData | pd.DataFrame | str | Path
DrugsGiven: TypeAlias = Drugs | pd.DataFrame | str | Path
ResponsesGiven: TypeAlias = Responses | pd.DataFrame | str | Path


def usual_choices(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the method and the baseline that suit a family, where a user names none."""
    if isinstance(checkpoint.model, ExpressionNetwork | PairNetwork):
        return {"methods": ("integrated_gradients",), "baseline": "mean"}
    return {"methods": ("hide",), "baseline": "mask"}


def explained_by(
    request: Request,
    checkpoint: Checkpoint,
    rows: RowsGiven,
    *,
    drugs: DrugsGiven | None,
    responses: ResponsesGiven | None,
    patients: str | Path | None,
    reading: Mapping[str, Any],
) -> Explained:
    """Return rows in the form of their family of models.

    Raises
    ------
    InputError
        The rows are not what the model reads, arguments are for another family, or as the family says.
    """
    if patients is not None and isinstance(checkpoint.model, ExpressionNetwork | PairNetwork):
        raise InputError(
            f"patients= names a run of finetune_patients, whose encoder the checkpoint is; {checkpoint.name} is no "
            "encoder. Give the encoder's checkpoint."
        )
    if isinstance(checkpoint.model, PairNetwork):
        if drugs is None:
            raise InputError(
                f"{checkpoint.name} is a network over pairs of samples and drugs: give the drugs with drugs= (--drugs)."
            )
        _require_options(reading, read_pairs, "predict_response")
        return ExplainedPairs.of(request, checkpoint, rows, drugs, responses=responses, **reading)
    if drugs is not None or responses is not None:
        name = "responses" if drugs is None else "drugs"
        raise InputError(f"{name}= is for a network of drug response, and {checkpoint.name} is none. Leave it out.")
    if isinstance(checkpoint.model, ExpressionNetwork):
        _require_options(reading, read_scaled, "predict")
        given: Any = rows
        return ExplainedSamples.of(request, checkpoint, given, **reading)
    if reading:
        raise InputError(
            f"reading= says how a matrix is read, and {checkpoint.name} reads tokenised cells. Leave it out."
        )
    if not isinstance(rows, TokenizedDataset):
        raise InputError(
            f"{checkpoint.name} reads tokenised cells, found {type(rows).__name__}. Give what tokenize makes, opened "
            "with TokenizedDataset.open."
        )
    if patients is not None:
        return ExplainedPatients(request, checkpoint, rows, Path(patients))
    return CellsExplained(request, checkpoint, rows)


def again_of(
    why: Explanation,
    checkpoint: Checkpoint,
    rows: RowsGiven,
    draw: Callable[[np.ndarray], Sequence[str]],
    *,
    drugs: DrugsGiven | None,
    responses: ResponsesGiven | None,
    patients: str | Path | None,
    reading: Mapping[str, Any],
) -> Again[Any]:
    """Return some rows of an explanation, to be asked again.

    Parameters
    ----------
    why, checkpoint, rows, drugs, responses, patients, reading
        The explanation, and what `explain` was given.
    draw
        Chooses rows by their names.

    Raises
    ------
    InputError
        The rows are not of the family that was explained, or as the family says.
    """
    if (why.metadata.get("family") == "patients") != (patients is not None):
        said = "of patients: name the run" if patients is None else "of no patients: leave out the run"
        raise InputError(f"The explanation is {said} of finetune_patients, patients= (--patients).")
    usual = usual_choices(checkpoint)
    learned = None if checkpoint.head is None else checkpoint.head.targets
    targets = learned or () if patients is None else BagNetwork.open(patients).targets
    methods = [method for method in why.methods if method != "surrogate"] or usual["methods"]
    explained = explained_by(
        request_of(why, targets, methods, baseline=usual["baseline"]),
        checkpoint, rows, drugs=drugs, responses=responses, patients=patients, reading=reading,
    )  # fmt: skip
    names = draw(explained.names)
    if isinstance(explained, ExplainedPatients):
        return PatientsAgain(why, explained, names, checkpoint)
    if isinstance(explained, CellsExplained):
        assert isinstance(rows, TokenizedDataset)
        return CellsAgain(why, explained, names, checkpoint, rows)
    assert isinstance(explained, ExplainedSamples | ExplainedPairs)
    return again_by_values(why, explained, names)


def _require_options(reading: Mapping[str, Any], read: Callable[..., object], like: str) -> None:
    """Refuse options of reading that there are not."""
    known = [name for name, of in inspect.signature(read).parameters.items() if of.kind is of.KEYWORD_ONLY]
    for name in reading:
        if name not in known:
            raise InputError(f"reading= takes options of {like}, and there is no {name!r}. {did_you_mean(name, known)}")
