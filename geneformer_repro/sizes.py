"""How large the published networks are, in parameters and in operations, counted without making one."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

Size = Literal["tiny", "V1-10M", "V1-40M", "V2-104M", "V2-316M"]


class Shaped(Protocol):
    """What has a shape: one of `SIZES`, or `transformers.BertConfig`."""

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer."""


class Shape(NamedTuple):
    """Shape of a network, in the words of `transformers.BertConfig`."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    dropout: float


SIZES: Mapping[str, Shape] = {
    "tiny": Shape(3, 64, 2, 128, 0.0),
    "V1-10M": Shape(6, 256, 4, 512, 0.02),
    "V1-40M": Shape(12, 512, 8, 1024, 0.02),
    "V2-104M": Shape(12, 768, 12, 3072, 0.1),
    "V2-316M": Shape(18, 1152, 18, 4608, 0.1),
}
assert set(SIZES) == set(get_args(Size))


def n_parameters(shape: Shaped, *, n_tokens: int, n_positions: int) -> int:
    """Count the parameters of a masked gene model.

    Parameters
    ----------
    shape
        Of the network.
    n_tokens
        Of the vocabulary.
    n_positions
        Most tokens of a cell.
    """
    hidden, between = shape.hidden_size, shape.intermediate_size
    norm = 2 * hidden
    embeddings = (n_tokens + n_positions + 2) * hidden + norm
    attention = 4 * (hidden + 1) * hidden + norm
    feed_forward = (hidden + 1) * between + (between + 1) * hidden + norm
    head = (hidden + 1) * hidden + norm + n_tokens  # its weights are those of the embeddings
    return embeddings + shape.num_hidden_layers * (attention + feed_forward) + head


def flops(config: Shaped, lengths: np.ndarray, *, read: float = 1.0, n_outputs: int = 0) -> float:
    """Count the floating-point operations of a forward pass: matrix products and attention, two for each product.

    Parameters
    ----------
    config
        Shape of the network.
    lengths
        Tokens of each cell.
    read
        Share of the positions that the last block and the head compute.
    n_outputs
        Width of the head at each position that is read; 0 for none.
    """
    hidden, lengths = config.hidden_size, np.asarray(lengths, dtype=np.float64)
    n_tokens, n_pairs = lengths.sum(), (lengths**2).sum()
    key_value = 4 * hidden**2 * n_tokens
    at_query = (4 * hidden**2 + 4 * hidden * config.intermediate_size) * n_tokens + 4 * hidden * n_pairs
    head = 2 * hidden * (hidden + n_outputs) * n_tokens * read if n_outputs else 0
    return float(config.num_hidden_layers * key_value + (config.num_hidden_layers - 1 + read) * at_query + head)
