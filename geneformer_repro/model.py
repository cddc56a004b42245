"""The network: stock BERT in its parameters, ours in its forward; and the directory that holds one.

`transformers`' classes keep names, initialisation, loading and saving, so any stock BERT directory opens
here and ours open there. The forward is our own because stock BERT spends most of its time on what is
thrown away: padding, and 25,426 logits at every position where 15 % of the positions have a target (see
benchmarks/RESULTS.md). Linear layers run over the real tokens of a batch laid end to end; only attention
sees cells, padded to the longest.

Shapes: B cells, L positions, T real tokens of all cells, D hidden size, H heads, E = D / H.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertSelfAttention

from geneformer_repro.errors import InputError, VocabularyMismatchError
from geneformer_repro.files import new_directory, read_json, write_json
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

HEAD_FORMAT = "geneformer_repro/head/1"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
IGNORED = -100
"""Label of a position without a target."""
Size = Literal["tiny", "V1-10M", "V1-40M", "V2-104M", "V2-316M"]
Pooling = Literal["mean", "cls"]


class _Shape(NamedTuple):
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    dropout: float


_SIZES: Mapping[str, _Shape] = {
    "tiny": _Shape(3, 64, 2, 128, 0.0),
    "V1-10M": _Shape(6, 256, 4, 512, 0.02),
    "V1-40M": _Shape(12, 512, 8, 1024, 0.02),
    "V2-104M": _Shape(12, 768, 12, 3072, 0.1),
    "V2-316M": _Shape(18, 1152, 18, 4608, 0.1),
}
assert set(_SIZES) == set(get_args(Size))


def bert_config(size: Size, vocabulary: Vocabulary) -> BertConfig:
    """Return the published configuration of a model size, for a vocabulary.

    Parameters
    ----------
    size
        "V1-10M" (6 layers of 256), "V1-40M" (12 of 512), "V2-104M" (12 of 768), "V2-316M" (18 of 1,152), or
        "tiny" (3 of 64, no dropout), which trains on two CPU cores in a minute and is for demonstrations.
    vocabulary
        Gives the number of tokens, of positions and the padding token.
    """
    if size not in _SIZES:
        raise InputError(f"There is no model size {size!r}. There are: {', '.join(map(repr, _SIZES))}.")
    shape = _SIZES[size]
    return BertConfig(
        vocab_size=vocabulary.size,
        max_position_embeddings=vocabulary.max_length,
        pad_token_id=vocabulary.pad_token,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        hidden_act="relu",
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        type_vocab_size=2,
    )


class Packed(NamedTuple):
    """The real tokens of a batch, end to end, with what attention needs to tell the cells apart."""

    hidden_TD: Tensor
    real_BL: Tensor
    """Which positions hold a token."""

    def padded(self) -> Tensor:
        """Return hidden_BLD, zero where there is no token."""
        if self.real_BL.all():
            return self.hidden_TD.view(*self.real_BL.shape, -1)
        padded_BLD = self.hidden_TD.new_zeros(*self.real_BL.shape, self.hidden_TD.shape[-1])
        padded_BLD[self.real_BL] = self.hidden_TD
        return padded_BLD


def run_encoder(
    bert: BertModel, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, *, n_blocks: int | None = None
) -> Packed:
    """Run a BERT encoder over the real tokens of a batch.

    Parameters
    ----------
    bert
        A stock encoder; its submodules are called, so adapters put on them work.
    input_ids_BL
        Token ids.
    attention_mask_BL
        1 where there is a token, 0 for padding; None for none.
    n_blocks
        Stop after this many blocks; default all.

    Returns
    -------
    Output of the last block that ran; the same as stock BERT's `hidden_states[n_blocks]` at the real positions.

    Raises
    ------
    InputError
        A cell is longer than the model has positions.
    """
    n_positions = bert.config.max_position_embeddings
    if input_ids_BL.shape[1] > n_positions:
        raise InputError(
            f"A cell has {input_ids_BL.shape[1]} tokens, the model has {n_positions} positions. Tokenise with "
            f"max_length={n_positions}."
        )
    real_BL = torch.ones_like(input_ids_BL, dtype=torch.bool) if attention_mask_BL is None else attention_mask_BL.bool()
    position_BL = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device).expand_as(input_ids_BL)
    packed_T = input_ids_BL[real_BL]
    hidden_TD = bert.embeddings(
        input_ids=packed_T[None],
        position_ids=position_BL[real_BL][None],
        token_type_ids=torch.zeros_like(packed_T)[None],  # transformers 4 cannot make them longer than one cell
    )[0]
    mask_B11L = None if real_BL.all() else real_BL[:, None, None, :]
    blocks: list[Any] = list(bert.encoder.layer)[:n_blocks]
    for block in blocks:
        context_TD = _attend(block.attention.self, Packed(hidden_TD, real_BL), mask_B11L)
        attended_TD = block.attention.output(context_TD, hidden_TD)
        hidden_TD = block.output(block.intermediate(attended_TD), attended_TD)
    return Packed(hidden_TD, real_BL)


def _attend(attention: BertSelfAttention, tokens: Packed, mask_B11L: Tensor | None) -> Tensor:
    """Attention within each cell; context_TD before the output projection."""
    query_BHLE, key_BHLE, value_BHLE = (
        Packed(project(tokens.hidden_TD), tokens.real_BL)
        .padded()
        .unflatten(-1, (attention.num_attention_heads, -1))
        .transpose(1, 2)
        for project in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout.p if attention.training else 0.0
    context_BHLE = F.scaled_dot_product_attention(
        query_BHLE, key_BHLE, value_BHLE, attn_mask=mask_B11L, dropout_p=dropout
    )
    context_BLD = context_BHLE.transpose(1, 2).flatten(2)
    return context_BLD.flatten(0, 1) if mask_B11L is None else context_BLD[tokens.real_BL]


class MaskedGeneModel(BertForMaskedLM):
    """Stock `BertForMaskedLM` whose loss computes logits at the masked positions only."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> MaskedLMOutput:
        """Return the loss, or the logits of every position.

        Parameters
        ----------
        input_ids, attention_mask
            As of stock BERT, (B, L).
        labels
            The token to be found, or -100; (B, L).

        Returns
        -------
        With `labels`, ``loss`` (mean cross-entropy in nats over the masked positions; 0 when there are none) and
        ``logits`` at those positions, (masked, vocabulary). Without, ``logits`` (B, L, vocabulary), those of padding 0.
        """
        packed = run_encoder(self.bert, input_ids, attention_mask)
        if labels is None:
            return MaskedLMOutput(logits=Packed(self.cls(packed.hidden_TD), packed.real_BL).padded())
        target_T = labels[packed.real_BL]
        masked_T = target_T != IGNORED
        logits = self.cls(packed.hidden_TD[masked_T])
        loss = F.cross_entropy(logits.float(), target_T[masked_T], reduction="sum") / masked_T.sum().clamp(min=1)
        return MaskedLMOutput(loss=loss, logits=logits)


@dataclass(frozen=True)
class Head:
    """What a classifier's outputs mean; ``head.json``."""

    target: str
    """The obs column that was learned."""
    classes: tuple[str, ...]
    """Name of each output, in order."""
    pooling: Pooling
    """How a cell's vector is made of its tokens' last hidden states."""


class CellClassifier(BertPreTrainedModel):
    """An encoder with a linear head on each cell's pooled vector."""

    def __init__(self, config: BertConfig, pooling: Pooling = "mean") -> None:
        super().__init__(config)
        n_classes = config.num_labels
        assert n_classes
        self.pooling = pooling
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, n_classes)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pooled_mask: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits (B, classes) and, with `labels` (B), the mean cross-entropy.

        Parameters
        ----------
        input_ids, attention_mask
            As of stock BERT, (B, L).
        labels
            Class of each cell.
        pooled_mask
            Positions that enter the mean: genes, not special tokens; (B, L).
        """
        packed = run_encoder(self.bert, input_ids, attention_mask)
        if pooled_mask is None:
            pooled_mask = packed.real_BL
        pooled_BD = pool(packed.padded(), pooled_mask, self.pooling)
        logits = self.classifier(self.dropout(pooled_BD))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def pool(hidden_BLD: Tensor, genes_BL: Tensor, pooling: Pooling) -> Tensor:
    """Make one vector a cell: the mean over its genes, or the first position (``<cls>``).

    Parameters
    ----------
    hidden_BLD
        Hidden states.
    genes_BL
        True where there is a gene: not padding, not a special token.
    pooling
        "mean" or "cls".
    """
    if pooling == "cls":
        return hidden_BLD[:, 0]
    weight_BL1 = genes_BL[..., None].to(hidden_BLD.dtype)
    return (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)


def require_poolable(vocabulary: Vocabulary, pooling: Pooling) -> None:
    """Raise unless cells of this vocabulary can be pooled so: "cls" needs a ``<cls>`` token."""
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling must be one of {', '.join(map(repr, get_args(Pooling)))}, found {pooling!r}.")
    if pooling == "cls" and not vocabulary.has_cls:
        raise InputError(
            "pooling='cls' needs cells that begin with <cls>, and this vocabulary (V1 convention) has no such "
            "token. Use pooling='mean'."
        )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network with the vocabulary its tokens mean and a record of what made it.

    Parameters
    ----------
    model
        The network.
    vocabulary
        Its genes.
    head
        What a classifier's outputs mean; None for a pretrained model.
    provenance
        Step, configuration, inputs and versions that made it.
    name
        Where it was opened from, for messages.
    """

    model: MaskedGeneModel | CellClassifier
    vocabulary: Vocabulary
    head: Head | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    name: str = "checkpoint"

    def __repr__(self) -> str:
        config = self.model.config
        what = (
            f"classifier of {self.head.target!r} ({len(self.head.classes)} classes)"
            if self.head
            else "masked gene model"
        )
        return (
            f"Checkpoint({what}, {config.num_hidden_layers} layers of {config.hidden_size}, "
            f"{self.model.num_parameters():,} parameters, {self.vocabulary!r})"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and the vocabulary."""
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def require_matching(self, cells: TokenizedDataset) -> None:
        """Raise unless the cells were tokenised for this model.

        Raises
        ------
        VocabularyMismatchError
            Their vocabulary is another one.
        InputError
            A cell is longer than the model has positions.
        """
        if not len(cells):
            raise InputError("The dataset holds no cells.")
        cells.vocabulary.require_same(self.vocabulary, this="the dataset", that=self.name)
        n_positions = self.model.config.max_position_embeddings
        longest = int(cells.lengths.max())
        if longest > n_positions:
            raise InputError(
                f"A cell has {longest} tokens, {self.name} has {n_positions} positions. Tokenise with a vocabulary "
                f"of max_length={n_positions}."
            )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write weights, vocabulary, head and provenance into the new folder `path`; see ``docs/formats.md``."""
        with new_directory(path, marker="provenance.json", overwrite=overwrite) as folder:
            self.write_into(folder)

    def write_into(self, folder: Path) -> None:
        """Write the checkpoint's files into a folder that exists."""
        with quiet_transformers():
            self.model.save_pretrained(folder)
        config = read_json(folder / "config.json")
        write_json(
            folder / "config.json", config | {"architectures": ["BertModel" if self.head else "BertForMaskedLM"]}
        )
        self.vocabulary.write_into(folder)
        if self.head:
            head = {"format": HEAD_FORMAT, "task": "cell_classification", "target": self.head.target}
            write_json(folder / "head.json", head | {"classes": list(self.head.classes), "pooling": self.head.pooling})
        write_json(folder / "provenance.json", dict(self.provenance))

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> "Checkpoint":
        """Open a checkpoint of this package, or any stock BERT directory or hub repository.

        Parameters
        ----------
        path_or_hub_id
            A local folder, or a hub id such as ``"ctheodoris/Geneformer"``.
        subfolder
            Folder inside it, such as ``"Geneformer-V2-104M"``.
        revision
            Branch, tag or commit on the hub.
        vocabulary
            What the tokens mean; needed where the folder does not say (stock directories).

        Raises
        ------
        InputError
            There is no model, it is no BERT, weights are missing from it, or it needs a vocabulary.
        VocabularyMismatchError
            The vocabulary given is not the one in the folder, or has another number of tokens than the model.
        """
        local = Path(path_or_hub_id) / (subfolder or "")
        if not Path(path_or_hub_id).exists() and not _HUB_ID.fullmatch(str(path_or_hub_id)):
            raise InputError(
                f"{path_or_hub_id}: no such folder. Expected a checkpoint folder, or a hub id such as user/name."
            )
        if Path(path_or_hub_id).exists() and not (local / "config.json").exists():
            raise InputError(
                f"{local}: no config.json there, so not a model. "
                "Expected a checkpoint folder of this package or of transformers."
            )
        if local.is_dir() and (local / "vocabulary.json").exists():
            own = Vocabulary.load(local)
            if vocabulary is not None:
                own.require_same(vocabulary, this=f"checkpoint {local}", that="the vocabulary given")
            vocabulary = own
        if vocabulary is None and not Path(path_or_hub_id).exists():
            raise InputError(
                f"{path_or_hub_id}: no such folder; if it is a hub id, give its vocabulary too: "
                "from_pretrained(…, vocabulary=…) (--vocabulary)."
            )
        if vocabulary is None:
            raise InputError(
                f"{local}: has no vocabulary of its own; give one: from_pretrained(…, "
                f"vocabulary=Vocabulary.from_pretrained(…))."
            )
        head = _read_head(local / "head.json") if (local / "head.json").exists() else None
        provenance = read_json(local / "provenance.json") if (local / "provenance.json").exists() else {}
        model = _load_model(str(path_or_hub_id), head, subfolder=subfolder or "", revision=revision)
        if model.config.vocab_size != vocabulary.size:
            raise VocabularyMismatchError(
                f"{local}: the model has {model.config.vocab_size} tokens, the vocabulary {vocabulary.size}; "
                "they do not belong together. Give the vocabulary that the model was trained with."
            )
        return cls(model, vocabulary, head, provenance, name=f"checkpoint {local}")


def _read_head(path: Path) -> Head:
    content = read_json(path)
    if content.get("format") != HEAD_FORMAT:
        raise InputError(f"{path}: expected format {HEAD_FORMAT!r}, found {content.get('format')!r}.")
    return Head(content["target"], tuple(content["classes"]), content["pooling"])


def _load_model(source: str, head: Head | None, **where: Any) -> MaskedGeneModel | CellClassifier:
    model_type: Any = CellClassifier if head else MaskedGeneModel
    extra = {"pooling": head.pooling, "num_labels": len(head.classes)} if head else {}
    model: MaskedGeneModel | CellClassifier
    try:
        with quiet_transformers(), torch.random.fork_rng():
            torch.manual_seed(0)  # a head that the file lacks is random, but the same each time
            model, found = model_type.from_pretrained(source, output_loading_info=True, **where, **extra)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        hint = "" if Path(source).exists() else "there is no such folder, and as a hub id it "
        raise InputError(f"{source}: {hint}cannot be opened as a BERT model: {error}") from error
    if model.config.model_type != "bert":
        raise InputError(f"{source}: a {model.config.model_type!r} model; this package reads BERT models.")
    missing = sorted(found["missing_keys"])
    if any(key.startswith("bert.") or head for key in missing):
        raise InputError(f"{source}: {len(missing)} weights are missing from the file (first: {missing[0]}).")
    if missing:
        logger.warning(
            "%s: has no masked-gene head; it is random and must be trained before it predicts genes.", source
        )
    return model.float().eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars ("Writing model shards") out of a terminal that shows ours."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
