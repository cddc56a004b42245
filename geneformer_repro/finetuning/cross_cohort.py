"""Whether what one cohort teaches holds in another: of the same patients, scored by both, and how far apart both lie.

One method, Cox ridge on principal components, which needs no network and no choice, so that what is seen is the
cohorts'. The same test patients are scored by their own cohort (left out fold by fold) and by the other, and always
within the folds, so that the drop is not that of other pairs of patients. A classifier of the cohort says what platform
and centre leave in the expression, before and after harmonisation.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.kinds.survival import FEWEST_EVENTS, FollowUpConfig, read_survival, require_one_time
from geneformer_repro.finetuning.kinds.survival_methods import SURVIVAL_METHODS
from geneformer_repro.finetuning.kinds.survival_scores import c_index_in_resamples
from geneformer_repro.finetuning.metrics import Statistics, bootstrap, with_intervals
from geneformer_repro.harmonise import Harmoniser
from geneformer_repro.tokenizer.matrices import dense

logger = logging.getLogger(__name__)

_METHOD = "Cox ridge, PCA"
_DOMAIN_COMPONENTS, _DOMAIN_FOLDS = 20, 5


@typed
def cross_cohort(
    samples: AnnData,
    survival: Mapping[str, str],
    *,
    cohort: str,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    harmonise: Literal["none", "standardise", "quantile", "combat", "reference"] = "standardise",
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Train on one cohort, test on another, and compare with what the other tells of itself.

    Parameters
    ----------
    samples
        Expression on a scale on which sums make sense (log2), a row a patient, without missing values.
    survival
        Column of ``obs`` with events (1, or 0 for censored) → column with times. Rows without a usable time are left
        out.
    cohort
        Column of ``obs`` with the cohorts. Those with fewer than ten events are left out.
    train, test
        Cohorts that are trained on and tested; by default all.
    harmonise
        How both are brought to one scale (`Harmoniser`; "reference" is the cohort trained on), or "none". It sees the
        expression of both, and outcomes of neither.
    folds
        In which a cohort is tested on itself, alike in events.
    seed
        Of folds, components and resamples.

    Returns
    -------
    A row an event, cohort trained on and cohort tested: ``event``, ``train_cohort``, ``test_cohort``, ``n_train``,
    ``events_train``, ``n_test``, ``events_test``; the C-index of the patients tested as their own cohort tells it
    (``within``) and as the other does (``cross``), and ``drop``, within less cross, each with the 95 % interval over
    resampled patients (``_low``, ``_high``); ``domain_auc_before`` and ``domain_auc_after``, with which logistic
    regression tells the two cohorts apart, in samples that neither it nor the harmoniser has seen.

    Raises
    ------
    InputError
        A column or cohort is missing, fewer than two cohorts have ten events, or a value of the expression is missing.

    See Also
    --------
    read_samples : Several cohorts with the genes that all have.
    Harmoniser : What brings them to one scale.
    transfer_study : Whether a network that has learned one data set learns another better.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> import geneformer_repro as gf
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(120, 30))
    >>> time = rng.exponential(np.exp(-values[:, :5].sum(axis=1)))
    >>> obs = pd.DataFrame({"OS": 1, "OS.time": time, "study": ["A", "B"] * 60}, index=[f"P{i}" for i in range(120)])
    >>> table = gf.cross_cohort(AnnData(values, obs=obs), {"OS": "OS.time"}, cohort="study")
    >>> table[["train_cohort", "test_cohort", "n_test"]].to_numpy().tolist()
    [['A', 'B', 60], ['B', 'A', 60]]
    """
    require_one_time(survival)
    for column in (cohort, *survival, *survival.values()):
        if column not in samples.obs:
            raise InputError(f"The samples have no obs column {column!r}. {did_you_mean(column, samples.obs.columns)}")
    values = dense(samples.X, np.float64)
    if not np.isfinite(values).all():
        raise InputError(
            f"{(~np.isfinite(values)).sum():,} values of the expression are missing; fill or leave them out."
        )
    rows = []
    for event, time in survival.items():
        target, labels_NS = read_survival(event, samples.obs, time, FollowUpConfig(cohort=cohort, unusable="leave_out"))
        members = _usable_cohorts(event, labels_NS, target.cohorts)
        pairs = _Pairs(values, labels_NS, members, harmonise, folds, seed)
        rows += [
            {"event": event, **pairs.compared(one, other)}
            for one in _chosen(train, members)
            for other in _chosen(test, members)
            if one != other
        ]
    return pd.DataFrame(rows)


def _usable_cohorts(event: str, labels_NS: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the rows of each cohort that has enough events."""
    members = {name: np.flatnonzero(labels_NS[:, 2] == i) for i, name in enumerate(names)}
    n_events = {name: int(labels_NS[rows, 1].sum()) for name, rows in members.items()}
    few = [f"{name} ({n})" for name, n in n_events.items() if n < FEWEST_EVENTS]
    if few:
        logger.warning("%s: cohorts with fewer than %d events are left out: %s.", event, FEWEST_EVENTS, ", ".join(few))
    usable = {name: rows for name, rows in members.items() if n_events[name] >= FEWEST_EVENTS}
    if len(usable) < 2:
        raise InputError(f"{event}: {len(usable)} cohorts have {FEWEST_EVENTS} events ({n_events}); two are compared.")
    return usable


def _chosen(names: str | Sequence[str] | None, members: Mapping[str, np.ndarray]) -> list[str]:
    chosen = list(members) if names is None else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in members:
            raise InputError(f"There is no cohort {name!r} with enough events. {did_you_mean(name, members)}")
    return chosen


class _Pairs:
    """Cohorts of one endpoint, of which any two are compared; what a cohort tells of itself is asked once."""

    def __init__(
        self,
        values_NG: np.ndarray,
        labels_NS: np.ndarray,
        members: Mapping[str, np.ndarray],
        harmonise: str,
        folds: int,
        seed: int,
    ) -> None:
        self._values, self._labels, self._members = values_NG, labels_NS, members
        self._harmonise, self._folds, self._seed = harmonise, folds, seed
        self._within: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def compared(self, train: str, test: str) -> dict[str, Any]:
        """Return the row of a pair."""
        of_train, of_test = self._members[train], self._members[test]
        rows = np.concatenate([of_train, of_test])
        names = np.repeat([train, test], [len(of_train), len(of_test)])
        values = self._harmonised(self._values[rows], names, np.arange(len(rows)), train)
        first, last = np.arange(len(of_train)), np.arange(len(of_train), len(rows))
        cross = self._risk(values, self._labels[of_train], first, last)
        within, fold = self._of_itself(test)
        event_time, event = self._labels[of_test, :2].T
        c_within, c_cross = (c_index_in_resamples(event_time, event, risk, strata=fold) for risk in (within, cross))

        def statistics(weights_NR: np.ndarray) -> Statistics:
            of_within, of_cross = c_within(weights_NR), c_cross(weights_NR)
            return {"within": of_within, "cross": of_cross, "drop": of_within - of_cross}

        scores = bootstrap(statistics, len(of_test), None, np.random.default_rng(self._seed))
        return {
            "train_cohort": train,
            "test_cohort": test,
            "n_train": len(of_train),
            "events_train": int(self._labels[of_train, 1].sum()),
            "n_test": len(of_test),
            "events_test": int(event.sum()),
            **with_intervals(scores, ("within", "cross", "drop")),
            **self._domain_aucs(self._values[rows], names, train),
        }

    def _of_itself(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the risk of each patient of a cohort by the others of it, and the fold in which it was left out."""
        if name not in self._within:
            values, labels = self._values[self._members[name]], self._labels[self._members[name]]
            risk, fold = np.empty(len(values)), np.empty(len(values), dtype=int)
            for i, (rest, left_out) in enumerate(self._parts(self._folds, labels[:, 1])):
                risk[left_out], fold[left_out] = self._risk(values, labels[rest], rest, left_out), i
            self._within[name] = risk, fold
        return self._within[name]

    def _risk(self, values: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        predicted = SURVIVAL_METHODS[_METHOD](Features.of_samples(values), train, labels, test, self._seed, ())
        assert predicted is not None  # expression is at hand
        return predicted[:, 0]

    def _harmonised(self, values: np.ndarray, names: np.ndarray, fitted_on: np.ndarray, train: str) -> np.ndarray:
        if self._harmonise == "none":
            return values
        reference = train if self._harmonise == "reference" else None
        method: Any = self._harmonise
        harmoniser = Harmoniser.fit(values[fitted_on], names[fitted_on], method=method, reference=reference)
        return harmoniser.apply(values, names)

    def _domain_aucs(self, values: np.ndarray, names: np.ndarray, train: str) -> dict[str, float]:
        is_train = names == train
        probability = np.empty((2, len(names)))
        for rest, left_out in self._parts(_DOMAIN_FOLDS, is_train):
            for row, seen in zip(probability, (values, self._harmonised(values, names, rest, train)), strict=True):
                components = PCA(min(_DOMAIN_COMPONENTS, values.shape[1], len(rest) - 1), random_state=self._seed)
                model = make_pipeline(StandardScaler(), components, LogisticRegression(max_iter=1000))
                row[left_out] = model.fit(seen[rest], is_train[rest]).predict_proba(seen[left_out])[:, 1]
        before, after = (float(roc_auc_score(is_train, row)) for row in probability)
        return {"domain_auc_before": before, "domain_auc_after": after}

    def _parts(self, n: int, classes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(StratifiedKFold(n, shuffle=True, random_state=self._seed).split(classes, classes))
