"""Losses of survival, and what their outputs mean: Cox, hazards of intervals, Weibull. Higher risk is a shorter life.

A Cox loss compares the patients at risk with each other, so it is of a whole cohort and not a sum over its rows:
`RiskSets` sorts the patients once, and then takes the log hazards of as many networks as are trained side by side.
Sums over those at risk are cumulative log-sum-exps, not logs of cumulative sums: torchsurv 0.2.0 gives NaN for a log
hazard of 100, where the loss only knows differences. That costs half of the 3 ms that 10,000 patients take with the
gradient, which is still less than torchsurv's 6, since nothing is sorted twice (benchmarks/RESULTS.md).

The losses of intervals and of Weibull are sums over rows, so that two processes that share the rows add up to one.

Shapes: N patients, ... any leading dimensions (networks), J intervals, T times, S strata, L patients of the largest.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geneformer_repro.errors import InputError

Ties: TypeAlias = Literal["efron", "breslow"]


class _Tied(NamedTuple):
    """Events that share their time, and stratum, with others."""

    event: Tensor
    """Which of all events."""
    tie: Tensor
    """Number of the tie."""
    n_ties: int
    done: Tensor
    """Share of the tie that has died before, as Efron has it: 0, 1/m, … (m - 1)/m of m."""


class RiskSets:
    """Who is at risk when, sorted once; and the partial likelihood of log hazards.

    Parameters
    ----------
    event_time
        Time of the event or of censoring of each patient, (N,); above 0, in any unit.
    event
        1 or True where it is an event, 0 or False where the patient was censored then, (N,).
    strata
        Group of each patient, (N,); only patients of the same group are compared. Without it the loss of several
        tumour types learns above all which tumour a patient has.
    ties
        How events at the same time share their risk set. Where there are none, both are the same.

    Attributes
    ----------
    n_events
        Events of all patients, by which the loss is to be divided for a mean.

    Raises
    ------
    InputError
        A time is not above 0, an event is neither 0 nor 1, or there is no event at all.

    Notes
    -----
    Patients who are censored at the time of an event are at risk of it. Tensors of a device are sorted on the CPU, and
    the loss is computed on that device.

    References
    ----------
    Cox, J. R. Stat. Soc. B 34, 187 (1972); Breslow, Biometrics 30, 89 (1974); Efron, J. Am. Stat. Assoc. 72, 557
    (1977).
    """

    def __init__(
        self,
        event_time: np.ndarray | Tensor,
        event: np.ndarray | Tensor,
        *,
        strata: np.ndarray | Tensor | None = None,
        ties: Ties = "efron",
    ) -> None:
        self._device = event_time.device if isinstance(event_time, Tensor) else torch.device("cpu")
        time_N, event_N = _on_cpu(event_time), _on_cpu(event)
        _require_survival(time_N, event_N)
        event_N = event_N.astype(bool)
        if not event_N.any():
            raise InputError(
                f"None of the {len(event_N)} patients has an event, so their order of risk cannot be learned. Give "
                "patients with events (event = 1)."
            )
        strata_N = np.zeros(len(event_N)) if strata is None else _on_cpu(strata)
        self.n_events = int(event_N.sum())
        self._sort(time_N, event_N, np.unique(strata_N, return_inverse=True)[1], ties)

    def _sort(self, time_N: np.ndarray, event_N: np.ndarray, stratum_N: np.ndarray, ties: Ties) -> None:
        """Lay each stratum out in a row, from its longest time to its shortest."""
        order_N = np.lexsort((-time_N, stratum_N))
        time_N, event_N, stratum_N = time_N[order_N], event_N[order_N], stratum_N[order_N]
        size_S = np.bincount(stratum_N)
        place_N = np.arange(len(order_N)) - (np.cumsum(size_S) - size_S)[stratum_N]
        patients_SL = np.full((len(size_S), size_S.max()), -1)
        patients_SL[stratum_N, place_N] = order_N
        self._patients_SL, self._nobody_SL = self._indices(patients_SL.clip(0)), self._indices(patients_SL < 0)
        starts_N = np.append(True, (np.diff(time_N) != 0) | (np.diff(stratum_N) != 0))
        moment_N = np.cumsum(starts_N) - 1
        last_N = np.append(np.flatnonzero(starts_N)[1:], len(order_N))[moment_N] - 1
        at_risk_N = stratum_N * patients_SL.shape[1] + place_N[last_N]
        self._patient_E, self._at_risk_E = self._indices(order_N[event_N]), self._indices(at_risk_N[event_N])
        self._tied = self._tied_events(moment_N[event_N]) if ties == "efron" else None

    def _tied_events(self, moment_E: np.ndarray) -> _Tied | None:
        events_M = np.bincount(moment_E)
        (event,) = np.nonzero(events_M[moment_E] > 1)
        if not len(event):
            return None
        _, first, tie, size = np.unique(moment_E[event], return_index=True, return_inverse=True, return_counts=True)
        done = (np.arange(len(event)) - first[tie]) / size[tie]
        return _Tied(self._indices(event), self._indices(tie), len(size), self._indices(done))

    def _indices(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def loss(self, log_hazard_N: Tensor) -> Tensor:
        """Return the negative log partial likelihood, summed over events and strata.

        Parameters
        ----------
        log_hazard_N
            Log of each patient's hazard relative to any other's, (..., N); a constant added to a stratum changes
            nothing. Each leading dimension is a network of its own.

        Returns
        -------
        A loss for each network, (...), in nats, at least in single precision. A stratum without an event adds 0.
        """
        eta_N = _at_least_single(log_hazard_N)
        eta_SL = eta_N[..., self._patients_SL].masked_fill(self._nobody_SL, -torch.inf)
        log_at_risk_E = eta_SL.logcumsumexp(-1).flatten(-2)[..., self._at_risk_E]
        eta_E = eta_N[..., self._patient_E]
        loss = (log_at_risk_E - eta_E).sum(-1)
        return loss if self._tied is None else loss + self._of_ties(eta_E - log_at_risk_E, self._tied)

    @staticmethod
    def _of_ties(log_share_E: Tensor, tied: _Tied) -> Tensor:
        """Return what Efron's loss has more than Breslow's: a part of the tie has left the risk set."""
        share = log_share_E[..., tied.event].exp()
        tie_share = share.new_zeros(*share.shape[:-1], tied.n_ties).index_add(-1, tied.tie, share)
        return (-tied.done.to(share) * tie_share[..., tied.tie]).log1p().sum(-1)


def baseline_hazard(
    log_hazard_N: Tensor, event_time_N: Tensor, event_N: Tensor, times_T: np.ndarray | Sequence[float]
) -> Tensor:
    """Return the cumulative hazard at each time of a patient whose log hazard is 0, (T,), after Breslow.

    Parameters
    ----------
    log_hazard_N
        What a network that was trained on a Cox loss says of its training patients, (N,).
    event_time_N, event_N
        As for `RiskSets`, of one stratum, (N,).
    times_T
        In the unit of the event times, (T,).
    """
    order = torch.argsort(event_time_N, descending=True, stable=True)
    times_N, log_hazard_N = event_time_N[order], log_hazard_N.double()[order]
    last_at_risk_N = torch.searchsorted(-times_N, -times_N, right=True) - 1
    step_N = event_N[order].double() * (-torch.logcumsumexp(log_hazard_N, dim=0)[last_at_risk_N]).exp()
    reached_TN = times_N <= torch.as_tensor(times_T).to(times_N)[:, None]
    return (reached_TN * step_N).sum(-1)


# Hazards of intervals


def equal_event_edges(event_time: np.ndarray, event: np.ndarray, n: int) -> np.ndarray:
    """Return where time is cut so that every interval has as many events.

    Parameters
    ----------
    event_time, event
        Of the training patients, as for `RiskSets`.
    n
        How many intervals. There are fewer where events share their times, or are fewer than `n`.

    Returns
    -------
    Strictly increasing, (intervals + 1,): 0, the ends of the intervals, which belong to them, and last the time of the
    last event. The last interval is open: its hazard, an interval of this length, holds ever after.

    Raises
    ------
    InputError
        As `RiskSets`; or `n` is below 1.
    """
    _require_survival(event_time, event)
    if n < 1 or not event.any():
        raise InputError(f"Expected at least one interval and one event, found {n} and {int(event.sum())}.")
    ends = np.quantile(event_time[event == 1], np.arange(1, n + 1) / n, method="inverted_cdf")
    return np.unique(np.append(0.0, ends))


def discrete_hazard_loss(
    logits_NJ: Tensor, event_time_N: Tensor, event_N: Tensor, edges: np.ndarray | Tensor
) -> Tensor:
    """Return the negative log likelihood of hazards of intervals, summed over patients.

    A patient who outlives an interval was exposed to its hazard; one who is censored within it, to the share of it
    that was seen (as if the hazard were constant); one who dies within it died of it, whenever in it that was.

    Parameters
    ----------
    logits_NJ
        Of the probability to die in an interval for who is alive at its begin, (..., N, J). Leading dimensions are
        networks.
    event_time_N, event_N
        As for `RiskSets`, (N,).
    edges
        From `equal_event_edges`, (J + 1,).

    Returns
    -------
    A loss for each network, (...), in nats, at least in single precision; finite for any finite logits.

    References
    ----------
    Gensheimer and Narasimhan, PeerJ 7, e6257 (2019), with shares of intervals in place of their midpoints.
    """
    logits_NJ = _at_least_single(logits_NJ)
    outlived_NJ = _outlived(event_time_N, edges, logits_NJ)
    last_N1 = (outlived_NJ > 0).sum(-1, keepdim=True) - 1
    died_NJ = torch.zeros_like(outlived_NJ).scatter(-1, last_N1, event_N[:, None].to(outlived_NJ))
    alive_NJ = outlived_NJ.where(died_NJ == 0, (outlived_NJ - 1).clip(min=0))
    return (F.softplus(logits_NJ) * alive_NJ + F.softplus(-logits_NJ) * died_NJ).sum((-2, -1))


def discrete_survival(logits_NJ: Tensor, edges: np.ndarray | Tensor, times_T: np.ndarray | Tensor) -> Tensor:
    """Return the probability to live longer than each time, (..., N, T).

    Its log falls evenly within an interval, and beyond the last edge as in the last interval.

    Parameters
    ----------
    logits_NJ, edges
        As for `discrete_hazard_loss`.
    times_T
        0 or above, in the unit of the edges, (T,).
    """
    logits_NJ = _at_least_single(logits_NJ)
    return (-F.softplus(logits_NJ) @ _outlived(times_T, edges, logits_NJ).T).exp()


def discrete_risk(logits_NJ: Tensor, edges: np.ndarray | Tensor) -> Tensor:
    """Return minus the mean time lived before the last edge, (..., N): higher is more risk.

    The area below a patient's curve orders patients whose curves cross, needs no horizon to be chosen, and has the
    unit of the times; a sum of hazards would count early and late ones alike.

    Parameters
    ----------
    logits_NJ, edges
        As for `discrete_hazard_loss`.
    """
    hazard_NJ = F.softplus(_at_least_single(logits_NJ)).clamp(min=torch.finfo(torch.float32).tiny)
    alive_NJ = (hazard_NJ - hazard_NJ.cumsum(-1)).exp()
    width_J = torch.as_tensor(edges).to(hazard_NJ).diff()
    return -(alive_NJ * width_J * -torch.expm1(-hazard_NJ) / hazard_NJ).sum(-1)


def _outlived(time_N: np.ndarray | Tensor, edges: np.ndarray | Tensor, like: Tensor) -> Tensor:
    """Return how much of each interval lies before each time, (N, J): 1 all, 0 nothing; of the last also above 1."""
    edges = torch.as_tensor(edges).to(like.device, torch.float64)
    times_N1 = torch.as_tensor(time_N).to(like.device, torch.float64)[:, None]
    share_NJ = (times_N1 - edges[:-1]) / edges.diff()
    return torch.cat([share_NJ[:, :-1].clip(0, 1), share_NJ[:, -1:].clip(min=0)], dim=-1).to(like.dtype)


# Weibull


def weibull_loss(outputs_N2: Tensor, event_time_N: Tensor, event_N: Tensor, *, unit: float) -> Tensor:
    """Return the negative log likelihood of accelerated failure times after Weibull, summed over patients.

    Parameters
    ----------
    outputs_N2
        Log of the scale in `unit`, and log of the shape, (..., N, 2): ``S(t) = exp(-(t / scale)^shape)``. Leading
        dimensions are networks.
    event_time_N, event_N
        As for `RiskSets`, (N,).
    unit
        What times are divided by, such as the median of the training patients', so that a network that begins with
        outputs near 0 begins near the truth.

    Returns
    -------
    A loss for each network, (...), in nats, of densities a `unit`, at least in single precision.
    """
    log_time_N = (torch.as_tensor(event_time_N, dtype=torch.float64) / unit).log().to(outputs_N2.device)
    power_N, log_shape_N = _log_cumulative_hazard(outputs_N2, log_time_N), _at_least_single(outputs_N2)[..., 1]
    died_N = event_N.to(power_N)
    return (power_N.exp() - died_N * (log_shape_N + power_N - log_time_N.to(power_N))).sum(-1)


def weibull_survival(outputs_N2: Tensor, times_T: np.ndarray | Tensor, *, unit: float) -> Tensor:
    """Return the probability to live longer than each time, (..., N, T).

    Parameters
    ----------
    outputs_N2, unit
        As for `weibull_loss`.
    times_T
        0 or above, in the unit of the event times, (T,).
    """
    log_times_T = (torch.as_tensor(times_T, dtype=torch.float64) / unit).log().to(outputs_N2.device)
    return (-_log_cumulative_hazard(outputs_N2[..., None, :], log_times_T).exp()).exp()


def weibull_risk(outputs_N2: Tensor) -> Tensor:
    """Return minus the log of the median time to the event, in units of the loss, (..., N): higher is more risk.

    Where all patients have one shape this orders them by their hazards; where shapes differ, curves cross, and the
    median says who is likelier to be alive when half are.

    Parameters
    ----------
    outputs_N2
        As for `weibull_loss`.
    """
    log_scale_N, log_shape_N = _at_least_single(outputs_N2).unbind(-1)
    return -log_scale_N - np.log(np.log(2)) * (-log_shape_N).exp()


def _log_cumulative_hazard(outputs_N2: Tensor, log_time_N: Tensor) -> Tensor:
    log_scale_N, log_shape_N = _at_least_single(outputs_N2).unbind(-1)
    return log_shape_N.exp() * (log_time_N.to(log_scale_N) - log_scale_N)


# Arguments


def _at_least_single(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _on_cpu(values: np.ndarray | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _require_survival(time_N: np.ndarray, event_N: np.ndarray) -> None:
    """Raise `InputError` unless times are above 0 and events 0 or 1."""
    if time_N.ndim != 1 or time_N.shape != event_N.shape:
        raise InputError(f"Expected a time and an event for each patient, found {time_N.shape} and {event_N.shape}.")
    wrong = np.flatnonzero(~(np.isfinite(time_N) & (time_N > 0)))
    if len(wrong):
        raise InputError(
            f"Times to an event are above 0; found {time_N[wrong[0]]} for patient {wrong[0]} ({len(wrong)} such). "
            "Leave these patients out."
        )
    if not np.isin(event_N, (0, 1)).all():
        raise InputError(
            f"An event is 1 where it happened and 0 where the patient was censored; found {np.unique(event_N)[:5]}."
        )
