"""Why a network over pairs says that a drug works, or does not: what each gene of the sample adds, and each character.

A pair is explained with its drug fixed, by genes, and with its sample fixed, by the characters of the drug's SMILES;
the two add up apart. A network that learned a residual is explained without the mean effects: that a drug is potent in
all samples, neither genes nor characters of this pair have decided.

Characters are vectors, and have no zero: ways begin at the mean of all known characters' vectors, or at that of
padding, which in networks that only convolve is the empty SMILES.

Shapes: P pairs, S samples, G genes, T positions of a SMILES, E length of a character's vector.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.drugs import PADDING, UNKNOWN, Drugs
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.identities import same_samples
from geneformer_repro.in_silico.explanations import pair_tokens
from geneformer_repro.in_silico.explanations.cell_methods import Gaps
from geneformer_repro.in_silico.explanations.explained import Explained, drawn
from geneformer_repro.in_silico.explanations.explained_samples import require_methods
from geneformer_repro.in_silico.explanations.gene_table import MOST_GAP
from geneformer_repro.in_silico.explanations.how_good import of_numbers
from geneformer_repro.in_silico.explanations.pair_occlusions import answers, lost_by_characters, lost_by_genes
from geneformer_repro.in_silico.explanations.pair_tokens import TokenGenes
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.in_silico.explanations.unit_rows import Units, unit_rows
from geneformer_repro.pair_derivatives import (
    gradient_input,
    gradient_input_of_characters,
    integrated_gradients,
    integrated_gradients_of_characters,
)
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.pair_reading import AskedPairs, read_pairs
from geneformer_repro.reading import evaluating
from geneformer_repro.responses import Responses, read_responses
from geneformer_repro.tokenizer.dataset import TokenizedDataset

METHODS_OF_VALUES = ("integrated_gradients", "gradient_input", "median", "mask", "attention")
METHODS = tuple(dict.fromkeys([*METHODS_OF_VALUES, *pair_tokens.METHODS]))
Baseline: TypeAlias = Literal["mean", "median", "pad"]
TOLERANCE, TOLERANCE_OF_CHARACTERS = 1e-3, 1e-2
"""Of the completeness of integrated gradients; convolutions have so many bends that 1e-3 takes 500 passes a pair."""
_DRUGS_A_ROW = 16
"""Drugs with which a sample is explained at once."""
_OF_GENES = ("integrated_gradients", "gradient_input", "median", "attention")
_OF_CHARACTERS = ("integrated_gradients", "gradient_input", "mask", "attention")


@dataclass(frozen=True, eq=False)
class ExplainedPairs(Explained):
    """Samples, each with some drugs, to be explained part by part."""

    rows_are = "samples with up to 16 drugs"
    request: Request
    checkpoint: Checkpoint
    asked: AskedPairs
    samples: np.ndarray
    """Numbers of those that are explained."""
    drugs: np.ndarray
    """Numbers of those that they are explained with."""
    median_G: np.ndarray
    """Median of each gene over the samples, on the network's scale; empty where none is read."""
    start_E: np.ndarray
    """The vector of characters at which ways begin; empty where none are read."""
    responses: Responses | None = None
    """What is known of pairs, to say how good the network is."""

    @classmethod
    def of(
        cls,
        request: Request,
        checkpoint: Checkpoint,
        samples: TokenizedDataset | ad.AnnData | pd.DataFrame | str | Path,
        drugs: Drugs | pd.DataFrame | str | Path,
        *,
        responses: Responses | pd.DataFrame | str | Path | None = None,
        **how: Any,
    ) -> "ExplainedPairs":
        """Read samples and drugs, and find what is explained of them.

        Parameters
        ----------
        request
            What is asked; its states are names of drugs, default all. "median" is of genes alone (the median of the
            samples instead of a gene's value), "mask" of characters alone (the baseline's vector instead of a
            character's); "attention" tells what the network looks at, where it does. The baseline is "mean" (a sample
            of mean expression, and characters that all have the mean vector), "median" (that of the samples, for
            genes), or "pad" (for characters the vector of padding). Genes that are read as tokens are explained by
            methods of cells ("hide", "delete", "mask" …); their baseline may be "mask", "mean" or "pad".
        checkpoint
            A network that `finetune_response` made.
        samples, drugs, how
            As `predict_response` takes them.
        responses
            What is known of the pairs, in the network's measure: then it is said how good the network is.

        Raises
        ------
        InputError
            A method or drug is unknown, the network reads nothing that a method is of, or it has learned the pairs.
        """
        network = checkpoint.pair_network
        what, baselines = "a network of drug response", get_args(Baseline)
        if reads_tokens_alone(network):
            require_methods(request, METHODS, ("mean", "pad", "mask"), f"{what} that reads tokens alone")
        else:
            require_methods(request, METHODS_OF_VALUES, baselines, what)
        given = [name for name in ("target", "contrast", "donor", "sets") if getattr(request, name) is not None]
        if given or request.obs:
            raise InputError(
                f"{(given or ['obs'])[0]}= is not for drug response: what is explained is the response to each drug, "
                "and every sample is a replicate. Leave it out; state= names drugs."
            )
        asked = read_pairs(checkpoint, samples, drugs, **how)
        wanted = asked.drugs.names if request.states is None else request.states
        for name in wanted:
            if name not in asked.drugs.names:
                raise InputError(f"There is no drug {name!r}. {did_you_mean(name, asked.drugs.names)}")
        numbers = np.array([asked.drugs.names.index(name) for name in wanted])
        rows = drawn(np.arange(len(asked.names)), request.max_cells, np.random.default_rng(request.seed))
        if not request.allow_seen:
            _refuse_learned(checkpoint, asked, rows, numbers)
        median_G, start_E = np.zeros(0, np.float32), np.zeros(0, np.float32)
        if asked.sides.values_SG is not None:
            median_G = np.median(asked.sides.values_SG, axis=0).astype(np.float32)
        if network.drugs.kind == "smiles":
            start_E = vector_of_no_character(network, padding=request.baseline == "pad")
        if responses is not None and not isinstance(responses, Responses):
            responses = read_responses(responses, measure=network.target.measure, drugs=asked.drugs)
        made = cls(request, checkpoint, asked, rows, numbers, median_G, start_E, responses)
        made._require_something_to_explain(network)
        return made

    def _require_something_to_explain(self, network: PairNetwork) -> None:
        for method in self.request.methods:
            if not (self._is_of_genes(method) or self._is_of_characters(method)):
                raise InputError(
                    f"{self.checkpoint.name} ({network!r}) has nothing that {method!r} is of: 'median' needs a network "
                    "that reads expression of genes, 'mask' one that reads characters of SMILES, 'attention' one that "
                    "chooses characters by attention."
                )

    @property
    def names(self) -> np.ndarray:
        """Name of the sample of each row."""
        return np.repeat(self.asked.names[self.samples], len(self._chunks))

    def of_model(self, checkpoint: Checkpoint) -> "ExplainedPairs":
        """Return the same pairs, of another network that reads the same."""
        start_E, network = self.start_E, checkpoint.pair_network
        if len(start_E):
            start_E = vector_of_no_character(network, padding=self.request.baseline == "pad")
        return dataclasses.replace(self, checkpoint=checkpoint, start_E=start_E)

    @property
    def _network(self) -> PairNetwork:
        return self.checkpoint.pair_network

    @cached_property
    def by_tokens(self) -> TokenGenes | None:
        """How genes are explained where the network reads them as tokens; None where it reads their values."""
        sides = self.asked.sides
        if not reads_tokens_alone(self._network):
            return None
        assert sides.cells is not None
        methods = tuple(method for method in self.request.methods if method in pair_tokens.METHODS)
        request = dataclasses.replace(self.request, methods=methods or ("hide",))
        return TokenGenes(request, self._network, sides.cells, sides.drugs)

    def _is_of_genes(self, method: str) -> bool:
        shape = self._network.shape
        if reads_tokens_alone(self._network):
            return method in pair_tokens.METHODS
        if method == "attention":
            return shape.model == "paccmann" and shape.fusion == "attention" and not shape.sample_layers
        return method in _OF_GENES and shape.reads_expression

    def _is_of_characters(self, method: str) -> bool:
        if method == "attention" and self._network.shape.fusion != "attention":
            return False
        return method in _OF_CHARACTERS and self._network.drugs.kind == "smiles"

    @property
    def _chunks(self) -> list[np.ndarray]:
        return [self.drugs[start : start + _DRUGS_A_ROW] for start in range(0, len(self.drugs), _DRUGS_A_ROW)]

    def costs(self) -> np.ndarray:
        """Return about how many values of genes and characters are computed with, for each sample and some drugs."""
        n_genes = len(self._network.scale.names["expression"]) if self._network.scale is not None else 0
        n_units = n_genes + self._network.drugs.n_positions
        passes = {"integrated_gradients": 32, "gradient_input": 2, "median": 32, "mask": 8, "attention": 1}
        a_pair = n_units * sum(passes.get(method, 0) for method in self.request.methods)
        of_chunks = np.array([a_pair * len(chunk) for chunk in self._chunks])
        if self.by_tokens is None:
            return np.tile(of_chunks, len(self.samples))
        of_tokens = [[self.by_tokens.work(s, len(chunk)) for chunk in self._chunks] for s in self.samples.tolist()]
        return (of_chunks + np.array(of_tokens)).ravel()

    def describe(self) -> dict[str, Any]:
        """Say what is explained and how, as JSON can hold it; all inputs by content."""
        network, sides = self._network, self.asked.sides
        digest = hashlib.sha256("\n".join([*self.asked.names, *self.asked.drugs.names]).encode())
        for read in (sides.values_SG, sides.drugs, self.samples, self.drugs):
            digest.update(b"" if read is None else np.ascontiguousarray(read).tobytes())
        digest.update((sides.cells.fingerprint if sides.cells is not None else "").encode())
        settings: dict[str, dict[str, Any]] = {
            "integrated_gradients": {
                "baseline": self.request.baseline,
                "tolerance": TOLERANCE,
                "tolerance_of_characters": TOLERANCE_OF_CHARACTERS,
            },
            "gradient_input": {"baseline": self.request.baseline},
            "median": {"operator": "the median of the samples instead of a gene's value"},
            "mask": {"operator": "the baseline's vector instead of a character's", "baseline": self.request.baseline},
            "attention": {"of": "mean over heads and widths of convolution"},
        }
        if reads_tokens_alone(network):
            of_tokens = self.request.settings()
            settings = {method: settings.get(method, {}) | of_tokens[method] for method in self.request.methods}
        beyond = ", beyond its mean effects" if network.shape.residual else ""
        return {
            "family": "pairs",
            **({"genes_by": "tokens"} if reads_tokens_alone(network) else {}),
            "measure": f"predicted {network.target.measure} of the drug in column state{beyond}",
            "target": network.target.name,
            "states": [self.asked.drugs.names[drug] for drug in self.drugs],
            "methods": {method: settings[method] for method in self.request.methods},
            "smiles": {self.asked.drugs.names[drug]: self.asked.drugs.smiles[drug] for drug in self.drugs},
            "donor": None,
            "obs": list(self._further),
            "seed": self.request.seed,
            "checkpoint": self.checkpoint.fingerprint,
            "rows": digest.hexdigest(),
            "n_cells": len(self.samples),
        }

    def prepare(self) -> dict[str, Any]:
        """See how good the network is, where responses are known: within drugs, whose potency is no merit of a pair."""
        if self.responses is None:
            return {"how_good": None}
        (sample_P, drug_P), true_P = self.known
        table = pd.DataFrame({"true": true_P, "predicted": self._predicted(sample_P, drug_P), "drug": drug_P})
        beyond = table[["true", "predicted"]] - table.groupby("drug")[["true", "predicted"]].transform("mean")
        if not len(beyond):
            return {"how_good": None}
        how_good = of_numbers(beyond["true"].to_numpy(), beyond["predicted"].to_numpy(), sample_P)
        how_good |= {"score": "Pearson correlation within drugs", "replicates": "samples"}
        return {"how_good": how_good}

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of sample and drug of pairs that are explained and whose response is known, (2, P), and these."""
        assert self.responses is not None
        if self.responses.measure != self._network.target.measure:
            raise InputError(
                f"The responses are {self.responses.measure}, and {self.checkpoint.name} tells "
                f"{self._network.target.measure}. Give them in its measure."
            )
        known = self.responses.join([*self.asked.names], self.asked.drugs)
        is_asked = np.isin(known.pairs[:, 0], self.samples) & np.isin(known.pairs[:, 1], self.drugs)
        return known.pairs[is_asked].T, known.values[is_asked]

    def _predicted(self, sample_P: np.ndarray, drug_P: np.ndarray) -> list[float]:
        said = {int(sample): self.before(int(sample), self.drugs) for sample in np.unique(sample_P)}
        place = {int(drug): i for i, drug in enumerate(self.drugs)}
        return [said[int(sample)][place[int(drug)]] for sample, drug in zip(sample_P, drug_P, strict=True)]

    @property
    def columns_for_metadata(self) -> list[str]:
        """Columns that `further` needs."""
        return ["cell", "method", "gap"]

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return names of genes, and how completely integrated gradients add up."""
        scale, vocabulary = self._network.scale, self.checkpoint.vocabulary
        named = zip(vocabulary.gene_ids, vocabulary.gene_names, strict=True)
        if scale is not None:
            named = zip(scale.names["expression"], scale.gene_names, strict=True)
        gaps = Gaps(MOST_GAP)
        for table in tables:
            gaps.add(table)
        return {"gene_names": {gene: name or gene for gene, name in named}, **gaps.said()}

    @property
    def _further(self) -> dict[str, pa.DataType]:
        return {"character": pa.string()} if self._network.drugs.kind == "smiles" else {}

    def table(self, part: np.ndarray, show: Callable[[int], object] = lambda n: None) -> pa.Table:
        """Return the rows of some samples, each with some drugs.

        Parameters
        ----------
        part
            Their numbers.
        show
            Called with the number of those that are done.
        """
        tables = []
        for row in part:
            sample, chunk = divmod(int(row), len(self._chunks))
            drugs = self._chunks[chunk]
            tables += list(self._rows(int(self.samples[sample]), drugs))
            show(1)
        return pa.concat_tables(tables).combine_chunks()

    def _rows(self, sample: int, drugs: np.ndarray) -> Iterator[pa.Table]:
        before_D = self.before(sample, drugs)
        found = [
            (method, units, of_units(method, sample, drugs))
            for method in self.request.methods
            for units, is_of, of_units in (
                (self._genes, self._is_of_genes, self.by_genes),
                (self._characters, self._is_of_characters, self.by_characters),
            )
            if is_of(method)
        ]
        name = str(self.asked.names[sample])
        for i, drug in enumerate(drugs):
            for method, units_of, (value_DU, gap_D) in found:
                units, kept = units_of(sample, drug)
                said: dict[str, Any] = {"row": name, "donor": name, "method": method, "further": self._further}
                said |= {"exact": method not in ("attention", *pair_tokens.APPROXIMATE)}
                said |= {"gap_S": None if gap_D is None else gap_D[i : i + 1]}
                states, before_S = [self.asked.drugs.names[drug]], before_D[i : i + 1]
                yield unit_rows(units, value_DU[i, kept][:, None], states, before_S, **said)

    def _genes(self, sample: int, drug: int) -> tuple[Units, np.ndarray]:
        if self.by_tokens is not None:
            there = self.by_tokens.ids(sample)
            return Units(genes=there, places=np.arange(len(there), dtype=np.int32)), np.arange(len(there))
        assert self._network.scale is not None
        genes = self._network.scale.names["expression"]
        return Units(genes=genes), np.arange(len(genes))

    def _characters(self, sample: int, drug: int) -> tuple[Units, np.ndarray]:
        there = np.flatnonzero(self.asked.sides.drugs[drug] > 0)
        smiles = self.asked.drugs.smiles[drug]
        assert smiles is not None
        return Units(places=there.astype(np.int32), others={"character": [smiles[i] for i in there]}), there

    # Values, of a sample and some drugs

    def before(self, sample: int, drugs: np.ndarray) -> np.ndarray:
        """Return what is explained, (drugs,)."""
        sides, network = self.asked.sides, self._network
        with evaluating(network) as device:
            values = None if sides.values_SG is None else torch.from_numpy(sides.values_SG[[sample]]).to(device)
            pooled = None if sides.cells is None else sides.vectors_of(network, np.array([sample]), device)
            read = network.of_drugs(torch.from_numpy(sides.drugs[drugs]).to(device))
            pairs = torch.stack([torch.zeros(len(drugs), dtype=torch.long), torch.arange(len(drugs))], dim=1)
            return answers(network, network.of_samples(values, pooled), read, pairs.to(device)).numpy(force=True)

    def by_genes(self, method: str, sample: int, drugs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the values of genes, (drugs, G), and gaps of integrated gradients, (drugs,)."""
        if self.by_tokens is not None:
            found_by_tokens = self.by_tokens.attribution(method, sample, drugs)
            return found_by_tokens.value_GS.T, found_by_tokens.gap_S
        network, sides, pairs_P2 = self._network, self.asked.sides, _pairs(sample, drugs)
        assert sides.values_SG is not None
        start_SG = None
        if self.request.baseline == "median":
            start_SG = np.broadcast_to(self.median_G, sides.values_SG.shape)
        match method:
            case "integrated_gradients":
                found = integrated_gradients(network, sides, pairs_P2, baseline_SG=start_SG, tolerance=TOLERANCE)
                return found.by_gene_PG, found.gap_P
            case "gradient_input":
                return gradient_input(network, sides, pairs_P2, baseline_SG=start_SG), None
            case "median":
                return lost_by_genes(network, sides, sample, drugs, self.median_G), None
        with evaluating(network) as device:
            shares_1G = network.shares_of_genes(torch.from_numpy(sides.values_SG[[sample]]).to(device))
        assert shares_1G is not None
        return np.repeat(shares_1G.double().numpy(force=True), len(drugs), axis=0), None

    def by_characters(self, method: str, sample: int, drugs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the values of positions of SMILES, (drugs, T), and gaps of integrated gradients, (drugs,)."""
        network, sides, pairs_P2, start_E = self._network, self.asked.sides, _pairs(sample, drugs), self.start_E
        match method:
            case "integrated_gradients":
                tolerance = TOLERANCE_OF_CHARACTERS
                found = integrated_gradients_of_characters(network, sides, pairs_P2, start_E, tolerance=tolerance)
                return found.by_gene_PG, found.gap_P
            case "gradient_input":
                return gradient_input_of_characters(network, sides, pairs_P2, start_E), None
            case "mask":
                return np.stack([lost_by_characters(network, sides, sample, drug, start_E) for drug in drugs]), None
        with evaluating(network) as device:
            values = None if sides.values_SG is None else torch.from_numpy(sides.values_SG[[sample]]).to(device)
            pooled = None if sides.cells is None else sides.vectors_of(network, np.array([sample]), device)
            read = network.of_drugs(torch.from_numpy(sides.drugs[drugs]).to(device))
            numbers = torch.stack([torch.zeros(len(drugs), dtype=torch.long), torch.arange(len(drugs))], dim=1)
            of_sample = network.of_samples(values, pooled)
            return network.shares_of_characters(of_sample, read, numbers.to(device)).double().numpy(force=True), None


def reads_tokens_alone(network: PairNetwork) -> bool:
    """Whether genes of samples come to a network as tokens, and in no other way."""
    return network.shape.reads_tokens and not network.shape.reads_expression


def vector_of_no_character(network: PairNetwork, *, padding: bool) -> np.ndarray:
    """Return a vector in place of a character's, (E,): padding's, or the mean of all that are known."""
    weight_VE: np.ndarray = network.characters.embedding.weight.detach().float().cpu().numpy()
    return weight_VE[PADDING] if padding else weight_VE[UNKNOWN + 1 :].mean(axis=0)


def _refuse_learned(checkpoint: Checkpoint, asked: AskedPairs, rows: np.ndarray, drugs: np.ndarray) -> None:
    """Raise if the network has learned from samples and drugs that are explained: it tells what it was told."""
    learned = checkpoint.pair_network.learned
    known = same_samples(asked.names[rows], learned["samples"], None)["a"].to_numpy(dtype=str)
    known_drugs = [asked.drugs.names[drug] for drug in drugs if asked.drugs.keys[drug] in learned["drugs"]]
    if len(known) and known_drugs:
        raise InputError(
            f"{checkpoint.name} may have learned from {len(set(known)) * len(known_drugs)} of the "
            f"{len(rows) * len(drugs)} pairs to explain (first: {str(known[0])!r} with {known_drugs[0]!r}). "
            "Explain samples or drugs that it has not seen, or accept it: allow_seen=True (--allow-seen)."
        )


def _pairs(sample: int, drugs: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(drugs), sample), drugs], axis=1)
