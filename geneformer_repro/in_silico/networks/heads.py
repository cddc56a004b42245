"""Which heads attend more to some genes, such as transcription factors, than to others like them.

A head that sees nothing of what a gene is still attends by place, and a network with random weights has heads that do
so too. So genes are compared with others of like place and detection, the share of heads is set beside what permuted
labels give, and the same numbers of random weights stand in the same table.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

import geneformer_repro.processes as processes
from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.errors import InputError
from geneformer_repro.files import write_table
from geneformer_repro.in_silico.networks.head_sums import Attended, HeadShape, HeadSums, ratio
from geneformer_repro.in_silico.networks.head_tests import (
    N_PERMUTATIONS,
    SIGNIFICANT,
    HeadTests,
    matched_tests,
    pooled_tests,
    strata_of,
)
from geneformer_repro.in_silico.networks.network_question import asked_genes, drawn_cells
from geneformer_repro.in_silico.parted import batch_tokens, in_words, require_output
from geneformer_repro.progress import Bar, progress
from geneformer_repro.reading import Dtype, Reader, consecutive_parts, require_one_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.placeholders import warn_of_no_donors
from geneformer_repro.work import Parts, Work, working_on

logger = logging.getLogger(__name__)

HeadMethod = Literal["matched", "published"]
VERSION = 1
"""Of the values: raised when another version of the package gives other ones, so that it does not go on with these."""
CELLS_A_PART, TOKENS_A_PART = 512, 2**20
"""Most cells, and tokens, between two points from which the work can go on."""
MOST_POOLED = 2**28
"""Values of pooled tokens, 1 GB: those of 12,000 cells of 1,000 genes in a model of 24 heads."""
POOLED_WARNING = (
    "method='published' takes tokens for independent and compares genes of different places: in simulations it calls "
    "33 to 83 % of heads significant for labels that mean nothing. Read it beside method='matched'."
)


@typed
@processes.together()
def head_statistics(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    genes: str | Path | Sequence[str],
    *,
    donor: str | None = None,
    method: HeadMethod = "matched",
    random_weights: bool = True,
    min_cells: int = 20,
    max_cells: int | None = 2_000,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
    dtype: Dtype = "float32",
    max_tokens: int | None = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Test of each head of attention whether it attends more to some genes than to others like them.

    Under ``torchrun`` or ``accelerate launch`` every process must call it, with `out`; they share the cells.

    Parameters
    ----------
    checkpoint
        The model: pretrained, or a classifier.
    cells
        Cells of the same vocabulary, of one type if types are not the point.
    genes
        The genes that are asked about, such as transcription factors: ids or names, or a file with one a line. Unknown
        ones are listed in a warning and left out.
    donor
        Column of the donor: what a gene gets is then the mean over donors of the mean over their cells.
    method
        "matched": labels are permuted among genes of like place and detection. "published": rank sums over tokens
        pooled from all cells, which call heads significant for labels that mean nothing; with a warning.
    random_weights
        Do the same with a network of random weights, whose numbers stand beside.
    min_cells
        Cells that must have a gene for it to be compared.
    max_cells
        Read a random choice of so many cells; None all.
    n_permutations
        How often labels are permuted; the smallest p-value is one in so many.
    seed
        Of the cells, the permutations and the random weights.
    dtype
        What the network computes in; what is summed is float32 either way.
    max_tokens
        Tokens of a batch; default 16,384, on a CPU 4,096.
    device
        Default: an accelerator where there is one.
    out
        File of the table (tab-separated). A call that was cut off goes on from ``OUT.partial`` with the same arguments.
        None: nothing is written.
    overwrite
        Replace the file that stands in `out`; drop unfinished work with other settings.

    Returns
    -------
    A row a head:

    - ``layer``, ``head``: counted from 0, the layer next to the input first.
    - ``difference``: how much more these genes are attended than others of their strata, in bits: mean over genes of
      the mean log2 lift of attention over queries, cells and donors. ``z``: in standard deviations of its null.
    - ``p_value``, two-sided, and ``fdr``, Benjamini and Hochberg over heads.
    - ``difference_unmatched``: the same less all other genes, place not corrected for.
    - ``on_specials``: mean share of attention that ``<cls>`` and ``<eos>`` get, which is taken out first.
    - ``random_difference``, ``random_z``, ``random_fdr``: of the network with random weights.
    - ``n_genes`` that are asked about and compared; ``n_others``; ``n_cells``; ``n_donors``, 0 if no column was given.

    Of "published": ``difference`` and p-values over tokens, and ``n_tokens``. ``attrs``: ``share`` of heads with FDR
    below 0.05 and a difference above 0; of "matched" ``null_share`` (mean and 95 % quantile over permutations) and
    ``share_p_value``; ``trend``, Spearman correlation of the difference with the layer, and ``trend_p_value``, under
    the same permutations; ``random_share``; ``place_profile``, of each head the mean log lift of keys by bin of the
    root of their place; ``method``, ``warning``.

    Raises
    ------
    InputError
        No gene is known or in `min_cells` cells, there are no others like them, an option is out of range, or pooled
        tokens are too many.
    VocabularyMismatchError
        The cells were tokenised with another vocabulary than the model's.
    FileExistsError
        `out` exists, or unfinished work with other settings; the difference is shown.

    See Also
    --------
    gene_network : Which genes attend to which.

    Notes
    -----
    Null hypothesis: among genes in the same of ten bins of the root of their mean place, halved by detection, heads do
    not attend otherwise to those that are asked about. Labels are permuted within these strata, the same way for all
    heads, so that permutations also give the null of the share of heads. Genes are what is permuted: p-values are
    about genes that one might have labelled, not about donors.

    References
    ----------
    Theodoris et al., Nature 618, 616 (2023), Fig. 4e: transcription factors in 20 % of heads.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> tfs = ["SPI1", "IRF8", "ID2", "FOS", "JUNB", "KLF6"]
    >>> table = gf.head_statistics(base, cells.select(range(100)), tfs, donor="donor")
    >>> table[["layer", "head"]].values.tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    >>> sorted(table.attrs["null_share"])
    ['mean', 'q95']
    """
    checkpoint.require_matching(cells)
    require_one_of(HeadMethod, "method", method)
    require_at_least(min_cells=(min_cells, 1), max_cells=(max_cells, 1), n_permutations=(n_permutations, 19))
    require_output(out, what="heads", overwrite=overwrite)
    where = torch.device(device) if device else processes.device()
    max_tokens = batch_tokens(max_tokens, where)
    labelled = asked_genes(genes, cells.vocabulary, "genes")
    rows = drawn_cells(cells, [] if donor is None else [donor], max_cells, np.random.default_rng(seed))
    donors = None if donor is None else cells.labels(donor).to_numpy()[rows]
    if donor is not None:
        warn_of_no_donors(cells.labels(donor), donor)
    networks = [checkpoint, checkpoint.with_random_weights(seed=seed)] if random_weights else [checkpoint]
    readers = [Reader.of(network, dtype=dtype, max_tokens=max_tokens, device=where) for network in networks]
    warn_if_guessing(checkpoint)
    codes, _ = pd.factorize(np.zeros(len(rows)) if donors is None else donors)
    reading = _Reading(readers, cells, rows, codes, pooled=method == "published")
    _require_room(readers[0], cells, rows, pooled=reading.pooled)

    def table_of(attended: Sequence[Attended]) -> pd.DataFrame:
        ours, *random = (_Compared.of(of_network, labelled, min_cells) for of_network in attended)
        tables = [
            _published(compared) if reading.pooled else _matched(compared, n_permutations, np.random.default_rng(seed))
            for compared in (ours, *random)
        ]
        return _beside(tables, ours, rows, donors, method)

    if out is None:
        return table_of(reading.in_memory())
    plan = {
        "heads of": checkpoint.fingerprint, "cells": cells.fingerprint, "donor": donor, "method": method,
        "genes": hashlib.sha256(labelled.tobytes()).hexdigest(), "random_weights": random_weights,
        "min_cells": min_cells, "max_cells": max_cells, "n_permutations": n_permutations, "seed": seed, "dtype": dtype,
        "max_tokens": max_tokens, "version": VERSION, "part": [CELLS_A_PART, TOKENS_A_PART],
    }  # fmt: skip
    with working_on(out, plan, what="table of heads", overwrite=overwrite) as work:
        attended = reading.in_parts(work)
        table = processes.agreed(lambda: table_of(attended))
        if processes.is_first() and not work.is_delivered:
            with work.result() as aside:
                write_table(table.set_index("layer"), aside)
    return table


def _require_room(reader: Reader, cells: TokenizedDataset, rows: np.ndarray, *, pooled: bool) -> None:
    n_heads = reader.n_blocks * int(reader.bert.config.num_attention_heads)
    n_values = int(cells.lengths[rows].sum()) * n_heads
    if pooled and n_values > MOST_POOLED:
        raise InputError(
            f"method='published' ranks the tokens of all cells together: {n_values:,} values of {len(rows):,} cells, "
            f"more than {MOST_POOLED:,}. Read fewer: max_cells={max(1, len(rows) * MOST_POOLED // n_values):,} "
            "(--max-cells)."
        )


# What is attended


@dataclass(frozen=True, eq=False)
class _Reading:
    """The cells that are read, with each network, in parts that follow from the cells alone."""

    readers: Sequence[Reader]
    cells: TokenizedDataset
    rows: np.ndarray
    donors: np.ndarray
    """Number of the donor of each cell."""
    pooled: bool

    @cached_property
    def parts(self) -> list[tuple[int, np.ndarray]]:
        """Number of the network of each part, and which of the rows it has."""
        lengths = self.cells.lengths[self.rows].astype(np.int64)
        cut = consecutive_parts(lengths, CELLS_A_PART, TOKENS_A_PART)
        return [(network, part) for network in range(len(self.readers)) for part in cut]

    def _n_tokens(self, i: int) -> int:
        return int(self.cells.lengths[self.rows[self.parts[i][1]]].sum())

    def _empty(self) -> HeadSums:
        network = self.readers[0]
        n_heads = int(network.bert.config.num_attention_heads)
        longest = int(self.cells.lengths[self.rows].max())
        n_donors, n_genes = int(self.donors.max()) + 1, len(self.cells.vocabulary)
        return HeadSums(HeadShape(n_donors, n_genes, longest, network.n_blocks, n_heads), pooled=self.pooled)

    def _sums(self, i: int, show: Callable[[int], object]) -> HeadSums:
        """Read the cells of a part."""
        network, part = self.parts[i]
        return self._empty().read(self.readers[network], self.cells, self.rows[part], self.donors[part], show=show)

    def in_memory(self) -> list[Attended]:
        """Read all parts; return what each network attends to."""
        sums = [self._empty() for _ in self.readers]
        with self._shown(range(len(self.parts)), done=()) as bar:
            for i, (network, _) in enumerate(self.parts):
                sums[network].add_tensors(self._sums(i, bar.update).tensors())
        return [one.result() for one in sums]

    def in_parts(self, work: Work) -> list[Attended]:
        """Read what is missing of the parts, with the other processes; return the same, on the first of them."""
        kept = Parts(work, len(self.parts), suffix=".safetensors")
        done = set(range(len(self.parts))) - set(kept.missing)
        with self._shown(kept.missing, done=done) as bar:
            for i in kept.mine:
                kept.keep(i, self._sums(i, bar.update).save)
        processes.wait()
        if not processes.is_first():
            return []
        sums = [self._empty() for _ in self.readers]
        for (network, _), path in zip(self.parts, kept.paths, strict=True):
            sums[network].add_file(path)
        return [one.result() for one in sums]

    def _shown(self, parts: Sequence[int], *, done: Iterable[int]) -> AbstractContextManager[Bar]:
        """Say what is to be done and how long it will take; show a bar."""
        n_done, n_to_do = (sum(map(self._n_tokens, which)) for which in (done, parts))
        if processes.is_first() and n_to_do:
            beside = " with two networks, the other of random weights" if len(self.readers) > 1 else ""
            seconds = self._seconds_a_token() * n_to_do / processes.count()
            logger.info("%s cells are read%s; about %s here", f"{len(self.rows):,}", beside, in_words(seconds))
        quiet = not processes.is_first()
        return progress("heads", total=n_done + n_to_do, unit="tokens", done=n_done, quiet=quiet)

    def _seconds_a_token(self) -> float:
        """Time a cell of middle length, the second time."""
        middle = np.argsort(self.cells.lengths[self.rows], kind="stable")[[len(self.rows) // 2]]
        for _ in range(2):
            began = time.perf_counter()
            self._empty().read(self.readers[0], self.cells, self.rows[middle], self.donors[middle], show=int)
        return (time.perf_counter() - began) / int(self.cells.lengths[self.rows[middle]].sum())


# Tests


class _Compared(NamedTuple):
    """The genes that are compared."""

    attended: Attended
    chosen: np.ndarray
    """Whether each gene of the vocabulary is."""
    labelled: np.ndarray

    @classmethod
    def of(cls, attended: Attended, labelled: np.ndarray, min_cells: int) -> "_Compared":
        chosen = attended.n_cells >= min_cells
        if not (labelled & chosen).any():
            raise InputError(
                f"None of the {int(labelled.sum())} genes is in {min_cells} cells. Take more cells, other genes, or a "
                "lower min_cells."
            )
        return cls(attended, chosen, labelled)


def _matched(compared: _Compared, n_permutations: int, rng: np.random.Generator) -> pd.DataFrame:
    attended, chosen = compared.attended, compared.chosen
    of_gene, labelled = attended.of_gene[chosen], compared.labelled[chosen]
    strata = strata_of(attended.mean_place[chosen], attended.n_cells[chosen])
    layer = attended.heads[:, 0]
    tested = matched_tests(of_gene, labelled, strata, layer, n_permutations=n_permutations, rng=rng)
    unmatched = of_gene[labelled].mean(0) - of_gene[~labelled].mean(0)
    columns = {
        "difference": tested.difference,
        "z": ratio(tested.difference, tested.null_sd),
        "p_value": tested.p_value,
        "fdr": tested.fdr,
        "difference_unmatched": unmatched,
        "n_genes": tested.n_labelled,
        "n_others": int(np.sum(~labelled)),
    }
    table = pd.DataFrame(columns)
    table.attrs |= _facts(tested)
    return table


def _facts(tested: HeadTests) -> dict[str, Any]:
    return {
        "share": tested.share,
        "null_share": {"mean": float(tested.null_share.mean()), "q95": float(np.quantile(tested.null_share, 0.95))},
        "share_p_value": tested.share_p_value,
        "trend": tested.trend,
        "trend_p_value": tested.trend_p_value,
    }


def _published(compared: _Compared) -> pd.DataFrame:
    attended = compared.attended
    assert attended.tokens is not None
    assert attended.gene_of_token is not None
    among = compared.chosen[attended.gene_of_token]
    labelled = compared.labelled[attended.gene_of_token[among]]
    tested = pooled_tests(attended.tokens[among], labelled)
    table = pd.DataFrame({"difference": tested.difference, "p_value": tested.p_value, "fdr": tested.fdr})
    table = table.assign(
        n_genes=int(np.sum(compared.labelled & compared.chosen)),
        n_others=int(np.sum(~compared.labelled & compared.chosen)),
        n_tokens=len(labelled),
    )
    table.attrs["share"] = float(np.mean((tested.fdr < SIGNIFICANT) & (tested.difference > 0)))
    return table


def _beside(
    tables: Sequence[pd.DataFrame], ours: _Compared, rows: np.ndarray, donors: np.ndarray | None, method: HeadMethod
) -> pd.DataFrame:
    """Put the numbers of random weights beside those of the model, and say what was read."""
    table, *random = tables
    attended = ours.attended
    layers, heads = attended.heads.T
    facts = dict(table.attrs)  # which pandas drops where those of two tables differ
    for of_random in random:
        beside = of_random[[name for name in ("difference", "z", "fdr") if name in of_random]]
        table = table.join(beside.add_prefix("random_"))
        facts["random_share"] = of_random.attrs["share"]
    n_read = {"n_cells": len(rows), "n_donors": 0 if donors is None else len(set(donors))}
    table = table.assign(on_specials=attended.on_specials, **n_read)
    table.insert(0, "layer", layers)
    table.insert(1, "head", heads)
    warning = POOLED_WARNING if method == "published" else ""
    if warning:
        logger.warning(warning)
    profile = [[None if np.isnan(value) else float(value) for value in of_head] for of_head in attended.profile.T]
    table.attrs = facts | {"method": method, "warning": warning, "place_profile": profile}
    return table
