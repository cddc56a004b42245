"""How good predicted risks and survival curves are, though for many patients only a time is known that they outlived.

Higher is more risk, everywhere: nothing is turned round because it scores better so. Scores are scikit-survival's to
1e-10 where it defines them, but for times that it refuses: where no training patient was followed any longer, inverse
censoring weights are unknown, so such events are left out, which is said, and scores at such times are NaN.

All that compares patients counts pairs, ordered by time, in a Fenwick tree over risks: 100,000 patients take a tenth
of a second, where all pairs would take minutes. A branch of the tree holds many resamples side by side, so that a
bootstrap of 1,000 draws costs as much as 200 single scores.

Shapes: N patients, R resamples, T times, S sets of weights.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
from scipy.stats import chi2, norm

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.metrics import Statistics, bootstrap, once, ratio, require_finite, with_intervals

_TIED = 1e-8
"""Risks that differ by no more are tied, as in scikit-survival."""
_SIDE_BY_SIDE = 32
"""Resamples in a branch of the tree: that of 1,000 patients then fits into the cache of a core."""
_EVENTS_AT_ONCE = 256
CALIBRATION_GROUPS = 3


# Curves


@dataclass(frozen=True, eq=False)
class Curve:
    """A share of patients that falls in steps, as Kaplan and Meier estimate it."""

    times: np.ndarray
    """Each time at which a patient dies or is censored, ascending."""
    probability: np.ndarray
    """To be left after each of the times."""
    at_risk: np.ndarray
    """Patients just before each of them."""
    events: np.ndarray
    """Of them, those who leave by what the curve is about."""

    def at(self, times: np.ndarray | float) -> np.ndarray:
        """Return the probability to be left after some times; NaN where nobody was followed so long, unless all left.

        Parameters
        ----------
        times
            Of any shape.
        """
        place = np.searchsorted(self.times, times, side="right")
        beyond = (np.asarray(times) > self.times[-1]) & (self.probability[-1] > 0)
        return np.where(beyond, np.nan, np.append(1.0, self.probability)[place])

    def error(self) -> np.ndarray:
        """Return Greenwood's standard error of log(-log(probability)) at each of the times; NaN at 0 and 1."""
        left = self.at_risk - self.events
        variance = np.cumsum(ratio(self.events, self.at_risk * left))
        log = np.log(self.probability, out=np.full(len(left), np.nan), where=self.probability > 0)
        return ratio(np.sqrt(variance), -log)


def kaplan_meier(event_time: np.ndarray, event: np.ndarray, *, of_censoring: bool = False) -> Curve:
    """Estimate the probability to be without event at each time.

    Parameters
    ----------
    event_time
        Of the event or of censoring, (N,).
    event
        Whether it is an event, (N,).
    of_censoring
        Estimate the probability not to be censored instead. Of patients who leave at the same time, those with an
        event leave first.

    References
    ----------
    Kaplan and Meier, J. Am. Stat. Assoc. 53, 457 (1958).
    """
    died = event.astype(bool)
    times, moment_N = np.unique(event_time, return_inverse=True)
    n_M, n_died_M = np.bincount(moment_N), np.bincount(moment_N, died)
    at_risk_M = n_M[::-1].cumsum()[::-1].astype(np.float64)
    if of_censoring:
        at_risk_M, events_M = at_risk_M - n_died_M, n_M - n_died_M
    else:
        events_M = n_died_M
    share_M = np.divide(events_M, at_risk_M, out=np.zeros(len(times)), where=at_risk_M > 0)
    return Curve(times, np.cumprod(1 - share_M), at_risk_M, events_M)


def log_rank(
    event_time: np.ndarray, event: np.ndarray, groups: np.ndarray, *, strata: np.ndarray | None = None
) -> tuple[float, float]:
    """Test whether groups have the same hazard at every time (null hypothesis), two-sided.

    Parameters
    ----------
    event_time, event
        As for `kaplan_meier`.
    groups
        Group of each patient, (N,).
    strata
        Stratum of each, within which the groups are compared.

    Returns
    -------
    Chi-squared, of as many degrees of freedom as groups less one, and the p-value; NaN of a single group.

    References
    ----------
    Mantel, Cancer Chemother. Rep. 50, 163 (1966).
    """
    names, group_N = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return np.nan, np.nan
    excess_G, covariance_GG = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for _, rows in _strata(strata, len(groups)):
        excess, covariance = _excess_events(event_time[rows], event[rows], group_N[rows], len(names))
        excess_G += excess
        covariance_GG += covariance
    statistic = float(excess_G[:-1] @ np.linalg.pinv(covariance_GG[:-1, :-1]) @ excess_G[:-1])
    return statistic, float(chi2.sf(statistic, len(names) - 1))


def _excess_events(
    event_time: np.ndarray, event: np.ndarray, group_N: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much each group's events exceed its share of those at risk, and the covariance of that."""
    times, moment_N = np.unique(event_time, return_inverse=True)
    left_GM, died_GM = (
        np.stack([np.bincount(moment_N, (group_N == g) * counted, len(times)) for g in range(n_groups)])
        for counted in (np.ones(len(event)), event.astype(float))
    )
    at_risk_GM = left_GM[:, ::-1].cumsum(axis=1)[:, ::-1]
    n_M, died_M = at_risk_GM.sum(axis=0), died_GM.sum(axis=0)
    share_GM = at_risk_GM / n_M
    varying_GM = share_GM * np.nan_to_num(died_M * ratio(n_M - died_M, n_M - 1.0))
    covariance_GG = np.diag(varying_GM.sum(axis=1)) - varying_GM @ share_GM.T
    return (died_GM - share_GM * died_M).sum(axis=1), covariance_GG


@dataclass(frozen=True, eq=False)
class Censoring:
    """When training patients were censored, by which test patients are weighted (IPCW)."""

    curves: Mapping[Any, Curve]
    """Of each stratum, the probability not yet to be censored; of None without strata."""

    @classmethod
    def of(cls, event_time: np.ndarray, event: np.ndarray, strata: np.ndarray | None = None) -> "Censoring":
        """Estimate it from training patients, each stratum for itself.

        Parameters
        ----------
        event_time, event
            As for `kaplan_meier`.
        strata
            Stratum of each patient, (N,), where follow-up differs by it: those of the scores.
        """
        return cls(
            {
                name: kaplan_meier(event_time[rows], event[rows], of_censoring=True)
                for name, rows in _strata(strata, len(event))
            }
        )

    def weights(self, times: np.ndarray, strata: np.ndarray | None = None) -> np.ndarray:
        """Return one over the probability not to be censored by each patient's time, (N,); 0 where it is unknown.

        Parameters
        ----------
        times
            A time for each patient, (N,).
        strata
            As they were given to `of`.

        Raises
        ------
        InputError
            A stratum has no training patients.
        """
        result_N = np.zeros(len(times))
        for name, rows in _strata(strata, len(times)):
            if name not in self.curves:
                raise InputError(
                    f"Censoring of {name!r} was not estimated, only of {sorted(map(str, self.curves))}. Give the "
                    "follow-up of patients of each stratum that is scored."
                )
            probability_N = np.nan_to_num(self.curves[name].at(times[rows]))
            result_N[rows] = np.divide(1, probability_N, out=np.zeros(len(rows)), where=probability_N > 0)
        return result_N


def _strata(strata: np.ndarray | None, n: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield each stratum with its rows."""
    if strata is None:
        yield None, np.arange(n)
        return
    names, of_row = np.unique(strata, return_inverse=True)
    for i, name in enumerate(names.tolist()):
        yield name, np.flatnonzero(of_row == i)


# Pairs


class Concordance(NamedTuple):
    """How often of two patients the one with the higher risk has the earlier event."""

    c: float
    """1: always; 0.5: by chance; ties of risk count half. NaN where no two patients can be compared."""
    n: int
    """Patients."""
    n_events: int
    """Those with an event."""
    n_pairs: int
    """Pairs of patients that were compared."""


def harrell_c(
    event_time: np.ndarray, event: np.ndarray, risk: np.ndarray, *, strata: np.ndarray | None = None
) -> Concordance:
    """Return Harrell's C: over pairs of which one has an event before the other has one, or is censored.

    Parameters
    ----------
    event_time, event
        As for `kaplan_meier`. Who is censored at the time of an event outlives it.
    risk
        Of each patient, (N,); higher is more risk. Survival probabilities and times are not accepted: they are lower.
    strata
        Stratum of each patient, such as its cohort: only patients of the same one are compared.

    References
    ----------
    Harrell et al., Stat. Med. 15, 361 (1996).
    """
    c_index = c_index_in_resamples(event_time, event, risk, strata=strata)
    return Concordance(c_index(once(len(risk))).item(), **counted(event_time, event, strata=strata))


def counted(event_time: np.ndarray, event: np.ndarray, *, strata: np.ndarray | None = None) -> dict[str, int]:
    """Return ``n``, ``n_events`` and ``n_pairs``: how many patients, events, and pairs that Harrell's C compares.

    Parameters
    ----------
    event_time, event, strata
        As for `harrell_c`.
    """
    n_pairs, died_N = 0, event.astype(bool)
    for _, rows in _strata(strata, len(event)):
        time, died = event_time[rows], died_N[rows]
        longer = len(rows) - np.searchsorted(np.sort(time), time[died], side="right")
        censored = np.sort(time[~died])
        then = np.searchsorted(censored, time[died], side="right") - np.searchsorted(censored, time[died])
        n_pairs += int((longer + then).sum())
    return {"n": len(event), "n_events": int(died_N.sum()), "n_pairs": n_pairs}


def _uno_weights(
    event_time: np.ndarray, event: np.ndarray, censoring: Censoring, tau: float | None, strata: np.ndarray | None
) -> np.ndarray:
    """Return by what pairs weigh in Uno's C, by the one with the event, which is before `tau`; (N,)."""
    weight_N = censoring.weights(event_time, _as_estimated(censoring, strata)) ** 2
    return np.where(event.astype(bool) & (event_time < (np.inf if tau is None else tau)), weight_N, 0)


def n_without_weight(
    event_time: np.ndarray, event: np.ndarray, *, censoring: Censoring, strata: np.ndarray | None = None
) -> int:
    """Return how many events come when no training patient was followed any longer: Uno's C leaves them out.

    Parameters
    ----------
    event_time, event, censoring, strata
        As for `evaluate_survival`.
    """
    return int((event.astype(bool) & (_uno_weights(event_time, event, censoring, None, strata) == 0)).sum())


def _as_estimated(censoring: Censoring, strata: np.ndarray | None) -> np.ndarray | None:
    """Strata of the scores; none where censoring was estimated of all together."""
    return None if None in censoring.curves else strata


class _Pairs:
    """Patients in the order in which they are compared."""

    def __init__(self, event_time: np.ndarray, event: np.ndarray, risk: np.ndarray, strata: np.ndarray | None) -> None:
        risk_N, died_N = risk.astype(np.float64), event.astype(bool)
        self._parts = []
        for _, rows in _strata(strata, len(risk_N)):
            order = rows[np.lexsort((died_N[rows], -event_time[rows]))]  # the latest first, of a moment the censored
            of_tree = np.unique(risk_N[order])
            places = (
                np.searchsorted(of_tree, risk_N[order]),
                np.searchsorted(of_tree, risk_N[order] - _TIED),
                np.searchsorted(of_tree, risk_N[order] + _TIED, side="right"),
            )
            moments = np.append(np.flatnonzero(np.diff(event_time[order], prepend=np.inf)), len(order))
            self._parts.append((order, np.stack(places), died_N[order], moments))

    def sums(self, weights_SN: np.ndarray, resamples_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights of concordant pairs and of all pairs, (sets of weights, resamples).

        Parameters
        ----------
        weights_SN
            Of a pair by the patient with the event.
        resamples_NR
            How often each patient counts.
        """
        shape = (len(weights_SN), resamples_NR.shape[1])
        concordant_SR, all_SR = np.zeros(shape), np.zeros(shape)
        for order, places, died, moments in self._parts:
            given = (places, died, moments, np.ascontiguousarray(weights_SN[:, order], np.float64))
            for start in range(0, shape[1], _SIDE_BY_SIDE):
                block = slice(start, start + _SIDE_BY_SIDE)
                _add_pairs(*given, resamples_NR[order, block], concordant_SR[:, block], all_SR[:, block])
        return concordant_SR, all_SR


@numba.njit(nogil=True, cache=True)
def _add_pairs(places_3N, died_N, moments, weights_SN, resamples_NR, concordant_SR, all_SR):  # type: ignore[no-untyped-def]
    """Go back in time: each event meets all who outlived it, in a Fenwick tree over their risks."""
    n_resamples = resamples_NR.shape[1]
    tree = np.zeros((places_3N.max() + 2, n_resamples))
    outlived_R, below_R, up_to_R = np.zeros(n_resamples), np.zeros(n_resamples), np.zeros(n_resamples)
    for m in range(len(moments) - 1):
        first_event = moments[m]
        while first_event < moments[m + 1] and not died_N[first_event]:
            _insert(tree, places_3N[0, first_event], resamples_NR[first_event], outlived_R)
            first_event += 1
        for i in range(first_event, moments[m + 1]):
            _prefix(tree, places_3N[1, i], below_R)
            _prefix(tree, places_3N[2, i], up_to_R)
            for r in range(n_resamples):
                concordant = resamples_NR[i, r] * (below_R[r] + up_to_R[r]) / 2  # ties count half
                compared = resamples_NR[i, r] * outlived_R[r]
                for s in range(len(weights_SN)):
                    concordant_SR[s, r] += weights_SN[s, i] * concordant
                    all_SR[s, r] += weights_SN[s, i] * compared
        for i in range(first_event, moments[m + 1]):
            _insert(tree, places_3N[0, i], resamples_NR[i], outlived_R)


@numba.njit(nogil=True, cache=True)
def _insert(tree, place, resamples_R, total_R):  # type: ignore[no-untyped-def]
    for r in range(len(total_R)):
        total_R[r] += resamples_R[r]
    branch = place + 1
    while branch < len(tree):
        for r in range(len(total_R)):
            tree[branch, r] += resamples_R[r]
        branch += branch & -branch


@numba.njit(nogil=True, cache=True)
def _prefix(tree, place, sum_R):  # type: ignore[no-untyped-def]
    """Sum what lies at the first `place` places."""
    sum_R[:] = 0
    branch = place
    while branch > 0:
        for r in range(len(sum_R)):
            sum_R[r] += tree[branch, r]
        branch -= branch & -branch


class _HorizonPairs(NamedTuple):
    """Who has had the event by a time, weighted by censoring, against who is still without."""

    rows: np.ndarray
    pairs: _Pairs
    weight: np.ndarray

    @classmethod
    def at(
        cls,
        horizon: float,
        event_time: np.ndarray,
        event: np.ndarray,
        risk: np.ndarray,
        censoring: Censoring,
        strata: np.ndarray | None,
    ) -> "_HorizonPairs":
        case_N = (event_time <= horizon) & event.astype(bool)
        rows = np.flatnonzero(case_N | (event_time > horizon))
        case = case_N[rows]
        within = None if strata is None else strata[rows]
        weight = censoring.weights(event_time, _as_estimated(censoring, strata))[rows]
        defined = (weight[case] > 0).all()
        return cls(rows, _Pairs(np.where(case, 0, 1), case, risk[rows], within), weight * defined)

    def auc(self, resamples_NR: np.ndarray) -> np.ndarray:
        """Return the AUC in each resample."""
        concordant_SR, all_SR = self.pairs.sums(self.weight[None], resamples_NR[self.rows])
        return ratio(concordant_SR[0], all_SR[0])


# Curves against what happened


@dataclass(frozen=True, eq=False)
class PredictedCurves:
    """Predicted probabilities to be without event."""

    times: np.ndarray
    """Ascending, above 0, (T,)."""
    probability: np.ndarray
    """Of each patient after each of the times, (N, T)."""

    def at(self, time: float) -> np.ndarray:
        """Return the probability after a time, (N,), on a line between its neighbours; NaN beyond the last time."""
        if time > self.times[-1]:
            return np.full(len(self.probability), np.nan)
        times = np.append(0.0, self.times)
        place = np.searchsorted(times, time).clip(1)
        before = self.probability[:, place - 2] if place > 1 else np.ones(len(self.probability))
        share = (time - times[place - 1]) / (times[place] - times[place - 1])
        return before + share * (self.probability[:, place - 1] - before)


class _CurvePairs:
    """Patients with an event, each against who outlived it, by their predicted survival at the time of the event.

    Events after the last time at which survival is told are no pairs.
    """

    def __init__(
        self, event_time: np.ndarray, event: np.ndarray, curves: PredictedCurves, strata: np.ndarray | None
    ) -> None:
        self._given = event_time, event.astype(bool), curves
        self._strata = np.zeros(len(event), dtype=int)
        for number, (_, rows) in enumerate(_strata(strata, len(event))):
            self._strata[rows] = number
        (events,) = np.nonzero(self._given[1] & (event_time <= curves.times[-1]))
        self._blocks = [events[at : at + _EVENTS_AT_ONCE] for at in range(0, len(events), _EVENTS_AT_ONCE)]

    def c(self, resamples_NR: np.ndarray) -> np.ndarray:
        """Return the share of concordant pairs in each resample."""
        event_time, died_N, curves = self._given
        concordant_R, all_R = np.zeros((2, resamples_NR.shape[1]))
        for events_E in self._blocks:
            survival_EN = np.stack([curves.at(time) for time in event_time[events_E]])
            ahead_EN = survival_EN - np.take_along_axis(survival_EN, events_E[:, None], axis=1)
            time_E1 = event_time[events_E][:, None]
            outlived_EN = (event_time > time_E1) | ((event_time == time_E1) & ~died_N)
            outlived_EN &= self._strata == self._strata[events_E][:, None]
            order_EN = outlived_EN * (0.5 * (ahead_EN > _TIED) + 0.5 * (ahead_EN >= -_TIED))
            concordant_R += (resamples_NR[events_E] * (order_EN @ resamples_NR)).sum(axis=0)
            all_R += (resamples_NR[events_E] * (outlived_EN.astype(float) @ resamples_NR)).sum(axis=0)
        return ratio(concordant_R, all_R)


def _brier_terms(
    event_time: np.ndarray,
    event: np.ndarray,
    curves: PredictedCurves,
    censoring: Censoring,
    strata: np.ndarray | None,
) -> np.ndarray:
    """Return what Brier scores average, (N, T): NaN at times at which patients, or those of training, have gone."""
    within = _as_estimated(censoring, strata)
    at_event_N = censoring.weights(event_time, within) * event
    terms_NT = np.full(curves.probability.shape, np.nan)
    for t in np.flatnonzero(are_followed(event_time, curves.times, censoring=censoring, strata=strata)):
        time, probability_N = curves.times[t], curves.probability[:, t]
        alive_term_N = (1 - probability_N) ** 2 * censoring.weights(np.full(len(event_time), time), within)
        terms_NT[:, t] = np.where(event_time > time, alive_term_N, probability_N**2 * at_event_N)
    return terms_NT


def are_followed(
    event_time: np.ndarray, times: np.ndarray, *, censoring: Censoring, strata: np.ndarray | None = None
) -> np.ndarray:
    """Return at which times patients, and those of training in every stratum, are still followed, (T,) bool.

    At others there is no Brier score, and the integrated one goes without.

    Parameters
    ----------
    event_time
        Of each patient, (N,).
    censoring
        How likely follow-up is to last, for its weights.
    strata
        Cohort of each patient, for censoring that is known by cohort.
    times
        Which may be after the last follow-up, (T,).
    """
    within = _as_estimated(censoring, strata)
    weights = (censoring.weights(np.full(len(event_time), time), within) for time in times)
    return np.array([(event_time > time).any() and (of > 0).all() for time, of in zip(times, weights, strict=True)])


def integrated(scores_T: np.ndarray, times_T: np.ndarray) -> np.ndarray:
    """Return the mean over time of scores, (T,) or (T, R), between the first and the last time at which there are any.

    NaN where these are fewer than two.
    """
    (there,) = np.nonzero(np.isfinite(scores_T.reshape(len(times_T), -1)).all(axis=1))
    if len(there) < 2:
        return np.full(scores_T.shape[1:], np.nan)
    return np.trapezoid(scores_T[there], times_T[there], axis=0) / (times_T[there[-1]] - times_T[there[0]])


def calibration(
    event_time: np.ndarray,
    event: np.ndarray,
    probability: np.ndarray,
    horizon: float,
    n_groups: int = CALIBRATION_GROUPS,
) -> pd.DataFrame:
    """Compare predicted probabilities to be without event at a horizon with what happened.

    Parameters
    ----------
    event_time, event
        As for `kaplan_meier`.
    probability
        Predicted for each patient at `horizon`, (N,).
    horizon
        In the unit of the times.
    n_groups
        Into how many groups of equal size patients are cut by their probability; 3: thirds, 10: deciles.

    Returns
    -------
    A row a group, from the lowest probability: ``n``, ``n_events`` before the horizon, mean ``predicted``,
    ``observed`` by Kaplan and Meier with ``observed_low`` and ``observed_high`` (95 %, on the scale of log(-log)); NaN
    where none of the group was followed so long.
    """
    rows = []
    for _, members in _strata(_groups_by(probability, n_groups), len(probability)):
        curve = kaplan_meier(event_time[members], event[members])
        place = np.searchsorted(curve.times, horizon, side="right") - 1
        observed, error = curve.at(horizon), norm.ppf(0.975) * (curve.error()[place] if place >= 0 else np.nan)
        rows.append(
            {
                "n": len(members),
                "n_events": int(np.sum(event[members] * (event_time[members] <= horizon))),
                "predicted": probability[members].mean(),
                "observed": observed.item(),
                "observed_low": (observed ** np.exp(error)).item(),
                "observed_high": (observed ** np.exp(-error)).item(),
            }
        )
    return pd.DataFrame(rows).rename_axis("group")


def _groups_by(values: np.ndarray, n_groups: int) -> np.ndarray:
    """Return in which of `n_groups` of equal size each value is; equal values are in one group."""
    place = pd.Series(values).rank(method="average", pct=True).to_numpy()
    return np.ceil(place * n_groups).astype(int)


def risk_groups(risk: np.ndarray, strata: np.ndarray | None = None, n_groups: int = 3) -> np.ndarray:
    """Return in which part of its stratum each patient is by risk, (N,), as numbers from 1, the lowest.

    Parameters
    ----------
    risk, strata
        As for `harrell_c`.
    n_groups
        How many parts of equal size; equal risks are in one.
    """
    result_N = np.zeros(len(risk), dtype=int)
    for _, rows in _strata(strata, len(risk)):
        result_N[rows] = _groups_by(risk[rows], n_groups)
    return result_N


class _Calibration:
    """Mean distance of predicted and observed probability over groups, in resamples."""

    def __init__(self, event_time: np.ndarray, event: np.ndarray, probability: np.ndarray, horizon: float) -> None:
        self._probability = probability
        self._groups = []
        for _, rows in _strata(_groups_by(probability, CALIBRATION_GROUPS), len(probability)):
            rows = rows[np.argsort(event_time[rows], kind="stable")]
            defined = np.isfinite(kaplan_meier(event_time[rows], event[rows]).at(horizon))
            starts = np.flatnonzero(np.diff(event_time[rows], prepend=-np.inf))
            died = event[rows].astype(float) * (event_time[rows] <= horizon)
            self._groups.append((rows, starts, died, 1.0 if defined else np.nan))

    def error(self, resamples_NR: np.ndarray) -> np.ndarray:
        distance_R = np.zeros(resamples_NR.shape[1])
        for rows, starts, died, defined in self._groups:
            weights_NR = resamples_NR[rows]
            died_MR = np.add.reduceat(weights_NR * died[:, None], starts, axis=0)
            at_risk_MR = np.add.reduceat(weights_NR, starts, axis=0)[::-1].cumsum(axis=0)[::-1]
            left_MR = 1 - np.divide(died_MR, at_risk_MR, out=np.zeros_like(died_MR), where=at_risk_MR > 0)
            predicted_R = self._probability[rows] @ weights_NR
            distance_R += defined * np.abs(predicted_R - weights_NR.sum(axis=0) * left_MR.prod(axis=0))
        return distance_R / resamples_NR.sum(axis=0)


# All of them, in resamples


def c_index_in_resamples(
    event_time: np.ndarray, event: np.ndarray, risk: np.ndarray, *, strata: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes Harrell's C alone in resamples, from (patients, resamples) weights; as `harrell_c`."""
    pairs = _Pairs(event_time, event, risk, strata)

    def c_index(weights_NR: np.ndarray) -> np.ndarray:
        concordant_SR, all_SR = pairs.sums(np.ones((1, len(risk))), weights_NR)
        return ratio(concordant_SR[0], all_SR[0])

    return c_index


def survival_statistics(
    event_time: np.ndarray,
    event: np.ndarray,
    risk: np.ndarray,
    *,
    censoring: Censoring,
    horizon: float | None = None,
    strata: np.ndarray | None = None,
    curves: PredictedCurves | None = None,
) -> Callable[[np.ndarray], Statistics]:
    """Return what computes all scores in resamples, from (patients, resamples) weights.

    Parameters
    ----------
    event_time, event, risk, strata
        As for `harrell_c`.
    censoring, horizon, curves
        As for `evaluate_survival`; the censoring stays in every resample.
    """
    given = (event_time, event, risk, censoring, strata)
    pairs = _Pairs(event_time, event, risk, strata)
    weights_SN = [np.ones(len(risk)), _uno_weights(event_time, event, censoring, None, strata)]
    if horizon is not None:
        weights_SN.append(_uno_weights(event_time, event, censoring, horizon, strata))
        at_horizon = _HorizonPairs.at(horizon, *given)
    of_curves = _curve_statistics(event_time, event, curves, censoring, horizon, strata) if curves else None

    def statistics(weights_NR: np.ndarray) -> Statistics:
        c_SR = ratio(*pairs.sums(np.stack(weights_SN), weights_NR))
        found = dict(zip(("c_index", "uno_c", "uno_c_horizon"), c_SR))
        if horizon is not None:
            found["auc_horizon"] = at_horizon.auc(weights_NR)
        return {**found, **(of_curves(weights_NR) if of_curves else {})}

    return statistics


def _curve_statistics(
    event_time: np.ndarray,
    event: np.ndarray,
    curves: PredictedCurves,
    censoring: Censoring,
    horizon: float | None,
    strata: np.ndarray | None,
) -> Callable[[np.ndarray], Statistics]:
    terms_NT = _brier_terms(event_time, event, curves, censoring, strata)
    pairs = _CurvePairs(event_time, event, curves, strata)
    if horizon is not None:
        probability_N = curves.at(horizon)
        once_at_horizon = PredictedCurves(np.array([horizon]), probability_N[:, None])
        horizon_terms_N = _brier_terms(event_time, event, once_at_horizon, censoring, strata)[:, 0]
        calibrated = _Calibration(event_time, event, probability_N, horizon)

    def statistics(weights_NR: np.ndarray) -> Statistics:
        n_R = weights_NR.sum(axis=0)
        ibs_R = integrated(terms_NT.T @ weights_NR / n_R, curves.times)
        found = {"antolini_c": pairs.c(weights_NR), "ibs": ibs_R}
        if horizon is not None:
            found["brier_horizon"] = horizon_terms_N @ weights_NR / n_R
            found["calibration_error"] = calibrated.error(weights_NR)
        return found

    return statistics


def evaluate_survival(
    event_time: np.ndarray,
    event: np.ndarray,
    risk: np.ndarray,
    *,
    censoring: Censoring,
    horizon: float | None = None,
    strata: np.ndarray | None = None,
    curves: PredictedCurves | None = None,
    groups: np.ndarray | None,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Score predicted risks, each score with ``…_low`` and ``…_high``, a 95 % percentile bootstrap interval.

    Parameters
    ----------
    event_time, event, risk, strata
        As for `harrell_c`.
    censoring
        Of the training patients, by the same strata or none. Events after their last follow-up have no weight in Uno's
        C (`n_without_weight`).
    horizon
        Time, in the unit of the others, for the scores that end with it; these are left out without it.
    curves
        Predicted survival of the same patients, where a method gives it.
    groups, rng
        As in `evaluate_classes`.

    Returns
    -------
    ``n``, ``n_events`` and ``n_pairs`` (those of ``c_index``); ``c_index`` (Harrell's) and ``uno_c``, which does not
    depend on who was censored (0.5: order by chance, 1: perfect). With a horizon ``uno_c_horizon``, of pairs whose
    first event is earlier, and ``auc_horizon``, of who has had the event by then against who has not. With curves
    ``antolini_c`` (Harrell's at the time of each event, also of curves that cross) and ``ibs`` (integrated Brier score,
    0: perfect). With both ``brier_horizon`` and ``calibration_error``, the mean distance of predicted and observed
    probability over thirds of the patients by predicted probability; chance adds to this last one, more so in
    resamples, so its interval lies high. Censoring of the training patients, and the thirds, are those of all patients
    in each resample. NaN where a score is not defined.

    Raises
    ------
    InputError
        A risk is not finite, or censoring of a stratum was not estimated.

    References
    ----------
    Uno et al., Stat. Med. 30, 1105 (2011); AUC: Uno et al., J. Am. Stat. Assoc. 102, 527 (2007), Hung and Chiang, Can.
    J. Stat. 38, 8 (2010); Antolini et al., Stat. Med. 24, 3927 (2005); Brier: Graf et al., Stat. Med. 18, 2529 (1999).
    """
    require_finite(risk)
    statistics = survival_statistics(
        event_time, event, risk, censoring=censoring, horizon=horizon, strata=strata, curves=curves
    )
    scores = bootstrap(statistics, len(risk), groups, rng)
    return counted(event_time, event, strata=strata) | with_intervals(scores, list(scores))
