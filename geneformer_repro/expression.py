"""Networks over expression values: a matrix of samples × named columns in, the outputs of a head out.

An encoder reads which genes rank high; these read how high, of bulk samples with a few thousand values and a few
thousand patients, where a network of two layers is trained in seconds. What a network expects of its inputs is fitted
on its training samples and kept with its weights: which genes (the most variable), their mean and spread, and how far
a value may lie out. So a new sample is scaled as those were, by itself, and a gene that it lacks has their mean.

Columns come in blocks. "expression" (genes) and "embedding" (an encoder's frozen vectors) go side by side through the
layers; "covariates" (clinical numbers), and expression too where that is wished, go straight to the outputs (`skip`).
`permutation_use` tells what each block is worth to the outputs, from what they are once it is dealt out anew.

Spread is measured after values beyond `clip` spreads are pulled in, until nothing moves: z-scores of nearly silent
genes reach 17,000, and with their plain standard deviation the gene of every other patient would be zero.

Shapes: N samples, I columns that a network reads, W width, K outputs.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from geneformer_repro.config import from_mapping, require, resolved
from geneformer_repro.errors import InputError, counted, listed
from geneformer_repro.files import write_json
from geneformer_repro.heads import WEIGHTS, Head, open_network
from geneformer_repro.network_settings import BLOCKS, Block, ExpressionConfig
from geneformer_repro.tokenizer.measures import Values
from geneformer_repro.tokenizer.tables import examples
from geneformer_repro.tokenizer.vocabulary import MASK, PAD, Vocabulary

logger = logging.getLogger(__name__)

MODEL_TYPE, FORMAT = "expression_network", "geneformer_repro/expression_network/1"
_BY_COHORT = "cohort"
NON_LINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "selu": F.selu, "tanh": torch.tanh}
_GAINS = {"relu": math.sqrt(2), "selu": 1.0, "tanh": 1.0}
_MOST_ROUNDS = 50
"""Of pulling in values; each brings the spread of a gene with one outlier down by sqrt(samples) / clip."""


@dataclass(frozen=True, eq=False)
class ExpressionInputs:
    """Samples × named columns, in blocks.

    Parameters
    ----------
    values
        Of each block its values, (samples, columns); NaN where one is missing. "expression" is always there.
    names
        Of each block the names of its columns: genes by id, or by name or an older id once a network is asked.
    gene_names
        A name for each gene, "" where there is none; may be left out.
    measure
        What the genes' numbers were before they were brought to a scale; None if that is not known.

    Raises
    ------
    InputError
        A block is unknown or "expression" missing; shapes and names do not fit; a name stands twice; a value is
        infinite.
    """

    values: Mapping[str, np.ndarray]
    names: Mapping[str, tuple[str, ...]]
    gene_names: tuple[str, ...] = field(default=())
    measure: Values | None = None

    def __post_init__(self) -> None:
        blocks = set(self.values)
        if not {"expression"} <= blocks <= set(BLOCKS) or blocks != set(self.names):
            raise InputError(
                f"Inputs have a block 'expression' and may have 'embedding' and 'covariates', each with names; found "
                f"values of {sorted(self.values)} and names of {sorted(self.names)}."
            )
        if not self.gene_names:
            object.__setattr__(self, "gene_names", ("",) * len(self.names["expression"]))
        for block, values in self.values.items():
            names = self.names[block]
            if values.shape != (len(self), len(names)) or len(self.gene_names) != len(self.names["expression"]):
                raise InputError(
                    f"Block {block!r}: expected {len(self)} samples × {len(names)} names, found {values.shape}."
                )
            if len(set(names)) < len(names):
                raise InputError(f"Block {block!r}: {_first_repeated(names)!r} stands twice; names must be distinct.")
            if np.isinf(values).any():
                row, column = np.argwhere(np.isinf(values))[0]
                raise InputError(
                    f"Block {block!r}: sample {row}, {names[column]!r} is {values[row, column]}. Give numbers, or NaN "
                    "where one is missing."
                )

    def __len__(self) -> int:
        return len(self.values["expression"])

    def select(self, rows: np.ndarray) -> "ExpressionInputs":
        """Return these samples, in this order."""
        return replace(self, values={block: values[rows] for block, values in self.values.items()})

    def of_genes(self, genes: Sequence[str]) -> "ExpressionInputs":
        """Keep these genes alone, in the order that they have here; the log says which of them are not here.

        Raises
        ------
        InputError
            None of them is.
        """
        ids, wanted = self.names["expression"], set(genes)
        kept = [i for i, both in enumerate(zip(ids, self.gene_names, strict=True)) if wanted & {*both}]
        if not kept:
            raise InputError(
                f"None of the {len(wanted):,} genes asked for ({examples(sorted(wanted))}) is in the matrix, whose "
                f"genes are such as {examples(ids)}. Give the ids or names that it has."
            )
        if lacking := sorted(wanted - {ids[i] for i in kept} - {self.gene_names[i] for i in kept}):
            logger.warning(
                "%d of %d genes asked for are not in the matrix: %s.", len(lacking), len(wanted), examples(lacking)
            )
        return replace(
            self,
            values={**self.values, "expression": self.values["expression"][:, kept]},
            names={**self.names, "expression": tuple(ids[i] for i in kept)},
            gene_names=tuple(self.gene_names[i] for i in kept),
        )


def _first_repeated(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


@dataclass(frozen=True, eq=False)
class InputScale:
    """Which columns a network reads, and what is usual of each; fitted on training samples alone.

    Parameters
    ----------
    names
        Of each block its columns, in the order of `BLOCKS`; genes from the most variable down.
    gene_names
        A name for each gene, or "".
    mean_I, factor_I
        Mean, and one over the standard deviation (0 where a column never varies), of all columns; float32.
    clip
        As in `ExpressionConfig`.
    measure
        As in `ExpressionInputs`; what new samples must be too.
    within_cohorts
        Whether the network takes each cohort standardised by itself (`refitted`); mean and spread here are then those
        of no cohort.
    """

    names: Mapping[str, tuple[str, ...]]
    gene_names: tuple[str, ...]
    mean_I: np.ndarray
    factor_I: np.ndarray
    clip: float
    measure: Values | None = None
    within_cohorts: bool = False

    @classmethod
    def fit(cls, inputs: ExpressionInputs, *, n_genes: int | None = None, clip: float = 10.0) -> "InputScale":
        """Learn which genes vary most, and mean and spread of every column.

        Parameters
        ----------
        inputs
            The training samples, no others.
        n_genes
            At most so many genes; None for all.
        clip
            As in `ExpressionConfig`.

        Raises
        ------
        InputError
            No gene varies among the samples.
        """
        of_block = {block: moments(values, clip) for block, values in inputs.values.items()}
        spread_G = of_block["expression"][1]
        if not (spread_G > 0).any():
            raise InputError(
                f"None of {len(spread_G):,} genes varies among the {len(inputs):,} training samples. Give more "
                "samples, or look at how the matrix was read."
            )
        order = np.argsort(-spread_G, kind="stable")[:n_genes]
        read = {block: order if block == "expression" else slice(None) for block in inputs.values}
        blocks = [block for block in BLOCKS if block in inputs.values]
        mean_I, spread_I = (np.concatenate([of_block[block][i][read[block]] for block in blocks]) for i in (0, 1))
        genes = tuple(inputs.names["expression"][i] for i in order)
        names = {block: genes if block == "expression" else inputs.names[block] for block in blocks}
        gene_names = tuple(inputs.gene_names[i] for i in order)
        return cls(names, gene_names, mean_I.astype(np.float32), factors(spread_I), clip, inputs.measure)

    def __len__(self) -> int:
        return len(self.mean_I)

    def columns(self, block: str) -> slice:
        """Say where a block lies among the columns."""
        ends = np.cumsum([0, *(len(self.names.get(each, ())) for each in BLOCKS)])
        return slice(*(int(end) for end in list(pairwise(ends))[BLOCKS.index(block)]))

    @property
    def through(self) -> slice:
        """Where the columns lie that go through the layers."""
        return slice(self.columns("embedding").start, len(self))

    def first(self, n_genes: int | None) -> "InputScale":
        """Return the scale of the `n_genes` most variable genes; of all where there are no more."""
        n_left_out = max(0, len(self.gene_names) - (n_genes or len(self.gene_names)))
        n_genes, n = len(self.gene_names) - n_left_out, len(self) - n_left_out
        names = {**self.names, "expression": self.names["expression"][:n_genes]}
        return replace(
            self, names=names, gene_names=self.gene_names[:n_genes], mean_I=self.mean_I[:n], factor_I=self.factor_I[:n]
        )

    def refitted(self, inputs: ExpressionInputs, *, but: Sequence[Block] = ()) -> "InputScale":
        """Return the scale of the same columns, with mean and spread of other samples, such as of another cohort.

        Those of blocks in `but` stay.
        """
        mean_I, spread_I = moments(self.raw(inputs), self.clip)
        mean_I, factor_I = mean_I.astype(np.float32), factors(spread_I)
        for columns in map(self.columns, but):
            mean_I[columns], factor_I[columns] = self.mean_I[columns], self.factor_I[columns]
        return replace(self, mean_I=mean_I, factor_I=factor_I, within_cohorts=False)

    def with_covariates(self, names: Sequence[str]) -> "InputScale":
        """Return the scale with clinical columns before the others; until it is refitted they count nothing."""
        assert "covariates" not in self.names
        nothing = np.zeros(len(names), dtype=np.float32)
        mean_I, factor_I = (np.concatenate([nothing, values]) for values in (self.mean_I, self.factor_I))
        return replace(self, names={"covariates": tuple(names), **self.names}, mean_I=mean_I, factor_I=factor_I)

    def begins_with(self, other: "InputScale") -> bool:
        """Whether the other one's columns are the first of these, scaled alike."""
        of_genes = self.names["expression"][: len(other.gene_names)] == other.names["expression"]
        return (
            of_genes
            and {**self.names, "expression": ()} == {**other.names, "expression": ()}
            and self.clip == other.clip
            and np.array_equal(self.mean_I[: len(other)], other.mean_I)
            and np.array_equal(self.factor_I[: len(other)], other.factor_I)
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The genes, without medians."""
        genes = self.names["expression"]
        return Vocabulary(genes, np.arange(2, 2 + len(genes)), {PAD: 0, MASK: 1}, 2 + len(genes), None, self.gene_names)

    def __call__(self, inputs: ExpressionInputs) -> np.ndarray:
        """Return samples as the network takes them, (N, I) float32: 0 is the mean, also where a value is missing.

        Raises
        ------
        InputError
            See `ExpressionInputs` and `raw`.
        """
        scaled_NI = np.subtract(self.raw(inputs), self.mean_I)
        scaled_NI *= self.factor_I
        np.clip(scaled_NI, -self.clip, self.clip, out=scaled_NI)
        return np.nan_to_num(scaled_NI, copy=False, nan=0.0)

    def raw(self, inputs: ExpressionInputs) -> np.ndarray:
        """Return the columns that are read, (N, I) float32, as they are; NaN where a value is missing.

        Raises
        ------
        InputError
            A column of another block than the genes is missing, no gene is there, or two columns are one gene.
        """
        if absent := [block for block in self.names if block not in inputs.values]:
            raise InputError(
                f"The network reads the blocks {list(self.names)}, and of these samples there is no {absent[0]!r}. "
                "Give what it was trained on."
            )
        read = [_at(inputs, block, self._places(inputs, block)) for block in self.names]
        return np.concatenate(read, axis=1, dtype=np.float32)

    def _places(self, inputs: ExpressionInputs, block: str) -> np.ndarray:
        """Return where in the inputs each column of a block stands, -1 for a gene that is not there."""
        wanted, given = self.names[block], inputs.names[block]
        if wanted == given:
            return np.arange(len(wanted))
        if block != "expression":
            if lacking := [name for name in wanted if name not in given]:
                raise InputError(
                    f"Block {block!r}: the network reads {len(lacking)} columns that are not there (first: "
                    f"{lacking[0]!r}; there are {listed(given, most=5)}). Give the columns that it was trained on."
                )
            return np.array([given.index(name) for name in wanted])
        return self._places_of_genes(inputs)

    def _places_of_genes(self, inputs: ExpressionInputs) -> np.ndarray:
        genes, given = self.names["expression"], inputs.names["expression"]
        vocabulary = self.vocabulary
        gene_of = vocabulary.find(given)
        by_name = vocabulary.find(inputs.gene_names)
        gene_of = np.where((gene_of < 0) & ~np.isin(by_name, gene_of), by_name, gene_of)
        places, columns = np.full(len(genes), -1), np.flatnonzero(gene_of >= 0)
        places[gene_of[columns][::-1]] = columns[::-1]  # the first of two
        twice = columns[places[gene_of[columns]] != columns]
        if len(twice):
            gene = gene_of[twice[0]]
            raise InputError(
                f"Columns {given[places[gene]]!r} and {given[twice[0]]!r} are both gene {genes[gene]!r}. Keep one, or "
                "their sum."
            )
        n_there = int((places >= 0).sum())
        if not n_there:
            raise InputError(
                f"None of the {len(genes):,} genes that the network reads is among the {len(given):,} given (it reads "
                f"{', '.join(genes[:3])}; given are {', '.join(given[:3])}). Give genes by id or name."
            )
        if n_there < len(genes):
            logger.warning(
                "%s of the %s genes that the network reads are missing; they count as the mean of training samples.",
                f"{len(genes) - n_there:,}", f"{len(genes):,}",
            )  # fmt: skip
        return places


def _at(inputs: ExpressionInputs, block: str, places: np.ndarray) -> np.ndarray:
    values = inputs.values[block]
    if np.array_equal(places, np.arange(values.shape[1])):
        return values
    return np.where(places >= 0, values[:, places], np.nan)


def factors(spread_I: np.ndarray) -> np.ndarray:
    """Return what standardises columns of this spread, float32; 0 for one that never varies."""
    with np.errstate(divide="ignore"):
        return np.where(spread_I > 0, 1 / spread_I, 0).astype(np.float32)


def moments(values_NC: np.ndarray, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of columns, of values pulled in to `clip` deviations until none moves.

    Both are 0 of a column without a value: nothing is known of it, and it never counts.
    """
    values_NC = values_NC.astype(np.float64)
    values_NC[:, np.isnan(values_NC).all(axis=0)] = 0
    mean, sd = np.nanmean(values_NC, axis=0), np.nanstd(values_NC, axis=0)
    left = np.arange(values_NC.shape[1])
    for _ in range(_MOST_ROUNDS):
        reach = clip * sd[left]
        left = left[(np.abs(values_NC[:, left] - mean[left]) > reach * (1 + 1e-6)).any(axis=0)]
        if not len(left):
            break
        low, high = mean[left] - clip * sd[left], mean[left] + clip * sd[left]
        values_NC[:, left] = np.clip(values_NC[:, left], low, high)
        mean[left], sd[left] = np.nanmean(values_NC[:, left], axis=0), np.nanstd(values_NC[:, left], axis=0)
    return mean, np.where(sd > 1e-12 * (1 + np.abs(mean)), sd, 0)


class Norm(nn.Module):
    """Batch normalisation, without torch's count of batches; a single row has no spread, and is taken as if asked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, before_NW: Tensor) -> Tensor:
        """Return the batch with mean 0 and spread 1 where it is trained on, or as the batches of training had it."""
        running, training = (self.running_mean, self.running_var), self.training and len(before_NW) > 1
        return F.batch_norm(before_NW, *running, self.weight, self.bias, training)


def _layer(n_before: int, n_after: int, *, bias: bool = True) -> nn.Linear:
    """Make a layer whose weights are yet to be drawn, so that the caller's random state stays as it is."""
    return skip_init(nn.Linear, n_before, n_after, bias=bias)


class ExpressionNetwork(nn.Module):
    """Hidden layers over genes and vectors, and a straight path to the outputs for what is in `skip`.

    Parameters
    ----------
    config
        What it is.
    head
        What its outputs mean.
    scale
        What it reads, and how that is scaled.
    seed
        Of its random weights. The straight path begins at zero.

    Raises
    ------
    ConfigError
        `skip` names a block that is not there, or leaves out covariates that are.
    """

    def __init__(self, config: ExpressionConfig, head: Head, scale: InputScale, *, seed: int = 0) -> None:
        super().__init__()
        absent = [block for block in config.skip if block not in scale.names]
        require(not absent, config, "skip", f"made of blocks that the inputs have ({', '.join(scale.names)})")
        is_read = "covariates" not in scale.names or "covariates" in config.skip
        require(is_read, config, "skip", "with 'covariates', which the inputs have and which go no other way")
        self.config, self.head, self.scale = config, head, scale
        n_through = len(scale) - scale.through.start
        widths = [n_through, *[config.width] * config.layers]
        has_bias = not config.batch_norm  # which takes it away
        self.layers = nn.ModuleList(_layer(before, after, bias=has_bias) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(Norm(config.width) for _ in self.layers if config.batch_norm)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = _layer(config.width, head.n_outputs)
        n_of = {block: len(scale.names[block]) for block in config.skip}
        self.skip = nn.ModuleDict({block: _layer(n, head.n_outputs, bias=False) for block, n in n_of.items()})
        self._draw_weights(torch.Generator().manual_seed(seed))

    def _draw_weights(self, generator: torch.Generator) -> None:
        """Draw so that units begin with a spread of about one, whatever the activation."""
        for layer in [*self.layers, self.classifier]:
            gain = 1.0 if layer is self.classifier else _GAINS[self.config.activation]
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for path in self.skip.values():
            nn.init.zeros_(path.weight)  # type: ignore[arg-type]

    def forward(self, scaled_NI: Tensor) -> Tensor:
        """Return the outputs, (N, K), for samples as `scale` returns them."""
        outputs_NK = self._after_first(self.layers[0](scaled_NI[:, self.scale.through]))
        for block, path in self.skip.items():
            outputs_NK = outputs_NK + path(scaled_NI[:, self.scale.columns(block)])
        return outputs_NK

    def _after_first(self, hidden_NW: Tensor) -> Tensor:
        """Return the classifier's outputs of what the first layer makes of samples."""
        for number in range(len(self.layers)):
            if number:
                hidden_NW = self.layers[number](hidden_NW)
            if self.config.batch_norm:
                hidden_NW = self.norms[number](hidden_NW)
            hidden_NW = self.dropout(NON_LINEARITIES[self.config.activation](hidden_NW))
        outputs_NK: Tensor = self.classifier(hidden_NW)
        return outputs_NK

    def outputs_of_changes(self, scaled_I: Tensor, genes_C: Tensor, values_C: Tensor) -> Tensor:
        """Return the outputs of a sample with one gene changed at a time, (C, K).

        The first layer is linear, so a change is added to what it makes of the sample; of 5,000 genes and 128 units
        that saves all but a fortieth of the products.

        Parameters
        ----------
        scaled_I
            The sample, as `scale` returns it.
        genes_C, values_C
            Which gene, and its value instead.
        """
        first, genes = self.scale.through.start, self.scale.columns("expression")
        columns_C = genes_C + genes.start
        change_C1 = (values_C - scaled_I[columns_C])[:, None]
        hidden_1W = self.layers[0](scaled_I[None, self.scale.through])
        weight_WC = self.layers[0].weight[:, columns_C - first]  # type: ignore[index]
        outputs_CK = self._after_first(hidden_1W + change_C1 * weight_WC.T)
        for block, path in self.skip.items():
            outputs_CK = outputs_CK + path(scaled_I[None, self.scale.columns(block)])
            if block == "expression":
                outputs_CK = outputs_CK + change_C1 * path.weight[:, genes_C].T  # type: ignore[index]
        return outputs_CK

    def with_covariates(self, names: Sequence[str]) -> "ExpressionNetwork":
        """Return a network with the same weights and a straight path for clinical columns, which begins at zero."""
        config = replace(self.config, skip=("covariates", *self.config.skip))
        network = ExpressionNetwork(config, self.head, self.scale.with_covariates(names))
        network.load_state_dict(network.state_dict() | self.state_dict())
        return network.train(self.training)

    @torch.no_grad()
    def begin_path(self, output: int, share: float, weights_P: np.ndarray) -> None:
        """Let an output be `share` times what it was, and clinical columns count this much in it, (P,) of their block.

        Those that went straight to it before must still be at zero.
        """
        for path in (self.classifier, *self.skip.values()):
            path.weight[output] *= share  # type: ignore[index, operator]
        self.classifier.bias[output] *= share
        of_clinical = self.skip["covariates"].weight
        of_clinical[output] = torch.from_numpy(weights_P).to(of_clinical)  # type: ignore[arg-type, operator]

    @torch.no_grad()
    def outputs(self, inputs: ExpressionInputs | np.ndarray) -> np.ndarray:
        """Return the outputs for samples, or for what `scale` makes of them, (N, K) float32."""
        scaled_NI = inputs if isinstance(inputs, np.ndarray) else self.scale(inputs)
        outputs_NK: np.ndarray = self.eval()(torch.from_numpy(scaled_NI)).numpy()
        return outputs_NK

    def digests(self, inputs: ExpressionInputs) -> np.ndarray:
        """Return a digest of 8 bytes for each sample, over its values of the genes that are read; uint64."""
        genes = self.scale.columns("expression")
        raw_NG = np.ascontiguousarray(self.scale.raw(inputs)[:, genes], dtype="<f4")
        digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in raw_NG]
        return np.frombuffer(b"".join(digests), dtype="<u8")

    def num_parameters(self) -> int:
        """Return how many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    # Its files; vocabulary, head and provenance are the checkpoint's

    def described(self) -> dict[str, Any]:
        """Return what ``config.json`` holds: settings, the columns that are no genes, what values are."""
        scale = self.scale
        others = {block: list(scale.names[block]) for block in BLOCKS[:-1] if block in scale.names}
        told: dict[str, str] = {"measure": scale.measure} if scale.measure else {}
        told |= {"standardised": _BY_COHORT} if scale.within_cohorts else {}
        return {"model_type": MODEL_TYPE, "format": FORMAT, "blocks": others, **told, "network": resolved(self.config)}

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, scale included."""
        write_json(folder / "config.json", self.described())
        scale = {"scale.mean": self.scale.mean_I, "scale.factor": self.scale.factor_I}
        weights = {name: weight.contiguous() for name, weight in self.state_dict().items()}
        save_file(weights | {name: torch.from_numpy(values) for name, values in scale.items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path, head: Head | None, vocabulary: Vocabulary) -> "ExpressionNetwork":
        """Open a network that `save_pretrained` wrote.

        Raises
        ------
        InputError
            It is of another format, damaged, or has no head.
        """

        def make(content: dict[str, Any], head: Head, weights: dict[str, Tensor]) -> ExpressionNetwork:
            mean_I, factor_I = (weights.pop(f"scale.{name}").numpy() for name in ("mean", "factor"))
            config = from_mapping(ExpressionConfig, content["network"])
            names = {block: tuple(columns) for block, columns in content["blocks"].items()}
            names["expression"] = vocabulary.gene_ids
            measure, is_by_cohort = content.get("measure"), content.get("standardised") == _BY_COHORT
            if measure not in (None, *get_args(Values)):
                raise InputError(f"measure is {measure!r}")
            scale = InputScale(names, vocabulary.gene_names, mean_I, factor_I, config.clip, measure, is_by_cohort)
            network = cls(config, head, scale).eval()
            network.load_state_dict(weights)
            return network

        return open_network(folder, head, FORMAT, make)

    def deciding(self) -> str:
        """Return all but the weights that decides the outputs, for a fingerprint."""
        digest = hashlib.sha256(np.concatenate([self.scale.mean_I, self.scale.factor_I]).astype("<f4").tobytes())
        return json.dumps([self.described(), digest.hexdigest()])

    def __repr__(self) -> str:
        config = self.config
        return f"ExpressionNetwork({counted(config.layers, 'layer')} of {config.width}, {len(self.scale):,} columns)"


def dealt_outputs(
    network: ExpressionNetwork,
    inputs: ExpressionInputs,
    *,
    within_N: np.ndarray | None = None,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return what a network puts out once the rows of a block are dealt out anew among the samples.

    Parameters
    ----------
    network, inputs
        What is asked, about samples that it was not trained on.
    within_N
        A number of each sample; rows are dealt out among samples of one number, such as of a cohort. None for all.
    draws
        How many times each block is dealt out.
    seed
        Of the draws; each block's depend on nothing else.

    Returns
    -------
    By block the outputs, (draws, N, K) float32.
    """
    scaled_NI = network.scale(inputs)
    within_N = np.zeros(len(inputs)) if within_N is None else within_N
    groups = [np.flatnonzero(within_N == number) for number in np.unique(within_N)]
    dealt = {}
    for block in network.scale.names:
        rng, columns = np.random.default_rng([seed, BLOCKS.index(block)]), network.scale.columns(block)
        of_draws = []
        for _ in range(draws):
            dealt_NI = scaled_NI.copy()
            for rows in groups:
                dealt_NI[rows, columns] = scaled_NI[rng.permutation(rows), columns]
            of_draws.append(network.outputs(dealt_NI))
        dealt[block] = np.stack(of_draws)
    return dealt


def permutation_use(
    network: ExpressionNetwork,
    inputs: ExpressionInputs,
    score: Callable[[np.ndarray], float],
    *,
    draws: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Tell how much a score falls when the rows of a block are dealt out anew among the samples.

    Parameters
    ----------
    network, inputs, draws, seed
        As for `dealt_outputs`.
    score
        Makes of outputs (N, K), in the order of the samples, a number; higher is better.

    Returns
    -------
    A row a block: ``block``, ``score`` as it is, ``fall`` (mean over the draws of how much lower it is), ``low`` and
    ``high`` (lowest and highest fall). A block that is not used falls by exactly 0; one that misleads by less.
    """
    dealt = dealt_outputs(network, inputs, draws=draws, seed=seed)
    scores = {block: np.array([score(outputs_NK) for outputs_NK in of_draws]) for block, of_draws in dealt.items()}
    return falls(score(network.outputs(inputs)), scores)


def falls(score: float, dealt: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the table of `permutation_use` from a score as it is, and by block the scores of its draws."""
    fall = {block: score - of_draws for block, of_draws in dealt.items()}
    rows = [(block, score, float(of.mean()), float(of.min()), float(of.max())) for block, of in fall.items()]
    return pd.DataFrame(rows, columns=["block", "score", "fall", "low", "high"])
