"""Asking a fine-tuned network about new data.

Cells are taken in consecutive parts, so that a large dataset is read from one end to the other, several processes share
it, and a call that was cut off goes on; within a part they are sorted by length.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import anndata as ad
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.batching import require_budget
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.encoder import IGNORED
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.files import new_file, refuse_existing, write_table
from geneformer_repro.finetuning.sample_predictions import predict_samples
from geneformer_repro.heads import GeneClassifier, Head
from geneformer_repro.into_adata import places_of_genes, put_columns, require_writable
from geneformer_repro.outline import NO_CLASSES
from geneformer_repro.progress import Bar, progress
from geneformer_repro.reading import MAX_TOKENS, logits_at_tokens, outputs_of, part_limits, parts_of
from geneformer_repro.targets import Target
from geneformer_repro.tokenizer.corpus import find_sources, identity
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.work import Parts, working_on

logger = logging.getLogger(__name__)

_FEW_GENES = 0.4
"""Share of the genes of the vocabulary below which predictions are warned of: of a classifier of stimulated cells the
accuracy of 0.98 became 0.55 to 0.85 with as many genes, drawn at random."""

_Data: TypeAlias = TokenizedDataset | ad.AnnData | str | Path
VERSION = 2
"""Of the predictions: raised when another version of the package makes other ones, so that it does not go on with
these."""


@typed
@processes.together()
def predict(
    checkpoint: Checkpoint,
    data: TokenizedDataset | ad.AnnData | str | Path,
    *,
    layer: str | None = None,
    gene_ids: str | None = None,
    log2: bool = False,
    cohort: str | None = None,
    clinical: pd.DataFrame | str | Path | None = None,
    genes_in: Literal["rows", "columns"] | None = None,
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Predict classes, with probabilities, numbers or survival of new cells or samples; or classes of genes in cells.

    Under ``torchrun`` or ``accelerate launch`` every process must call it; they share the cells, and each returns all.

    Parameters
    ----------
    checkpoint
        A classifier made by `finetune` or `finetune_genes`, or one that the published package made; or an expression
        network, such as `transfer_study` writes for each cohort.
    data
        Raw counts (AnnData, or a file or folder that `tokenize` reads), or tokenised cells. What became of the genes is
        said in the log, also how many of the genes that the model knows are missing. For an expression network the
        matrix itself (AnnData, ``.h5ad`` or a table of samples × genes or genes × samples), with what the network was
        trained on: counts, expression or z-scores. Genes are known by id or symbol; one that is missing counts as
        usual.
    layer, gene_ids
        Where counts and gene ids are, as for `tokenize`.
    log2
        Whether expression is stored as log2(x + 1), which belongs to the file. What else its values are (counts,
        expression or z-scores) and the order of tokens are those of the checkpoint's cells.
    cohort
        For an expression network: obs column of cohorts that are each standardised by themselves, as those of a study
        are, with at least ten samples. Left out, a sample is scaled as those that the network was trained on; one of
        several cohorts, as in ``others`` of a study, has no such scale and takes the data for one cohort.
    clinical
        For an expression network: what is known of the samples, joined by id as in `read_samples`, whose columns stand
        for those of ``obs`` of that name. One that learned clinical columns (``with-clinical`` of a study) needs them.
    genes_in
        For an expression network: where the genes of a table are, if their names do not tell.
    max_tokens
        Tokens of a batch; less needs less memory.
    device
        Default: an accelerator where there is one.
    out
        Also write the table here, tab-separated; predictions of cells that were cut off go on from ``OUT.partial`` with
        the same call.
    overwrite
        Replace `out`; drop the remains of a call with other settings.

    Returns
    -------
    A row a cell, by name, in the order of the data: for each target ``TARGET_predicted`` and, of classes,
    ``TARGET_probability`` (of that class) and ``TARGET_p_CLASS`` of each class; of survival ``TARGET_risk`` (higher is
    worse) and ``TARGET_free_at_TIME``, the probability to be free of the event then. A cell without a known gene has no
    prediction. Of a gene classifier a row a gene, with the mean over its occurrences, and ``n_cells``. Where `data` is
    an AnnData it has a row for all of its cells (or genes), and the columns are also put into ``obs`` (``var`` for
    genes), "/" in their names as "|": AnnData writes no column with "/".

    Raises
    ------
    InputError
        The checkpoint is no classifier, or the data cannot be read or have too few known genes.
    VocabularyMismatchError
        The tokenised cells have another vocabulary.
    FileExistsError
        `out` exists, or unfinished work with other settings.

    See Also
    --------
    finetune : Makes the classifier.
    map_to_reference : Labels by neighbours among vectors, without one.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> classifier = gf.Checkpoint.from_pretrained("runs/type")
    >>> adata = gf.datasets.pbmc700()[:50].copy()
    >>> table = gf.predict(classifier, adata)
    >>> table.columns[:3].tolist(), len(table)
    (['cell_type_predicted', 'cell_type_probability', 'cell_type_p_CD14+ Monocyte'], 50)
    >>> bool((adata.obs["cell_type_predicted"] == table["cell_type_predicted"]).all())
    True
    """
    head = checkpoint.head
    if head is None:
        raise InputError(NO_CLASSES.format(checkpoint.name))
    require_budget(max_tokens)
    if isinstance(data, ad.AnnData):
        require_writable(data)
    of_samples = {"cohort": cohort, "clinical": clinical, "genes_in": genes_in}
    if isinstance(checkpoint.model, ExpressionNetwork):
        how = {"layer": layer, "gene_ids": gene_ids, "log2": log2, **of_samples}
        return _of_samples(checkpoint, data, how, out=out, overwrite=overwrite)
    if told := [name for name, value in of_samples.items() if value is not None]:
        raise InputError(
            f"{', '.join(f'{name}=' for name in told)} tells an expression network more of its samples; "
            f"{checkpoint.name} is an encoder, which ranks the genes of each sample by itself. Leave it out."
        )
    where: dict[str, Any] = {"layer": layer, "gene_ids": gene_ids, **({"log2": True} if log2 else {})}
    ask = partial(_Asked, checkpoint, head, max_tokens=max_tokens, device=device)
    if out is None:
        table = ask(_tokenized(checkpoint, data, **where)).table()
    else:
        plan = {"step": "predict", "version": VERSION, "checkpoint": checkpoint.fingerprint, "data": _identity_of(data)}
        plan |= {**where, "max_tokens": max_tokens, "part": part_limits()}
        with working_on(out, plan, what="prediction", overwrite=overwrite) as work:
            asked = ask(_tokenized_once(checkpoint, data, where, work.folder / "cells"))
            table = asked.table(None if head.level == "gene" else Parts(work, len(asked.parts), suffix=".safetensors"))
            if processes.is_first():
                with work.result() as aside:
                    write_table(table.rename_axis(head.level), aside)
    if not isinstance(data, ad.AnnData):
        return table
    if head.level == "cell":
        return _into(data, "obs", table.reindex(data.obs_names))
    places = places_of_genes(data, checkpoint.vocabulary, layer=layer, gene_ids=gene_ids)
    ids = np.array([*checkpoint.vocabulary.gene_ids, ""], dtype=object)[places]
    return _into(data, "var", table.reindex(ids).set_axis(data.var_names))


def _of_samples(
    checkpoint: Checkpoint, data: _Data, how: Mapping[str, Any], *, out: str | Path | None, overwrite: bool
) -> pd.DataFrame:
    """Ask an expression network, which takes seconds, so that nothing is gone on with."""
    if out is not None:
        processes.agreed(lambda: refuse_existing(Path(out), overwrite=overwrite))
    table = predict_samples(checkpoint, data, **how)
    if out is not None:
        processes.agreed(lambda: _write(table, Path(out), overwrite=overwrite))
    return _into(data, "obs", table.reindex(data.obs_names)) if isinstance(data, ad.AnnData) else table


def _write(table: pd.DataFrame, out: Path, *, overwrite: bool) -> None:
    with new_file(out, overwrite=overwrite) as aside:
        write_table(table.rename_axis("sample"), aside)


def _tokenized(checkpoint: Checkpoint, data: _Data, **options: Any) -> TokenizedDataset:
    if isinstance(data, TokenizedDataset):
        return data
    vocabulary = checkpoint.vocabulary
    cells = tokenize(data, vocabulary, values=vocabulary.values, order=vocabulary.order, **options)
    n_known = cells.spec["n_vocabulary_genes"]
    if processes.is_first():
        few = n_known < _FEW_GENES * len(vocabulary)
        logger.log(
            logging.WARNING if few else logging.INFO,
            "%s of the %s genes that the model knows are in the data; the rest count as silent%s.",
            f"{n_known:,}",
            f"{len(vocabulary):,}",
            ", which may mislead a model that learned from all of them" if few else "",
        )
    return cells


def _identity_of(data: _Data) -> Any:
    """Return what tells data from changed ones."""
    return data.fingerprint if isinstance(data, TokenizedDataset) else [identity(one) for one in find_sources(data)]


def _tokenized_once(checkpoint: Checkpoint, data: _Data, where: Mapping[str, Any], tokens: Path) -> TokenizedDataset:
    """Tokenise on the first process, into the folder `tokens`; a call that goes on finds the cells there."""
    if isinstance(data, TokenizedDataset):
        return data

    def tokenise() -> None:
        if not tokens.exists():
            _tokenized(checkpoint, data, out=tokens, **where)

    processes.agreed(tokenise)
    return TokenizedDataset.open(tokens)


class _Asked:
    """A classifier and the cells that it is asked about, in consecutive parts."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        head: Head,
        cells: TokenizedDataset,
        max_tokens: int,
        device: str | torch.device | None,
    ) -> None:
        checkpoint.require_matching(cells)
        self._model, self._head, self._cells, self._max_tokens = checkpoint.model, head, cells, max_tokens
        nn.Module.to(self._model, torch.device(device) if device else processes.device())
        self.parts = parts_of(cells.lengths)

    def table(self, kept: Parts | None = None) -> pd.DataFrame:
        """Return the predictions; of cells, those of finished parts are kept and not made again."""
        missing = range(len(self.parts)) if kept is None else kept.missing
        n_cells, n_done = len(self._cells), len(self._cells) - sum(len(self.parts[i]) for i in missing)
        mine = missing[processes.share()]
        total = n_done + sum(len(self.parts[i]) for i in mine)
        with progress("predict", total=total, unit="cells", done=n_done, quiet=not processes.is_first()) as bar:
            if self._head.level == "gene":
                return self._of_genes(mine, bar)
            outputs_NK = torch.zeros(n_cells, self._head.n_outputs)
            for i in mine:
                asked = self._with_gene(i)
                cells = self._cells.select(asked)
                outputs_NK[asked] = outputs_of(
                    self._model, cells, self._head, max_tokens=self._max_tokens, counting=bar.update
                )
                if kept is not None:
                    kept.keep(i, partial(save_file, {"outputs": outputs_NK[self.parts[i]].clone()}))
                bar.update(len(self.parts[i]) - len(asked))
        if kept is None:
            return self._of_cells(processes.sum_over(outputs_NK))
        processes.wait()
        return self._of_cells(torch.cat([load_file(path)["outputs"] for path in kept.paths]))

    def _with_gene(self, part: int) -> np.ndarray:
        """Return the cells of a part that can be asked about."""
        return self.parts[part][self._cells.has_gene[self.parts[part]]]

    def _of_cells(self, outputs_NK: Tensor) -> pd.DataFrame:
        tables = [
            pd.DataFrame(target.columns(target.meaning(outputs.double()).numpy()), index=self._cells.cell_names)
            for target, outputs in zip(self._head.targets, self._head.split(outputs_NK), strict=True)
        ]
        table = pd.concat(tables, axis=1)
        table[~self._cells.has_gene] = np.nan
        return table

    def _of_genes(self, parts: Sequence[int], bar: Bar) -> pd.DataFrame:
        model, vocabulary, target = cast(GeneClassifier, self._model), self._cells.vocabulary, self._head.targets[0]
        sums_VK = torch.zeros(vocabulary.size, target.n_outputs, dtype=torch.float64)
        n_cells_V = torch.zeros(vocabulary.size, dtype=torch.int64)
        every = np.where(vocabulary.genes_of(np.arange(vocabulary.size)) >= 0, np.arange(vocabulary.size), IGNORED)
        for i in parts:
            cells = self._cells.select(self._with_gene(i))
            for tokens_M, logits_MK in logits_at_tokens(model, cells, every, max_tokens=self._max_tokens):
                sums_VK.index_add_(0, tokens_M, logits_MK.double().softmax(-1))
                n_cells_V += torch.bincount(tokens_M, minlength=vocabulary.size)
            bar.update(len(cells))
        return _mean_of_genes(processes.sum_over(sums_VK), processes.sum_over(n_cells_V), vocabulary, target)


def _mean_of_genes(sums_VK: Tensor, n_cells_V: Tensor, vocabulary: Vocabulary, target: Target) -> pd.DataFrame:
    found = np.flatnonzero(n_cells_V[vocabulary.tokens].numpy())
    tokens = vocabulary.tokens[found]
    names = np.array(vocabulary.gene_ids, dtype=object)[found]
    table = pd.DataFrame(target.columns((sums_VK[tokens] / n_cells_V[tokens, None]).numpy()), index=names)
    table["n_cells"] = n_cells_V[tokens].numpy()
    return table


def _into(adata: ad.AnnData, axis: Literal["obs", "var"], table: pd.DataFrame) -> pd.DataFrame:
    put_columns(adata, axis, table, np.arange(len(table)))
    return table
