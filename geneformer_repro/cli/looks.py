"""What cannot be asked of a model and cells, told by their small files before torch is loaded.

Each rule, and what is said, is that of the function which does the work: here it is only asked for sooner. Of a
checkpoint on the hub, of other forms than ours, or with ``--vocabulary``, nothing is told before it is opened.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from geneformer_repro.cli.artefacts import labels_of_rows
from geneformer_repro.cli.commands import asked_where
from geneformer_repro.errors import InputError
from geneformer_repro.files import read_json
from geneformer_repro.outline import (
    PRETRAINED_ON,
    TRAINED_ON,
    Outline,
    chosen_outputs,
    require_attention_head,
    require_class,
    require_gene,
    require_gene_named,
    require_layer,
    target_of_cells,
)

if TYPE_CHECKING:
    import numpy as np

    from geneformer_repro.finetuning.settings.cells import FinetuneConfig


def outline_of(arguments: argparse.Namespace) -> Outline | None:
    """Return what the checkpoint's files say, if they tell; raise if the cells are of another vocabulary.

    Raises
    ------
    VocabularyMismatchError
        The cells were tokenised with another vocabulary.
    """
    path = Path(arguments.checkpoint) if arguments.checkpoint else None
    if path is None or not path.is_dir() or arguments.vocabulary or (outline := Outline.of_folder(path)) is None:
        return None
    cells = Path(getattr(arguments, "cells", None) or arguments.data)
    if all((cells / name).is_file() for name in ("spec.json", "vocabulary.json")):
        told = read_json(cells / "spec.json").get("vocabulary")
        if not (isinstance(told, str) and outline.vocabulary.has_fingerprint(told)):
            from geneformer_repro.tokenizer.vocabulary import Vocabulary

            Vocabulary.load(cells).require_same(outline.vocabulary, this="the dataset", that=outline.name)
    return outline


def look_at_layer(arguments: argparse.Namespace, outline: Outline) -> None:
    """Raise unless the model has the layer that is read."""
    if arguments.layer is not None:
        require_layer(arguments.layer, outline.n_blocks)


def look_at_attention(outline: Outline, layers: Sequence[int], heads: Sequence[tuple[int, int]]) -> None:
    """Raise unless the model has these blocks, and these heads of attention."""
    for head in (*((layer, 0) for layer in layers), *heads):
        require_attention_head(head, outline.n_blocks, outline.n_heads, outline.name)


def look_at_genes(outline: Outline, files: Sequence[tuple[str | None, str]]) -> None:
    """Raise unless each file, given with what its genes are called, names some that the model knows."""
    from geneformer_repro.tokenizer.gene_lists import known_genes

    for path, what in files:
        if path:
            known_genes(path, outline.vocabulary, what)


def look_at_target(arguments: argparse.Namespace, outline: Outline) -> None:
    """Raise unless the model has learned the target of a screen, and the classes named with it."""
    if arguments.target is None:
        return
    names = [one.name for one in outline.targets]
    classes = outline.targets[target_of_cells(arguments.target, outline.level, names, outline.name)].classes
    for state in filter(None, (arguments.start, arguments.goal, *arguments.alternatives)):
        if classes is not None and arguments.state == arguments.target:
            require_class(state, arguments.target, classes, outline.name)


def look_at_explained(arguments: argparse.Namespace, outline: Outline) -> None:
    """Raise unless the model can say what is to be explained."""
    if arguments.start or arguments.patients or arguments.drugs:
        return
    names = [one.name for one in outline.targets]
    if outline.level != "cell":
        require_gene_named(arguments.target, arguments.gene, outline.level, names[:1], outline.name)
        require_gene(arguments.gene, outline.vocabulary)
    if outline.targets:
        chosen_outputs(outline.targets, arguments.target, arguments.state, arguments.contrast, name=outline.name)


def look_at_test_cells(arguments: argparse.Namespace, outline: Outline, config: "FinetuneConfig") -> None:
    """Raise if, whatever the split, some of the test cells are among those that the model has learned from.

    That is so with folds, which report every cell, of groups that are named, and where there are fewer other cells
    than are reported, or none in any group. Else it depends on the split, and is told once that is drawn.
    """
    seen = None if config.split.split_file else _seen_rows(arguments)
    if seen is None or not seen.any():
        return
    import numpy as np

    cells, split = Path(arguments.cells), config.split
    used = _chosen_rows(arguments, cells, len(seen))
    for column in {*config.targets, *config.survival.values()}:
        used &= np.array([label is not None for label in labels_of_rows(cells, column)])
    groups = np.array(labels_of_rows(cells, split.group) if split.group else [""] * len(seen), dtype=object)
    if split.test_groups:
        tested = used & np.isin(groups, split.test_groups)
        is_met = bool((seen & tested).any())
    elif split.folds != 1:
        is_met = bool((seen & used).any())
    elif split.group:
        is_met = set(groups[used]) <= set(groups[used & seen])
    else:
        is_usual = config.min_cells == 0 and config.max_cells_per_class is None
        is_met = is_usual and int((used & ~seen).sum()) < int(split.test * used.sum())
    if is_met:
        raise InputError(
            f"{(seen & used).sum():,} of {used.sum():,} cells with labels, and so test cells, are among "
            f"{PRETRAINED_ON.format(outline.name)}"
        )


def look_at_explained_cells(arguments: argparse.Namespace, outline: Outline) -> None:
    """Raise if the model was trained on some of the cells, all of which are to be explained."""
    if arguments.max_cells or arguments.start or arguments.gene or (seen := _seen_rows(arguments)) is None:
        return
    used = _chosen_rows(arguments, Path(arguments.cells), len(seen))
    if n_seen := int((seen & used).sum()):
        raise InputError(f"{n_seen:,} of {used.sum():,} cells to explain are among {TRAINED_ON.format(outline.name)}")


def _seen_rows(arguments: argparse.Namespace) -> "np.ndarray | None":
    """Return whether the model has learned from each cell; None where the files do not tell."""
    seen, cells = Path(arguments.checkpoint) / "seen_cells.parquet", Path(arguments.cells)
    if arguments.max_length or not seen.is_file() or not (cells / "state.json").is_file():
        return None
    import numpy as np
    import pyarrow.parquet as pq

    from geneformer_repro.tokenizer.summary import digests_in

    learned = pq.read_table(seen)["digest"].to_numpy()
    return np.concatenate([np.zeros(0, dtype=bool), *(np.isin(block, learned) for block in digests_in(cells))])


def _chosen_rows(arguments: argparse.Namespace, cells: Path, n_cells: int) -> "np.ndarray":
    """Return whether each cell is one of those that ``--where`` takes."""
    import numpy as np

    chosen = np.ones(n_cells, dtype=bool)
    for asked in asked_where(arguments.where):
        chosen &= asked.takes(np.isin(np.array(labels_of_rows(cells, asked.column), dtype=object), asked.values))
    return chosen
