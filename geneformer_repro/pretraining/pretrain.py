"""Pretraining: learn to name the genes that were hidden from a cell.

Beside the model's held-out scores stand those of two guesses that need no model: every gene by how often cells express
it, and by how often at such a rank. A model that does not beat them has learned nothing about cells.
"""

import copy
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import BertConfig

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.batching import pack
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.checkpoint_files import worse_than_guessing
from geneformer_repro.config import ConfigError, resolved
from geneformer_repro.encoder import IGNORED
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import provenance, write_table
from geneformer_repro.model import MaskedGeneModel, bert_config, flops
from geneformer_repro.pretraining.figures import loss_figure
from geneformer_repro.pretraining.masking import Masked, cell_rng, mask_genes
from geneformer_repro.pretraining.settings import PretrainConfig
from geneformer_repro.reading import batches_to_judge, sum_over_batches
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.training.config import CellExamples, TrainingRun, join_processes
from geneformer_repro.training.log import LOG_FILE, TENSORBOARD
from geneformer_repro.training.loop import train
from geneformer_repro.work import Work, working_on

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the weights: raised when another version of the package makes other ones, so that it does not go on with these."""
MODEL, FREQUENCY, RANK = "model", "gene frequency", "gene frequency at the rank"
_MOST_HELD_OUT, _MOST_COUNTED = 10_000, 100_000
_HELD_OUT_EPOCH = 2**23
"""Names the masks of held-out cells, which no epoch of training uses."""


@typed
def pretrain(
    cells: TokenizedDataset,
    config: PretrainConfig | None = None,
    *,
    out: str | Path,
    base: Checkpoint | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Checkpoint:
    """Pretrain a model on cells, or go on from a checkpoint.

    Parameters
    ----------
    cells
        Tokenised cells; no labels are used. Cells without a gene are left out.
    config
        Recipe; default `PretrainConfig()`.
    out
        Folder for the checkpoint, ``log.jsonl``, ``history.tsv``, ``scores.tsv``, ``loss.png`` and ``tensorboard``. A
        run that was cut off leaves ``OUT.partial``; the same call goes on from its last saved step.
    base
        Start from these weights (continual pretraining); left as it is. Cells that are ranked by other values, or in
        another order, than those it has learned from (bulk expression after counts of cells) must have the same tokens
        of genes; the new checkpoint has their medians, and ``provenance["adapted"]`` says from what to what.
    overwrite
        Replace a checkpoint that `out` holds; drop an unfinished run with other settings (the same run goes on).
    resume
        Only go on: raise if there is no unfinished run.

    Returns
    -------
    The checkpoint, on every process. Its ``provenance["result"]`` has ``scores``: ``loss`` (mean cross-entropy in nats
    over the masked genes of held-out cells), ``perplexity``, ``top1`` and ``top5`` (share of those genes that are the
    likeliest one, or among the five likeliest) of the model and of two guesses that need none.

    Raises
    ------
    InputError
        There are too few cells to hold any out, none of theirs is masked, or there is nothing to resume.
    VocabularyMismatchError
        `base` has another vocabulary than the cells, but for values and order, and medians of other values.
    FileExistsError
        `out` exists, or an unfinished run with other settings.
    Interrupted
        The process received SIGTERM, or Ctrl-C; the run is saved.

    See Also
    --------
    PretrainConfig : How.
    finetune : What to do with the model.
    embed : Vectors from it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> cells = gf.TokenizedDataset.open("cells.tok").select(range(40))
    >>> config = gf.PretrainConfig(
    ...     size="tiny", held_out=0.2, training={"epochs": 1, "batch_size": 8, "warmup_steps": 1}
    ... )
    >>> base = gf.pretrain(cells, config, out="runs/blood")
    >>> result = base.provenance["result"]
    >>> result["n_cells"], result["n_held_out"], list(result["scores"])
    (32, 8, ['model', 'gene frequency', 'gene frequency at the rank'])
    >>> sorted(result["scores"]["model"])
    ['hidden_loss', 'hidden_top1', 'hidden_top5', 'loss', 'perplexity', 'top1', 'top5']
    """
    config = config or PretrainConfig()
    join_processes(config.training)
    adapted = {} if base is None else _adapted(base, cells)
    train_rows, held_rows = _split(cells, config)
    settings = resolved(config)
    inputs = {
        "cells": cells.fingerprint,
        "vocabulary": cells.vocabulary.fingerprint,
        "base": base and base.fingerprint,
    }
    plan = {"step": "pretrain", "version": VERSION, "config": settings, "processes": processes.count(), **inputs}
    with working_on(out, plan, what="run", marker="provenance.json", overwrite=overwrite, must_exist=resume) as work:
        model = _initial_model(cells.vocabulary, config, base)
        held_out = HeldOut(cells, held_rows, config)
        counts = counts_by_rank(cells, _sample(train_rows, _MOST_COUNTED, config.seed))
        guesses = {
            name: held_out.scores(Guess(counts, cells.vocabulary, by_rank=name == RANK)) for name in (FREQUENCY, RANK)
        }
        trained, history = train(model, _training_run(model, cells, train_rows, held_out, config, work.folder))
        nn.Module.to(trained, processes.device())
        scores = pd.DataFrame({MODEL: held_out.scores(trained), **guesses}).T.rename_axis("method")
        result = {
            "scores": scores.round(6).to_dict("index"),
            "n_cells": len(train_rows),
            "n_held_out": len(held_rows),
        }
        record = provenance("pretrain", config=settings, inputs=inputs) | {"result": result, **adapted}
        trained = cast(MaskedGeneModel, trained.eval())
        seen = np.array([] if base is None or base.seen is None else base.seen, dtype=np.uint64)
        seen = np.union1d(cells.select(train_rows).digests(), seen)
        checkpoint = Checkpoint(trained, cells.vocabulary, record, seen, name=f"checkpoint {out}", path=str(out))
        if processes.is_first():
            _write(checkpoint, history, scores, work)
            logger.info(
                "pretrain: %s masked genes of %s held-out cells; right of the line those behind <mask> alone",
                f"{held_out.n_masked:,}",
                f"{len(held_rows):,}",
            )
            logger.info("%s", _table(scores))
            if said := worse_than_guessing(record):
                logger.warning("pretrain: the model is %s.", said)
    return checkpoint


def _adapted(base: Checkpoint, cells: TokenizedDataset) -> dict[str, Any]:
    """Say, for provenance, from which values to which a model goes on; nothing where they are the same.

    Raises
    ------
    VocabularyMismatchError
        The cells have other tokens; or medians of their own though they are ranked by the same.
    """
    before, after = base.vocabulary, cells.vocabulary
    adapts = before.ranked != after.ranked
    base.require_matching(cells, tokens_only=adapts)
    if not adapts:
        return {}
    if processes.is_first():
        logger.info(
            "pretrain: goes on from ranks of %s to ranks of %s, with the same tokens; the new checkpoint has the "
            "medians of these cells.", before.ranked, after.ranked,
        )  # fmt: skip
    of_each = ({"values": v.values, "order": v.order, "vocabulary": v.fingerprint} for v in (before, after))
    return {"adapted": dict(zip(("from", "to"), of_each, strict=True))}


def _training_run(
    model: MaskedGeneModel,
    cells: TokenizedDataset,
    rows: np.ndarray,
    held_out: "HeldOut",
    config: PretrainConfig,
    work: Path,
) -> TrainingRun:
    lengths = cells.lengths[rows]
    forward = flops(model.config, lengths, read=config.mask_probability, n_outputs=cells.vocabulary.size)
    return TrainingRun(
        examples=CellExamples(lengths, lambda i, epoch: _masked_cell(cells, int(rows[i]), epoch, config), rows=rows),
        collate=pack,
        evaluate=held_out.scores,
        config=config.training,
        seed=config.seed,
        flops_an_epoch=3 * forward,
        work=work,
        step="pretrain",
    )


def _write(checkpoint: Checkpoint, history: pd.DataFrame, scores: pd.DataFrame, work: Work) -> None:
    with work.result() as folder:
        folder.mkdir()
        checkpoint.write_into(folder)
        write_table(history, folder / "history.tsv", index=False)
        write_table(scores, folder / "scores.tsv")
        shutil.copyfile(work.folder / LOG_FILE, folder / LOG_FILE)
        shutil.copytree(work.folder / TENSORBOARD, folder / TENSORBOARD)
        loss_figure(history, scores["loss"].drop(MODEL)).savefig(folder / "loss.png", dpi=150)


def _table(scores: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "loss": scores["loss"].map("{:.3f}".format),
            "perplexity": scores["perplexity"].map("{:,.0f}".format),
            "top-1": scores["top1"].map("{:.1%}".format),
            "top-5": scores["top5"].map("{:.1%}".format),
            "| loss": scores["hidden_loss"].map("{:.3f}".format),
            "top-1 ": scores["hidden_top1"].map("{:.1%}".format),
            "top-5 ": scores["hidden_top5"].map("{:.1%}".format),
        }
    )
    return shown.rename_axis(None).to_string()


# Cells


def _split(cells: TokenizedDataset, config: PretrainConfig) -> tuple[np.ndarray, np.ndarray]:
    rows = np.flatnonzero(cells.has_gene)
    if len(rows) < len(cells):
        logger.info("pretrain: %d of %d cells have no gene; left out.", len(cells) - len(rows), len(cells))
    n_held_out = max(1, min(round(len(rows) * config.held_out), _MOST_HELD_OUT))
    if len(rows) - n_held_out < 1:
        raise InputError(
            f"{len(rows)} cells are too few to train on some and hold others out (held_out={config.held_out})."
        )
    order = rows[np.random.default_rng(config.seed).permutation(len(rows))]
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def _sample(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _masked_cell(cells: TokenizedDataset, row: int, epoch: int, config: PretrainConfig) -> Masked:
    rng = cell_rng(config.seed, epoch, row)
    return mask_genes(cells[row], cells.vocabulary, probability=config.mask_probability, rng=rng)


def _initial_model(vocabulary: Vocabulary, config: PretrainConfig, base: Checkpoint | None) -> MaskedGeneModel:
    if base is not None and not isinstance(base.model, MaskedGeneModel):
        raise InputError(f"{base.name} is a classifier without a masked-gene head; go on from a pretrained model.")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = MaskedGeneModel(
            _network(vocabulary, config) if base is None else copy.deepcopy(base.token_model.config)
        )
    if base is not None:
        model.load_state_dict(base.model.state_dict())
    return model


def _network(vocabulary: Vocabulary, config: PretrainConfig) -> BertConfig:
    network = bert_config(config.size, vocabulary)
    for name, value in (config.network or {}).items():
        if not hasattr(network, name):
            raise ConfigError(
                f"network: transformers.BertConfig has no field {name!r}. {did_you_mean(name, vars(network))}"
            )
        setattr(network, name, value)
    if network.hidden_size % network.num_attention_heads:
        raise ConfigError(
            f"network: hidden_size {network.hidden_size} is no multiple of num_attention_heads "
            f"{network.num_attention_heads}."
        )
    return network


# Scores


class Guess:
    """What is to be known of a hidden gene without looking at the cell: how often cells express each gene.

    Parameters
    ----------
    counts
        How often each token was seen in each range of ranks, (ranges, vocabulary); see `counts_by_rank`.
    vocabulary
        Tells genes from special tokens, which are impossible.
    by_rank
        Guess by the counts near the hidden gene's rank, mixed with those of all ranks (which weigh a tenth, and at
        least as much as 1,000 genes); else by the counts of all ranks alone. One is added to each gene's count, so that
        none is impossible.
    """

    def __init__(self, counts: np.ndarray, vocabulary: Vocabulary, *, by_rank: bool) -> None:
        overall = np.zeros(vocabulary.size)
        overall[vocabulary.tokens] = counts.sum(0)[vocabulary.tokens] + 1
        overall /= overall.sum()
        shares = overall[None]
        if by_rank:
            mixed = counts + np.maximum(1000, counts.sum(1, keepdims=True) / 10) * overall
            mixed[:, overall == 0] = 0
            shares = mixed / mixed.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            self._log_share = torch.from_numpy(np.log(shares))
        self._place = self._log_share.argsort(dim=1, descending=True, stable=True).argsort(dim=1)

    def judge(self, ranks_M: Tensor, target_M: Tensor) -> Tensor:
        """Loss of each target at its rank, whether it is the likeliest gene there, and among the five likeliest."""
        range_M = torch.from_numpy(_range_of(ranks_M.numpy())).clamp(max=len(self._log_share) - 1)
        place_M = self._place[range_M, target_M]
        return torch.stack([-self._log_share[range_M, target_M], place_M < 1, place_M < 5])


def counts_by_rank(cells: TokenizedDataset, rows: np.ndarray) -> np.ndarray:
    """Count the tokens of cells by range of ranks; there are 8 ranges to each doubling of the rank."""
    counts = np.zeros((_range_of(np.array([cells.vocabulary.max_length]))[0] + 1, cells.vocabulary.size))
    for row in rows:
        tokens = cells[row]
        counts[_range_of(np.arange(len(tokens))), tokens] += 1
    return counts


def _range_of(ranks: np.ndarray) -> np.ndarray:
    return np.floor(8 * np.log2(1 + ranks)).astype(np.int64)


class HeldOut:
    """Held-out cells with genes masked once and for all, so that scores can be compared.

    Parameters
    ----------
    cells, rows
        Cells, and the row numbers of those that are not trained on.
    config
        Gives the masking probability and the seed.

    Raises
    ------
    InputError
        No gene was masked.
    """

    def __init__(self, cells: TokenizedDataset, rows: np.ndarray, config: PretrainConfig) -> None:
        masked = [_masked_cell(cells, int(row), _HELD_OUT_EPOCH, config) for row in rows]
        self._batches = [pack([masked[i] for i in few]) for few in batches_to_judge(cells.lengths[rows])]
        self.n_masked = sum(int((batch["labels"] != IGNORED).sum()) for batch in self._batches)
        self._mask_token = cells.vocabulary.mask_token
        self._n_hidden = sum(int(self._is_hidden(batch).sum()) for batch in self._batches)
        if not self.n_masked:
            raise InputError(
                f"None of the genes of {len(rows)} held-out cells was masked; hold out more cells "
                f"(held_out={config.held_out})."
            )

    def scores(self, of: "nn.Module | Guess") -> dict[str, float]:
        """Score a model or a guess over the masked genes; the processes of a distributed run share the cells.

        A tenth of the masked genes is shown as it is, and a model learns to copy these; what begins with ``hidden_`` is
        over the genes behind ``<mask>`` alone.

        Returns
        -------
        ``loss`` (mean cross-entropy in nats), ``perplexity``, ``top1``, ``top5``, and the same but perplexity over the
        hidden genes.
        """
        if isinstance(of, nn.Module):
            sums = sum_over_batches(of, self._batches, self._sums_of_output)
        else:
            sums = torch.stack([self._sums_of_guess(of, batch) for batch in self._batches]).sum(0)
        loss, top1, top5 = (sums[:3] / self.n_masked).tolist()
        hidden_loss, hidden_top1, hidden_top5 = (sums[3:] / max(1, self._n_hidden)).tolist()
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "top1": top1,
            "top5": top5,
            "hidden_loss": hidden_loss,
            "hidden_top1": hidden_top1,
            "hidden_top5": hidden_top5,
        }

    def _is_hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """Which of the masked genes are behind ``<mask>``."""
        return (batch["input_ids"][batch["labels"] != IGNORED] == self._mask_token).cpu()

    def _sums(self, batch: Mapping[str, Any], judged_3M: Tensor) -> Tensor:
        judged_3M = judged_3M.double().cpu()
        return torch.cat([judged_3M.sum(1), judged_3M[:, self._is_hidden(batch)].sum(1)])

    def _sums_of_guess(self, guess: Guess, batch: Mapping[str, Any]) -> Tensor:
        masked = batch["labels"] != IGNORED
        ranks = torch.cat([torch.arange(length) for length in batch["lengths"]])
        return self._sums(batch, guess.judge(ranks[masked], batch["labels"][masked]))

    def _sums_of_output(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        return self._sums(batch, _judge(output.logits, batch["labels"][batch["labels"] != IGNORED]))


def _judge(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Loss of each target, whether it is the likeliest token, and among the five likeliest."""
    log_share_MV = logits_MV.float().log_softmax(-1)
    of_target_M1 = log_share_MV.gather(1, target_M[:, None])
    n_likelier_M = (log_share_MV > of_target_M1).sum(1)
    return torch.stack([-of_target_M1[:, 0].double(), n_likelier_M < 1, n_likelier_M < 5])
