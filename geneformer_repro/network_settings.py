"""What networks are, as configurations and their files say it: shapes, ways of pooling, published sizes; no torch.

The layers that they are made of stand in `heads`, `bags`, `expression` and `pair_layers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from geneformer_repro.config import require, require_types

Pooling = Literal["mean", "cls"]
HeadPooling = Literal["mean", "cls", "attention", "pooler"]
BagPooling = Literal["mean", "attention", "cell_type"]
Block = Literal["covariates", "embedding", "expression"]
BLOCKS: tuple[str, ...] = get_args(Block)
"""In the order of their columns: genes last, so that a network of fewer genes reads the first columns of a larger."""
NonLinearity = Literal["relu", "selu", "tanh"]


@dataclass(frozen=True, kw_only=True)
class ExpressionConfig:
    """What an expression network is."""

    section: ClassVar[str] = "network"
    layers: int = 2
    """Hidden layers, 1 to 4."""
    width: int = 128
    """Units of each."""
    activation: NonLinearity = "relu"
    """What follows each hidden layer."""
    dropout: float = 0.3
    """Share of a hidden layer's units that is dropped in training, at least 0 and below 1."""
    batch_norm: bool = False
    """Whether a hidden layer's units are normalised over the batch before the activation."""
    n_genes: int | None = None
    """At most so many genes, those that vary most among the training samples; None for all."""
    clip: float = 10.0
    """How many standard deviations from the mean a value may lie; what is beyond counts as so many."""
    skip: tuple[Block, ...] = ()
    """Blocks that go straight to the outputs: "covariates", which go no other way, and "expression"."""

    def __post_init__(self) -> None:
        require_types(self)
        require(1 <= self.layers <= 4, self, "layers", "between 1 and 4")
        require(self.width >= 1, self, "width", "at least 1")
        require(0 <= self.dropout < 1, self, "dropout", "at least 0 and below 1")
        require(self.n_genes is None or self.n_genes >= 1, self, "n_genes", "at least 1")
        require(self.clip >= 1, self, "clip", "at least 1")
        require("embedding" not in self.skip and len(set(self.skip)) == len(self.skip), self, "skip",
                'made of "covariates" and "expression", each once')  # fmt: skip


DrugInput = Literal["smiles", "fingerprint", "descriptors", "mordred", "one_hot", "vectors", "none"]
PairModel = Literal["conv_nn", "paccmann", "tdnn", "encoder"]
Fusion = Literal["concatenation", "bilinear", "film", "attention"]
_OF_ALL: Mapping[str, Any] = {
    "sample_layers": (), "drug_layers": (512, 128), "embedding_size": 32, "filters": (64, 64, 64),
    "kernels": (3, 5, 7), "pool": 4, "fusion": "concatenation", "fusion_size": 64, "attention_heads": 4,
    "joint_layers": (128, 64), "joint_norm": False, "dropout": 0.1, "expression_path": False, "drug_input": "smiles",
}  # fmt: skip
_PUBLISHED: Mapping[PairModel, Mapping[str, Any]] = {
    "conv_nn": {"sample_layers": (32,), "joint_norm": True},
    "paccmann": {
        "embedding_size": 16, "kernels": (3, 5, 11), "fusion": "attention", "joint_layers": (512, 128, 64, 16),
        "joint_norm": True, "dropout": 0.3,
    },
    "tdnn": {
        "drug_input": "descriptors", "sample_layers": (1000, 500, 250), "drug_layers": (1000, 500, 250),
        "joint_layers": (250, 125, 60), "dropout": 0.0,
    },
    "encoder": {"sample_layers": (256,), "drug_input": "fingerprint"},
}  # fmt: skip
"""What differs from `_OF_ALL` where a field is left open."""


@dataclass(frozen=True, kw_only=True)
class PairNetworkConfig:
    """What a network over pairs is; a field that is None is as published of the network that `model` names."""

    section: ClassVar[str] = "network"
    model: PairModel = "encoder"
    """"conv_nn", "paccmann" or "tdnn" (Prasse et al., 2022), or "encoder"."""
    drug_input: DrugInput | None = None
    """What is read of drugs: "smiles" (its characters), "fingerprint", "descriptors" (RDKit's), "mordred" (Mordred's),
    "one_hot" (which of the training drugs), "vectors" (from a file), "none"."""
    n_genes: int | None = None
    """At most so many genes, those that vary most among the training samples; None for all."""
    clip: float = 10.0
    """How many standard deviations from the mean a value may lie."""
    arcsinh: bool = False
    """Take the inverse hyperbolic sine of expression first, as published; for values that are no logarithms."""
    sample_layers: tuple[int, ...] | None = None
    """Widths of the layers over genes; of "paccmann" none, since its attention reads genes."""
    drug_layers: tuple[int, ...] | None = None
    """Widths of the layers over fingerprints, descriptors and the like."""
    embedding_size: int | None = None
    """Length of a character's vector."""
    filters: tuple[int, ...] | None = None
    """Of each convolution over characters."""
    kernels: tuple[int, ...] | None = None
    """Characters that each of them sees."""
    pool: int | None = None
    """Places of which the highest is kept, after each convolution in turn."""
    fusion: Fusion | None = None
    """How both sides meet: "concatenation"; "bilinear" (products of projections beside both); "film" (the drug scales
    and shifts the sample); "attention" (the sample chooses characters of the SMILES)."""
    fusion_size: int | None = None
    """Of "bilinear" the number of products, of "attention" the size of each head."""
    attention_heads: int | None = None
    """Of "attention": heads for each width of convolution."""
    joint_layers: tuple[int, ...] | None = None
    """Widths of the layers after the junction; the output comes after them."""
    joint_norm: bool | None = None
    """Whether these are normalised over the batch."""
    dropout: float | None = None
    """Share of units that is dropped in training, at least 0 and below 1."""
    expression_path: bool | None = None
    """Of "encoder": read the expression of genes beside the tokens, through `sample_layers`."""
    residual: bool = True
    """Learn what is left over mean effects; False as published."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.n_genes is None or self.n_genes >= 1, self, "n_genes", "at least 1")
        require(self.clip >= 1, self, "clip", "at least 1")
        for name in ("sample_layers", "drug_layers", "filters", "kernels", "joint_layers"):
            require(all(width >= 1 for width in getattr(self, name) or ()), self, name, "numbers of at least 1")
        for name in ("embedding_size", "pool", "fusion_size", "attention_heads"):
            require((getattr(self, name) or 1) >= 1, self, name, "at least 1")
        require(0 <= (self.dropout or 0) < 1, self, "dropout", "at least 0 and below 1")
        shape = self.filled()
        require(len(shape.filters) == len(shape.kernels) > 0, self, "filters", "as many as kernels, and at least one")
        require(not shape.expression_path or shape.model == "encoder", self, "expression_path", "of model 'encoder'")
        by_characters = shape.drug_input == "smiles" or shape.fusion != "attention"
        require(by_characters, self, "fusion", "other than 'attention' unless drug_input is 'smiles'")
        alone = shape.drug_input == "none" and shape.fusion != "concatenation"
        require(not alone, self, "fusion", "'concatenation' where drug_input is 'none'")

    def filled(self) -> "PairShape":
        """Return all of it, with what is open as published."""
        as_published = {**_OF_ALL, **_PUBLISHED[self.model]}
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        of_all: dict[str, Any] = {name: as_published.get(name) if v is None else v for name, v in given.items()}
        return PairShape(**of_all)


@dataclass(frozen=True, kw_only=True)
class PairShape:
    """A `PairNetworkConfig` in which nothing is open; what a network's file holds."""

    model: PairModel
    drug_input: DrugInput
    n_genes: int | None
    clip: float
    arcsinh: bool
    sample_layers: tuple[int, ...]
    drug_layers: tuple[int, ...]
    embedding_size: int
    filters: tuple[int, ...]
    kernels: tuple[int, ...]
    pool: int
    fusion: Fusion
    fusion_size: int
    attention_heads: int
    joint_layers: tuple[int, ...]
    joint_norm: bool
    dropout: float
    expression_path: bool
    residual: bool

    @property
    def reads_tokens(self) -> bool:
        """Whether samples are tokens."""
        return self.model == "encoder"

    @property
    def reads_expression(self) -> bool:
        """Whether samples are values of genes."""
        return self.model != "encoder" or self.expression_path

    @property
    def reads_structures(self) -> bool:
        """Whether what is read of drugs is made of their SMILES."""
        return self.drug_input in ("smiles", "fingerprint", "descriptors", "mordred")

    @property
    def fewest_positions(self) -> int:
        """Positions of a SMILES that convolutions in turn leave one of."""
        return 1 if self.fusion == "attention" else self.pool ** len(self.filters)
