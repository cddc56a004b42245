"""What samples, drugs and tissues respond on average: the forecast that a model of drug response must beat.

The mean of a drug over training samples was as good as the best pretrained network of Prasse et al. in 14 of 23 rows,
so these means stand beside every table, and networks learn what is left of the responses once they are taken off.
They are plain means, as in DrEval's NaiveMeanEffectsPredictor: the overall mean, plus what the mean of the sample and
the mean of the drug differ from it. Where not every sample met every drug, a sample that met the potent ones counts as
sensitive; least squares would part the two, and is no longer what others publish beside.

No torch: a network over pairs keeps its effects in its folder, by the names of samples and drugs.

Shapes: N rows, each a pair of a sample and a drug.

References
----------
Prasse et al., Cancers 14, 3950 (2022). Bernett et al. (DrEval), Nat. Commun. 17, 4238 (2026).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.files import misfit

Effect = Literal["sample", "drug", "tissue", "tissue_drug"]
"""Of what there is a mean; "tissue_drug": of each drug in each tissue."""
SAMPLE_AND_DRUG: tuple[Effect, ...] = ("sample", "drug")
PRIOR_ROWS = 4
"""Rows for which an effect counts that was known before."""
_FORM = {"overall": float, "effects": {str: {"keys": [[str]], "differences": [float]}}}


@dataclass(frozen=True, eq=False)
class MeanEffects:
    """The overall mean of responses, and by how much the mean of each sample, drug or tissue differs from it."""

    overall: float
    """Mean of all training rows."""
    differences: Mapping[Effect, pd.Series]
    """Of each effect, indexed by whose it is."""

    @classmethod
    def fit(
        cls,
        values_N: np.ndarray,
        samples_N: np.ndarray,
        drugs_N: np.ndarray,
        tissues_N: np.ndarray | None = None,
        *,
        effects: Sequence[Effect] = SAMPLE_AND_DRUG,
        prior: "MeanEffects | None" = None,
    ) -> "MeanEffects":
        """Take the means of training rows.

        Parameters
        ----------
        values_N
            Response of each row, none missing; of no row the overall mean is 0.
        samples_N, drugs_N, tissues_N
            Whose it is: names, or numbers; tissues are needed for effects of theirs alone.
        effects
            Which means are taken; of none the overall mean remains.
        prior
            What other rows of the same measure told before. It counts as `PRIOR_ROWS` rows of each that it knows, so
            of ten rows a drug's mean is not that of one, and a drug that none of them has is as it was before.
        """
        values = pd.Series(values_N, dtype=np.float64)
        overall = float(values.mean()) if len(values) else 0.0
        keys = {effect: _keys(effect, samples_N, drugs_N, tissues_N) for effect in effects}
        if prior is not None:
            overall = (float(values.sum()) + PRIOR_ROWS * prior.overall) / (len(values) + PRIOR_ROWS)
        differences = {effect: values.groupby(of).mean() - overall for effect, of in keys.items()}
        for effect, before in () if prior is None else prior.differences.items():
            if effect in differences:
                n = values.groupby(keys[effect]).size()
                differences[effect] = _joined(differences[effect], n, before)
        return cls(overall, differences)

    def predict(self, samples_N: np.ndarray, drugs_N: np.ndarray, tissues_N: np.ndarray | None = None) -> np.ndarray:
        """Return the overall mean and what each effect adds to it, (N,); who was not in training adds nothing.

        Parameters
        ----------
        samples_N, drugs_N, tissues_N
            As they were given to `fit`.
        """
        predicted_N = np.full(len(samples_N), self.overall)
        for effect, differences in self.differences.items():
            asked = pd.MultiIndex.from_arrays(_keys(effect, samples_N, drugs_N, tissues_N))
            place_N = _as_multi(differences.index).get_indexer(asked)
            predicted_N += np.append(differences.to_numpy(), 0.0)[place_N]
        return predicted_N

    def to_json(self) -> dict[str, Any]:
        """Return what a file holds; keys should be names."""
        return {
            "overall": self.overall,
            "effects": {
                effect: {
                    "keys": [[str(part) for part in key] for key in _as_multi(differences.index)],
                    "differences": differences.tolist(),
                }
                for effect, differences in self.differences.items()
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "MeanEffects":
        """Make the effects of which `to_json` told, by name.

        Raises
        ------
        InputError
            They are damaged.
        """
        wrong = misfit(content, _FORM)
        if wrong is None and (unknown := set(content["effects"]) - set(get_args(Effect))):
            wrong = f"there is no effect {min(unknown)!r}"
        for effect, part in content["effects"].items() if wrong is None else ():
            n_parts = len(effect.split("_"))
            if len(part["keys"]) != len(part["differences"]) or {len(key) for key in part["keys"]} - {n_parts}:
                wrong = f"effect {effect!r} has keys that do not fit its numbers"
        if wrong:
            raise InputError(f"Mean effects are damaged: {wrong}.")
        differences = {
            effect: pd.Series(part["differences"], _index_of(part["keys"]), dtype=np.float64)
            for effect, part in content["effects"].items()
        }
        return cls(float(content["overall"]), differences)


def _joined(differences: pd.Series, n: pd.Series, before: pd.Series) -> pd.Series:
    """Return differences of rows and those that were known before, by how many rows both count for."""
    differences, n, before = (one.set_axis(_as_multi(one.index)) for one in (differences, n, before))
    both = differences.index.union(before.index)
    of_rows, known = differences.reindex(both), before.reindex(both)
    n_rows, n_known = n.reindex(both).fillna(0), known.notna() * PRIOR_ROWS
    return (of_rows.fillna(0) * n_rows + known.fillna(0) * n_known) / (n_rows + n_known)


def shared_effects(
    train_samples: np.ndarray, train_drugs: np.ndarray, samples: np.ndarray, drugs: np.ndarray
) -> tuple[Effect, ...]:
    """Return the effects that training rows tell of others: of samples, and of drugs, of which some are in both.

    A method that learns what is left of the responses takes these off alone. Of a sample that is new in the test the
    training rows tell nothing; were its mean taken off in training, nobody would learn what makes a sample sensitive.
    """
    pairs: dict[Effect, tuple[np.ndarray, np.ndarray]] = {
        "sample": (train_samples, samples), "drug": (train_drugs, drugs)
    }  # fmt: skip
    return tuple(effect for effect, (of_train, asked) in pairs.items() if np.isin(asked, of_train).any())


def _keys(effect: Effect, samples_N: np.ndarray, drugs_N: np.ndarray, tissues_N: np.ndarray | None) -> list[np.ndarray]:
    """Return whose each row is: one key, or of two together."""
    if effect in ("tissue", "tissue_drug") and tissues_N is None:
        raise InputError(f"The effect {effect!r} needs the tissue of every row; none were given.")
    parts = {"sample": samples_N, "drug": drugs_N, "tissue": tissues_N}
    return [np.asarray(parts[name]) for name in effect.split("_")]


def _as_multi(index: "pd.Index[Any]") -> pd.MultiIndex:
    return index if isinstance(index, pd.MultiIndex) else pd.MultiIndex.from_arrays([index])


def _index_of(keys: Sequence[Sequence[str]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([list(part) for part in zip(*keys, strict=True)] or [[]])
