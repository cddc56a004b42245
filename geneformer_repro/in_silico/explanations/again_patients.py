"""Patients of an explanation asked again: a gene goes from, or comes into, all cells of a patient.

Each altered patient is read with all of its cells, so curves of patients cost as many passes of the encoder as cells
times what curves of cells cost.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from geneformer_repro.bags import BagNetwork
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.again import NOT_FITTED, Again, RowUnits, Show, Taking
from geneformer_repro.in_silico.explanations.again_cells import TAKINGS, altering
from geneformer_repro.in_silico.explanations.answers import View
from geneformer_repro.in_silico.explanations.explained_patients import LAYER, ExplainedPatients, Patient
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.occlusions import Alter
from geneformer_repro.in_silico.explanations.removal import BY_DETECTION, Altered
from geneformer_repro.in_silico.explanations.sanity import drawn_anew, fit_dealt, forgetting, labels_to_deal, read_by

NETWORK_OF_PATIENTS = "network of patients"
"""What forgets first."""


class PatientModel(NamedTuple):
    """What says something of a patient."""

    encoder: Checkpoint
    network: BagNetwork


class PatientsAgain(Again[PatientModel]):
    """Patients of a network of bags."""

    takings = TAKINGS

    def __init__(
        self, why: Explanation, explained: ExplainedPatients, names: Sequence[str], checkpoint: Checkpoint
    ) -> None:
        super().__init__(why, explained, names)
        self._patients, self._encoder = explained, checkpoint
        self._read = lru_cache(maxsize=1)(self._read_patient)  # all orders of one patient come one after the other

    @property
    def states(self) -> Sequence[str]:
        """What the numbers explained are called."""
        return self._patients.answer.names

    def _read_patient(self, number: int) -> tuple[Patient, np.ndarray, np.ndarray]:
        """Return a patient with its genes, by their numbers in the vocabulary, and in how many cells each is."""
        patient = self._patients.patient_of(int(self.rows[number]))
        return (patient, *self._patients.units(patient))

    @property
    def n_read(self) -> int:
        """How often the encoder is run to answer each patient once."""
        return int(self._patients.n_cells[self.rows].sum())

    def units(self, number: int, state: int, taking: Taking) -> RowUnits:
        """Return the genes of a patient's cells."""
        _, genes, n_expressing = self._read(number)
        names = [self._patients.unit_names[gene] for gene in genes]
        return RowUnits(names, np.arange(len(genes)), {BY_DETECTION: n_expressing.astype(float)})

    def answers(self, taking: Taking, state: int, altered: Iterator[Altered], show: Show) -> np.ndarray:
        """Return what the network says of altered patients, (N,)."""
        alter = self._altering(taking)
        values = []
        for number, of_patient in groupby(altered, key=lambda one: one[0]):
            patient, genes, _ = self._read(number)
            groups = [genes[places] for _, places in of_patient]
            values.append(self._patients.without(patient, groups, alter, show)[:, state])
        return np.concatenate(values)

    def _altering(self, taking: Taking) -> Alter:
        """Return what is done to a cell; one that would lose all of its genes becomes one of ``<mask>`` alone."""
        vocabulary = self._encoder.vocabulary
        alter = altering(taking, vocabulary)
        whole = altering(Taking("mask", "insertion"), vocabulary)

        def altered(view: View, places: np.ndarray) -> View:
            return (whole if len(places) == view.n_genes else alter)(view, places)

        return altered

    def explained_by(self, model: PatientModel) -> ExplainedPatients:
        """Return the patients by another model."""
        return self._patients.of_model(*model)

    def given(self, checkpoint: Checkpoint) -> PatientModel:
        """Raise: a network of patients is no checkpoint."""
        raise InputError(
            "permuted= names a checkpoint, and what patients are explained by is a run of finetune_patients. Give "
            "permuted=True, which fits the last layer of its network to permuted labels."
        )

    def forgetting(self, seed: int) -> Iterator[tuple[str, PatientModel]]:
        """Yield models: first the network of patients is drawn anew, then the encoder from the top down, too.

        The last block, which the network does not read, is passed over.
        """
        network = self._patients.network
        fresh = drawn_anew(network, seed)
        yield NETWORK_OF_PATIENTS, PatientModel(self._encoder, fresh)
        n_read = self._encoder.token_model.config.num_hidden_layers + LAYER
        for name, encoder in forgetting(self._encoder, seed=seed):
            block = name.rpartition("block ")[2]
            if name != "head" and not (block.isdigit() and int(block) > n_read):
                yield name, PatientModel(encoder, fresh)

    def permuted(self, seed: int, *, required: bool) -> PatientModel | None:
        """Return the encoder, and a network whose last layer was fitted to permuted labels of these patients."""
        explained, network = self._patients, copy.deepcopy(self._patients.network)
        rows, labels = labels_to_deal(explained.answer.target, explained.obs_of_patients())
        if not len(rows):
            if required:
                what = f"a network of patients, {explained.answer.target.name!r}, in obs of the cells"
                raise InputError(NOT_FITTED.format(what=what, rows="cells"))
            return None

        def run() -> None:
            with torch.no_grad():
                for row in rows:
                    patient = explained.patient_of(int(row))
                    network(patient.bags(patient.vector_ND[None]))

        vectors = read_by(network.classifier, run)
        fit_dealt(network.classifier, network.targets, explained.answer.number, vectors, labels, seed=seed)
        return PatientModel(self._encoder, network.eval())
