"""Pretraining: learn to name the genes that were hidden from a cell.

Beside the model's held-out loss stands that of a guess which needs no model: every gene by how often cells
express it. A model that does not beat it has learned nothing about cells.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from geneformer_repro.batching import collate, token_budget_batches
from geneformer_repro.config import require, resolved
from geneformer_repro.embedding import MAX_TOKENS
from geneformer_repro.errors import InputError
from geneformer_repro.files import new_directory, provenance
from geneformer_repro.model import IGNORED, Checkpoint, MaskedGeneModel, Size, bert_config
from geneformer_repro.pretraining.masking import mask_genes
from geneformer_repro.report import loss_figure
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.training import LOG_FILE, CellExamples, TrainConfig, is_main_process, resumable, train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """How to pretrain; the defaults are the published recipe of the V1 series."""

    size: Size = "V1-10M"
    """Shape of the network; not used when it goes on from a checkpoint."""
    epochs: float = 3
    learning_rate: float = 1e-3
    warmup_steps: float = 10_000
    mask_probability: float = 0.15
    """Chance of each gene to be hidden."""
    held_out: float = 0.05
    """Share of the cells kept from training and scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.mask_probability < 1, self, "mask_probability", "between 0 and 1")
        require(0 < self.held_out < 1, self, "held_out", "between 0 and 1")


def pretrain(
    cells: TokenizedDataset,
    config: PretrainConfig | None = None,
    *,
    out: str | Path,
    base: Checkpoint | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Pretrain a model on cells, or go on from a checkpoint.

    Parameters
    ----------
    cells
        Tokenised cells; no labels are used.
    config
        Recipe; default `PretrainConfig()`.
    out
        Folder for the checkpoint, ``log.jsonl``, ``history.tsv`` and ``loss.png``. A run that was cut off leaves
        ``OUT.partial``; the same call goes on from its last epoch.
    base
        Start from these weights (continual pretraining); left as it is.
    overwrite
        Replace a checkpoint that `out` holds.

    Returns
    -------
    The checkpoint. Its ``provenance["result"]`` has ``held_out_loss`` and ``frequency_loss``, the loss of guessing
    genes by their frequency in the training cells: mean cross-entropy in nats over the same masked genes.

    Raises
    ------
    InputError
        There are too few cells to hold any out, or none of theirs is masked.
    VocabularyMismatchError
        `base` has another vocabulary than the cells.
    FileExistsError
        `out` exists, or an unfinished run with other settings.
    """
    config = config or PretrainConfig()
    if base is not None:
        base.require_matching(cells)
    train_rows, held_rows = _split(len(cells), config)
    identity = {
        "step": "pretrain",
        "config": resolved(config),
        "cells": cells.fingerprint,
        "vocabulary": cells.vocabulary.fingerprint,
        "base": base and base.fingerprint,
    }
    with resumable(out, identity, overwrite=overwrite) as work:
        model = _initial_model(cells.vocabulary, config, base)
        held_out = HeldOut(cells.select(held_rows), config)
        training_cells = cells.select(train_rows)
        frequency_loss = held_out.loss_of(gene_frequency(training_cells))
        history = train(
            model,
            CellExamples(training_cells.lengths, training_cells.__getitem__),
            collate=lambda examples: _masked_batch(examples, cells.vocabulary, config),
            evaluate=lambda trained: {"loss": held_out.loss(trained)},
            config=config,
            work=work,
            step="pretrain",
        )
        result = {
            "held_out_loss": round(held_out.loss(model), 6),
            "frequency_loss": round(frequency_loss, 6),
            "n_cells": len(train_rows),
            "n_held_out": len(held_rows),
        }
        record = provenance(
            "pretrain",
            config=resolved(config),
            inputs={
                "cells": cells.fingerprint,
                "vocabulary": cells.vocabulary.fingerprint,
                "base": base and base.fingerprint,
            },
        )
        checkpoint = Checkpoint(
            model.eval(), cells.vocabulary, None, record | {"result": result}, name=f"checkpoint {out}"
        )
        if is_main_process():
            with new_directory(out, marker="provenance.json", overwrite=overwrite) as folder:
                checkpoint.write_into(folder)
                history.to_csv(folder / "history.tsv", sep="\t", index=False)
                (folder / LOG_FILE).write_bytes((work / LOG_FILE).read_bytes())
                loss_figure(history, frequency_loss).savefig(folder / "loss.png", dpi=150)
    logger.info(
        "pretrain: held-out loss %.3f nats a masked gene; guessing by gene frequency gives %.3f.",
        result["held_out_loss"],
        frequency_loss,
    )
    return checkpoint


def gene_frequency(cells: TokenizedDataset) -> Tensor:
    """Return the log-probability of each token, (vocabulary,), by the number of cells that express it.

    One cell is added to each gene, so that none is impossible; special tokens are.
    """
    counts = np.zeros(cells.vocabulary.size)
    for tokens in cells:
        counts[tokens] += 1
    frequency = np.zeros_like(counts)
    frequency[cells.vocabulary.tokens] = counts[cells.vocabulary.tokens] + 1
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(frequency / frequency.sum()))


class HeldOut:
    """Held-out cells with genes masked once and for all, so that scores can be compared.

    Parameters
    ----------
    cells
        Cells that are not trained on.
    config
        Gives the masking probability and the seed.

    Raises
    ------
    InputError
        No gene was masked.
    """

    def __init__(self, cells: TokenizedDataset, config: PretrainConfig) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        self._batches = []
        for rows in token_budget_batches(cells.lengths, MAX_TOKENS // 2):
            batch = collate([cells[row] for row in rows], cells.vocabulary)
            masked = mask_genes(
                batch["input_ids"], cells.vocabulary, probability=config.mask_probability, generator=generator
            )
            self._batches.append(
                {"input_ids": masked.input_ids, "attention_mask": batch["attention_mask"], "labels": masked.labels}
            )
        self._targets = torch.cat([batch["labels"][batch["labels"] != IGNORED] for batch in self._batches])
        if not len(self._targets):
            raise InputError(
                f"None of the genes of {len(cells)} held-out cells was masked; hold out more cells "
                f"(held_out={config.held_out})."
            )

    def loss(self, model: nn.Module) -> float:
        """Mean cross-entropy of a model over the masked genes, in nats."""
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        total = 0.0
        with torch.no_grad():
            for batch in self._batches:
                on_device = {name: tensor.to(device) for name, tensor in batch.items()}
                total += model(**on_device).loss.item() * int((batch["labels"] != IGNORED).sum())
        model.train(was_training)
        return total / len(self._targets)

    def loss_of(self, log_probability: Tensor) -> float:
        """Mean cross-entropy of a guess that is the same everywhere."""
        return float(-log_probability[self._targets].mean())


def _split(n_cells: int, config: PretrainConfig) -> tuple[np.ndarray, np.ndarray]:
    n_held_out = max(1, round(n_cells * config.held_out))
    if n_cells - n_held_out < 1:
        raise InputError(
            f"{n_cells} cells are too few to train on some and hold others out (held_out={config.held_out})."
        )
    order = np.random.default_rng(config.seed).permutation(n_cells)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def _initial_model(vocabulary: Vocabulary, config: PretrainConfig, base: Checkpoint | None) -> MaskedGeneModel:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = MaskedGeneModel(
            bert_config(config.size, vocabulary) if base is None else copy.deepcopy(base.model.config)
        )
    if base is not None:
        if not isinstance(base.model, MaskedGeneModel):
            raise InputError(f"{base.name} is a classifier without a masked-gene head; go on from a pretrained model.")
        model.load_state_dict(base.model.state_dict())
    return model


def _masked_batch(examples: list[np.ndarray], vocabulary: Vocabulary, config: PretrainConfig) -> dict[str, Tensor]:
    batch = collate(examples, vocabulary)
    masked = mask_genes(
        batch["input_ids"], vocabulary, probability=config.mask_probability, generator=torch.default_generator
    )
    return {"input_ids": masked.input_ids, "attention_mask": batch["attention_mask"], "labels": masked.labels}
