"""Drugs: which are the same, and what a network or a simple method may look at of them.

A drug is its structure before it is its name: 24 drugs of CCLE share 9 names with GDSC, and 17 structures. The key is
the canonical SMILES of the largest organic part, without charges that a salt leaves. Stereochemistry stays: without it
doxorubicin is epirubicin. A complex of a metal stays whole: the largest part of cisplatin is ammonia. Tautomers are not
made one, which RDKit does slowly and not always the same from version to version.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.errors import DataFormatError, InputError, MissingExtraError, did_you_mean
from geneformer_repro.files import misfit, read_text
from geneformer_repro.identities import normalised_name, numbers_by_name
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.tables import column_called, examples, read_rows

logger = logging.getLogger(__name__)

NAME_COLUMNS = (
    "drug", "drug_name", "compound", "compound_name", "treatment", "inhibitor", "agent", "cpd_name", "molecule", "name",
)  # fmt: skip
"""What a column with names of drugs is called, the first that is there."""
SMILES_COLUMNS = ("smiles", "isomeric_smiles", "canonical_smiles", "drug_smiles", "cpd_smiles", "structure")
_COUNTER_IONS = frozenset({3, 11, 12, 19, 20, 30, 37, 38, 55, 56})
"""Metals that make salts (Li, Na, Mg, K, Ca, Zn, Rb, Sr, Cs, Ba); any other holds a complex together."""
_METALS = frozenset({*range(21, 32), *range(39, 51), *range(57, 84), *range(89, 104), 13}) - _COUNTER_IONS
PADDING, UNKNOWN = 0, 1


@dataclass(frozen=True)
class Drugs:
    """Drugs with their names and, where it is known, their structure; made by `Drugs.of_table` or `Drugs.of_names`.

    Parameters
    ----------
    names
        As they stand in the table.
    smiles
        Canonical SMILES of each without salts and solvents; None where none is known.
    keys
        What each drug is: the canonical SMILES, else that of the drug whose normalised name it has, else the normalised
        name. Drugs with one key are the same drug under several names.
    invalid
        Names that were left out, because their SMILES cannot be read.

    See Also
    --------
    read_responses : How samples responded to drugs.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> import pandas as pd
    >>> smiles = ["CC(=O)Oc1ccccc1C(O)=O", "[Na+].CC(=O)Oc1ccccc1C([O-])=O", None]
    >>> table = pd.DataFrame({"drug": ["Aspirin", "sodium acetylsalicylate", "Drug-7"], "smiles": smiles})
    >>> gf.Drugs.of_table(table).keys
    ('CC(=O)Oc1ccccc1C(=O)O', 'CC(=O)Oc1ccccc1C(=O)O', 'DRUG7')
    """

    names: tuple[str, ...]
    smiles: tuple[str | None, ...]
    keys: tuple[str, ...]
    invalid: tuple[str, ...] = ()

    @classmethod
    @typed
    def of_table(
        cls, table: pd.DataFrame | str | Path, *, name: str | None = None, smiles: str | None = None
    ) -> "Drugs":
        """Read a table of drugs, a row each: TSV, CSV, Parquet or a data frame.

        Parameters
        ----------
        table
            With a column of names and, if structures are known, one of SMILES. A text file with a name a line is a list
            of names.
        name, smiles
            Those columns; by default the ones that are called so ("drug", "compound" …; "smiles", "isomeric_smiles" …).

        Returns
        -------
        The drugs in the order of the table, without those whose SMILES cannot be read, which the log names. A drug that
        stands twice with the same structure is taken once.

        Raises
        ------
        InputError
            There is no such file or column, or no drug; a drug has no name, or two structures.
        DataFormatError
            The file is no table.
        MissingExtraError
            There are SMILES, and RDKit is not installed (extra ``drug``).

        See Also
        --------
        Drugs.of_names : Drugs without structures.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> import pandas as pd
        >>> erlotinib = "COCCOc1cc2ncnc(Nc3cccc(C#C)c3)c2cc1OCCOC"
        >>> table = pd.DataFrame({"compound": ["Erlotinib HCl", "X"], "SMILES": [f"{erlotinib}.Cl", "C1CC"]})
        >>> drugs = gf.Drugs.of_table(table)
        >>> drugs.smiles
        ('C#Cc1cccc(Nc2ncnc3cc(OCCOC)c(OCCOC)cc23)c1',)
        >>> drugs.invalid
        ('X',)
        """
        if not isinstance(table, pd.DataFrame) and (names := _listed(Path(table))):
            return cls.of_names(names)
        called, rows = read_rows(table, "The table of drugs")
        column = _column(called, rows, name, NAME_COLUMNS, "names of drugs", "name")
        of_smiles = smiles if smiles is not None else column_called(list(rows.columns), SMILES_COLUMNS)
        written = texts(rows[column])
        _require_names(called, list(dict.fromkeys(written)))
        if of_smiles is None:
            return cls.of_names(list(dict.fromkeys(written)))
        structures = texts(rows[_column(called, rows, of_smiles, (), "SMILES", "smiles")])
        return _with_structures(called, written, structures)

    @classmethod
    @typed
    def of_names(cls, names: Sequence[str]) -> "Drugs":
        """Make drugs of names alone: then one-hot and vectors of your own are the only inputs.

        Raises
        ------
        InputError
            A name is empty or stands twice.

        See Also
        --------
        Drugs.of_table : Drugs with structures.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Drugs.of_names(["Erlotinib", "PLX-4720"]).keys
        ('ERLOTINIB', 'PLX4720')
        """
        names = [str(name) for name in names]
        _require_names("The names of drugs", names)
        return _said(cls(tuple(names), (None,) * len(names), tuple(map(normalised_name, names))))

    def __len__(self) -> int:
        return len(self.names)

    def select(self, numbers: Sequence[int] | np.ndarray) -> "Drugs":
        """Return the drugs of these numbers, in this order.

        See Also
        --------
        Drugs.of_names : Drugs to choose from.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Drugs.of_names(["Erlotinib", "PLX-4720"]).select([1]).names
        ('PLX-4720',)
        """
        chosen = [int(number) for number in numbers]
        smiles = tuple(self.smiles[i] for i in chosen)
        return Drugs(tuple(self.names[i] for i in chosen), smiles, tuple(self.keys[i] for i in chosen))

    def fingerprints(self, radius: int = 2, n_bits: int = 2048) -> np.ndarray:
        """Return Morgan fingerprints: which neighbourhoods of atoms a molecule has.

        Parameters
        ----------
        radius
            Bonds around an atom; 2 is ECFP4, 3 is ECFP6.
        n_bits
            Length of the fingerprint.

        Returns
        -------
        Drugs × bits, float32, 0 or 1.

        Raises
        ------
        InputError
            Drugs have no structure; names them.
        MissingExtraError
            RDKit is not installed (extra ``drug``).

        See Also
        --------
        Drugs.descriptors : Numbers that mean something to a chemist.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> import pandas as pd
        >>> drugs = gf.Drugs.of_table(pd.DataFrame({"drug": ["ethanol", "propanol"], "smiles": ["CCO", "CCCO"]}))
        >>> bits = drugs.fingerprints(radius=1, n_bits=1024)
        >>> bits.shape, int(bits[0].sum()), int((bits[0] * bits[1]).sum())
        ((2, 1024), 6, 5)
        """
        molecules = self._molecules("Morgan fingerprints")
        from rdkit.Chem import rdFingerprintGenerator

        generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
        bits = [generator.GetFingerprintAsNumPy(molecule) for molecule in molecules]
        return np.array(bits, dtype=np.float32).reshape(len(bits), n_bits)

    def descriptors(self, kind: Literal["rdkit", "mordred"] = "rdkit") -> pd.DataFrame:
        """Return physical and topological numbers of each molecule.

        Parameters
        ----------
        kind
            "rdkit": RDKit's, 217 in 2026.9. "mordred": Mordred's two-dimensional ones, 1,613.

        Returns
        -------
        A row a drug, a column a descriptor, float64, as they are: to be scaled by the training drugs. NaN where one is
        not defined for a molecule, or not finite; a tenth of Mordred's are, for erlotinib 149.

        Raises
        ------
        InputError, MissingExtraError
            As `fingerprints`.

        See Also
        --------
        Drugs.fingerprints : Which groups of atoms there are.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> import pandas as pd
        >>> drugs = gf.Drugs.of_table(pd.DataFrame({"drug": ["ethanol", "propanol"], "smiles": ["CCO", "CCCO"]}))
        >>> drugs.descriptors()["MolWt"].round(2).tolist()
        [46.07, 60.1]
        """
        if kind not in ("rdkit", "mordred"):
            raise InputError(f"Descriptors kind={kind!r}. {did_you_mean(kind, ('rdkit', 'mordred'))}")
        structures = self.structures(f"{kind} descriptors")
        with _quiet_rdkit(), np.errstate(all="ignore"):
            names, of_molecule = _rdkit_descriptors() if kind == "rdkit" else _mordred_descriptors()
            rows = [of_molecule(smiles) for smiles in structures]
        return pd.DataFrame(rows, self.names, names, dtype=float).replace([np.inf, -np.inf], np.nan)

    def vectors(self, table: pd.DataFrame | str | Path, *, name: str | None = None) -> pd.DataFrame:
        """Return vectors of the drugs that somebody computed before.

        Parameters
        ----------
        table
            A row a drug: a column of names, numbers in the others.
        name
            The column of names; by default the one that is called so ("drug", "compound" …), else the first.

        Returns
        -------
        A row a drug, by its name here, a column a number, float32, as they are; NaN where one is missing.

        Raises
        ------
        InputError
            Drugs have no row (the message names them), or one has two.
        DataFormatError
            The file is no table, there is no column of numbers, or a value is no number.

        See Also
        --------
        Drugs.fingerprints : Vectors out of structures.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> import pandas as pd
        >>> table = pd.DataFrame({"drug": ["PLX4720", "Erlotinib"], "v1": [0.5, 1.0], "v2": [2.0, 0.0]})
        >>> gf.Drugs.of_names(["Erlotinib", "PLX-4720"]).vectors(table)
                    v1   v2
        Erlotinib  1.0  0.0
        PLX-4720   0.5  2.0
        """
        called, rows = read_rows(table, "The table of vectors")
        column = name if name is not None else column_called(list(rows.columns), NAME_COLUMNS) or str(rows.columns[0])
        names = texts(rows[_column(called, rows, column, (), "names of drugs", "name")])
        _require_names(called, names)
        beside = rows.drop(columns=column)
        numbers = beside.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float32)
        if not numbers.shape[1]:
            raise DataFormatError(f"{called}: expected numbers beside the names of drugs, found no other column.")
        wrong = np.argwhere(np.isinf(numbers) | (np.isnan(numbers) & beside.notna().to_numpy()))
        if len(wrong):
            raise DataFormatError(
                f"{called}: drug {names[wrong[0][0]]!r} has no number in column {beside.columns[wrong[0][1]]!r}."
            )
        places = numbers_by_name({name: row for row, name in enumerate(names)}, self.names)
        without = [drug for drug in self.names if drug not in places]
        if without:
            raise InputError(
                f"{called}: {len(without)} of {len(self)} drugs have no row ({examples(without, 8)}); its names are "
                f"{examples(names)}. Add them, or leave these drugs out."
            )
        in_order = numbers[[places[drug] for drug in self.names]]
        return pd.DataFrame(in_order, index=list(self.names), columns=beside.columns)

    def structures(self, needed_by: str) -> list[str]:
        """Return the SMILES of all drugs.

        Raises
        ------
        InputError
            Drugs have none; names what needs them and the drugs.

        See Also
        --------
        Drugs.of_table : Reads them.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> try:
        ...     gf.Drugs.of_names(["Erlotinib"]).structures("Morgan fingerprints")
        ... except gf.InputError as error:
        ...     print(error)
        Morgan fingerprints need the structure of each drug, and 1 of 1 have no SMILES ('Erlotinib'). Add them to the
        table of drugs, leave these drugs out, or read them otherwise: who each is, one-hot ("one_hot"), or vectors of
        your own ("vectors").
        """
        without = [name for name, smiles in zip(self.names, self.smiles, strict=True) if smiles is None]
        if without:
            raise InputError(
                f"{needed_by} need the structure of each drug, and {len(without)} of {len(self)} have no SMILES "
                f"({examples(without, 8)}). Add them to the table of drugs, leave these drugs out, or read them "
                'otherwise: who each is, one-hot ("one_hot"), or vectors of your own ("vectors").'
            )
        return [smiles for smiles in self.smiles if smiles is not None]

    def _molecules(self, needed_by: str) -> list[Any]:
        structures = self.structures(needed_by)
        with _quiet_rdkit() as chemistry:
            return [chemistry.MolFromSmiles(smiles) for smiles in structures]


def same_drugs(a: Drugs, b: Drugs) -> pd.DataFrame:
    """Say which drugs of two studies are the same.

    Returns
    -------
    A row a pair, in the order of `a`: ``a``, ``b`` (names) and ``by``: "structure"; "name" (the normalised name, where
    a structure is not known or is drawn otherwise); or "skeleton" (the same atoms and bonds with other or unknown
    stereochemistry: a racemate and its enantiomer, but also doxorubicin and epirubicin). For a split to be strict none
    of them may stand on both sides.

    Raises
    ------
    MissingExtraError
        There are structures, and RDKit is not installed (extra ``drug``).

    See Also
    --------
    Drugs.of_table : Reads drugs.
    identities.same_samples : The same of samples.

    Examples
    --------
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> from geneformer_repro.drugs import same_drugs
    >>> ours = gf.Drugs.of_table(pd.DataFrame({"drug": ["Aspirin"], "smiles": ["CC(=O)Oc1ccccc1C(O)=O"]}))
    >>> table = pd.DataFrame({"drug": ["ASA", "ethanol"], "smiles": ["CC(=O)OC1=CC=CC=C1C(=O)O", "CCO"]})
    >>> same_drugs(ours, gf.Drugs.of_table(table))
             a    b         by
    0  Aspirin  ASA  structure
    """
    ways = {
        "structure": [drugs.keys for drugs in (a, b)],
        "name": [tuple(map(normalised_name, drugs.names)) for drugs in (a, b)],
        "skeleton": [tuple(map(_skeleton, drugs.smiles)) for drugs in (a, b)],
    }
    pairs: dict[tuple[int, int], str] = {}
    for by, (of_a, of_b) in ways.items():
        numbers: dict[str, list[int]] = {}
        for j, key in enumerate(of_b):
            numbers.setdefault(key, []).append(j)
        for i, key in enumerate(of_a):
            for j in numbers.get(key, ()) if key else ():
                is_name = by == "structure" and a.smiles[i] is None and b.smiles[j] is None
                pairs.setdefault((i, j), "name" if is_name else by)
    rows = [(a.names[i], b.names[j], by) for (i, j), by in sorted(pairs.items())]
    return pd.DataFrame(rows, columns=["a", "b", "by"])


def _skeleton(smiles: str | None) -> str:
    """Return canonical SMILES without stereochemistry; "" of none."""
    if smiles is None:
        return ""
    with _quiet_rdkit() as chemistry:
        return str(chemistry.MolToSmiles(chemistry.MolFromSmiles(smiles), isomericSmiles=False))


def _column(called: str, rows: pd.DataFrame, chosen: str | None, choices: Sequence[str], what: str, option: str) -> str:
    column = chosen if chosen is not None else column_called(list(rows.columns), choices)
    if column is None:
        raise InputError(
            f"{called}: no column is called as one with {what} ({', '.join(choices)}); there are "
            f"{examples(rows.columns, 8)}. Name it with {option}=."
        )
    if column not in rows:
        raise InputError(f"{called}: there is no column {column!r}. {did_you_mean(column, rows.columns)}")
    return column


def _require_names(called: str, names: Sequence[str]) -> None:
    if not names:
        raise InputError(f"{called}: there is no drug.")
    empty = [i for i, name in enumerate(names, 1) if not name.strip()]
    if empty:
        raise InputError(f"{called}: drug {empty[0]} of {len(names)} has no name.")
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise InputError(f"{called}: {len(twice)} drugs stand there twice (first: {twice[0]!r}).")


def _listed(path: Path) -> list[str]:
    """Return the names of a text file with one in each line, with or without a header; none of a table."""
    if path.suffix.lower() == ".parquet":
        return []
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines or any(separator in lines[0] for separator in "\t,;"):
        return []
    has_header = column_called(lines[:1], NAME_COLUMNS) is not None
    return list(dict.fromkeys(lines[has_header:]))


def _with_structures(called: str, names: Sequence[str], written: Sequence[str]) -> Drugs:
    """Make drugs of names and SMILES as written ("" for none)."""
    parents = {smiles: canonical_parent(smiles) for smiles in dict.fromkeys(written) if smiles}
    of_name: dict[str, str | None] = {}
    invalid: dict[str, str] = {}
    for name, smiles in zip(names, written, strict=True):
        parent = parents[smiles] if smiles else None
        if smiles and parent is None:
            invalid[name] = smiles
            continue
        other = of_name.setdefault(name, parent)
        if other is None:
            of_name[name] = parent
        elif parent is not None and parent != other:
            raise InputError(
                f"{called}: {name!r} has two structures, {other!r} and {parent!r}. Give each drug a name of its own."
            )
    invalid = {name: smiles for name, smiles in invalid.items() if name not in of_name}
    if invalid:
        logger.warning(
            "%s: %d of %d drugs are left out, RDKit cannot read their SMILES: %s.",
            *(called, len(invalid), len(invalid) + len(of_name)),
            ", ".join(f"{name} ({smiles!r})" for name, smiles in invalid.items()),
        )
    if not of_name:
        raise InputError(f"{called}: there is no drug whose SMILES can be read.")
    by_name = {normalised_name(name): parent for name, parent in of_name.items() if parent}
    keys = [parent or by_name.get(normalised_name(name), normalised_name(name)) for name, parent in of_name.items()]
    return _said(Drugs(tuple(of_name), tuple(of_name.values()), tuple(keys), tuple(invalid)))


def _said(drugs: Drugs) -> Drugs:
    """Log how many drugs there are, and which names are one drug."""
    names_of: dict[str, list[str]] = {}
    for name, key in zip(drugs.names, drugs.keys, strict=True):
        names_of.setdefault(key, []).append(name)
    several = [" = ".join(names) for names in names_of.values() if len(names) > 1]
    without = sum(smiles is None for smiles in drugs.smiles)
    logger.info(
        "%d drugs under %d names, %d without SMILES%s.",
        *(len(names_of), len(drugs), without),
        f"; under several names: {', '.join(several)}" if several else "",
    )
    return drugs


# chemistry


@contextmanager
def _quiet_rdkit() -> Iterator[Any]:
    """Give RDKit's chemistry, without its remarks on standard error.

    Raises
    ------
    MissingExtraError
        RDKit is not installed.
    """
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise MissingExtraError("Structures of drugs need RDKit: pip install 'geneformer-repro[drug]'.") from error
    with rdBase.BlockLogs():
        yield Chem


def canonical_parent(smiles: str) -> str | None:
    """Return the canonical SMILES of a drug without salts, solvents and the charges that these leave.

    Parameters
    ----------
    smiles
        As somebody wrote it.

    Returns
    -------
    The largest part that has carbon, neutral where it can be, with its stereochemistry; the whole where a metal that
    makes no salts holds it together (cisplatin). None where RDKit cannot read it.

    Raises
    ------
    MissingExtraError
        RDKit is not installed (extra ``drug``).
    """
    with _quiet_rdkit() as chemistry:
        molecule = chemistry.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            return None
        elements = {atom.GetAtomicNum() for atom in molecule.GetAtoms()}
        if 6 in elements and not elements & _METALS:
            largest, uncharged = _standardisers()
            molecule = uncharged(largest(molecule))
        return str(chemistry.MolToSmiles(molecule))


@functools.cache
def _standardisers() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what takes the largest organic part, and what takes charges away; each is slow to make."""
    from rdkit.Chem.MolStandardize import rdMolStandardize

    return rdMolStandardize.LargestFragmentChooser(preferOrganic=True).choose, rdMolStandardize.Uncharger().uncharge


_REMEMBERED = 4096
"""Molecules whose descriptors are kept: of one they take 20 ms, and every training asks again."""


def _rdkit_descriptors() -> tuple[list[str], Callable[[str], tuple[float, ...]]]:
    """Return their names, and what makes them of a SMILES."""
    from rdkit.Chem import Descriptors

    return [name for name, _ in Descriptors.descList], _of_rdkit


@functools.lru_cache(_REMEMBERED)
def _of_rdkit(smiles: str) -> tuple[float, ...]:
    from rdkit.Chem import Descriptors, MolFromSmiles

    molecule = MolFromSmiles(smiles)
    return tuple(function(molecule) for _, function in Descriptors.descList)


def _mordred_descriptors() -> tuple[list[str], Callable[[str], tuple[float, ...]]]:
    """Return their names, and what makes them of a SMILES."""
    try:
        import mordred.descriptors  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Mordred's descriptors need it: pip install 'geneformer-repro[drug]'.") from error
    calculator = _mordred_calculator()
    return [str(descriptor) for descriptor in calculator.descriptors], _of_mordred


@functools.cache
def _mordred_calculator() -> Any:
    from mordred import Calculator, descriptors

    return Calculator(descriptors, ignore_3D=True)


@functools.lru_cache(_REMEMBERED)
def _of_mordred(smiles: str) -> tuple[float, ...]:
    from rdkit.Chem import MolFromSmiles

    return tuple(_as_number(value) for value in _mordred_calculator()(MolFromSmiles(smiles)))


def _as_number(value: Any) -> float:
    """Return a descriptor of Mordred's; NaN for its error objects."""
    return float(value) if isinstance(value, int | float | np.number | np.bool_) else np.nan


# characters


@dataclass(frozen=True)
class SmilesVocabulary:
    """Characters of SMILES and their ids; 0 is padding, 1 a character that no training drug has.

    Parameters
    ----------
    characters
        In order of their ids, from 2.
    """

    characters: tuple[str, ...]

    @classmethod
    def fit(cls, smiles: Sequence[str]) -> "SmilesVocabulary":
        """Take the characters of training drugs, sorted."""
        return cls(tuple(sorted(set("".join(smiles)))))

    def __len__(self) -> int:
        """Return how many ids there are, with padding and unknown."""
        return len(self.characters) + 2

    def encode(self, smiles: Sequence[str], length: int | None = None) -> np.ndarray:
        """Return the ids of characters.

        Parameters
        ----------
        smiles
            Of drugs.
        length
            Columns; by default those of the longest. A longer SMILES loses its end.

        Returns
        -------
        Drugs × characters, int64, padded with 0 on the right.
        """
        width = max(map(len, smiles), default=0) if length is None else length
        ids = {character: i for i, character in enumerate(self.characters, 2)}
        encoded = np.full((len(smiles), width), PADDING, dtype=np.int64)
        for row, text in zip(encoded, smiles, strict=True):
            row[: len(text)] = [ids.get(character, UNKNOWN) for character in text[:width]]
        return encoded

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {"characters": list(self.characters)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SmilesVocabulary":
        """Return what `to_json` wrote.

        Raises
        ------
        InputError
            It is damaged.
        """
        if wrong := misfit(content, {"characters": [str]}, "characters of SMILES"):
            raise InputError(wrong)
        return cls(tuple(content["characters"]))
