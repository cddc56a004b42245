"""What the files of a checkpoint say of it without being opened as a network: a fifth of a second, and no torch.

Of an encoder that this package wrote. Its weights are counted by the header of their file, which says the shape of
each; whether they are finite is seen when they are read.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geneformer_repro.errors import InputError
from geneformer_repro.files import misfit, read_json
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CHECKPOINT_PATH = "checkpoint_path"
"""In the metadata of a result: where the checkpoint that made it was."""
_HEAD_FORMAT = "geneformer_repro/head/3"
_HEAD = {"level": str, "targets": [{"kind": str, "name": str, "classes?": [str], "measure?": str}]}
_CONFIG = {"model_type": str, "num_hidden_layers": int, "hidden_size": int}
_LONGEST_HEADER = 1 << 26


def described_checkpoint(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Return what `Checkpoint` shows itself as, and its provenance; None where that needs the network.

    That is so of stock models, of networks over expression or pairs, and of heads of earlier formats or other kinds.

    Raises
    ------
    InputError
        The vocabulary or the file of weights is damaged.
    """
    config, weights = read_json(folder / "config.json"), folder / "model.safetensors"
    of_network = misfit(config, _CONFIG) is not None or config["model_type"] != "bert"
    if of_network or not weights.exists() or not (folder / "vocabulary.json").exists():
        return None
    what = _said_of_head(folder / "head.json")
    if what is None:
        return None
    provenance = folder / "provenance.json"
    size = f"{config['num_hidden_layers']} layers of {config['hidden_size']}, {_n_parameters(weights):,} parameters"
    line = f"Checkpoint({what}, {size}, {Vocabulary.load(folder)!r})"
    return line, read_json(provenance) if provenance.exists() else {}


def checkpoint_in_words(metadata: Mapping[str, Any]) -> str | None:
    """Say which checkpoint made a result: where it was, if that is known, and its fingerprint.

    Parameters
    ----------
    metadata
        Of the result, with ``checkpoint``, and `Checkpoint.whereabouts` where it was opened from a folder.
    """
    told = [str(metadata[name]) for name in (CHECKPOINT_PATH, "checkpoint") if metadata.get(name) is not None]
    return ", fingerprint ".join(told) or None


def _said_of_head(path: Path) -> str | None:
    if not path.exists():
        return "masked gene model"
    head = read_json(path)
    if head.get("format") != _HEAD_FORMAT or misfit(head, _HEAD) is not None:
        return None
    targets = [_said_of_target(**target) for target in head["targets"]]
    if None in targets:
        return None
    return f"{'' if head['level'] == 'cell' else 'gene '}classifier of {', '.join(map(str, targets))}"


def _said_of_target(kind: str, name: str, **fields: Any) -> str | None:
    if kind == "classes" and "classes" in fields:
        return f"{name!r} ({len(fields['classes'])} classes)"
    return f"{name!r} (a number)" if kind == "number" else None


def _n_parameters(path: Path) -> int:
    """Return how many numbers a safetensors file holds."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(file.read(length))
        tensors = [of_tensor for name, of_tensor in header.items() if name != "__metadata__"]
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        if path.stat().st_size != end:
            raise ValueError(f"{path.stat().st_size:,} bytes, where its header speaks of {end:,}")
        return sum(math.prod(tensor["shape"]) for tensor in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: the weights are damaged ({error}); copy the checkpoint anew.") from error
