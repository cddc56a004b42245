"""Cohorts of patients whose risk is known: what they share of it is set, so what transfer can gain is known, too.

Each gene set ("programme") is active to a degree in each patient. Shared programmes are the same in all cohorts; each
cohort has private ones beside them, of other genes. `sharing` is the part of the log hazard's variance that the shared
ones make: with 1, all that another cohort teaches holds here; with 0, nothing does, although the shared programmes are
as visible in the expression as ever.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import brentq

_GENES_OF_A_PROGRAMME = 0.1
"""Share of the genes."""
_DEVIATION_OF_RISK = 1.2
"""Of the log hazard: the true risk then has a C-index of about 0.77."""
_NOISE = 2.0
"""Deviation of each gene beside its programmes: components of tens of patients do not show these, of hundreds do."""


def simulate_cohorts(
    n_cohorts: int = 27,
    n_samples: int | Sequence[int] = 60,
    *,
    n_genes: int = 500,
    n_shared: int = 3,
    n_private: int = 3,
    sharing: float = 0.8,
    censoring: float = 0.4,
    seed: int = 0,
) -> AnnData:
    """Draw cohorts of patients with expression and survival.

    Parameters
    ----------
    n_cohorts, n_samples
        Number of cohorts, and of patients in each, or in all.
    n_genes, n_shared, n_private
        Number of genes, of programmes that all cohorts share, and of those that each has for itself.
    sharing
        Part (0 to 1) of the variance of the log hazard that the shared programmes make.
    censoring
        Expected part of the patients whose event is not seen.
    seed
        Of all that is drawn. A cohort's patients do not depend on how many the others have.

    Returns
    -------
    Patients × genes (log scale, mean 0 up to the cohort), with ``obs``: ``cohort``, ``event_time`` (exponential, with
    a scale of the cohort), ``event`` (0 or 1), ``true_risk`` (log hazard without the cohort's scale).
    """
    sizes = [n_samples] * n_cohorts if isinstance(n_samples, int) else list(n_samples)
    of_all, *of_cohorts = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(len(sizes) + 1))
    shared, weights = _programmes(n_shared, n_genes, of_all), _unit(n_shared, of_all)
    values, obs = [], []
    for i, (n, rng) in enumerate(zip(sizes, of_cohorts, strict=True), 1):
        private, own_weights = _programmes(n_private, n_genes, rng), _unit(n_private, rng)
        level, scale = rng.normal(size=n_genes), rng.lognormal(sigma=0.5)
        draws = rng.normal(size=(n, n_shared + n_private + n_genes))
        active, own, noise = np.split(draws, [n_shared, n_shared + n_private], axis=1)
        risk = _DEVIATION_OF_RISK * (np.sqrt(sharing) * active @ weights + np.sqrt(1 - sharing) * own @ own_weights)
        time, event = _follow_up(np.exp(risk) / scale, censoring, rng)
        values.append(level + active @ shared + own @ private + _NOISE * noise)
        table = {"cohort": f"C{i:02d}", "event_time": time, "event": event, "true_risk": risk}
        obs.append(pd.DataFrame(table, index=[f"C{i:02d}-{k:04d}" for k in range(n)]))
    var = pd.DataFrame(index=[f"GENE{k:04d}" for k in range(n_genes)])
    return AnnData(np.concatenate(values).astype(np.float32), obs=pd.concat(obs), var=var)


def _programmes(n: int, n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Return gene sets, programmes × genes: what a gene is raised or lowered by, 0 for those not in it."""
    return rng.normal(size=(n, n_genes)) * (rng.random((n, n_genes)) < _GENES_OF_A_PROGRAMME)


def _unit(n: int, rng: np.random.Generator) -> np.ndarray:
    weights = rng.normal(size=n)
    return weights / np.linalg.norm(weights)


def _follow_up(hazard: np.ndarray, censoring: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return times and whether the event was seen, censored by exponential times of the rate that gives `censoring`."""
    death, leaving = rng.exponential(size=(len(hazard), 2)).T
    death = death / hazard
    if censoring == 0:
        return death, np.ones(len(hazard), dtype=int)
    log_rate = brentq(lambda x: np.mean(1 / (1 + hazard * np.exp(-x))) - censoring, -50, 50)
    leaving = leaving / np.exp(log_rate)
    return np.minimum(death, leaving), (death <= leaving).astype(int)
