"""Losses of survival, and what their outputs mean: Cox, hazards of intervals, Weibull. Higher risk is a shorter life.

A Cox loss compares the patients at risk with each other, so it is of a whole cohort and not a sum over its rows:
`RiskSets` sorts the patients once, and then takes the log hazards of as many networks as are trained side by side.
Loss and gradient come from one compiled walk down the sorted patients and back, on the CPU wherever the network is:
only differences to the largest log hazard at risk are needed, so nothing overflows (torchsurv 0.2.0 gives NaN for a log
hazard of 100). A chain of torch's operations (cumulative log-sum-exps, gathering) takes three times as long, and on a
busy machine waits 40 ms for each operation that two threads share (benchmarks/RESULTS.md).

The losses of intervals and of Weibull are sums over rows, so that two processes that share the rows add up to one.

Shapes: N patients, K networks, ... any leading dimensions (networks), J intervals, T times, M moments.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from geneformer_repro.errors import InputError

Ties: TypeAlias = Literal["efron", "breslow"]


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
    Patients who are censored at the time of an event are at risk of it.

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
        time_N, event_N = _on_cpu(event_time), _on_cpu(event)
        _require_survival(time_N, event_N)
        event_N = event_N.astype(bool)
        if not event_N.any():
            raise InputError(
                f"None of the {len(event_N)} patients has an event, so their order of risk cannot be learned. Give "
                "patients with events (event = 1)."
            )
        stratum_N = np.zeros(len(event_N)) if strata is None else np.unique(_on_cpu(strata), return_inverse=True)[1]
        order_N = np.lexsort((event_N, -time_N, stratum_N))
        time_N, stratum_N = time_N[order_N], stratum_N[order_N]
        new_stratum_N = np.diff(stratum_N, prepend=-1) != 0
        (starts_M,) = np.nonzero(new_stratum_N | (np.diff(time_N, prepend=0) != 0))
        self.n_events = int(event_N.sum())
        self._sorted = order_N, event_N[order_N], np.append(starts_M, len(order_N)), new_stratum_N[starts_M]
        self._efron = ties == "efron"

    def loss(self, log_hazard_N: Tensor) -> Tensor:
        """Return the negative log partial likelihood, summed over events and strata.

        Parameters
        ----------
        log_hazard_N
            Log of each patient's hazard relative to any other's, (..., N); a constant added to a stratum changes
            nothing. Each leading dimension is a network of its own. Of any device.

        Returns
        -------
        A loss for each network, (...), in nats, at least in single precision. A stratum without an event adds 0.
        """
        return _PartialLikelihood.apply(_at_least_single(log_hazard_N), (*self._sorted, self._efron))


class _PartialLikelihood(torch.autograd.Function):
    """The loss, and its gradient, which the same walk finds."""

    @staticmethod
    def forward(ctx: Any, log_hazard_N: Tensor, risk_sets: tuple[Any, ...]) -> Tensor:
        """Return the loss of each network; keep the gradient."""
        eta_KN = log_hazard_N.detach().reshape(-1, log_hazard_N.shape[-1]).double().cpu().contiguous().numpy()
        loss_K, slope_KN = np.zeros(len(eta_KN)), np.zeros(eta_KN.shape if ctx.needs_input_grad[0] else (0, 0))
        _partial_likelihoods(*risk_sets, eta_KN, loss_K, slope_KN)  # type: ignore[call-arg]
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.from_numpy(slope_KN).to(log_hazard_N).view(log_hazard_N.shape))
        return torch.from_numpy(loss_K).to(log_hazard_N).view(log_hazard_N.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of each network's loss."""
        return slope[..., None] * ctx.saved_tensors[0], None


@numba.njit(nogil=True, cache=True)
def _partial_likelihoods(order_N, event_N, bounds_M, new_stratum_M, efron, eta_KN, loss_K, slope_KN):  # type: ignore[no-untyped-def]
    """Add up losses; and slopes, where there is room for them.

    Patients lie stratum by stratum, from the longest time to the shortest, of a moment the censored first; moment m
    begins at ``bounds_M[m]``. Sums of hazards are relative to the largest at risk, so each exponential is at most 1.
    """
    n_moments = len(bounds_M) - 1
    largest_M, at_risk_M = np.empty(n_moments), np.empty(n_moments)
    for k in range(len(eta_KN)):
        largest, at_risk = -np.inf, 0.0
        for m in range(n_moments):
            if new_stratum_M[m]:
                largest, at_risk = -np.inf, 0.0
            first_event = bounds_M[m + 1]
            for i in range(bounds_M[m], bounds_M[m + 1]):
                eta = eta_KN[k, order_N[i]]
                if eta > largest:
                    at_risk, largest = at_risk * np.exp(largest - eta) + 1.0, eta
                else:
                    at_risk += np.exp(eta - largest)
                if event_N[i] and first_event > i:
                    first_event = i
            largest_M[m], at_risk_M[m] = largest, at_risk
            n_dead = bounds_M[m + 1] - first_event
            tied = efron and n_dead > 1
            dead = _hazard(eta_KN[k], order_N[first_event : bounds_M[m + 1]], largest) if tied else 0.0
            for place in range(n_dead):
                loss_K[k] += np.log(at_risk - dead * place / n_dead) + largest - eta_KN[k, order_N[first_event + place]]
        if len(slope_KN):
            _add_slopes(order_N, event_N, bounds_M, new_stratum_M, efron, eta_KN[k], largest_M, at_risk_M, slope_KN[k])


@numba.njit(nogil=True, cache=True)
def _hazard(eta_N, rows, largest):  # type: ignore[no-untyped-def]
    total = 0.0
    for row in rows:
        total += np.exp(eta_N[row] - largest)
    return total


@numba.njit(nogil=True, cache=True)
def _add_slopes(order_N, event_N, bounds_M, new_stratum_M, efron, eta_N, largest_M, at_risk_M, slope_N):  # type: ignore[no-untyped-def]
    """Go back from the shortest time: who is at risk has a share in each event that comes while he is."""
    share, largest = 0.0, 0.0  # of the events so far, one over the hazard at risk; times exp(largest)
    for m in range(len(bounds_M) - 2, -1, -1):
        share = share * np.exp(largest_M[m] - largest) if share > 0 else 0.0
        largest = largest_M[m]
        rows = order_N[bounds_M[m] : bounds_M[m + 1]]
        n_dead = 0
        for i in range(bounds_M[m], bounds_M[m + 1]):
            n_dead += event_N[i]
        tied = efron and n_dead > 1
        dead = _hazard(eta_N, rows[len(rows) - n_dead :], largest) if tied else 0.0
        of_dead = 0.0
        for place in range(n_dead):
            of_event = 1.0 / (at_risk_M[m] - dead * place / n_dead)
            share += of_event
            of_dead += of_event * place / n_dead if tied else 0.0
        for i in range(len(rows)):
            hazard = np.exp(eta_N[rows[i]] - largest)
            slope_N[rows[i]] = hazard * share
            if i >= len(rows) - n_dead:
                slope_N[rows[i]] -= 1.0 + hazard * of_dead
        if new_stratum_M[m]:
            share = 0.0


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
    return (-discrete_cumulative_hazard(logits_NJ, edges, times_T)).exp()


def discrete_cumulative_hazard(logits_NJ: Tensor, edges: np.ndarray | Tensor, times_T: np.ndarray | Tensor) -> Tensor:
    """Return minus the log of `discrete_survival`, (..., N, T), which keeps its digits where survival is near 1.

    Parameters
    ----------
    logits_NJ, edges, times_T
        As for `discrete_survival`.
    """
    logits_NJ = _at_least_single(logits_NJ)
    return F.softplus(logits_NJ) @ _outlived(times_T, edges, logits_NJ).T


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
