"""Tables of drug response, long or wide, as one measure in one unit with replicates averaged.

What the numbers are is never guessed: a table of IC50s reads like one of AUCs, and a network that learns both learns
neither. So the measure is named, concentrations become the natural logarithm of µM, as GDSC has them, and numbers that
cannot be the measure are refused. A concentration that is only known to be above the highest dose (">10") is refused as
text; where it stands as that dose (CCLE: 6,451 of 11,670 are 8 µM) the log says so.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.drugs import NAME_COLUMNS, Drugs
from geneformer_repro.errors import DataFormatError, InputError, did_you_mean, listed
from geneformer_repro.identities import Aliases, normalised_name, numbers_by_name, same_samples
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.tables import column_called, examples, read_rows

logger = logging.getLogger(__name__)


class _Measure(NamedTuple):
    """What values of a measure can be, and which are of a sensitive sample."""

    lowest: float
    highest: float
    sensitive: str
    meaning: str


_MEASURES = {
    "LN_IC50": _Measure(-25, 25, "low", "the natural logarithm of the IC50 in µM"),
    "AUC": _Measure(-0.1, 1.5, "low", "the area under the dose-response curve, as a share of the whole: 0 to 1"),
    "AAC": _Measure(-0.5, 1.1, "high", "the area above the dose-response curve, as a share of the whole: 0 to 1"),
    "ActArea": _Measure(-1, 12, "high", "CCLE's activity area: 0 to the number of doses"),
    "pIC50": _Measure(-2, 15, "high", "minus the decimal logarithm of the IC50 in mol/l"),
    "pEC50": _Measure(-2, 15, "high", "minus the decimal logarithm of the EC50 in mol/l"),
    "growth": _Measure(-100.001, np.inf, "low", "the change of the tumour's volume in %: -100 is gone"),
}
MEASURES = tuple(_MEASURES)
"""Measures of response, each in one unit."""
_LOGARITHMS = {"IC50_uM": ("LN_IC50", 1.0), "IC50_nM": ("LN_IC50", 1000.0)}
"""Concentrations, which are read as the logarithm of µM, and how many of their unit a µM is."""
SAMPLE_COLUMNS = (
    "sample", "cell_line", "cell_line_name", "ccl_name", "cell", "model", "model_name", "patient", "sample_id",
    "patient_id", "cell_line_id", "model_id", "lab_id", "depmap_id", "sanger_model_id", "cosmic_id", "cell_key",
)  # fmt: skip
DRUG_COLUMNS = tuple(name for name in NAME_COLUMNS if name != "name")
_VALUE_COLUMNS = ("value", "response")
_OF_MEASUREMENTS = (*_VALUE_COLUMNS, *MEASURES, *_LOGARITHMS, "IC50", "EC50", "viability", "sensitivity")
"""What a column of values is called, and no drug or sample of a wide table."""
_MEASURE_COLUMNS = ("measure", "metric", "response_type", "sensitivity_measure", "endpoint", "unit", "units")
_CENSORED = re.compile(r"\s*[<>≤≥~]")
_LEAST_PAIRS, _LEAST_DRUGS = 50, 5
"""So many pairs of so many drugs without a negative LN_IC50 are no logarithms: of GDSC's 542 drugs no five drawn at
random (3,000 times) lack one."""
_CAPPED = 0.05
"""Share of pairs at the highest value from which it is taken for the highest dose."""


def sensitive_is_low(measure: str) -> bool:
    """Whether a lower value of a measure is of a more sensitive sample."""
    return _MEASURES[measure].sensitive == "low"


@dataclass(frozen=True, eq=False)
class Responses:
    """How samples responded to drugs, in one measure; made by `read_responses`.

    Parameters
    ----------
    pairs
        A row a pair of sample and drug: ``sample``, ``drug`` (text), ``value`` (float64) and ``n_replicates``, of which
        the value is the mean.
    measure
        One of `MEASURES`.
    """

    pairs: pd.DataFrame
    measure: str

    def __len__(self) -> int:
        return len(self.pairs)

    def join(self, samples: Sequence[str], drugs: Drugs, aliases: Aliases | None = None) -> "NumberedPairs":
        """Lead names to the numbers of samples and drugs, by identity; what is one pair then is averaged.

        Parameters
        ----------
        samples
            Names of the samples that there are.
        drugs
            The drugs that there are; one under several names becomes the first of them.
        aliases
            What else samples are called.

        Returns
        -------
        The pairs whose sample and drug are there, in order of sample and drug; the log says what is left out.

        Raises
        ------
        InputError
            No sample, or no drug, of the responses is there.
        """
        to_sample = _numbers_of_samples(self.pairs["sample"], samples, aliases)
        to_drug = _numbers_of_drugs(self.pairs["drug"], drugs)
        there = {"sample": to_sample, "drug": to_drug}
        for what, numbers in there.items():
            names = self.pairs[what].unique()
            left_out = [name for name in names if name not in numbers]
            if len(left_out) == len(names):
                offered = samples if what == "sample" else drugs.names
                raise InputError(
                    f"None of the {len(names):,} {what}s with responses ({examples(names)}) is among the "
                    f"{len(offered):,} that are given ({examples(offered)}). Both must have the same names, or a table "
                    "that tells which is which."
                )
            if left_out:
                logger.info(
                    "%d of %d %ss with responses are not among those given (%s).",
                    *(len(left_out), len(names), what, examples(left_out)),
                )
        table = self.pairs.assign(sample=self.pairs["sample"].map(to_sample), drug=self.pairs["drug"].map(to_drug))
        averaged = _averaged(table.dropna(subset=["sample", "drug"]).astype({"sample": int, "drug": int}))
        return NumberedPairs(
            averaged[["sample", "drug"]].to_numpy(np.int64),
            averaged["value"].to_numpy(np.float64),
            averaged["n_replicates"].to_numpy(np.int64),
        )


class NumberedPairs(NamedTuple):
    """Responses of samples and drugs by number: what a network learns.

    Parameters
    ----------
    pairs
        Numbers of sample and drug, int64, rows × 2.
    values
        Their responses, float64.
    n_replicates
        How many measurements each is the mean of.
    """

    pairs: np.ndarray
    values: np.ndarray
    n_replicates: np.ndarray


def require_one_measure(*responses: Responses) -> str:
    """Return the measure that responses have in common.

    Raises
    ------
    InputError
        They have several.
    """
    measures = list(dict.fromkeys(one.measure for one in responses))
    if len(measures) > 1:
        raise InputError(
            f"Responses are measured as {' and '.join(measures)}, which cannot be learned as one. Give one measure; a "
            "network that has learned another goes on with a new head."
        )
    return measures[0]


def _numbers_of_samples(names: pd.Series, samples: Sequence[str], aliases: Aliases | None) -> dict[str, int]:
    place = {name: i for i, name in reversed(list(enumerate(samples)))}
    same = same_samples(names.unique(), samples, aliases)
    certain = same[same["by"] != "ambiguous"]
    first = certain.drop_duplicates("a")
    return {a: place[b] for a, b in zip(first["a"], first["b"], strict=True)}


def _numbers_of_drugs(names: pd.Series, drugs: Drugs) -> dict[str, int]:
    first_of_key: dict[str, int] = {}
    number = [first_of_key.setdefault(key, i) for i, key in enumerate(drugs.keys)]
    return numbers_by_name(dict(zip(drugs.names, number, strict=True)), names.unique())


# reading


@typed
def read_responses(
    table: pd.DataFrame | str | Path,
    *,
    measure: str,
    sample: str | None = None,
    drug: str | None = None,
    value: str | None = None,
    drugs: Drugs | Sequence[str] | None = None,
) -> Responses:
    """Read how samples responded to drugs, from a long or a wide table.

    Parameters
    ----------
    table
        TSV, CSV, Parquet or a data frame. Long: a row a measurement, with columns of sample, drug and value. Wide: the
        samples on one side and the drugs on the other, with names in the first column.
    measure
        What the values are: one of "LN_IC50", "AUC" (0 to 1), "AAC", "ActArea", "pIC50", "pEC50", "growth" (change of
        volume in %); or "IC50_uM", "IC50_nM", which become LN_IC50.
    sample, drug, value
        Columns of a long table, or `sample` or `drug` the first of a wide one; by default those that are called so
        ("cell_line", "compound", "ln_ic50" …).
    drugs
        Drugs of which a wide table has some: which side they are on, if the name of the first column does not tell.

    Returns
    -------
    A row a pair of names, in the order of the table; measurements of one pair are averaged (of an IC50, its logarithm).
    Missing values are counted and left out. The log says what was read.

    Raises
    ------
    InputError
        The measure is none, or is not that of the table; a column is missing; or it cannot be told where the drugs are.
    DataFormatError
        A value is text (censored: ">10"), infinite, or cannot be of that measure; a sample or drug has no name; there
        is no value.

    See Also
    --------
    Drugs : The drugs, with their structures.
    read_samples : The samples' expression.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> import pandas as pd
    >>> ic50 = pd.DataFrame({"cell_line": ["A549", "HCC827"], "Erlotinib": [8.0, 0.02], "PLX4720": [8.0, None]})
    >>> responses = gf.read_responses(ic50, measure="IC50_uM")
    >>> responses.measure
    'LN_IC50'
    >>> responses.pairs.round(2)
       sample       drug  value  n_replicates
    0    A549  Erlotinib   2.08             1
    1    A549    PLX4720   2.08             1
    2  HCC827  Erlotinib  -3.91             1
    """
    if measure not in (*MEASURES, *_LOGARITHMS):
        choices = (*MEASURES, *_LOGARITHMS)
        raise InputError(f"measure={measure!r}. {did_you_mean(column_called(choices, [measure]) or measure, choices)}")
    called, rows = read_rows(table, "The table of responses")
    _require_measure(called, rows, measure)
    long = _long(called, rows, measure, sample, drug, value, drugs)
    long["value"] = _numbers(called, long)
    missing = int(long["value"].isna().sum())
    long = long.dropna(subset=["value"])
    if long.empty:
        raise DataFormatError(f"{called}: there is not a single value.")
    unit = measure
    if measure in _LOGARITHMS:
        unit, long = _logarithms(called, long, measure)
    _require_possible(called, long, unit)
    pairs = _averaged(long, sort=False)
    _say(called, long, pairs, unit, missing)
    return Responses(pairs, unit)


def _require_measure(called: str, rows: pd.DataFrame, measure: str) -> None:
    """Refuse a table that says itself that it has another measure, or several."""
    column = column_called(list(rows.columns), _MEASURE_COLUMNS)
    if column is None:
        return
    said = sorted(set(filter(None, texts(rows[column]))))
    if len(said) > 1:
        raise InputError(
            f"{called}: its column {column!r} names {len(said)} measures ({examples(said)}), which cannot be mixed. "
            f"Keep the rows of {measure}."
        )
    if said:
        _require_same(called, f"says in {column!r} that it has", said[0], measure)


def _require_same(called: str, says: str, said: str, measure: str) -> None:
    """Refuse a measure that is not what a table says, if what it says is one."""
    named = column_called([*MEASURES, *_LOGARITHMS], [said])
    if named not in (None, measure):
        raise InputError(f"{called}: it {says} {said!r}, and measure={measure!r}. Give measure={named!r}.")


def _long(
    called: str,
    rows: pd.DataFrame,
    measure: str,
    sample: str | None,
    drug: str | None,
    value: str | None,
    drugs: Drugs | Sequence[str] | None,
) -> pd.DataFrame:
    """Return a row a measurement, ``sample``, ``drug`` and ``value`` as they are written, from either form of table."""
    for column in (sample, drug, value):
        if column is not None and column not in rows:
            raise InputError(f"{called}: there is no column {column!r}. {did_you_mean(column, rows.columns)}")
    columns = list(rows.columns)
    of_sample, of_drug = (
        sample or column_called(columns, SAMPLE_COLUMNS),
        drug or column_called(columns, DRUG_COLUMNS),
    )
    if of_sample is not None and of_drug is not None:
        of_value = value or _value_column(called, rows, measure)
        _require_same(called, "has a column", of_value, measure)
        long = rows[[of_sample, of_drug, of_value]].set_axis(["sample", "drug", "value"], axis=1)
    elif beside := value or column_called(columns, _OF_MEASUREMENTS):
        side, option = ("samples", "sample") if of_sample is None else ("drugs", "drug")
        raise InputError(
            f"{called}: expected a column of {side} beside the values in {beside!r}, found {examples(columns, 8)}. "
            f"Name it with {option}=."
        )
    else:
        long = _from_wide(called, rows, of_sample, of_drug, drugs)
    long = long.assign(**{side: _names(long[side]) for side in ("sample", "drug")})
    for side in ("sample", "drug"):
        if (long[side] == "").any():
            raise DataFormatError(f"{called}: row {int((long[side] == '').argmax()) + 1} has no name of a {side}.")
    return long.reset_index(drop=True)


def _names(column: pd.Series) -> np.ndarray:
    """Return a column as text, each distinct name looked at once."""
    numbers, distinct = pd.factorize(column, use_na_sentinel=False)
    return np.array(texts(pd.Series(distinct)), dtype=object)[numbers]


def _value_column(called: str, rows: pd.DataFrame, measure: str) -> str:
    column = column_called(list(rows.columns), (measure, *_VALUE_COLUMNS))
    if column is None:
        numeric = [name for name in rows if pd.api.types.is_numeric_dtype(rows[name])]
        raise InputError(
            f"{called}: no column is called {measure!r}, 'value' or 'response'; columns of numbers are "
            f"{examples(numeric, 8) or 'none'}. Give the measure that it is, or name it with value= of read_responses."
        )
    return column


def _from_wide(
    called: str,
    rows: pd.DataFrame,
    of_sample: str | None,
    of_drug: str | None,
    drugs: Drugs | Sequence[str] | None,
) -> pd.DataFrame:
    """Return a row a field of a table with samples on one side and drugs on the other."""
    first = of_sample or of_drug or str(rows.columns[0])
    said = [
        column
        for column in rows.columns.drop(first)
        if column_called([column], (*SAMPLE_COLUMNS, *DRUG_COLUMNS)) or _is_text(rows[column])
    ]
    columns = [column for column in rows.columns.drop(first) if column not in said]
    if said:
        logger.info("%s: columns that hold no responses are left out: %s.", called, listed(map(repr, said)))
    in_rows = of_drug is not None
    if of_sample is None and of_drug is None:
        in_rows = _drugs_in_rows(called, first, texts(rows[first]), columns, drugs)
    side, other = ("drug", "sample") if in_rows else ("sample", "drug")
    names = texts(rows[first])
    twice = pd.Index(names)[pd.Index(names).duplicated()]
    if len(twice):
        logger.info(
            "%s: %d rows have the name of another (first: %r); they are averaged.", called, len(twice), twice[0]
        )
    return pd.DataFrame(
        {
            side: np.repeat(np.array(names, dtype=object), len(columns)),
            other: np.tile(np.array(columns, dtype=object), len(names)),
            "value": rows[columns].to_numpy(dtype=object).ravel(),
        }
    )


def _is_text(column: pd.Series) -> bool:
    """Whether a column has text, and nothing that is, or stands for, a number."""
    written = column.dropna().astype(str)
    written = written[written.str.strip() != ""]
    numbers = pd.to_numeric(written, errors="coerce").notna() | written.str.contains(r"\d")
    return len(written) > 0 and not numbers.any()


def _drugs_in_rows(
    called: str, first: str, rows: Sequence[str], columns: Sequence[str], drugs: Drugs | Sequence[str] | None
) -> bool:
    """Tell by the names of drugs whether the rows, and not the columns, are drugs."""
    names = drugs.names if isinstance(drugs, Drugs) else drugs or ()
    wanted = set(map(normalised_name, names))
    in_rows, in_columns = (sum(normalised_name(name) in wanted for name in side) for side in (rows, columns))
    if in_rows == in_columns:
        raise InputError(
            f"{called}: cannot tell whether drugs are in rows ({examples(rows)}) or in columns ({examples(columns)})"
            f"{f': of the {len(names)} drugs given {in_rows} are in each' if wanted else ''}. Call the first column, "
            f"now {first!r}, 'sample' or 'drug', or give drugs=."
        )
    return in_rows > in_columns


# values


def _numbers(called: str, long: pd.DataFrame) -> pd.Series:
    """Return values as numbers, NaN where there is none; refuse text and what is infinite, with its place."""
    written = long["value"]
    if pd.api.types.is_object_dtype(written):
        written = written.map(lambda value: np.nan if isinstance(value, str) and not value.strip() else value)
    numbers = pd.to_numeric(written, errors="coerce").astype(float)
    wrong = np.flatnonzero(numbers.isna() & written.notna())
    if len(wrong):
        text = str(written.iloc[wrong[0]])
        advice = (
            "A value that is only known to be above or below a dose is no measured one: leave the pair out, or put the "
            "dose in its place, knowingly, or use an area under the curve."
            if _CENSORED.match(text)
            else "Expected a number with a decimal point, or nothing where there is none."
        )
        raise DataFormatError(
            f"{called}: {len(wrong)} values are text (first: {_pair(long, wrong[0])}, {text!r}). {advice}"
        )
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise DataFormatError(
            f"{called}: {len(infinite)} values are infinite (first: {_pair(long, infinite[0])}). Leave them out, or "
            "put the highest dose in their place, knowingly."
        )
    return numbers


def _pair(long: pd.DataFrame, place: int) -> str:
    row = long.iloc[place]
    return f"sample {row['sample']!r}, drug {row['drug']!r}"


def _logarithms(called: str, long: pd.DataFrame, measure: str) -> tuple[str, pd.DataFrame]:
    """Return IC50s as the natural logarithm of µM, and the name of that."""
    unit, per_micromolar = _LOGARITHMS[measure]
    values = long["value"].to_numpy()
    wrong = np.flatnonzero(values <= 0)
    if len(wrong):
        raise DataFormatError(
            f"{called}: {len(wrong)} values of {measure} are not above 0 (first: {_pair(long, wrong[0])}, "
            f"{values[wrong[0]]:g}). If they are logarithms, give measure='LN_IC50' or 'pIC50'."
        )
    highest = values == values.max()
    if highest.mean() > _CAPPED:
        logger.warning(
            "%s: %d of %d values are %g, the highest: IC50s, it seems, that are only known to be above the highest "
            "dose. They are learned as if they were measured.",
            *(called, highest.sum(), len(values), values.max()),
        )
    return unit, long.assign(value=np.log(values / per_micromolar))


def _require_possible(called: str, long: pd.DataFrame, unit: str) -> None:
    values, what = long["value"].to_numpy(), _MEASURES[unit]
    wrong = np.flatnonzero((values < what.lowest) | (values > what.highest))
    if len(wrong):
        raise DataFormatError(
            f"{called}: {len(wrong)} of {len(values):,} values cannot be {unit}, {what.meaning} (first: "
            f"{_pair(long, wrong[0])}, {values[wrong[0]]:g}). Name what they are with measure=, or bring them to it."
        )
    is_large = len(values) >= _LEAST_PAIRS and long["drug"].nunique() >= _LEAST_DRUGS
    if unit == "LN_IC50" and is_large and values.min() >= 0:
        raise DataFormatError(
            f"{called}: none of {len(values):,} values of {long['drug'].nunique()} drugs is below 0, so they are "
            "hardly logarithms of µM. If they are concentrations, give measure='IC50_uM' or 'IC50_nM'."
        )


def _averaged(long: pd.DataFrame, *, sort: bool = True) -> pd.DataFrame:
    """Average what is one pair, each row by the replicates that it stands for."""
    n = long["n_replicates"] if "n_replicates" in long else pd.Series(1, index=long.index)
    weighted = long.assign(n_replicates=n, value=long["value"] * n)
    sums = weighted.groupby(["sample", "drug"], sort=sort, as_index=False)[["value", "n_replicates"]].sum()
    return sums.assign(value=sums["value"] / sums["n_replicates"])[["sample", "drug", "value", "n_replicates"]]


def _say(called: str, long: pd.DataFrame, pairs: pd.DataFrame, unit: str, missing: int) -> None:
    logger.info(
        "%s: %s pairs of %d samples and %d drugs, %s%s.",
        *(called, f"{len(pairs):,}", pairs["sample"].nunique(), pairs["drug"].nunique(), unit),
        f"; {missing:,} values are missing" if missing else "",
    )
    several = int((pairs["n_replicates"] > 1).sum())
    if several:
        within = long.groupby(["sample", "drug"])["value"].var()
        logger.info(
            "%s pairs were measured several times (up to %d) and are averaged; the standard deviation within a pair is "
            "%.3g, of all values %.3g.",
            *(f"{several:,}", pairs["n_replicates"].max(), np.sqrt(within.mean()), long["value"].std()),
        )
