"""Samples, and pairs of samples and drugs, asked again: genes get other values, and characters other vectors.

Two values take a gene away, the median (of the sample's cohort, or of the samples) and the mean of the training
samples, so that a method which uses the one is judged by the other. Of characters these are the mean of all
characters' vectors, and padding's.

Shapes: N altered rows, G genes, I columns that a network reads, T positions of a SMILES, E length of a character's
vector.
"""

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.again import NOT_FITTED, Again, RowUnits, Show, Taking
from geneformer_repro.in_silico.explanations.again_cells import TAKINGS, altering
from geneformer_repro.in_silico.explanations.agreement import MEAN_CHARACTER, PADDING, NamedUnits
from geneformer_repro.in_silico.explanations.explained_pairs import ExplainedPairs, vector_of_no_character
from geneformer_repro.in_silico.explanations.explained_samples import ExplainedSamples
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_table import Attributions
from geneformer_repro.in_silico.explanations.pair_occlusions import answers
from geneformer_repro.in_silico.explanations.removal import BY_PLACE, BY_VALUE, Altered
from geneformer_repro.in_silico.explanations.sanity import (
    PERMUTED_LABELS,
    fit_dealt,
    forgetting,
    labels_to_deal,
    read_by,
)
from geneformer_repro.pair_networks import Side
from geneformer_repro.reading import evaluating

_AT_ONCE = 256
"""Altered rows."""
_OF_GENES = (
    Taking("median", "removal"), Taking("mean", "removal"), Taking("median", "insertion"), Taking("mean", "insertion")
)  # fmt: skip
_OF_CHARACTERS = (
    Taking(MEAN_CHARACTER, "removal", of_characters=True), Taking(PADDING, "removal", of_characters=True)
)  # fmt: skip


class _ValuesAgain(Again[Checkpoint]):
    """What samples and pairs have in common: the model is a checkpoint of a network that reads values."""

    takings = _OF_GENES
    _explained: Any

    def given(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return it."""
        return checkpoint

    def explained_by(self, model: Checkpoint) -> Any:
        """Return the rows by another network."""
        return self._explained.of_model(model)

    def forgetting(self, seed: int) -> Iterator[tuple[str, Checkpoint]]:
        """Yield networks whose layers were drawn anew."""
        return forgetting(self._explained.checkpoint, seed=seed)

    def answers(self, taking: Taking, state: int, altered: Iterator[Altered], show: Show) -> np.ndarray:
        """Return what the network says of altered rows, (N,)."""
        values = []
        while some := list(islice(altered, _AT_ONCE)):
            values.append(self._answered(taking, state, some))
            show(len(some))
        return np.concatenate(values)

    @abstractmethod
    def _answered(self, taking: Taking, state: int, altered: Sequence[Altered]) -> np.ndarray:
        """Return what the network says of some altered rows."""


class SamplesAgain(_ValuesAgain):
    """Samples of an expression network."""

    _explained: ExplainedSamples

    @property
    def states(self) -> Sequence[str]:
        """What the numbers explained are called."""
        return self._explained.function.answer.names

    def _there(self, number: int) -> np.ndarray:
        there_NI = self._explained.samples.is_there_NI
        return np.flatnonzero(there_NI[self.rows[number], self._explained.function.genes])

    def units(self, number: int, state: int, taking: Taking) -> RowUnits:
        """Return the genes that a sample has a value of."""
        there = self._there(number)
        scaled_G = self._explained.samples.scaled_NI[self.rows[number], self._explained.function.genes]
        names = [self._explained.gene_ids[i] for i in there]
        return RowUnits(names, np.arange(len(there)), {BY_VALUE: np.abs(scaled_G[there].astype(float))})

    def _answered(self, taking: Taking, state: int, altered: Sequence[Altered]) -> np.ndarray:
        explained = self._explained
        numbers = self.rows[[number for number, _ in altered]]
        scaled_NI = explained.samples.scaled_NI[numbers]
        first = explained.function.genes.start
        for row, (number, places) in zip(scaled_NI, altered, strict=True):
            genes = self._there(number)[places]
            row[first + genes] = explained.median_NG[self.rows[number], genes] if taking.operator == "median" else 0
        return explained.function.values(scaled_NI)[:, state]

    def permuted(self, seed: int, *, required: bool) -> Checkpoint | None:
        """Return a network whose last layer was fitted to permuted labels; what led past it leads nowhere."""
        explained = self._explained
        answer, network = explained.function.answer, copy.deepcopy(explained.function.network)
        rows, labels = labels_to_deal(answer.target, explained.samples.obs)
        if not len(rows):
            if required:
                raise InputError(
                    NOT_FITTED.format(what=f"an expression network, {answer.target.name!r}, in obs", rows="samples")
                )
            return None
        vectors = read_by(network.classifier, lambda: network.outputs(explained.samples.scaled_NI[rows]))
        fit_dealt(network.classifier, network.head.targets, answer.number, vectors, labels, seed=seed)
        start = sum(target.n_outputs for target in network.head.targets[: answer.number])
        with torch.no_grad():
            for path in network.skip.values():
                path.weight[start : start + answer.target.n_outputs] = 0  # type: ignore[operator]
        return Checkpoint(network.eval(), explained.checkpoint.vocabulary, name=PERMUTED_LABELS)


class PairsAgain(_ValuesAgain):
    """Samples with drugs, of a network of drug response; a number explained is the response to one drug."""

    _explained: ExplainedPairs

    @property
    def takings_here(self) -> Sequence[Taking]:
        """Those of genes, and those of characters, where the network reads them."""
        network = self._explained.checkpoint.pair_network
        of_genes: Sequence[Taking] = _OF_GENES if self._explained.by_tokens is None else TAKINGS
        return (*of_genes, *(_OF_CHARACTERS if network.drugs.kind == "smiles" else ()))

    @property
    def readable(self) -> Attributions:
        """The rows of the explanation, each unit with a name in column ``gene``."""
        return NamedUnits(self.why)

    @property
    def all_methods(self) -> Sequence[str]:
        """Of `readable`."""
        return tuple(self.readable.metadata["methods"])

    def explained(self, model: Checkpoint, show: Show) -> Attributions:
        """Return the same pairs by the same methods, of another network."""
        return NamedUnits(super().explained(model, show))

    @property
    def states(self) -> Sequence[str]:
        """Names of the drugs."""
        return [self._explained.asked.drugs.names[drug] for drug in self._explained.drugs]

    def _sample(self, number: int) -> int:
        chunks = len(self._explained.names) // len(self._explained.samples)
        return int(self._explained.samples[self.rows[number] // chunks])

    def units(self, number: int, state: int, taking: Taking) -> RowUnits:
        """Return the genes of a sample, or the characters of a drug."""
        explained, network = self._explained, self._explained.checkpoint.pair_network
        if taking.of_characters:
            there = np.flatnonzero(explained.asked.sides.drugs[explained.drugs[state]] > 0)
            return RowUnits([str(place) for place in there], np.arange(len(there)), {BY_PLACE: -there.astype(float)})
        if explained.by_tokens is not None:
            genes = explained.by_tokens.ids(self._sample(number))
            return RowUnits(genes, np.arange(len(genes)), {BY_PLACE: -np.arange(len(genes), dtype=float)})
        assert network.scale is not None
        assert explained.asked.sides.values_SG is not None
        size_G = np.abs(explained.asked.sides.values_SG[self._sample(number)].astype(float))
        return RowUnits(network.scale.names["expression"], np.arange(len(size_G)), {BY_VALUE: size_G})

    def _answered(self, taking: Taking, state: int, altered: Sequence[Altered]) -> np.ndarray:
        if self._explained.by_tokens is not None and not taking.of_characters:
            return self._answered_by_tokens(taking, state, altered)
        sides, network = self._explained.asked.sides, self._explained.checkpoint.pair_network
        samples = np.array([self._sample(number) for number, _ in altered])
        ids = torch.from_numpy(sides.drugs[[self._explained.drugs[state]]])
        values_NG = None if sides.values_SG is None else sides.values_SG[samples]
        if values_NG is not None and not taking.of_characters:
            instead_G = self._explained.median_G if taking.operator == "median" else np.zeros_like(values_NG[0])
            for row, (_, places) in zip(values_NG, altered, strict=True):
                row[places] = instead_G[places]
        with evaluating(network) as device:
            values = None if values_NG is None else torch.from_numpy(values_NG).to(device)
            pooled = None if sides.cells is None else sides.vectors_of(network, samples, device)
            number_N = torch.arange(len(altered), device=device)
            drug_N = number_N if taking.of_characters else torch.zeros_like(number_N)
            of_drugs = self._altered_drugs(taking, ids.to(device), altered)
            pairs_N2 = torch.stack([number_N, drug_N], dim=1)
            return answers(network, network.of_samples(values, pooled), of_drugs, pairs_N2).numpy(force=True)

    def _answered_by_tokens(self, taking: Taking, state: int, altered: Sequence[Altered]) -> np.ndarray:
        tokens = self._explained.by_tokens
        assert tokens is not None
        alter = altering(taking, self._explained.checkpoint.vocabulary)
        view_of = {number: tokens.view(self._sample(number)) for number in {number for number, _ in altered}}
        views = [alter(view_of[number], places) if len(places) else view_of[number] for number, places in altered]
        return tokens.answers(views, int(self._explained.drugs[state]), lambda n: None)

    def _altered_drugs(self, taking: Taking, ids_1T: torch.Tensor, altered: Sequence[Altered]) -> Side:
        """Return what is made of the drug, or of its altered forms."""
        network = self._explained.checkpoint.pair_network
        if not taking.of_characters:
            return network.of_drugs(ids_1T)
        instead_E = vector_of_no_character(network, padding=taking.operator == PADDING)
        embedded_NTE = network.embedded(ids_1T).repeat(len(altered), 1, 1)
        there = np.flatnonzero(ids_1T[0].numpy(force=True) > 0)
        for row_TE, (_, places) in zip(embedded_NTE, altered, strict=True):
            row_TE[there[places]] = torch.from_numpy(instead_E).to(row_TE)
        return network.of_drugs(ids_1T.expand(len(altered), -1), embedded_NTE)

    def permuted(self, seed: int, *, required: bool) -> Checkpoint | None:
        """Return a network whose output was fitted to responses that were dealt to pairs anew.

        Where it learned what is beyond mean effects, the responses are taken beyond their drug's mean.
        """
        explained, network = self._explained, copy.deepcopy(self._explained.checkpoint.pair_network)
        if explained.responses is None:
            if required:
                raise InputError(NOT_FITTED.format(what="a network of drug response", rows="responses (responses=)"))
            return None
        pairs_2P, true_P = explained.known
        if network.shape.residual:
            of_drug = pd.Series(true_P).groupby(pairs_2P[1]).transform("mean").to_numpy()
            true_P = true_P - of_drug + network.target.mean
        if len(set(true_P.tolist())) < 2:
            return None
        naive_P = np.full(len(true_P), network.target.mean)
        sides = explained.asked.sides
        vectors = read_by(network.output, lambda: sides.outputs(network, pairs_2P.T, naive_P))
        fit_dealt(network.output, network.head.targets, 0, vectors, true_P, seed=seed)
        return Checkpoint(network.eval(), explained.checkpoint.vocabulary, name=PERMUTED_LABELS)


def again_by_values(
    why: Explanation, explained: ExplainedSamples | ExplainedPairs, names: Sequence[str]
) -> SamplesAgain | PairsAgain:
    """Return samples, or pairs, to be asked again."""
    if isinstance(explained, ExplainedPairs):
        return PairsAgain(why, explained, names)
    return SamplesAgain(why, explained, names)
