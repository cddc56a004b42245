"""Explanations of predictions: ``explain``."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.following import after_explain
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    EXPLAINED,
    MODEL,
    TOKENIZED,
    add_cells_options,
    add_dtype_option,
    given_vocabulary,
    goal_of,
    new_command,
    open_cells,
    refuse_where,
)
from geneformer_repro.cli.looks import look_at_explained, look_at_explained_cells, look_at_layer, outline_of
from geneformer_repro.cli.terminal import is_looked_at, print_table, say
from geneformer_repro.errors import InputError, counted

if TYPE_CHECKING:
    from geneformer_repro.in_silico.explanations.explanation import Explanation

_SHORT = {"ig": "integrated_gradients", "lime": "surrogate"}
_METHODS = (
    "hide", "delete", "mask", "median_rank", "first_order", "gradient_input", "integrated_gradients", "ig",
    "attention_gradient", "rollout", "attention", "surrogate", "lime", "median",
)  # fmt: skip
_OPTIONS = (
    "target", "contrast", "gene", "layer", "pooling", "donor", "obs", "max_cells", "seed", "sets", "pooled_masks",
    "baseline", "steps", "rule", "operator", "masks", "dtype", "max_tokens", "allow_seen", "overwrite",
)  # fmt: skip
READING = ("cohort", "clinical", "genes_in", "values", "log2", "expression")
"""Options of how samples are read."""
_FEWEST_CELLS = 10
_SHOWN = ("gene_name", "method", "state", "effect", "low", "high", "fdr", "n_cells", "n_donors", "beyond")


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    explain = new_command(
        commands,
        "explain",
        _explain,
        "say how much each gene adds to a prediction",
        ".parquet file to write (and a .png and .html of the same name beside it)",
        family="ask",
        examples=["classifier cells.tok --methods ig hide --max-cells 100 -o why.parquet"],
        then=after_explain,
        looks=_look_at_question,
    )
    explain.add_argument("checkpoint", type=MODEL, help=CHECKPOINT)
    explain.add_argument(
        "cells",
        type=EXPLAINED,
        help=f"{TOKENIZED}; for a network that reads values, or of drug response, samples (a table, .h5ad or tokens)",
    )
    add_family_options(explain)
    _add_question_options(explain)
    _add_method_options(explain)
    explain.add_argument(
        "--donor", type=COLUMN, metavar="COLUMN", help="obs column of the donor, the replicate of tests"
    )
    explain.add_argument(
        "--obs", type=COLUMN, nargs="+", default=[], metavar="COLUMN", help="other obs columns to carry along"
    )
    explain.add_argument("--max-cells", type=AtLeast(1), metavar="N", help="explain a random choice of so many cells")
    explain.add_argument("--seed", type=int, default=0, help="of random choices (default %(default)s)")
    explain.add_argument("--allow-seen", action="store_true", help="explain cells, too, that the model was trained on")
    explain.add_argument("--max-tokens", type=AtLeast(1), metavar="N", help="of a batch (default 16384, on a CPU 4096)")
    add_dtype_option(explain)
    add_cells_options(explain)


def add_family_options(explain: Any) -> None:
    """Add what is read beside the rows, by families of models other than those that read tokens of cells."""
    explain.add_argument("--cohort", metavar="COLUMN", help="of samples: cohorts that are each standardised")
    explain.add_argument(
        "--clinical", type=ANY_FILE, metavar="TABLE", help="of samples: what is known of them, joined by id"
    )
    explain.add_argument("--genes-in", choices=["rows", "columns"], help="of a table, if names do not tell")
    explain.add_argument(
        "--values",
        choices=["counts", "expression", "zscore"],
        help="of drug response, what the matrix holds (default what the network learned from, if it says so)",
    )
    explain.add_argument("--log2", action="store_true", help="expression is stored as log2(x + 1), which is undone")
    explain.add_argument(
        "--patients", type=ANY_FILE, metavar="RUN", help="of cells: explain the patients of a run of patients"
    )
    explain.add_argument(
        "--drugs", type=ANY_FILE, metavar="TABLE", help="of drug response: name and SMILES of each drug"
    )
    explain.add_argument(
        "--responses", type=ANY_FILE, metavar="TABLE", help="of drug response: what is known, to say how good it is"
    )
    explain.add_argument(
        "--expression", type=ANY_FILE, metavar="TABLE", help="of drug response with tokens: the expression as well"
    )


def _add_question_options(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("--target", metavar="COLUMN", help="what the classifier learned (default its only target)")
    explain.add_argument("--state", nargs="+", metavar="CLASS", help="classes, or drugs, to explain (default all)")
    explain.add_argument("--contrast", metavar="CLASS", help="compare with this class, not with all others")
    explain.add_argument(
        "--state-column", type=COLUMN, metavar="COLUMN", help="of --start and --goal: obs column of the states"
    )
    explain.add_argument(
        "--start", metavar="STATE", help="instead: explain cells of this state, how much nearer they are"
    )
    explain.add_argument("--goal", metavar="STATE", help="to the mean of this state")
    explain.add_argument("--alternatives", nargs="+", default=[], metavar="STATE", help="other goals")
    explain.add_argument(
        "--gene",
        metavar="GENE",
        help="instead: how sure a pretrained model is of this gene where it is masked, or its class",
    )
    explain.add_argument("--layer", type=int, help="of --goal: 0 is the last block, -1 the one before (default -1)")
    explain.add_argument("--pooling", choices=["mean", "cls"], help="of --goal (default cls where cells have one)")


def _add_method_options(explain: argparse.ArgumentParser) -> None:
    explain.add_argument(
        "--methods",
        nargs="+",
        choices=_METHODS,
        metavar="METHOD",
        help=f"of {', '.join(_METHODS)}; ig is integrated_gradients, lime is surrogate (default hide; of values ig)",
    )
    explain.add_argument(
        "--sets",
        type=ANY_FILE,
        metavar="FILE",
        help="take whole gene sets away instead of single genes: .gmt, or a table set, gene",
    )
    explain.add_argument("--pooled-masks", action="store_true", help="of mask: count <mask> as a gene")
    explain.add_argument(
        "--baseline",
        choices=["mask", "mean", "pad", "median"],
        help="of ig and gradient_input: where genes start from (default mask; of values mean)",
    )
    explain.add_argument(
        "--steps", type=AtLeast(1), default=18, metavar="N", help="of ig, at first (default %(default)s)"
    )
    explain.add_argument(
        "--rule",
        choices=["midpoint", "gauss_legendre"],
        default="midpoint",
        help="of ig, where its points lie (default %(default)s)",
    )
    explain.add_argument(
        "--operator",
        choices=["hide", "median_rank"],
        default="hide",
        help="of surrogate: how genes are left out (default %(default)s)",
    )
    explain.add_argument(
        "--masks",
        type=AtLeast(1),
        metavar="N",
        help="of surrogate: altered cells a draw (default 20 a gene, at least 1000)",
    )


def _look_at_question(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import refuse_existing

    out = Path(arguments.out)
    if out.suffix != ".parquet":
        raise InputError(
            f"{out}: explanations are written as .parquet, with a .png and an .html of the same name beside it."
        )
    for path in (out.with_suffix(".png"), out.with_suffix(".html")):
        refuse_existing(path, overwrite=arguments.overwrite)
    goal_of(arguments, arguments.state_column, "--state-column")
    if outline := outline_of(arguments):
        look_at_explained(arguments, outline)
        if arguments.layer is not None and arguments.start:
            look_at_layer(arguments, outline)
        if not (arguments.allow_seen or arguments.patients):
            look_at_explained_cells(arguments, outline)


def _explain(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.in_silico.explanations.explain import explain
    from geneformer_repro.report import new_axes

    out = Path(arguments.out)
    picture, page = out.with_suffix(".png"), out.with_suffix(".html")
    new_axes(1, 1)  # says before the work if pictures cannot be drawn
    goal = goal_of(arguments, arguments.state_column, "--state-column")
    checkpoint, rows, reading = opened(arguments)
    methods = arguments.methods and list(dict.fromkeys(_SHORT.get(name, name) for name in arguments.methods))
    why = explain(
        checkpoint,
        rows,
        drugs=arguments.drugs,
        responses=arguments.responses,
        patients=arguments.patients,
        reading=reading,
        goal=goal,
        state=arguments.state,
        methods=methods,
        out=out,
        **{name: getattr(arguments, name) for name in _OPTIONS},
    )
    if processes.is_first():
        _draw(why, rows, out, picture, page, overwrite=arguments.overwrite)


def opened(arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Open the checkpoint and, if it reads them, tokenised cells; return what is said of how samples are read."""
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.expression import ExpressionNetwork
    from geneformer_repro.pair_networks import PairNetwork
    from geneformer_repro.tokenizer.published import is_dataset

    checkpoint = Checkpoint.from_pretrained(arguments.checkpoint, vocabulary=given_vocabulary(arguments))
    reading = {name: value for name in READING if (value := getattr(arguments, name))}
    is_cells = not isinstance(checkpoint.model, ExpressionNetwork | PairNetwork)
    if is_cells or is_dataset(Path(arguments.cells)):
        return checkpoint, open_cells(arguments, arguments.cells, checkpoint), reading
    refuse_where(arguments, f"{arguments.cells} has samples")
    return checkpoint, arguments.cells, reading


def _draw(why: "Explanation", cells: Any, out: Path, picture: Path, page: Path, *, overwrite: bool) -> None:
    """Write picture and page of an explanation; print first how good the model is, and then the strongest genes."""
    from geneformer_repro.files import new_file
    from geneformer_repro.in_silico.explanations.explanation_pages import plot_explanation, write_explanation_report
    from geneformer_repro.in_silico.explanations.how_good import sentence

    told = why.metadata
    if told.get("how_good") and not (is_looked_at() and sys.stdout.isatty()):  # where the log has said it
        say(sentence(told["how_good"]))
    genes = why.genes(cells if _has_labels(cells, told) else None)
    say(f"{out}: {described(why)}")
    print_strongest(genes, why.rows_are)
    with new_file(picture, overwrite=overwrite) as aside:
        plot_explanation(why, genes=genes).savefig(aside, dpi=150)
    write_explanation_report(why, page, genes=genes, overwrite=overwrite)
    say(f"{picture} is the picture, {page} says how good the model is and what was explained")


def print_strongest(genes: Any, rows: str) -> None:
    """Print the strongest genes of each method and state, without those of few cells, which chance makes extreme."""
    from geneformer_repro.in_silico.figures import of_one_class

    genes, class_shown = of_one_class(genes)
    least = min(_FEWEST_CELLS, int(genes["n_cells"].max()) // 2) if len(genes) else 0
    shown = genes[genes["n_cells"] >= least]
    head = shown.groupby(["method", "state"], sort=False, dropna=False).head(3).head(12)
    empty = {"n_donors": 0}
    columns = [
        name for name in _SHOWN if name in head and not (head[name].isna() | (head[name] == empty.get(name))).all()
    ]
    print_table(head[columns])
    if class_shown:
        say(f"class shown: {class_shown}")
    if len(shown) < len(genes):
        say(f"genes in fewer than {least} {rows} are left out here: {len(genes) - len(shown):,} of {len(genes):,} rows")


def _has_labels(rows: Any, told: dict[str, Any]) -> bool:
    """Whether the rows are cells that tell how genes differ between classes or states."""
    from geneformer_repro.tokenizer.dataset import TokenizedDataset

    if not isinstance(rows, TokenizedDataset) or told.get("unit") != "gene":
        return False
    return told.get("goal") is not None or told.get("target") in rows.obs_columns


def described(why: "Explanation") -> str:
    """Say how large an explanation is, without reading its values."""
    told = why.metadata
    n_rows = f"{told['n_cells']:,}" if "n_cells" in told else "?"
    values, genes = counted(len(why), "value"), counted(len(told["gene_names"]), "gene")
    return f"{values} of {genes} in {n_rows} {why.rows_are} by {', '.join(why.methods)}: {why.measure}"
