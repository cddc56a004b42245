"""The directory that holds a trained network: weights, the vocabulary its tokens mean, its head, what made it.

It is a stock BERT directory with files beside, so `transformers` opens ours and any stock one opens here. An expression
network or one over pairs, which are no BERT, have the same files beside their own two (see `expression`,
`pair_networks`).
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from torch import nn
from transformers import BertConfig

import geneformer_repro.processes as processes
from geneformer_repro import expression, hub, pair_networks
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint_files import (
    CHECKPOINT_PATH,
    CHECKPOINT_WARNING,
    checkpoint_in_words,
    worse_than_guessing,
)
from geneformer_repro.errors import InputError, VocabularyMismatchError, counted, listed
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.files import misfit, new_directory, read_json, write_json
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.model_card import Reads, model_card, public_network, public_provenance
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.targets import Classes, Number, Target, UnknownKindError
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import label_of
from geneformer_repro.tokenizer.pickles import read_plain_pickle
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

HEAD_FORMAT, _SECOND_HEAD_FORMAT, _FIRST_HEAD_FORMAT = (f"geneformer_repro/head/{version}" for version in (3, 2, 1))
SEEN_FILE = "seen_cells.parquet"
_SAID_TO_GUESS: "WeakSet[nn.Module]" = WeakSet()
"""Networks of which the log has said that they guess."""
_OF_CELLS, _OF_GENES = "BertForSequenceClassification", "BertForTokenClassification"
_PUBLISHED_TARGETS: Mapping[str, str] = {_OF_CELLS: "label", _OF_GENES: "gene class"}
"""What a published classifier's target is called here; its own files do not say it."""
_CLASS_NAMES = "*id_class_dict*.pkl"
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "num_labels",
)  # fmt: skip
_DECIDING = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)  # fmt: skip
"""Fields of a configuration that change a result; 2 and 4 heads of attention have the same weights."""
_OTHER_WEIGHTS = 2**31
"""Added to seeds, so that random weights are not those that a training with the same seed began with."""
_ALTERING = ("peft", "bitsandbytes")
_SETTINGS = ("scaling", "active_adapters", "disable_adapters", "merged_adapters", "compute_dtype")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network with the vocabulary its tokens mean and a record of what made it.

    Parameters
    ----------
    model
        The network.
    vocabulary
        Its genes.
    provenance
        Step, configuration, inputs and versions that made it.
    seen
        Digests of cells that it is known to have been trained on, ascending (see `TokenizedDataset.digests`); None if
        nothing is known.
    name
        Where it was opened from, for messages.
    path
        Folder or hub id that it was opened from, as given; None of a network in memory. Results record it beside the
        fingerprint, for people to find it again.

    See Also
    --------
    pretrain : Makes one.
    finetune : Makes a classifier from one.
    Checkpoint.from_pretrained : Opens one.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base = gf.Checkpoint.from_pretrained("runs/base")
    >>> base.model.num_parameters(), base.head
    (416374, None)
    >>> classifier = gf.Checkpoint.from_pretrained("runs/type")
    >>> [target.name for target in classifier.head.targets], classifier.head.targets[0].classes[:2]
    (['cell_type'], ('CD14+ Monocyte', 'CD19+ B'))
    """

    model: MaskedGeneModel | CellClassifier | GeneClassifier | ExpressionNetwork | PairNetwork
    vocabulary: Vocabulary
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seen: np.ndarray | None = None
    name: str = "checkpoint"
    path: str | None = None

    def __repr__(self) -> str:
        if isinstance(self.model, ExpressionNetwork | PairNetwork):
            parameters = f"{self.model.num_parameters():,} parameters"
            return f"Checkpoint({_described(self.model.head)}, {self.model!r}, {parameters}, {self.vocabulary!r})"
        config = self.model.config
        what = _described(self.head) if self.head else "masked gene model"
        return (
            f"Checkpoint({what}, {counted(config.num_hidden_layers, 'layer')} of {config.hidden_size}, "
            f"{self.model.num_parameters():,} parameters, {self.vocabulary!r})"
        )

    @property
    def head(self) -> Head | None:
        """What a classifier's outputs mean; None for a pretrained model."""
        return None if isinstance(self.model, MaskedGeneModel) else self.model.head

    @property
    def token_model(self) -> MaskedGeneModel | CellClassifier | GeneClassifier:
        """The network, if it reads tokens alone; `InputError` of an expression network, and of one over pairs."""
        if isinstance(self.model, ExpressionNetwork):
            raise InputError(
                f"{self.name} is an expression network: it reads a matrix of values, and here an encoder is wanted, "
                "which reads tokens. Give the checkpoint of a pretrained or fine-tuned encoder."
            )
        if isinstance(self.model, PairNetwork):
            raise InputError(
                f"{self.name} is a network over pairs of samples and drugs, and here an encoder is wanted. Give the "
                "checkpoint of a pretrained or fine-tuned encoder."
            )
        return self.model

    @property
    def pair_network(self) -> PairNetwork:
        """The network, if it is one over pairs of samples and drugs; `InputError` of another."""
        if not isinstance(self.model, PairNetwork):
            raise InputError(
                f"{self.name} is no network over pairs of samples and drugs, and here one is wanted. Give the "
                "checkpoint of a network that learned drug response."
            )
        return self.model

    @property
    def expression_network(self) -> ExpressionNetwork:
        """The network, if it reads expression values; `InputError` of one that reads tokens."""
        if not isinstance(self.model, ExpressionNetwork):
            raise InputError(
                f"{self.name} is an encoder, which reads tokens, and here an expression network is wanted, which reads "
                "a matrix of values. Give the checkpoint of one."
            )
        return self.model

    @property
    def whereabouts(self) -> dict[str, str]:
        """Where it was opened from, and why not to rely on it, for the metadata of a result; as far as there is such.

        No part of a plan: a checkpoint that has moved is the same.
        """
        told = {CHECKPOINT_PATH: self.path, CHECKPOINT_WARNING: worse_than_guessing(self.provenance)}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def in_words(self) -> str:
        """Where it was opened from, if anywhere, and its fingerprint."""
        return checkpoint_in_words({**self.whereabouts, "checkpoint": self.fingerprint}) or ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides what the network puts out: vocabulary, weights, configuration and head.

        Of a model in memory also over adapters and quantisation, which state dicts tell only in part.
        """
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        config: Any
        if isinstance(self.model, ExpressionNetwork | PairNetwork):
            config = self.model.deciding()
        else:
            config = {name: getattr(self.model.config, name) for name in _DECIDING}
        head = self.head.to_json() if self.head else None
        digest.update(json.dumps([config, head, list(_altered(self.model))], default=str).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def require_matching(self, cells: TokenizedDataset, *, tokens_only: bool = False) -> None:
        """Raise unless the cells were tokenised for this model.

        Parameters
        ----------
        cells
            The cells.
        tokens_only
            Ask for the same tokens of genes alone: not for the same values, medians and order.

        Raises
        ------
        VocabularyMismatchError
            Their vocabulary is another one, or they were ranked by other values or in another order.
        InputError
            A cell is longer than the model has positions, or the model is an expression network, which reads no tokens.

        See Also
        --------
        Vocabulary.require_same : Compares two vocabularies.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
        >>> base.require_matching(cells)
        >>> others = gf.tokenize(gf.datasets.pbmc700(), gf.Vocabulary.fit("cells.h5ad", series="V1"))
        >>> base.require_matching(others)
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.VocabularyMismatchError: the dataset and checkpoint runs/base have different
        vocabularies (15cdb1d08b91, ...): special tokens {'<pad>': 0, '<mask>': 1} and {'<pad>': 0, '<mask>': 1,
        '<cls>': 2, '<eos>': 3}. Tokenise the counts again with the vocabulary of the checkpoint.
        """
        config = self._token_config()
        if not len(cells):
            raise InputError("The dataset holds no cells.")
        cells.vocabulary.require_same(self.vocabulary, this="the dataset", that=self.name, tokens_only=tokens_only)
        n_positions = config.max_position_embeddings
        longest = int(cells.lengths.max())
        if longest > n_positions:
            raise InputError(
                f"A cell has {longest} tokens, {self.name} has {n_positions} positions. Tokenise with a vocabulary "
                f"of max_length={n_positions}, or cut the cells: TokenizedDataset.open(…, max_length={n_positions}) "
                f"(--max-length {n_positions})."
            )

    def _token_config(self) -> Any:
        """Return the configuration of the encoder that reads tokens, also of a network over pairs."""
        if isinstance(self.model, PairNetwork) and self.model.shape.reads_tokens:
            encoder: Any = self.model.bert
            return encoder.config
        return self.token_model.config

    @typed
    def with_random_weights(self, *, seed: int = 0) -> "Checkpoint":
        """Return an encoder of the same shape and vocabulary that learned nothing: what its numbers say, chance says.

        Parameters
        ----------
        seed
            Of the weights. They are not those that a training with the same seed began with.

        Raises
        ------
        InputError
            The checkpoint is no encoder, or `seed` is below 0.

        See Also
        --------
        evaluate_network : Sets a network read from it beside that of the model.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> base = gf.Checkpoint.from_pretrained("runs/base")
        >>> base.with_random_weights()
        Checkpoint(masked gene model, 3 layers of 64, 416,374 parameters, Vocabulary(754 genes, ...))
        """
        if seed < 0:
            raise InputError(f"seed must be at least 0, found {seed}.")
        config = self.token_model.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_OTHER_WEIGHTS + seed)
            network = MaskedGeneModel(config)
        return Checkpoint(network, self.vocabulary, {"random_weights": {"seed": seed}}, name="random weights")

    @typed
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write weights, vocabulary, head and provenance into the new folder `path`; see ``docs/formats.md``.

        See Also
        --------
        Checkpoint.from_pretrained : Open it again.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> base = gf.Checkpoint.from_pretrained("runs/base")
        >>> base.save("copy")
        >>> gf.Checkpoint.from_pretrained("copy").fingerprint == base.fingerprint
        True
        """
        with new_directory(path, marker="provenance.json", overwrite=overwrite) as folder:
            self.write_into(folder)

    def write_into(self, folder: Path) -> None:
        """Write the checkpoint's files into a folder that exists.

        See Also
        --------
        Checkpoint.save : Makes the folder, and is safe to interrupt.

        Examples
        --------
        >>> from pathlib import Path
        >>> import geneformer_repro as gf
        >>> folder = Path("mine")
        >>> folder.mkdir()
        >>> gf.Checkpoint.from_pretrained("runs/base").write_into(folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.safetensors', 'provenance.json', 'vocabulary.json', 'vocabulary.tsv']
        """
        with quiet_transformers():
            self.model.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            file.chmod((folder / "config.json").stat().st_mode)  # safetensors makes it readable for its owner alone
        if not isinstance(self.model, ExpressionNetwork | PairNetwork):
            config = read_json(folder / "config.json")
            write_json(folder / "config.json", config | {"architectures": [_architecture(self.head)]})
        self.vocabulary.write_into(folder)
        if self.head:
            write_json(folder / "head.json", {"format": HEAD_FORMAT, **self.head.to_json()})
        if self.seen is not None:
            pq.write_table(pa.table({"digest": self.seen}), folder / SEEN_FILE, compression="zstd")
        write_json(folder / "provenance.json", dict(self.provenance))

    @typed
    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str,
        data: str,
        private: bool = True,
        sample_names: bool = False,
        overwrite: bool = False,
        token: str | None = None,
    ) -> str:
        """Publish the checkpoint in a repository of the Hugging Face hub, with a card that is filled in.

        The card says what the network is, what it learned from, its scores beside those of guesses and simple methods
        on the same rows (from the provenance, or the ``methods.tsv`` of the folder it was opened from), how many cells
        it has seen, and how to open it. Names of donors or patients and paths of files are left out of the published
        ``provenance.json``, and so are the samples of a network of drug response; predictions, splits and logs of the
        run stay here. Digests of cells seen go along.

        Parameters
        ----------
        repo_id
            ``"user/name"``, or a name of your own.
        license
            As the hub names it, such as ``"apache-2.0"`` or ``"cc-by-nc-4.0"``. The licences of the base and of the
            data bind it.
        data
            What it learned from, in a sentence or two of Markdown: which cells, from whom, where they are published.
        private
            Whether only you can see it. Look at the card there before you make it public.
        sample_names
            Of a network of drug response: publish the names of the samples that it was trained on, such as cell lines,
            with their mean effects. Without, it takes them for new samples; say True of no patients.
        overwrite
            Replace what is in a repository that has files; its history keeps them.
        token
            Of the hub; else that of ``hf auth login``.

        Returns
        -------
        str
            The address of the repository.

        Raises
        ------
        InputError
            `license` or `data` says nothing, `repo_id` is no name, the repository has files, or the hub refused.

        See Also
        --------
        Checkpoint.from_pretrained : Opens it from there, without a vocabulary.
        Checkpoint.save : Writes it into a folder.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> classifier = gf.Checkpoint.from_pretrained("runs/type")
        >>> data = "700 blood cells of one donor, of 10x Genomics' PBMC data, as scanpy ships them."
        >>> classifier.push_to_hub("lab/blood-types", license="cc-by-4.0", data=data)  # doctest: +SKIP
        'https://huggingface.co/lab/blood-types'
        """
        for name, said in (("license", license), ("data", data)):
            if not said.strip():
                raise InputError(f"{name}=: expected some text, found {said!r}; nobody can use a model without.")

        def write(folder: Path, repo_id: str) -> None:
            texts = {"license": license.strip(), "data": data.strip()}
            self._write_public(folder, repo_id, **texts, sample_names=sample_names)

        return hub.publish(repo_id, write, private=private, overwrite=overwrite, token=token)

    def _write_public(self, folder: Path, repo_id: str, *, license: str, data: str, sample_names: bool) -> None:
        """Write what is published of the checkpoint, and its card."""
        self.write_into(folder)
        write_json(folder / "provenance.json", public_provenance(self.provenance))
        reads: Reads = "samples" if isinstance(self.model, ExpressionNetwork) else "cells"
        n_samples: int | None = None
        if isinstance(self.model, PairNetwork):
            reads, n_samples = "pairs", len(self.model.learned["samples"])
            if not sample_names:
                write_json(folder / "config.json", public_network(self.model.described()))
        card = model_card(
            repo_id=repo_id,
            license=license,
            data=data,
            described=repr(self),
            provenance=self.provenance,
            n_seen=None if self.seen is None else len(self.seen),
            reads=reads,
            n_samples=n_samples,
            has_names=sample_names,
            methods=_scores_beside(self.path),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    @classmethod
    @typed
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> "Checkpoint":
        """Open a checkpoint of this package, or any stock BERT directory or hub repository.

        A stock classifier of one class for each cell (`BertForSequenceClassification`) or gene
        (`BertForTokenClassification`), as the published package makes them, opens with its head: its target is called
        "label", or "gene class", its classes as ``id2label`` says, or the published ``…_id_class_dict.pkl`` in the
        folder or up to two above it.

        Parameters
        ----------
        path_or_hub_id
            A local folder, or a hub id such as ``"ctheodoris/Geneformer"``; a folder of the repository may follow it,
            as in ``"ctheodoris/Geneformer/Geneformer-V2-104M"``.
        subfolder
            Folder inside it, such as ``"Geneformer-V2-104M"``.
        revision
            Branch, tag or commit on the hub.
        vocabulary
            What the tokens mean; needed where the folder or repository does not say (stock models).

        Raises
        ------
        InputError
            There is no model, it is no BERT, weights are missing from it, or it needs a vocabulary.
        VocabularyMismatchError
            The vocabulary given is not the one in the folder, or has another number of tokens than the model.

        See Also
        --------
        Checkpoint.save : Write one.
        Vocabulary.from_pretrained : The published vocabularies.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> base = gf.Checkpoint.from_pretrained("runs/base")  # one of "ctheodoris/Geneformer" needs vocabulary=
        >>> len(base.vocabulary), base.model.config.num_hidden_layers, base.model.config.hidden_size
        (754, 3, 64)
        """
        given = str(path_or_hub_id)
        if Path(given).exists():
            return cls._of_folder(Path(given) / (subfolder or ""), vocabulary)
        place = hub.place_named(given)
        if place is None:
            raise InputError(
                f"{given}: no such folder. Expected a checkpoint folder, or a hub id such as user/name or "
                "user/name/folder."
            )
        repo_id, subfolder = place[0], "/".join(filter(None, (place[1], subfolder)))
        name = "/".join(filter(None, (repo_id, subfolder)))
        if copy := hub.copy_of_ours(repo_id, subfolder, revision):
            return replace(cls._of_folder(copy, vocabulary), name=f"checkpoint {name}", path=name)
        if vocabulary is None:
            raise InputError(
                f"{given}: no such folder, and on the hub no checkpoint of this package (or it is not to be "
                "had from here); of a stock model there, give the vocabulary too: from_pretrained(…, vocabulary=…) "
                "(--vocabulary)."
            )
        with _opening(repo_id):
            config = BertConfig.get_config_dict(repo_id, subfolder=subfolder, revision=revision)[0]
        head = _published_head(config, Path(name))
        network = _load_model(repo_id, head, vocabulary, subfolder=subfolder, revision=revision)
        return cls(network, vocabulary, name=f"checkpoint {name}", path=name)

    @classmethod
    def _of_folder(cls, folder: Path, vocabulary: Vocabulary | None) -> "Checkpoint":
        if not (folder / "config.json").exists():
            raise InputError(
                f"{folder}: no config.json there, so not a model. "
                "Expected a checkpoint folder of this package or of transformers."
            )
        if (folder / "vocabulary.json").exists():
            own = Vocabulary.load(folder)
            if vocabulary is not None:
                own.require_same(vocabulary, this=f"checkpoint {folder}", that="the vocabulary given")
            vocabulary = own
        if vocabulary is None:
            raise InputError(
                f"{folder}: has no vocabulary of its own; give one: from_pretrained(…, "
                f"vocabulary=Vocabulary.from_pretrained(…))."
            )
        config = _read_config(folder)
        head = _read_head(folder / "head.json") if (folder / "head.json").exists() else _published_head(config, folder)
        network: nn.Module
        match config.get("model_type"):
            case expression.MODEL_TYPE:
                network = ExpressionNetwork.load(folder, head, vocabulary)
            case pair_networks.MODEL_TYPE:
                network = PairNetwork.load(folder, head)
            case _:
                network = _load_model(str(folder), head, vocabulary)
        provenance = read_json(folder / "provenance.json") if (folder / "provenance.json").exists() else {}
        seen = _read_seen(folder / SEEN_FILE) if (folder / SEEN_FILE).exists() else None
        return cls(network, vocabulary, provenance, seen, name=f"checkpoint {folder}", path=str(folder))


def warn_if_guessing(checkpoint: Checkpoint) -> None:
    """Say in the log if a checkpoint is known to have been pretrained to nothing better than a guess.

    Once for a network: what embeds cells on the way to a screen has not to say it again.
    """
    said = worse_than_guessing(checkpoint.provenance)
    if said and checkpoint.model not in _SAID_TO_GUESS and processes.is_first():
        _SAID_TO_GUESS.add(checkpoint.model)
        logger.warning("%s is %s.", checkpoint.name, said)


def _scores_beside(path: str | None) -> dict[str, pd.DataFrame]:
    """Return the scores of all methods that fine-tuning wrote beside the checkpoint, by target."""
    if path is None or not Path(path).is_dir():
        return {}
    files = [file for file in (Path(path) / "methods.tsv", *sorted(Path(path).glob("*/methods.tsv"))) if file.exists()]
    return {file.parent.name: pd.read_csv(file, sep="\t") for file in files}


def _altered(model: nn.Module) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the modules that a library put into the network, and what their weights do not say."""
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] in _ALTERING:
            settings = {key: str(value) for key in _SETTINGS if (value := getattr(module, key, None)) is not None}
            kind = getattr(getattr(module, "weight", None), "quant_type", "")
            yield name, type(module).__qualname__, {**settings, "quant_type": str(kind)}


def _described(head: Head) -> str:
    targets = ", ".join(target.described for target in head.targets)
    return f"{'' if head.level == 'cell' else 'gene '}classifier of {targets}"


def _architecture(head: Head | None) -> str:
    """Return the class of transformers that opens the weights: of cells one with a pooler, or else their encoder."""
    if head is None:
        return "BertForMaskedLM"
    if head.level == "gene":
        return _OF_GENES
    return _OF_CELLS if head.pooling == "pooler" else "BertModel"


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration as it is written, after a look at the sizes that it claims."""
    config = read_json(folder / "config.json")
    _require_sizes(folder, config)
    return config


@contextmanager
def _opening(source: str) -> Iterator[None]:
    """Say that `source` is no BERT model if transformers cannot open it, and keep its bars out of the terminal."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # whatever transformers makes of a configuration that others wrote
        hint = "" if Path(source).exists() else "there is no such folder, and as a hub id it "
        raise InputError(f"{source}: {hint}cannot be opened as a BERT model: {error}") from error


def _require_sizes(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise, before memory is asked for, if the weights are too few for what the configuration claims."""
    if config.get("model_type") != "bert":
        return
    n_bytes = sum(file.stat().st_size for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind))
    sizes = {name: config[name] for name in _SIZES if name in config}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"{folder}/config.json: {name} should be a whole number above 0, found {repr(size)[:60]}.")
    sizes = BertConfig().to_dict() | sizes
    hidden, of_block = sizes["hidden_size"], 4 * sizes["hidden_size"] + 2 * sizes["intermediate_size"]
    rows = (
        sizes["vocab_size"] + sizes["max_position_embeddings"] + sizes["type_vocab_size"] + sizes.get("num_labels", 0)
    )
    n_parameters = hidden * (rows + sizes["num_hidden_layers"] * of_block)
    if n_bytes and n_parameters > 2 * n_bytes:  # no format has less than 4 bits a weight
        raise InputError(
            f"{folder}/config.json: speaks of {n_parameters:,} weights, and their files have {n_bytes:,} bytes. "
            "They do not belong together; copy the model anew."
        )


def _published_head(config: Mapping[str, Any], local: Path) -> Head | None:
    """Return the head of a stock classifier, as the published package makes them; None of another model."""
    kind = next((name for name in config.get("architectures") or () if name in _PUBLISHED_TARGETS), None)
    if kind is None:
        return None
    problem = config.get("problem_type")
    names = _class_names(config, local)
    if problem == "multi_label_classification" or (problem == "regression" and len(names) > 1):
        raise InputError(
            f"{local}: a classifier of problem_type {problem!r} with {len(names)} outputs; this package reads those of "
            "one class for each cell or gene, and those of one number."
        )
    try:
        name = _PUBLISHED_TARGETS[kind]
        target = Classes(name, names) if len(names) > 1 else Number(name)
        return Head((target,), "pooler") if kind == _OF_CELLS else Head((target,), level="gene")
    except InputError as error:
        raise InputError(f"{local}/config.json: its classes cannot be read ({error})") from error


def _class_names(config: Mapping[str, Any], local: Path) -> tuple[str, ...]:
    """Return the names of a stock classifier's outputs, from the published pickle near it or its configuration."""
    id2label = config.get("id2label") or {i: f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    try:
        by_number = {int(number): str(name) for number, name in id2label.items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{local}/config.json: id2label should be an object, number to name ({error}).") from error
    if sorted(by_number) != list(range(len(by_number))):
        raise InputError(f"{local}/config.json: id2label should number its {len(by_number)} classes from 0.")
    names = tuple(by_number[i] for i in range(len(by_number)))
    if not local.is_dir() or any(name != f"LABEL_{i}" for i, name in enumerate(names)):
        return names
    for folder in (local, *list(local.resolve().parents)[:2]):
        pickled = {file: read_plain_pickle(file) for file in sorted(folder.glob(_CLASS_NAMES))}
        fitting = {
            file: tuple(label_of(content[i]) for i in range(len(names)))
            for file, content in pickled.items()
            if set(content) == set(range(len(names)))
        }
        if len(set(fitting.values())) == 1:
            file, names = next(iter(fitting.items()))
            logger.info("%s: names of classes from %s: %s.", local, file, listed(names))
            return names
        if pickled:
            logger.warning(
                "%s: %d files with names of classes (first: %s), of which not one fits its %d; they are called %s.",
                local, len(pickled), next(iter(pickled)), len(names), ", ".join(names),
            )  # fmt: skip
            return names
    return names


def described_config(folder: Path) -> str:
    """Say in lines of text what a stock model is, from its configuration alone.

    Raises
    ------
    InputError
        The configuration cannot be read.
    """
    config = _read_config(folder)
    head = _published_head(config, folder)
    what = _described(head) if head else ", ".join(map(str, config.get("architectures") or ["model"]))
    sizes = ", ".join(f"{name} {config[name]}" for name in _SIZES if name in config)
    classes = f"\nclasses: {listed(head.output_names, most=20)}" if head and head.n_outputs > 1 else ""
    return (
        f"{what} ({config.get('model_type', 'of an unknown type')}), not written by this package\n{sizes}{classes}\n"
        "what its tokens mean says a vocabulary (--vocabulary)"
    )


_HEAD: Any = {"targets": [{}], "pooling": str, "level": str}
_SECOND_HEAD: Any = _HEAD | {"targets": [{"name": str, "classes": [str], "mean?": float, "sd?": float}]}
_FIRST_HEAD: Any = {"target": str, "classes": [str], "pooling": str}


def _read_head(path: Path) -> Head:
    content = read_json(path)
    form = content.pop("format", None)
    if form not in (HEAD_FORMAT, _SECOND_HEAD_FORMAT, _FIRST_HEAD_FORMAT):
        raise InputError(f"{path}: expected format {HEAD_FORMAT!r}, found {form!r}.")
    try:
        if form == _FIRST_HEAD_FORMAT:
            content = _of_second_format(content)
        if form != HEAD_FORMAT:
            content = _of_third_format(content)
        if wrong := misfit(content, _HEAD):
            raise InputError(wrong)
        return Head(tuple(Target.from_json(target) for target in content.pop("targets")), **content)
    except UnknownKindError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: is damaged ({error}); copy the checkpoint anew.") from error


def _of_second_format(content: dict[str, Any]) -> dict[str, Any]:
    """Return a head of the first format, which had one target, with classes, as the second had it."""
    if wrong := misfit(content, _FIRST_HEAD):
        raise InputError(wrong)
    targets = [{"name": content["target"], "classes": content["classes"]}]
    return {"targets": targets, "pooling": content["pooling"], "level": "cell"}


def _of_third_format(content: dict[str, Any]) -> dict[str, Any]:
    """Return a head of the second format, in which a number was a target without classes, as the third has it."""
    if wrong := misfit(content, _SECOND_HEAD):
        raise InputError(wrong)
    return content | {"targets": [_with_kind(**target) for target in content["targets"]]}


def _with_kind(name: str, classes: list[str], mean: float = 0.0, sd: float = 1.0) -> dict[str, Any]:
    if classes:
        return {"kind": Classes.kind, "name": name, "classes": classes}
    return {"kind": Number.kind, "name": name, "mean": mean, "sd": sd}


def _read_seen(path: Path) -> np.ndarray:
    try:
        column = pq.read_table(path)["digest"]
        if column.type != pa.uint64() or column.null_count:
            raise InputError(f"digest should be uint64 without gaps, found {column.type}")
        seen = column.to_numpy()
        if not len(seen) or (seen[1:] <= seen[:-1]).any():
            raise InputError(f"its {len(seen)} digests should be ascending, and at least one")
    except (OSError, KeyError, pa.ArrowException, InputError) as error:
        raise InputError(f"{path}: is damaged ({error}); copy the checkpoint anew.") from error
    return np.asarray(seen)


def _load_model(
    source: str, head: Head | None, vocabulary: Vocabulary, **where: Any
) -> MaskedGeneModel | CellClassifier | GeneClassifier:
    model_type: Any = MaskedGeneModel
    if head:
        model_type = GeneClassifier if head.level == "gene" else CellClassifier
    extra = {"head": head} if head else {}
    model: MaskedGeneModel | CellClassifier | GeneClassifier
    with _opening(source), torch.random.fork_rng():
        torch.manual_seed(0)  # a head that the file lacks is random, but the same each time
        model, loading = model_type.from_pretrained(source, output_loading_info=True, **where, **extra)
    if model.config.model_type != "bert":
        raise InputError(f"{source}: a {model.config.model_type!r} model; this package reads BERT models.")
    missing = sorted(loading["missing_keys"])
    if any(key.startswith("bert.") or head for key in missing):
        raise InputError(f"{source}: {len(missing)} weights are missing from the file (first: {missing[0]}).")
    if missing:
        logger.warning(
            "%s: has no masked-gene head; it is random and must be trained before it predicts genes.", source
        )
    model = model.float().eval()
    broken = [name for name, weight in model.state_dict().items() if not torch.isfinite(weight).all()]
    if broken:
        raise InputError(
            f"{source}: {len(broken)} weights hold values that are not finite (first: {broken[0]}). The training that "
            "made them failed, or the file is damaged; take an earlier checkpoint."
        )
    if model.config.vocab_size != vocabulary.size:
        raise VocabularyMismatchError(
            f"{source}: the model has {model.config.vocab_size} tokens, the vocabulary {vocabulary.size}; "
            "they do not belong together. Give the vocabulary that the model was trained with."
        )
    return model


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
