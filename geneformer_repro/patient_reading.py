"""Patients whose cells a network of bags is asked about: whose each cell is, of which type, and what the run learned.

The folder that `finetune_patients` wrote says which columns name patients and types of cells, and which vectors the
network learned. A bag network takes any vectors of the right length, and on those of another encoder it would give
numbers that mean nothing, so the encoder must be the one of the run.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from geneformer_repro.bags import BagNetwork, Bags
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import read_json
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.placeholders import warn_of_no_donors

logger = logging.getLogger(__name__)

RECORD = "provenance.json"
"""Of a run's folder."""


@dataclass(frozen=True, eq=False)
class ReadPatients:
    """Patients and their cells, which have no vectors yet."""

    patients: np.ndarray
    """Name of each."""
    bags: Bags
    """The cells, patient after patient."""
    cell_rows: np.ndarray
    """Which cell of those that were given each is."""
    cell_types: tuple[str, ...]
    """What the types of the bags are called; empty where none are given."""


def read_patients(
    obs: pd.DataFrame, usable: np.ndarray, network: BagNetwork, *, patient: str, cell_type: str | None
) -> ReadPatients:
    """Tell whose each cell is, and of which of the network's types.

    Parameters
    ----------
    obs
        Of all cells.
    usable
        Which cells have a vector.
    network
        Whose cell types, where it tells them apart, these are.
    patient, cell_type
        Columns of `obs`; the second may be None where the network tells no types apart.

    Raises
    ------
    InputError
        A column is missing, or no cell of a patient is usable.
    """
    patient_of = patients_of(obs, patient)
    patients = np.array(sorted(set(patient_of.dropna())), dtype=object)
    number_of = pd.Index(patients).get_indexer(patient_of)
    if types := network.shape.cell_types:
        if cell_type is None:
            raise InputError("The network pools cells within their types; name the obs column: cell_type=.")
        labels = as_labels(column_of(obs, cell_type))
        type_of = pd.Index(types).get_indexer(pd.Index(labels))
        if n_new := int((labels.notna() & (type_of < 0)).sum()):
            logger.info("%s: %d cells are of types that the network does not know.", cell_type, n_new)
    else:
        types, type_of = types_of(obs, cell_type, (number_of >= 0) & usable)
    return ReadPatients(patients, *bagged(patients, number_of, usable, type_of), types)


def patients_of(obs: pd.DataFrame, column: str) -> pd.Series:
    """Return the patient of each cell, and count those that have none."""
    patient_of = as_labels(column_of(obs, column))
    if nameless := int(patient_of.isna().sum()):
        logger.info("%s: %d cells have no patient; left out.", column, nameless)
    warn_of_no_donors(patient_of, column)
    return patient_of


def bagged(
    patients: np.ndarray, number_of: np.ndarray, usable: np.ndarray, type_of: np.ndarray
) -> tuple[Bags, np.ndarray]:
    """Return the bags of patients, without vectors, and which cells they hold, patient after patient.

    `number_of` is the number of each cell's patient, -1 for none of these.
    """
    used = (number_of >= 0) & usable
    lengths = np.bincount(number_of[used], minlength=len(patients))
    if not lengths.all():
        empty = int(np.flatnonzero(lengths == 0)[0])
        raise InputError(
            f"None of the {(number_of == empty).sum()} cells of patient {patients[empty]!r} has a gene, so there is "
            "nothing to learn its label from. Leave the patient out, or give more of its cells."
        )
    order = np.lexsort((type_of, number_of))
    order = order[used[order]]
    return Bags(torch.zeros(len(order), 0), lengths, type_of[order]), order


def column_of(obs: pd.DataFrame, name: str) -> pd.Series:
    """Return a column of cells; raise if there is none."""
    if name not in obs:
        raise InputError(f"The cells have no obs column {name!r}. {did_you_mean(name, map(str, obs.columns))}")
    return obs[name]


def types_of(obs: pd.DataFrame, name: str | None, used: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the cell types that occur, and the number of each cell's; -1 where it has none."""
    if name is None:
        return (), np.full(len(obs), -1)
    labels = as_labels(column_of(obs, name))
    types = tuple(sorted(set(labels[used].dropna())))
    return types, pd.Index(types).get_indexer(labels)


# What the run learned


def record_of(run: Path) -> dict[str, Any]:
    """Return what a run's folder says of how it was made; nothing where it does not."""
    record: dict[str, Any] = read_json(run / RECORD) if (run / RECORD).exists() else {}
    return record


def run_columns(run: Path, record: Mapping[str, Any], given: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the columns that were given, else those of the run."""
    columns = {name: given[name] or record.get("config", {}).get(name) for name in given}
    if columns["patient"] is None:
        raise InputError(f"{run}: has no {RECORD} that names the column of patients; name it: patient= (--patient).")
    return columns


def require_encoder(run: Path, record: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
    """Raise if the run is known to have vectors of another encoder."""
    learned = record.get("inputs", {}).get("checkpoint")
    if checkpoint is not None and learned is not None and checkpoint.fingerprint != learned:
        raise InputError(
            f"{run}: learned vectors of the checkpoint {learned[:12]}, and {checkpoint.name} is "
            f"{checkpoint.fingerprint[:12]}, whose vectors mean other things. Give the checkpoint of the run."
        )
