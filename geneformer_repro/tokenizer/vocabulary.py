"""Which genes a model knows, by which token, and how much of each is normal.

A vocabulary travels with every dataset and checkpoint (two small readable files) because token 4711
means nothing without it; its fingerprint tells two of them apart. The published dictionaries are
pickles, which can run code when opened; `pickles` lets plain data through alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError, VocabularyMismatchError, did_you_mean, listed, told_apart
from geneformer_repro.files import misfit, new_directory, read_columns, read_json, write_json, write_table
from geneformer_repro.hub import place_named
from geneformer_repro.tokenizer.features import bare_id
from geneformer_repro.tokenizer.measures import Measure, Order, Values
from geneformer_repro.tokenizer.pickles import read_plain_pickle, write_plain_pickle

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

FORMAT = "geneformer_repro/vocabulary/2"
_FORMER = "geneformer_repro/vocabulary/1"
"""Its fingerprint left out names and other ids, though they lead symbols and retired ids to genes."""
_OF_BULK = "geneformer_repro/vocabulary/3"
"""Of what is no vocabulary of counts in descending order, so that the others keep bytes and fingerprints."""
_HEADER = {
    "fingerprint": str, "max_length": int, "special_tokens": {str: int}, "has_medians": bool, "values?": str,
    "order?": str,
}  # fmt: skip
_RANKED = ("values", "order")
_OTHER_IDS = "other_ids.tsv"
PAD, MASK, CLS, EOS = "<pad>", "<mask>", "<cls>", "<eos>"
Series = Literal["V1", "V2"]
_SERIES: Mapping[str, tuple[tuple[str, ...], int]] = {"V1": ((PAD, MASK), 2048), "V2": ((PAD, MASK, CLS, EOS), 4096)}
_COUNT_SUFFIXES = (
    ".h5ad", ".h5", ".loom", ".zarr", ".mtx", ".gz", ".tsv", ".csv", ".txt", ".tab", ".gct", ".parquet"
)  # fmt: skip
_MOST_TOKENS, _LONGEST = 2**24, 2**20
"""What no model comes near: a lookup of all tokens, or an embedding of all positions, would fill memory."""
_LONGEST_NAME = 1000
_PUBLISHED_STEMS = ("token_dictionary", "gene_median_dictionary", "gene_name_id_dict", "ensembl_mapping_dict")
_PUBLISHED_FOLDER = {"V1": "geneformer/gene_dictionaries_30m", "V2": "geneformer"}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The genes a model knows.

    Parameters
    ----------
    gene_ids
        Gene identifiers (Ensembl), in the order of their tokens.
    tokens
        Token id of each gene; distinct, increasing.
    special_tokens
        Token id of ``<pad>``, ``<mask>`` and, in the V2 convention, ``<cls>`` and ``<eos>``.
    max_length
        Most tokens a cell may have, special tokens included.
    medians
        Non-zero median of each gene over the corpus, in counts per 10,000; positive and finite.
        None where they are not known: such a vocabulary reads tokens but cannot make them.
    gene_names
        A name for each gene ("" where there is none).
    other_ids
        Retired and other ids that stand for one of the genes: other id → gene id.
    values
        What the medians are of, and what cells that it travels with were ranked by: "counts", "expression" (bulk; a
        sample's values scaled to a sum of 10,000) or "zscore" (no medians).
    order
        Of the tokens of those cells: "descending", or "two_ended".

    Raises
    ------
    InputError
        Ids or tokens repeat, lengths differ, a median is not a positive number, or z-scores have medians.

    See Also
    --------
    Vocabulary.fit : Learn one from counts.
    Vocabulary.from_pretrained : Open the published ones.
    tokenize : Turn counts into tokens with it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> vocabulary = gf.Vocabulary.load("vocabulary")
    >>> len(vocabulary), vocabulary.max_length
    (754, 4096)
    >>> vocabulary.gene_ids[0], vocabulary.gene_names[0], int(vocabulary.tokens[0])
    ('ENSG00000000938', 'FGR', 4)
    >>> dict(vocabulary.special_tokens)
    {'<pad>': 0, '<mask>': 1, '<cls>': 2, '<eos>': 3}
    >>> vocabulary.medians[:3].round(1)  # counts per 10,000 where the gene is detected
    array([3.6, 2.9, 3.2])
    """

    gene_ids: tuple[str, ...]
    tokens: np.ndarray
    special_tokens: Mapping[str, int]
    max_length: int
    medians: np.ndarray | None = None
    gene_names: tuple[str, ...] = field(default=())
    other_ids: Mapping[str, str] = field(default_factory=dict)
    values: Values = "counts"
    order: Order = "descending"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", np.asarray(self.tokens, dtype=np.int64))
        if not self.gene_names:
            object.__setattr__(self, "gene_names", ("",) * len(self.gene_ids))
        if self.medians is not None:
            object.__setattr__(self, "medians", np.asarray(self.medians, dtype=np.float64))
        self._check()

    def _check(self) -> None:
        columns: dict[str, Sized | None] = {
            "tokens": self.tokens,
            "gene_names": self.gene_names,
            "medians": self.medians,
        }
        for name, column in columns.items():
            if column is not None and len(column) != len(self.gene_ids):
                raise InputError(f"A vocabulary of {len(self.gene_ids)} genes was given {len(column)} {name}.")
        self._check_values()
        if not self.gene_ids:
            raise InputError("A vocabulary needs at least one gene, found none.")
        seen: set[str] = set()
        repeated = next((gene for gene in self.gene_ids if gene in seen or seen.add(gene)), None)  # type: ignore[func-returns-value]
        if repeated is not None:
            raise InputError(f"Gene {repeated!r} stands twice in the vocabulary; gene ids must be distinct.")
        lost = next((gene for gene in self.other_ids.values() if gene not in seen), None)
        if lost is not None:
            raise InputError(f"other_ids leads to gene {lost!r}, which the vocabulary does not have.")
        every = np.concatenate([self.tokens, list(self.special_tokens.values())])
        if len(np.unique(every)) != len(every) or every.min() < 0 or (np.diff(self.tokens) <= 0).any():
            raise InputError("Token ids must be distinct, not negative, and increase with the order of the genes.")
        if every.max() >= _MOST_TOKENS:
            raise InputError(f"Token ids must be below {_MOST_TOKENS:,}, found {every.max():,}.")
        for needed in (PAD, MASK):
            if needed not in self.special_tokens:
                raise InputError(
                    f"A vocabulary needs the special token {needed!r}, found {sorted(self.special_tokens)}."
                )
        if self.max_length <= len(self.special_tokens):
            raise InputError(f"max_length must leave room for genes, found {self.max_length}.")
        if self.max_length > _LONGEST:
            raise InputError(f"max_length must be at most {_LONGEST:,}, found {self.max_length:,}.")
        if self.medians is not None and not (np.isfinite(self.medians) & (self.medians > 0)).all():
            first = int(np.flatnonzero(~(np.isfinite(self.medians) & (self.medians > 0)))[0])
            raise InputError(
                f"Medians must be positive and finite; gene {self.gene_ids[first]!r} has {self.medians[first]}."
            )

    def _check_values(self) -> None:
        for name, value, choices in (("values", self.values, get_args(Values)), ("order", self.order, get_args(Order))):
            if value not in choices:
                raise InputError(f"{name} is one of {', '.join(map(repr, choices))}, found {value!r}.")
        if self.values == "zscore" and self.medians is not None:
            raise InputError("z-scores are ranked without medians; leave them out of a vocabulary of z-scores.")

    def __len__(self) -> int:
        return len(self.gene_ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        medians = "" if self.medians is not None else ", no medians"
        ranked = "" if self._form == FORMAT else f", {self.ranked}"
        return (
            f"Vocabulary({len(self):,} genes, {', '.join(self.special_tokens)}, "
            f"max_length={self.max_length}{medians}{ranked}, {self.fingerprint[:12]})"
        )

    @property
    def ranked(self) -> str:
        """What tokens are ranks of, and in which order if not the usual one; for messages."""
        return self.values + ("" if self.order == "descending" else ", two-ended")

    @property
    def _form(self) -> str:
        return FORMAT if (self.values, self.order) == ("counts", "descending") else _OF_BULK

    @property
    def size(self) -> int:
        """One more than the largest token id: the rows of a model's embedding."""
        return int(max(self.tokens[-1], *self.special_tokens.values())) + 1

    @property
    def pad_token(self) -> int:
        """Token id of ``<pad>``."""
        return self.special_tokens[PAD]

    @property
    def mask_token(self) -> int:
        """Token id of ``<mask>``."""
        return self.special_tokens[MASK]

    @property
    def has_cls(self) -> bool:
        """Whether every cell is wrapped in ``<cls>`` … ``<eos>``, as in the V2 series."""
        return CLS in self.special_tokens and EOS in self.special_tokens

    def require_medians(self) -> None:
        """Raise unless tokens can be made.

        Raises
        ------
        InputError
            The vocabulary has no medians.

        See Also
        --------
        Vocabulary.fit : Learns medians.
        tokenize : Needs them.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Vocabulary.load("vocabulary").require_medians()
        >>> tokens = {"<pad>": 0, "<mask>": 1, "ENSG00000111245": 2, "ENSG00000159251": 3}
        >>> vocabulary = gf.Vocabulary.from_tokens(tokens)
        >>> vocabulary.require_medians()
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.InputError: Vocabulary(2 genes, <pad>, <mask>, max_length=2048, no medians, ...) has no
        medians, so it can read tokens but not make them. Give Vocabulary.from_tokens(…, medians=…).
        """
        if self.medians is None:
            raise InputError(
                f"{self!r} has no medians, so it can read tokens but not make them. Give "
                f"Vocabulary.from_tokens(…, medians=…)."
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides a cell's tokens: genes, medians, special tokens, length, names, other ids.

        And over `values` and `order`, where they are not counts in descending order.
        """
        return self._fingerprint(self._form)

    def has_fingerprint(self, written: str) -> bool:
        """Whether this is the fingerprint that stands in a file, also in one of an earlier format.

        See Also
        --------
        Vocabulary.require_same : Compares two vocabularies and says where they differ.

        Examples
        --------
        >>> import json
        >>> from pathlib import Path
        >>> import geneformer_repro as gf
        >>> written = json.loads(Path("cells.tok/vocabulary.json").read_text())["fingerprint"]
        >>> gf.Vocabulary.load("vocabulary").has_fingerprint(written)
        True
        """
        return written in (self.fingerprint, self._fingerprint(_FORMER))

    def _fingerprint(self, form: str) -> str:
        digest = hashlib.sha256(form.encode())
        digest.update("\n".join(self.gene_ids).encode())
        digest.update(self.tokens.astype("<i8").tobytes())
        digest.update(b"none" if self.medians is None else self.medians.astype("<f8").tobytes())
        digest.update(repr((sorted(self.special_tokens.items()), self.max_length)).encode())
        if form != _FORMER:
            digest.update(json.dumps([self.gene_names, sorted(self.other_ids.items())]).encode())
        if form == _OF_BULK:
            digest.update(json.dumps([self.values, self.order]).encode())
        return digest.hexdigest()

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Index into `gene_ids` of each gene id."""
        return {gene: i for i, gene in enumerate(self.gene_ids)}

    @cached_property
    def _gene_of_token(self) -> np.ndarray:
        lookup = np.full(self.size, -1, dtype=np.int64)
        lookup[self.tokens] = np.arange(len(self))
        return lookup

    def genes_of(self, tokens: np.ndarray) -> np.ndarray:
        """Return the index into `gene_ids` of each token; -1 for a special token and for a token it does not have.

        See Also
        --------
        Vocabulary.tokens_of : The other way.
        TokenizedDataset.genes : Gene ids of a cell.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.load("vocabulary")
        >>> vocabulary.genes_of([2, 4, 5, 9999])  # <cls>, two genes, no token of this vocabulary
        array([-1,  0,  1, -1])
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        inside = (tokens >= 0) & (tokens < self.size)
        return np.where(inside, self._gene_of_token[np.where(inside, tokens, 0)], -1)

    def find(self, genes: Iterable[str]) -> np.ndarray:
        """Return where each gene stands in `gene_ids`; -1 for one that is not there.

        A gene is given by its id, by a name that only one gene has, by a retired or other id that leads to it, or by
        its Ensembl id with a version (``ENSG00000111245.15``); blanks around do not count.

        See Also
        --------
        Vocabulary.tokens_of : Returns tokens, and refuses genes that are not there.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.load("vocabulary")
        >>> places = vocabulary.find(["CD79A", "ENSG00000105369", "ENSG00000105369.9", "no gene"])
        >>> places
        array([156, 156, 156,  -1])
        >>> vocabulary.gene_names[places[0]]
        'CD79A'
        """
        return np.array([self._place(gene) for gene in genes], dtype=np.int64)

    def _place(self, gene: str) -> int:
        if not isinstance(gene, str):
            return -1
        for spelling in (gene, gene.strip(), bare_id(gene.strip())):
            if (place := self.position.get(spelling, self.by_name.get(spelling))) is not None:
                return place
            if spelling in self.other_ids:
                return self.position[self.other_ids[spelling]]
        return -1

    def tokens_of(self, genes: Iterable[str]) -> np.ndarray:
        """Return the token of each gene, given as for `find`.

        Raises
        ------
        InputError
            Names every gene that is unknown or whose name is ambiguous.

        See Also
        --------
        Vocabulary.genes_of : The other way.
        Vocabulary.find : Places in ``gene_ids`` instead, -1 for a gene that is not there.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.load("vocabulary")
        >>> vocabulary.tokens_of(["CD79A", "ENSG00000105369"])  # a name and an id of the same gene
        array([160, 160])
        >>> vocabulary.tokens_of(["CD79"])
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.InputError: 1 of 1 genes are not in the vocabulary, or their name stands for several
        genes: 'CD79'. Give Ensembl ids such as 'ENSG00000000938'.
        """
        names = list(genes)
        positions = self.find(names)
        unknown = [gene for gene, i in zip(names, positions, strict=True) if i < 0]
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(names)} genes are not in the vocabulary, or their name stands for several "
                f"genes: {listed(map(repr, unknown))}. Give Ensembl ids such as {self.gene_ids[0]!r}."
            )
        return self.tokens[positions]

    @cached_property
    def by_name(self) -> Mapping[str, int]:
        """Index into `gene_ids` of each name that only one gene has."""
        n_with_name = Counter(self.gene_names)
        return {name: i for i, name in enumerate(self.gene_names) if name and n_with_name[name] == 1}

    def require_same(self, other: "Vocabulary", *, this: str, that: str, tokens_only: bool = False) -> None:
        """Raise unless both vocabularies give the same tokens to the same genes, for cells ranked by the same.

        Medians are compared where both sides know them: a stock checkpoint comes without.

        Parameters
        ----------
        other
            The other vocabulary.
        this, that
            What the two belong to, for the message ("dataset heart.tok", "checkpoint runs/base").
        tokens_only
            Compare the tokens of genes alone: not what cells were ranked by, medians and order.

        Raises
        ------
        VocabularyMismatchError
            Names both fingerprints and the first gene that differs.

        See Also
        --------
        Checkpoint.require_matching : Whether cells fit a model.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> tokens = {"<pad>": 0, "<mask>": 1, "ENSG00000111245": 2, "ENSG00000159251": 3}
        >>> ours = gf.Vocabulary.from_tokens(tokens)
        >>> ours.require_same(gf.Vocabulary.from_tokens(tokens), this="my cells", that="my model")
        >>> theirs = gf.Vocabulary.from_tokens(tokens | {"ENSG00000159251": 4})
        >>> ours.require_same(theirs, this="my cells", that="their model")
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.VocabularyMismatchError: my cells and their model have different vocabularies
        (476c4a7d5cb0, f29dc576325a): first differing gene ENSG00000159251 is token 3 in the one and token 4 in the
        other. Tokenise the counts again with the vocabulary of the checkpoint.
        """
        difference = self._difference_of_tokens(other)
        advice = "Tokenise the counts again with the vocabulary of the checkpoint."
        if difference is None and not tokens_only:
            difference = self._difference_of_medians(other)
            if self.ranked != other.ranked:
                difference = f"same tokens, but ranks of {self.ranked} in the one and of {other.ranked} in the other"
                advice = (
                    "Cells and model must agree in values= and order= (--values, --order): tokenise again, or first go "
                    "on with pretraining on such cells, pretrain(…, base=…) (pretrain --base)."
                )
        if difference:
            raise VocabularyMismatchError(
                f"{this} and {that} have different vocabularies ({self.fingerprint[:12]}, "
                f"{other.fingerprint[:12]}): {difference}. {advice}"
            )

    def _difference_of_tokens(self, other: "Vocabulary") -> str | None:
        if self.fingerprint == other.fingerprint:
            return None
        if dict(self.special_tokens) != dict(other.special_tokens):
            return f"special tokens {dict(self.special_tokens)} and {dict(other.special_tokens)}"
        for gene, token in zip(self.gene_ids, self.tokens, strict=True):
            theirs = other.position.get(gene)
            if theirs is None or other.tokens[theirs] != token:
                there = "absent" if theirs is None else f"token {other.tokens[theirs]}"
                return f"first differing gene {gene} is token {token} in the one and {there} in the other"
        if len(other) > len(self):
            extra = next(gene for gene in other.gene_ids if gene not in self.position)
            return f"first differing gene {extra} is only in the other"
        return None

    def _difference_of_medians(self, other: "Vocabulary") -> str | None:
        if self.medians is not None and other.medians is not None and not np.array_equal(self.medians, other.medians):
            i = int(np.flatnonzero(self.medians != other.medians)[0])
            one, there = told_apart(self.medians[i], other.medians[i])
            return f"same tokens, but other medians (first: gene {self.gene_ids[i]}, {one} and {there})"
        return None

    @classmethod
    @typed
    def from_tokens(
        cls,
        tokens: Mapping[str, int],
        medians: Mapping[str, float] | None = None,
        names: Mapping[str, str] | None = None,
        *,
        max_length: int | None = None,
        other_ids: Mapping[str, str] | None = None,
        values: Values = "counts",
    ) -> "Vocabulary":
        """Make a vocabulary from a token dictionary such as the published one.

        Parameters
        ----------
        tokens
            Gene id → token; keys in angle brackets are special tokens.
        medians
            Gene id → non-zero median in counts per 10,000, for every gene in `tokens`.
        names
            Gene id → name; may be incomplete.
        max_length
            Most tokens a cell may have; default 4,096 where there is a ``<cls>``, else 2,048.
        other_ids
            Retired or other id → gene id; those that lead to no gene of `tokens` are left out.
        values
            What the medians are of: "counts" or "expression" (per sum of 10,000); "zscore" has none.

        Raises
        ------
        InputError
            A gene has no median, a token is no whole number, or the result is not a valid vocabulary.

        See Also
        --------
        Vocabulary.fit : Learn one from counts.
        Vocabulary.load : Open a folder.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> tokens = {"<pad>": 0, "<mask>": 1, "ENSG00000111245": 2, "ENSG00000159251": 3}
        >>> vocabulary = gf.Vocabulary.from_tokens(tokens, names={"ENSG00000111245": "MYL2"})
        >>> vocabulary.tokens_of(["MYL2", "ENSG00000159251"])
        array([2, 3])
        """
        numbers = {_as_text(key): _token(key, token) for key, token in tokens.items()}
        special = {key: token for key, token in numbers.items() if key.startswith("<")}
        ids = tuple(sorted((key for key in numbers if key not in special), key=numbers.__getitem__))
        if medians is not None:
            missing = [gene for gene in ids if gene not in medians]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(ids)} genes have a token but no median (first: {missing[0]!r})."
                )
        return cls(
            gene_ids=ids,
            tokens=np.array([numbers[gene] for gene in ids], dtype=np.int64),
            special_tokens=special,
            max_length=_SERIES["V2" if CLS in special else "V1"][1] if max_length is None else max_length,
            medians=None if medians is None else np.array([_median(gene, medians[gene]) for gene in ids]),
            gene_names=tuple(_as_text((names or {}).get(gene, "")) for gene in ids),
            other_ids={
                _as_text(other): _as_text(gene)
                for other, gene in (other_ids or {}).items()
                if gene in tokens and other not in tokens
            },
            values=values,
        )

    @classmethod
    @typed
    def fit(
        cls,
        sources: "AnnData | str | Path | Sequence[AnnData | str | Path]",
        *,
        series: Series | None = None,
        values: Values = "counts",
        log2: bool = False,
        base: "Vocabulary | None" = None,
        layer: str | None = None,
        gene_ids: str | None = None,
        max_length: int | None = None,
        exact: bool = False,
        workers: int | None = None,
        ray: bool = False,
        work: str | Path | None = None,
        overwrite: bool = False,
    ) -> "Vocabulary":
        """Learn a vocabulary from raw counts: every gene that some cell expresses, with its non-zero median.

        Parameters
        ----------
        sources
            As for `tokenize`: AnnData objects, files, globs or folders with raw counts. Read once.
        series
            Convention: "V1" has no ``<cls>``/``<eos>`` and 2,048 tokens a cell, "V2" (default) has them and 4,096.
        values, log2
            What the sources hold, as for `tokenize`. Of z-scores there are no medians: the genes that have a value.
        base
            Keep the genes, tokens and special tokens of this vocabulary, a model's, and learn medians alone: so bulk
            samples get tokens that the model knows. Genes that no sample expresses get the median of the other
            medians, and their number is said in the log. Not with `series`.
        layer
            Layer that holds the counts, or "raw"; default ``X``.
        gene_ids
            Column of ``var`` that holds the gene ids, or "index"; default as for `tokenize`. Versions are dropped,
            human symbols become Ensembl ids; an id that is neither stays as it is.
        max_length
            Most tokens a cell may have, if not the series' own.
        exact
            Keep every value until the end, for exact medians; default a sketch of each gene's values, whose error
            `NonzeroMedians` states and whose memory does not grow with the number of cells.
        workers
            Processes that share the work; with `ray`, tasks at a time.
        ray
            Share the work over a Ray cluster, as for `tokenize`.
        work
            Folder that keeps what is finished, with which the same call goes on after an interruption; the caller
            removes it. Default none. If sources were damaged and left out, ``failed.json`` in it names them.
        overwrite
            Drop what `work` holds of a call with other sources or options; what it holds of this one is used.

        Returns
        -------
        A vocabulary whose tokens follow the alphabetical order of gene ids.

        Raises
        ------
        DataFormatError
            A source does not hold what `values` says, or no gene is expressed.
        InputError
            `base` comes with `series`, or with z-scores, which need no medians.

        See Also
        --------
        Vocabulary.from_pretrained : The published ones, learned from 30 and 104 million cells.
        tokenize : Use it.

        References
        ----------
        Theodoris et al., Nature 618, 616 (2023), Methods, "Rank value encoding": the median is taken over the
        cells in which the gene is detected, after scaling each cell to 10,000 counts.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.fit(gf.datasets.pbmc700(), series="V1", max_length=512)
        >>> len(vocabulary), vocabulary.max_length, list(vocabulary.special_tokens)
        (754, 512, ['<pad>', '<mask>'])
        >>> round(float(vocabulary.medians[vocabulary.find(["CD79A"])][0]), 1)  # per 10,000 counts
        19.6
        """
        from geneformer_repro.tokenizer.corpus import Corpus
        from geneformer_repro.tokenizer.fitting import fit_medians, medians_of

        if base is not None and (series is not None or values == "zscore"):
            why = "series= is that of base" if series is not None else "z-scores need no medians: give it to tokenize"
            raise InputError(f"base= keeps the tokens of a vocabulary, and {why}; leave one of both out.")
        _require_series(series or "V2")
        corpus = Corpus.find(
            sources, layer=layer, gene_ids=gene_ids, measure=Measure(values, log2), workers=workers, ray=ray
        )
        medians, names = fit_medians(corpus, work, base=base, exact=exact, overwrite=overwrite)
        if base is not None:
            length = base.max_length if max_length is None else max_length
            known = medians_of(base.gene_ids, medians)
            return replace(base, medians=known, max_length=length, values=values, order="descending")
        special, length = _SERIES[series or "V2"]
        tokens = {token: i for i, token in enumerate((*special, *sorted(medians)))}
        return cls.from_tokens(
            tokens,
            None if values == "zscore" else medians,
            names,
            max_length=length if max_length is None else max_length,
            values=values,
        )

    @typed
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the vocabulary's files into the new folder `path`.

        See Also
        --------
        Vocabulary.load : Open it again.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.load("vocabulary")
        >>> vocabulary.save("copy")
        >>> gf.Vocabulary.load("copy") == vocabulary
        True
        """
        with new_directory(path, marker="vocabulary.json", overwrite=overwrite) as folder:
            self.write_into(folder)

    def write_into(self, folder: Path) -> None:
        """Write the files into a folder that exists: a dataset's or a checkpoint's own.

        See Also
        --------
        Vocabulary.save : Makes the folder, and is safe to interrupt.

        Examples
        --------
        >>> from pathlib import Path
        >>> import geneformer_repro as gf
        >>> folder = Path("mine")
        >>> folder.mkdir()
        >>> gf.Vocabulary.load("vocabulary").write_into(folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['vocabulary.json', 'vocabulary.tsv']
        """
        write_table(self._table, folder / "vocabulary.tsv", index=False)
        if self.other_ids:
            import pandas as pd

            table = pd.DataFrame({"other_id": list(self.other_ids), "gene_id": list(self.other_ids.values())})
            write_table(table, folder / _OTHER_IDS, index=False)
        header = {
            "format": self._form,
            "fingerprint": self.fingerprint,
            "n_genes": len(self),
            "max_length": self.max_length,
            "special_tokens": dict(self.special_tokens),
            "has_medians": self.medians is not None,
        }
        if self._form == _OF_BULK:
            header |= {name: getattr(self, name) for name in _RANKED}
        write_json(folder / "vocabulary.json", header)

    @cached_property
    def _table(self) -> "pd.DataFrame":
        import pandas as pd

        columns = {"gene_id": self.gene_ids, "token": self.tokens, "gene_name": self.gene_names}
        if self.medians is not None:
            columns["median"] = [repr(median) for median in self.medians.tolist()]
        kinds = {"token": np.int64}
        return pd.DataFrame({name: np.array(of_all, kinds.get(name, object)) for name, of_all in columns.items()})

    @typed
    def to_published(self, path: str | Path) -> None:
        """Write the dictionaries that published code reads, as pickles, into the new folder `path`.

        ``token_dictionary.pkl``, ``gene_median_dictionary.pkl``, ``gene_name_id_dict.pkl`` (genes with a name) and
        ``ensembl_mapping_dict.pkl`` (every id leads to itself, other ids to their gene). Nothing else here writes
        pickles.

        Raises
        ------
        InputError
            The vocabulary has no medians, or ranks other than counts in descending order, which published code cannot.
        FileExistsError
            `path` exists.

        See Also
        --------
        Vocabulary.load : Reads such a folder, too.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.load("vocabulary")
        >>> vocabulary.to_published("dictionaries")
        >>> gf.Vocabulary.load("dictionaries").position == vocabulary.position
        True
        """
        self.require_medians()
        if self._form == _OF_BULK:
            raise InputError(f"Published code ranks counts in descending order; this vocabulary is for {self.ranked}.")
        assert self.medians is not None
        genes = [str(gene) for gene in self.gene_ids]
        contents: tuple[dict[str, Any], ...] = (
            {**self.special_tokens, **dict(zip(genes, self.tokens.tolist(), strict=True))},
            dict(zip(genes, self.medians.tolist(), strict=True)),
            {name: gene for name, gene in zip(self.gene_names, genes, strict=True) if name},
            {**dict(zip(genes, genes, strict=True)), **self.other_ids},
        )
        with new_directory(path, marker="token_dictionary.pkl", overwrite=False) as folder:
            for stem, content in zip(_PUBLISHED_STEMS, contents, strict=True):
                write_plain_pickle(folder / f"{stem}.pkl", content)

    @classmethod
    @typed
    def load(cls, path: str | Path) -> "Vocabulary":
        """Open a folder written by `save`, or one with the published dictionaries.

        Parameters
        ----------
        path
            A folder with ``vocabulary.json`` and ``vocabulary.tsv`` (a vocabulary's, dataset's or checkpoint's), or
            with the published ``token_dictionary*.pkl``, ``gene_median_dictionary*.pkl``,
            ``gene_name_id_dict*.pkl`` and ``ensembl_mapping_dict*.pkl`` (these two may be absent).

        Raises
        ------
        InputError
            The folder holds neither, a file is damaged, or a pickle holds anything but plain data.

        See Also
        --------
        Vocabulary.from_pretrained : Also from the hub.
        Vocabulary.save : Write one.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.load("vocabulary")
        >>> len(vocabulary)
        754
        >>> gf.Vocabulary.load("cells.tok") == vocabulary  # a dataset brings its own, as a checkpoint does
        True
        """
        folder = Path(path)
        if (folder / "vocabulary.json").exists():
            return cls._load_own(folder)
        if any(folder.glob("token_dictionary*.pkl")):
            return cls._load_published(folder)
        what = "is not a folder" if not folder.is_dir() else "holds neither vocabulary.json nor token_dictionary*.pkl"
        raise InputError(
            f"{folder}: {what}. Expected a vocabulary saved by this package, or the published dictionaries."
        )

    @classmethod
    def _load_own(cls, folder: Path) -> "Vocabulary":
        header = read_json(folder / "vocabulary.json")
        form = header.get("format")
        if form not in (FORMAT, _FORMER, _OF_BULK):
            raise InputError(f"{folder}/vocabulary.json: expected format {FORMAT!r}, found {form!r}.")
        if wrong := misfit(header, _HEADER):
            raise InputError(f"{folder}/vocabulary.json: is damaged ({wrong}); copy the folder anew.")
        try:
            table = read_columns(folder / "vocabulary.tsv")
            vocabulary = cls(
                gene_ids=tuple(table["gene_id"]),
                tokens=np.array([int(token) for token in table["token"]], dtype=np.int64),
                special_tokens=header["special_tokens"],
                max_length=header["max_length"],
                medians=np.array([float(median) for median in table["median"]]) if header["has_medians"] else None,
                gene_names=tuple(table["gene_name"]),
                other_ids=_read_other_ids(folder / _OTHER_IDS),
                **{name: header[name] for name in _RANKED if form == _OF_BULK},
            )
        except (OSError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise InputError(f"{folder}: vocabulary.tsv or vocabulary.json is missing or damaged ({error}).") from error
        written = header["fingerprint"]
        fingerprint = vocabulary._fingerprint(form)
        if fingerprint != written:
            raise InputError(
                f"{folder}: vocabulary.tsv or other_ids.tsv has changed since it was written (fingerprint "
                f"{fingerprint[:12]}, header says {written[:12]})."
            )
        return vocabulary

    @classmethod
    def _load_published(cls, folder: Path) -> "Vocabulary":
        tokens, medians, names, other_ids = (_only_pickle(folder, stem) for stem in _PUBLISHED_STEMS)
        assert tokens is not None
        if medians is None:
            raise InputError(f"{folder}: found token_dictionary*.pkl but no gene_median_dictionary*.pkl beside it.")
        try:
            by_id = {_as_text(gene): name for name, gene in (names or {}).items()}
            return cls.from_tokens(tokens, medians, by_id, other_ids=other_ids)
        except InputError as error:
            raise InputError(f"{folder}: its dictionaries do not make a vocabulary. {error}") from error

    @classmethod
    @typed
    def from_pretrained(
        cls, path_or_hub_id: str | Path, *, series: Series = "V2", revision: str | None = None
    ) -> "Vocabulary":
        """Open the published vocabulary of a series from a hub repository or a local copy of one.

        Parameters
        ----------
        path_or_hub_id
            A hub id such as ``"ctheodoris/Geneformer"``, a folder laid out like that repository, or one that `load`
            opens.
        series
            "V1" (30 million cells; 25,424 genes) or "V2" (104 million cells; 20,271 genes).
        revision
            Branch, tag or commit on the hub.

        Raises
        ------
        InputError
            The folder or the downloaded repository holds no such dictionaries.

        See Also
        --------
        Vocabulary.load : Open a folder, never the hub.
        Checkpoint.from_pretrained : The models that belong to it.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> vocabulary = gf.Vocabulary.from_pretrained("Geneformer", series="V2")  # a copy; or "ctheodoris/Geneformer"
        >>> vocabulary.max_length, list(vocabulary.special_tokens)
        (4096, ['<pad>', '<mask>', '<cls>', '<eos>'])
        """
        _require_series(series)
        root = Path(path_or_hub_id)
        if not root.exists():
            from huggingface_hub import snapshot_download

            patterns = [f"{_PUBLISHED_FOLDER[series]}/*.pkl"]
            try:
                root = Path(snapshot_download(str(path_or_hub_id), revision=revision, allow_patterns=patterns))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{path_or_hub_id}: no such folder, and not to be had from the hub ({error})."
                ) from error
        nested = root / _PUBLISHED_FOLDER[series]
        return cls.load(nested if nested.is_dir() else root)


def is_published(path: str | Path) -> bool:
    """Whether a path is a vocabulary rather than counts: a folder with one, or something like a hub id."""
    folder = Path(path)
    if folder.exists():
        folders = [folder, *(folder / name for name in _PUBLISHED_FOLDER.values())]
        return any((each / "vocabulary.json").exists() or any(each.glob("token_dictionary*.pkl")) for each in folders)
    place = place_named(str(path))
    return place is not None and "/" in place[0] and not place[1] and folder.suffix not in _COUNT_SUFFIXES


def _as_text(name: object) -> str:
    """Return an id or name as text; a number, such as an Entrez id, too, and nothing for a missing one."""
    if name is None or (isinstance(name, float) and np.isnan(name)):
        return ""
    if not isinstance(name, (str, int, np.integer)) or len(text := str(name)) > _LONGEST_NAME:
        raise InputError(f"Gene ids and names are text, found {type(name).__name__} {repr(name)[:60]}.")
    return text


def _token(gene: object, token: Any) -> int:
    try:
        if isinstance(token, (str, bytes)) or int(token) != token:
            raise ValueError
        return int(token)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"The token of {repr(gene)[:60]} should be a whole number, found {repr(token)[:60]}."
        ) from None


def _median(gene: str, median: Any) -> float:
    try:
        return float(median)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The median of {gene[:60]!r} should be a number, found {repr(median)[:60]}.") from None


def _read_other_ids(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    table = read_columns(path)
    return dict(zip(table["other_id"], table["gene_id"], strict=True))


def _require_series(series: str) -> None:
    if series not in _SERIES:
        raise InputError(f"There is no series {series!r}. {did_you_mean(series, _SERIES)}")


def _only_pickle(folder: Path, stem: str) -> dict[Any, Any] | None:
    files = sorted(folder.glob(f"{stem}*.pkl"))
    if len(files) > 1:
        raise InputError(
            f"{folder}: several {stem}*.pkl ({', '.join(file.name for file in files)}); keep one series in a folder."
        )
    return read_plain_pickle(files[0]) if files else None
