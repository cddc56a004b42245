"""Responses whose parts are known: a mean, what a sample and a drug add, and what neither tells alone.

With `interaction` 0 the mean effects are all there is, and no method can be better; with more, which drug for which
sample follows from programmes that expression shows and that a drug's structure names. `chemistry` is the part of
that, and of the drug's own effect, which fingerprint and SMILES tell of.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

_PROGRAMMES, _GENES_OF_A_PROGRAMME = 4, 0.15
"""What of a sample decides its response, and the share of the genes that each moves."""
_BITS_OF_A_GROUP = 6
_FRAGMENTS = (
    "c1ccccc1", "C1CCNCC1", "c1ccsc1", "C(=O)N", "S(=O)(=O)N", "c1ncncc1", "C1CCOCC1", "C(F)(F)C", "c1cnoc1", "C=CC#CC",
)  # fmt: skip
"""Which two a molecule has is its group's; the chain before them is its own."""


class SimulatedResponses(NamedTuple):
    """A screen."""

    expression: pd.DataFrame
    """Samples × genes, on a log scale."""
    fingerprints: pd.DataFrame
    """Drugs × bits."""
    smiles: pd.Series
    """Of each drug; no two are one molecule, those of a group differ in the length of a chain."""
    responses: pd.DataFrame
    """``sample``, ``drug``, ``value``, ``expected`` (without noise) and ``interaction`` (its part of that)."""


def simulate_responses(
    n_samples: int = 100,
    n_drugs: int = 30,
    *,
    interaction: float = 1.0,
    chemistry: float = 1.0,
    measured: float = 0.8,
    noise: float = 0.3,
    n_genes: int = 200,
    seed: int = 0,
) -> SimulatedResponses:
    """Draw a screen of samples by drugs.

    Parameters
    ----------
    n_samples, n_drugs, n_genes
        How many.
    interaction
        Standard deviation of what neither sample nor drug tells alone; that of a sample is 0.5, of a drug 1.
    chemistry
        Part (0 to 1) of the variance of a drug's effect, and of its part in the interaction, that its group of alike
        drugs, which the fingerprint shows, makes.
    measured
        Share of the pairs that were measured.
    noise
        Standard deviation of a measurement.
    seed
        Of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    group_D = np.arange(n_drugs) % max(2, n_drugs // 4)
    active_SP, loads_PG = rng.normal(size=(n_samples, _PROGRAMMES)), rng.normal(size=(_PROGRAMMES, n_genes))
    loads_PG *= rng.random(loads_PG.shape) < _GENES_OF_A_PROGRAMME
    wants_DP, potency_D = _by_group(group_D, _PROGRAMMES, chemistry, rng), _by_group(group_D, 1, chemistry, rng)[:, 0]
    unit_SD = active_SP @ wants_DP.T / np.sqrt(_PROGRAMMES)
    unit_SD -= unit_SD.mean(axis=0) + unit_SD.mean(axis=1, keepdims=True) - unit_SD.mean()
    interaction_SD = interaction * unit_SD / unit_SD.std()
    expected_SD = 2 + 0.5 * rng.normal(size=(n_samples, 1)) + potency_D + interaction_SD
    samples = [f"S{i:04d}" for i in range(n_samples)]
    drugs = [f"D{i:03d}" for i in range(n_drugs)]
    of_sample, of_drug = np.nonzero(rng.random((n_samples, n_drugs)) < measured)
    expected = expected_SD[of_sample, of_drug]
    responses = pd.DataFrame(
        {
            "sample": np.asarray(samples)[of_sample],
            "drug": np.asarray(drugs)[of_drug],
            "value": expected + noise * rng.normal(size=len(expected)),
            "expected": expected,
            "interaction": interaction_SD[of_sample, of_drug],
        }
    )
    genes = [f"GENE{i:04d}" for i in range(n_genes)]
    expression = active_SP @ loads_PG + rng.normal(size=(n_samples, n_genes))
    return SimulatedResponses(
        pd.DataFrame(expression, samples, genes),
        pd.DataFrame(_bits(group_D, rng), drugs),
        pd.Series(_molecules(group_D), drugs),
        responses,
    )


def _by_group(group_D: np.ndarray, n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return numbers of unit variance, of which a share is that of the drug's group."""
    of_group = rng.normal(size=(group_D.max() + 1, n))[group_D]
    return np.sqrt(share) * of_group + np.sqrt(1 - share) * rng.normal(size=(len(group_D), n))


def _bits(group_D: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return fingerprints: bits of the group, most of which its drugs have, and others at random."""
    n_groups = group_D.max() + 1
    of_group = np.arange(n_groups * _BITS_OF_A_GROUP) // _BITS_OF_A_GROUP == group_D[:, None]
    has = rng.random((len(group_D), of_group.shape[1])) < np.where(of_group, 0.9, 0.05)
    others = rng.random((len(group_D), 2 * _BITS_OF_A_GROUP)) < 0.2
    return np.concatenate([has, others], axis=1).astype(np.float32)


def _molecules(group_D: np.ndarray) -> list[str]:
    """Return SMILES: a chain as long as there are drugs of the group so far, and the group's fragments."""
    carbons_D = pd.Series(group_D).groupby(group_D).cumcount() + 1
    n = len(_FRAGMENTS)
    return [
        "C" * carbons + _FRAGMENTS[group % n] + _FRAGMENTS[group // n % n]
        for carbons, group in zip(carbons_D, group_D.tolist(), strict=True)
    ]
