"""What the files of a checkpoint say of it without being opened as a network: a fifth of a second, and no torch.

Of an encoder that this package wrote. Its weights are counted by the header of their file, which says the shape of
each; whether they are finite is seen when they are read.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geneformer_repro.errors import InputError, counted
from geneformer_repro.files import misfit, read_json
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CHECKPOINT_PATH = "checkpoint_path"
"""In the metadata of a result: where the checkpoint that made it was."""
CHECKPOINT_WARNING = "checkpoint_warning"
"""In the metadata of a result: why its checkpoint is not to be relied on."""
_MODEL = "model"
"""What pretraining calls the network among its scores."""
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
    layers = f"{counted(config['num_hidden_layers'], 'layer')} of {config['hidden_size']}"
    size = f"{layers}, {_n_parameters(weights):,} parameters"
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


def worse_than_guessing(provenance: Mapping[str, Any]) -> str | None:
    """Say that a pretrained model names hidden genes no better than a guess that sees no cell; None if it does.

    Parameters
    ----------
    provenance
        Of a checkpoint; None as well where it does not tell, as of a classifier or a model of others.
    """
    is_pretrained = misfit(provenance, {"step": str, "result": {"scores": {str: {str: float}}}}) is None
    scores = provenance["result"]["scores"] if is_pretrained and provenance["step"] == "pretrain" else {}
    losses = {name: of_method.get("hidden_loss", of_method.get("loss")) for name, of_method in scores.items()}
    model = losses.pop(_MODEL, None)
    known = {name: loss for name, loss in losses.items() if loss is not None}
    if model is None or not known:
        return None
    best = min(known, key=lambda name: known[name])
    if model < known[best]:
        return None
    return (
        f"no better than guessing: on held-out cells its loss is {model:.3f} nats a hidden gene, and that of {best}, "
        f"which sees no cell, {known[best]:.3f}. Train longer, on more cells, or at another rate"
    )


def checkpoint_warning(metadata: Mapping[str, Any], *, subject: str = "The model") -> str:
    """Say, above all else that a page tells, why the checkpoint behind a result is not to be relied on; empty if it is.

    Parameters
    ----------
    metadata
        Of the result, with `Checkpoint.whereabouts`.
    subject
        What is not to be relied on.
    """
    return f"{subject} is {metadata[CHECKPOINT_WARNING]}." if metadata.get(CHECKPOINT_WARNING) else ""


def without_warning(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the end of a page says, where the warning stands above all."""
    return {name: value for name, value in facts.items() if name != CHECKPOINT_WARNING}


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
