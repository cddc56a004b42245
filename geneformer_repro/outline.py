"""What may be asked of a checkpoint, and what is said of what may not: by its small files, or once it is opened.

A question names layers, genes, targets and classes. Whether they are there stands in ``config.json``, ``head.json`` and
the vocabulary, which take a tenth of a second to read, where the network behind them takes eight with torch. So the
rules stand here, for the command line, which looks at the files alone, as for whoever has opened the checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import misfit, read_json
from geneformer_repro.tokenizer.vocabulary import Vocabulary

Level = Literal["cell", "gene"]
NO_CLASSES = "{} is a pretrained model without classes; predict needs one made by finetune."
PRETRAINED_ON = (
    "the cells that {} was pretrained on. Pretrain without them, report other cells (split.split_file, "
    "split.test_groups), or accept it: split.allow_seen=true (--set split.allow_seen=true)."
)
"""After what of the test cells is among them."""
TRAINED_ON = (
    "those that {} was trained on. Explain others, that it has not seen (of cells: cells.select(…), --where), or "
    "accept it: allow_seen=True (--allow-seen)."
)
"""After what of the rows to explain is among them."""
_SHAPE = {"model_type": str, "num_hidden_layers": int, "num_attention_heads": int}
_HEAD = {"level": str, "targets": [{"kind": str, "name": str, "classes?": [str]}]}


class TargetOutline(NamedTuple):
    """A target of a head."""

    name: str
    described: str
    """Name and kind, for people."""
    classes: tuple[str, ...] | None = None
    """None of a number, or a time."""


class Outline(NamedTuple):
    """An encoder with its head."""

    name: str
    """What the checkpoint is called in messages."""
    n_blocks: int
    n_heads: int
    """Of attention, in each block."""
    level: Level | None
    """What its head classifies; None without one."""
    targets: tuple[TargetOutline, ...]
    """Of the head."""
    vocabulary: Vocabulary

    @classmethod
    def of_folder(cls, folder: Path) -> "Outline | None":
        """Read it from the files of a checkpoint; None where they are not those of an encoder with its vocabulary."""
        files = [folder / name for name in ("config.json", "vocabulary.json")]
        if not all(file.is_file() for file in files):
            return None
        config, head = read_json(files[0]), folder / "head.json"
        told = read_json(head) if head.exists() else {"level": None, "targets": []}
        if misfit(config, _SHAPE) or config["model_type"] != "bert" or (head.exists() and misfit(told, _HEAD)):
            return None
        targets = [
            TargetOutline(one["name"], repr(one["name"]), tuple(one["classes"]) if "classes" in one else None)
            for one in told["targets"]
        ]
        shape = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        return cls(f"checkpoint {folder}", *shape, told["level"], tuple(targets), Vocabulary.load(folder))


class Chosen(NamedTuple):
    """Outputs of a head that are asked about."""

    number: int
    """Which of the targets."""
    classes: tuple[int, ...] = ()
    """Of a target that is classes, the numbers of those asked about."""
    contrast: int | None = None
    """Number of the class that they are compared with."""


def require_layer(layer: int, n_blocks: int) -> None:
    """Raise unless there is such a layer: 0 is the last block, -1 the one before (the published convention)."""
    if not -n_blocks <= layer <= 0:
        raise InputError(
            f"layer must lie between {-n_blocks} (the input embedding) and 0 (the last block), found {layer}."
        )


def require_attention_head(head: Sequence[int], n_blocks: int, n_heads: int, name: str) -> None:
    """Raise unless a checkpoint has this head of attention, a pair of block and head."""
    if not (0 <= head[0] < n_blocks and 0 <= head[1] < n_heads):
        raise InputError(
            f"{name} has {n_blocks} layers of {n_heads} heads, counted from 0 (the layer next to the input); found "
            f"layer {head[0]}, head {head[1]}."
        )


def require_gene(gene: str, vocabulary: Vocabulary) -> int:
    """Return the token of a gene, or raise."""
    (place,) = vocabulary.find([gene])
    if place < 0:
        raise InputError(
            f"gene={gene!r} is not in the vocabulary, or its name stands for several genes. "
            f"{did_you_mean(gene, [*vocabulary.by_name])}"
        )
    return int(vocabulary.tokens[place])


def target_of_cells(target: str, level: Level | None, names: Sequence[str], name: str) -> int:
    """Return the number of a target that a classifier of cells has learned, or raise."""
    if level != "cell":
        raise InputError(
            f"target={target!r} needs a classifier of cells, and {name} is "
            f"{'a pretrained model' if level is None else 'one of genes'}. Make one with finetune."
        )
    return _number_of_target(target, names, name)


def _number_of_target(target: str, names: Sequence[str], name: str) -> int:
    if target not in names:
        raise InputError(f"{name} has no target {target!r}. {did_you_mean(target, names)}")
    return names.index(target)


def require_class(state: str, target: str, classes: Sequence[str], name: str) -> None:
    """Raise unless a state is a class of a target."""
    if state not in classes:
        raise InputError(f"{name} knows no {target} {state!r}. {did_you_mean(state, classes)}")


def require_gene_named(
    target: str | None, gene: str | None, level: Level | None, targets: Sequence[str], name: str
) -> None:
    """Raise unless a model that says something of genes is asked about one, and about what it has learned."""
    if level is None and target is not None:
        raise InputError(
            f"target={target!r} needs a classifier, and {name} is a pretrained model. Make one with finetune, or ask "
            "for goal= (nearer to which state) or gene= (how sure it is of a masked gene)."
        )
    if target is not None:
        _number_of_target(target, targets, name)
    if gene is None:
        what = "a pretrained model" if level is None else "a classifier of genes"
        goal = ", or goal= for how near cells are to a state" if level is None else ""
        raise InputError(f"{name} is {what}: name the gene that it is asked about with gene={goal}.")


def chosen_outputs(
    targets: Sequence[TargetOutline],
    target: str | None,
    states: Sequence[str] | None,
    contrast: str | None,
    *,
    name: str,
) -> Chosen:
    """Find what is asked about among the targets of a head.

    Parameters
    ----------
    targets
        Of the head.
    target
        Name of one of them; may be left out where there is one.
    states
        Of classes those asked about; default all, but for that of `contrast`.
    contrast
        Of classes another one, with which they are compared.
    name
        What the network is called in messages.

    Raises
    ------
    InputError
        There is no such target or class, none is named among several, or classes are asked of a number.
    """
    names = [one.name for one in targets]
    if target is None and len(names) > 1:
        raise InputError(f"{name} has the targets {', '.join(map(repr, names))}; name one: target= (--target).")
    number = 0 if target is None else _number_of_target(target, names, name)
    one = targets[number]
    if one.classes is None:
        if states is not None or contrast is not None:
            raise InputError(f"state= and contrast= name classes, and {one.described} has none. Leave them out.")
        return Chosen(number)
    wanted = [of_all for of_all in one.classes if of_all != contrast] if states is None else list(states)
    for state in [*wanted, *([] if contrast is None else [contrast])]:
        require_class(state, one.name, one.classes, name)
    if contrast in wanted or len(set(wanted)) < len(wanted) or not wanted:
        raise InputError(
            f"state= names different classes, other than that of contrast=; found {wanted} and {contrast!r}."
        )
    numbers = tuple(map(one.classes.index, wanted))
    return Chosen(number, numbers, None if contrast is None else one.classes.index(contrast))
