"""Which heads attend more to some genes, such as transcription factors, than to others like them.

How much a gene is attended is a mean over all queries of a product of query and key, so the product of the mean query
and the key: no L × L matrix is made, and a cell costs its forward pass and little more.

A head that sees nothing of what a gene is still attends by place, and a network with random weights has heads that do
so too. So genes are compared with others of like place and detection, the share of heads is set beside what permuted
labels give, and the same numbers of random weights stand in the same table.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import geneformer_repro.processes as processes
from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.attention import Attention
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.attention_sums import gene_tokens
from geneformer_repro.in_silico.networks.head_tests import (
    N_PERMUTATIONS,
    SIGNIFICANT,
    HeadTests,
    matched_tests,
    pooled_tests,
    strata_of,
)
from geneformer_repro.in_silico.networks.lifts import GeneTokens, LogLifts, log_lifts
from geneformer_repro.in_silico.networks.network_question import asked_genes, drawn_cells
from geneformer_repro.in_silico.networks.places import place_bins
from geneformer_repro.in_silico.parted import batch_tokens
from geneformer_repro.progress import progress
from geneformer_repro.reading import Dtype, Reader, require_one_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset

logger = logging.getLogger(__name__)

HeadMethod = Literal["matched", "published"]
MOST_POOLED = 2**28
"""Values of pooled tokens, 1 GB: those of 12,000 cells of 1,000 genes in a model of 24 heads."""
POOLED_WARNING = (
    "method='published' takes tokens for independent and compares genes of different places: in simulations it calls "
    "33 to 83 % of heads significant for labels that mean nothing. Read it beside method='matched'."
)


@typed
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
) -> pd.DataFrame:
    """Test of each head of attention whether it attends more to some genes than to others like them.

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
    if processes.count() > 1:
        raise InputError("head_statistics runs in one process, on max_cells cells; start it without torchrun.")
    where = torch.device(device) if device else processes.device()
    max_tokens = batch_tokens(max_tokens, where)
    labelled = asked_genes(genes, cells.vocabulary, "genes")
    rows = drawn_cells(cells, [] if donor is None else [donor], max_cells, np.random.default_rng(seed))
    donors = None if donor is None else cells.labels(donor).to_numpy()[rows]
    pooled = method == "published"
    networks = [checkpoint, checkpoint.with_random_weights(seed=seed)] if random_weights else [checkpoint]
    readers = [Reader.of(network, dtype=dtype, max_tokens=max_tokens, device=where) for network in networks]
    _require_room(readers[0], cells, rows, pooled=pooled)
    with progress("heads", total=len(readers) * int(cells.lengths[rows].sum()), unit="tokens") as bar:
        attended = [_Attended.of(reader, cells, rows, donors, pooled=pooled, show=bar.update) for reader in readers]
    ours, *random = (_Compared.of(of_network, labelled, min_cells) for of_network in attended)
    tables = [
        _published(compared) if pooled else _matched(compared, n_permutations, np.random.default_rng(seed))
        for compared in (ours, *random)
    ]
    return _beside(tables, ours, rows, donors, method)


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
class _Attended:
    """How much each gene is attended, by head; heads of all blocks one behind the other."""

    of_gene: np.ndarray
    """Genes of the vocabulary × heads, mean over donors of means over cells; NaN of a gene that no cell has."""
    n_cells: np.ndarray
    mean_place: np.ndarray
    profile: np.ndarray
    """Bins of place × heads."""
    on_specials: np.ndarray
    heads: np.ndarray
    """Layer and head of each column, (heads, 2)."""
    tokens: np.ndarray | None
    """Tokens of all cells × heads, where they are pooled."""
    gene_of_token: np.ndarray | None

    @classmethod
    def of(
        cls,
        reader: Reader,
        cells: TokenizedDataset,
        rows: np.ndarray,
        donors: np.ndarray | None,
        *,
        pooled: bool,
        show: Any,
    ) -> "_Attended":
        codes, names = pd.factorize(np.zeros(len(rows)) if donors is None else donors)
        n_heads = int(reader.bert.config.num_attention_heads)
        sums = _Sums(len(names), len(cells.vocabulary), int(cells.lengths[rows].max()), (reader.n_blocks, n_heads))
        for batch in reader.batches(cells, rows):
            tokens = gene_tokens(batch, reader.device)
            watch = _Watch(tokens)
            reader.watch(batch, watch)
            ids_T = batch.input_ids_T.cpu().numpy()
            for row, of_cell, seen in zip(batch.rows, tokens, watch.result(), strict=True):
                genes = cells.vocabulary.genes_of(ids_T[of_cell.genes_G.cpu().numpy()])
                sums.add(int(codes[row]), genes, *seen, pooled=pooled)
            show(len(batch.input_ids_T))
        return sums.result(cls)


class _Watch:
    """Observer of a batch: of each cell what its genes get, (G, heads), and what special tokens get, (heads,)."""

    def __init__(self, tokens: Sequence[GeneTokens]) -> None:
        self._tokens = tokens
        self._seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tokens]

    def __call__(self, layer: int, attention: Attention) -> None:
        """Look at one block."""
        for seen, tokens in zip(self._seen, self._tokens, strict=True):
            lifts = log_lifts(attention, tokens)
            seen.append((mean_over_queries(lifts), lifts.on_specials_QH.mean(0)))

    def result(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return both of each cell, blocks one behind the other."""
        return [
            (torch.cat([got for got, _ in seen], 1).cpu().numpy(), torch.cat([lost for _, lost in seen]).cpu().numpy())
            for seen in self._seen
        ]


def mean_over_queries(lifts: LogLifts) -> Tensor:
    """Return the mean log lift of each key over the other genes' queries, (K, H); all genes are queries and keys.

    A product of the summed query with each key, less the gene's own. NaN in a cell of one gene.
    """
    total_KH = (lifts.query_QHE.sum(0) * lifts.key_KHE).sum(-1) + lifts.of_query_QH.sum(0)
    own_KH = (lifts.query_QHE * lifts.key_KHE).sum(-1) + lifts.of_query_QH
    return (total_KH - own_KH) / (len(lifts.query_QHE) - 1)


class _Sums:
    """Sums over cells."""

    def __init__(self, n_donors: int, n_genes: int, longest: int, shape: tuple[int, int]) -> None:
        n_heads = shape[0] * shape[1]
        self._shape, self._bins = shape, place_bins(longest)
        self._sum, self._n = np.zeros((n_donors, n_genes, n_heads)), np.zeros((n_donors, n_genes), dtype=np.int64)
        self._place = np.zeros(n_genes)
        self._profile, self._n_profile = np.zeros((self._bins[-1] + 1, n_heads)), np.zeros(self._bins[-1] + 1)
        self._on_specials, self._n_cells = np.zeros(n_heads), 0
        self._tokens: list[np.ndarray] = []
        self._genes: list[np.ndarray] = []

    def add(self, donor: int, genes: np.ndarray, got: np.ndarray, lost: np.ndarray, *, pooled: bool) -> None:
        """Add a cell; one of a single gene says nothing."""
        if len(genes) < 2:
            return
        self._sum[donor, genes] += got
        self._n[donor, genes] += 1
        self._place[genes] += np.arange(len(genes))
        np.add.at(self._profile, self._bins[: len(genes)], got)
        self._n_profile += np.bincount(self._bins[: len(genes)], minlength=len(self._n_profile))
        self._on_specials += lost
        self._n_cells += 1
        if pooled:
            self._tokens.append(got.astype(np.float32))
            self._genes.append(genes)

    def result(self, kind: type[_Attended]) -> _Attended:
        """Return means."""
        n = self._n[..., None]
        of_donors = np.divide(self._sum, n, out=np.zeros_like(self._sum), where=n > 0)
        n_donors, n_cells = np.sum(self._n > 0, axis=0), self._n.sum(0)
        return kind(
            of_gene=_ratio(of_donors.sum(0), n_donors[:, None]),
            n_cells=n_cells,
            mean_place=_ratio(self._place, n_cells),
            profile=_ratio(self._profile, self._n_profile[:, None]),
            on_specials=self._on_specials / max(1, self._n_cells),
            heads=np.indices(self._shape).reshape(2, -1).T,
            tokens=np.concatenate(self._tokens) if self._tokens else None,
            gene_of_token=np.concatenate(self._genes) if self._genes else None,
        )


def _ratio(total: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


# Tests


class _Compared(NamedTuple):
    """The genes that are compared."""

    attended: _Attended
    chosen: np.ndarray
    """Whether each gene of the vocabulary is."""
    labelled: np.ndarray

    @classmethod
    def of(cls, attended: _Attended, labelled: np.ndarray, min_cells: int) -> "_Compared":
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
        "z": _ratio(tested.difference, tested.null_sd),
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
