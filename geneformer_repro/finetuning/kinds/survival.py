"""Labels that are times until an event, which may be censored.

A prediction has a column of risk (higher is worse, everywhere; no score turns a risk round) and one of survival for
each of the target's times, NaN where a method tells none. Rows of different cohorts, or of different folds, whose risks
are no single scale, are never compared with each other: pairs are counted within them, and added up.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro import hazards
from geneformer_repro.errors import InputError, told_apart
from geneformer_repro.finetuning.baselines import PatientInputs
from geneformer_repro.finetuning.kinds.kind import GAP, Kind, Scored
from geneformer_repro.finetuning.kinds.numbers import numbers_in
from geneformer_repro.finetuning.kinds.survival_figures import calibration_figure, risk_groups_figure
from geneformer_repro.finetuning.kinds.survival_methods import (
    PATIENT_METHODS,
    SURVIVAL_METHODS,
    cox_ridge_coefficients,
)
from geneformer_repro.finetuning.kinds.survival_scores import (
    Censoring,
    PredictedCurves,
    are_followed,
    c_index_in_resamples,
    calibration,
    counted,
    evaluate_survival,
    harrell_c,
    n_without_weight,
    survival_statistics,
)
from geneformer_repro.finetuning.metrics import Statistics, bootstrap, once, with_intervals
from geneformer_repro.finetuning.settings.labels import FollowUpConfig
from geneformer_repro.report import Section
from geneformer_repro.targets import SurvivalLoss, SurvivalTime, Target
from geneformer_repro.tokenizer.labels import as_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_TIMES = np.linspace(0.05, 0.95, num=19)
"""Quantiles of the event times at which survival is told."""
_WANTED = "as survival (events as 1 and 0, times above 0), but: {}."
FEWEST_EVENTS = 10
"""With fewer no score says much."""
_MIXED_UNITS = 10
"""A median follow-up that is so many times as long as another's is of another unit; between tumours it is three."""


def read_survival(
    name: str, obs: pd.DataFrame, time: str, config: FollowUpConfig, *, learned_by: SurvivalLoss | None = None
) -> tuple[SurvivalTime, np.ndarray]:
    """Read obs columns of events and times.

    Parameters
    ----------
    name
        Column of the events: 1, or 0 where follow-up ended without one.
    obs
        The columns.
    time
        Column of the times, above 0.
    config
        How they are taken.
    learned_by
        What the network learns, if not as the configuration says.

    Returns
    -------
    The target, and labels (rows, 3): time, event, number of the cohort; NaN in a row without time and event.

    Raises
    ------
    InputError
        Events are not 0 and 1, times not above 0, one of the two is missing in a row, or there is no event.
    """
    events, times = (numbers_in(column, obs[column], _WANTED) for column in (name, time))
    wrong = ~np.isin(events[~np.isnan(events)], (0, 1))
    if wrong.any():
        raise InputError(
            f"obs column {name!r} should hold events, 1 or 0 (censored), found "
            f"{events[~np.isnan(events)][wrong][0]:g}. The time goes into the column that is named with it ({time!r})."
        )
    unusable = (np.isnan(events) != np.isnan(times)) | (times <= 0)
    if unusable.any():
        _leave_out(name, time, obs.index[unusable], events[unusable], times[unusable], config)
    events, times = (np.where(unusable, np.nan, column) for column in (events, times))
    if config.censor_at is not None:
        events = np.where(times > config.censor_at, 0.0, events)
        times = np.minimum(times, config.censor_at)
    cohort_names, cohorts = _cohorts(obs, config)
    labels = np.stack([times, events, np.where(np.isnan(times), np.nan, cohorts)], axis=1)
    target = survival_target(name, time, labels, config, cohorts=cohort_names, learned_by=learned_by)
    _warn_of_mixed_units(time, labels, cohort_names)
    return target, labels


def survival_target(
    name: str,
    time: str,
    labels_NS: np.ndarray,
    config: FollowUpConfig,
    *,
    cohorts: tuple[str, ...] = (),
    learned_by: SurvivalLoss | None = None,
) -> SurvivalTime:
    """Return the target of labels: when survival is told follows from their event times.

    Parameters
    ----------
    name, time, config, learned_by
        As for `read_survival`.
    labels_NS
        As it returns them.
    cohorts
        Names of the cohorts, by number.

    Raises
    ------
    InputError
        There is no event, or nobody is followed up to the horizon.
    """
    times, events = labels_NS[:, 0], labels_NS[:, 1]
    event_times = times[events == 1]
    if not len(event_times):
        raise InputError(f"obs column {name!r} has no event among {np.isfinite(times).sum()} rows with a time.")
    horizon = _as_written(np.median(event_times) if config.horizon is None else config.horizon)
    if horizon >= np.nanmax(times):
        asked, longest = told_apart(horizon, np.nanmax(times))
        raise InputError(
            f"follow_up.horizon={asked}: nobody is followed that long; the longest time in {time!r} is "
            f"{longest}. Name an earlier one, in the same unit."
        )
    told = tuple(sorted({*map(_as_written, np.quantile(event_times, _TIMES)), horizon}))
    return SurvivalTime(name, time, told, horizon, learned_by or config.learned_by, config.intervals, cohorts=cohorts)


def _as_written(time: float) -> float:
    """Return a time in the digits that columns are named by, so that no two are called the same."""
    return float(f"{time:g}")


def _leave_out(
    name: str, time: str, rows: "pd.Index[Any]", events: np.ndarray, times: np.ndarray, config: FollowUpConfig
) -> None:
    first = f"{str(rows[0])!r} has event {events[0]:g} and time {times[0]:g}".replace("nan", "missing")
    if config.unusable == "refuse":
        raise InputError(
            f"{len(rows)} rows have no usable time in {time!r} (above 0) with an event in {name!r} (first: {first}). "
            'Mend them, make both missing, or leave such rows out: follow_up.unusable="leave_out".'
        )
    logger.warning("%s: %d rows without a usable time and event are left out (first: %s).", name, len(rows), first)


def _cohorts(obs: pd.DataFrame, config: FollowUpConfig) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the cohorts, none without such a column, and the number of each row's."""
    if config.cohort is None:
        return (), np.zeros(len(obs))
    names = as_labels(obs[config.cohort])
    if names.isna().any():
        raise InputError(
            f"obs column {config.cohort!r} says nothing for {names.isna().sum()} of {len(obs)} rows (first: "
            f"{str(obs.index[names.isna()][0])!r}); leave these out, or name another column as follow_up.cohort."
        )
    cohort_names, numbers = np.unique(names.to_numpy(dtype=str), return_inverse=True)
    return tuple(cohort_names.tolist()), numbers.astype(float)


def _warn_of_mixed_units(time: str, labels_NS: np.ndarray, cohort_names: tuple[str, ...]) -> None:
    table = pd.DataFrame(labels_NS, columns=["time", "event", "cohort"]).dropna()
    medians = table.groupby("cohort")["time"].median()
    if medians.max() < _MIXED_UNITS * medians.min():
        return
    numbers, in_order = medians.index.to_numpy(dtype=int), medians.to_numpy().argsort()
    short, long = (cohort_names[number] for number in numbers[in_order[[0, -1]]])
    logger.warning(
        "%s: the median follow-up of %r is %.3g times that of %r (%.4g and %.4g). Are months and days mixed?",
        time, long, medians.max() / medians.min(), short, medians.max(), medians.min(),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SurvivalScored(Scored):
    """What one method reached on the test rows, over all and in each cohort."""

    per_cohort: pd.DataFrame
    """``cohort``, ``n``, ``n_events``, ``n_pairs``, ``c_index`` with its interval; of a single cohort without rows."""


class SurvivalLabels(Kind[SurvivalTime]):
    """Times until an event: scored by the C-index and more, always within cohorts and folds."""

    leading = "c_index"
    spelled = {"c_index": "C-index", "auc_horizon": "AUC at the horizon"}  # noqa: RUF012
    on_page = {  # noqa: RUF012
        "c_index": "C-index", "uno_c": "Uno's C", "uno_c_horizon": "Uno's C to the horizon",
        "auc_horizon": "AUC at the horizon", "antolini_c": "Antolini's C", "ibs": "integrated Brier score",
        "brier_horizon": "Brier score at the horizon", "calibration_error": "calibration error",
    }  # fmt: skip
    strata_are_classes = True
    has_means = True

    def scaled(self, labels_NS: np.ndarray) -> SurvivalTime:
        """Return the target with intervals that hold as many of these events each, or with their unit of time."""
        event_time, event, _ = labels_NS[~np.isnan(labels_NS).any(axis=1)].T
        if self.target.learned_by == "hazard":
            edges = hazards.equal_event_edges(event_time, event, self.target.intervals)
            return dataclasses.replace(self.target, edges=tuple(map(float, edges)))
        return dataclasses.replace(self.target, unit=float(np.median(event_time)))

    def compared_within(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return the number of each row's cohort; -1 of a row without a label."""
        return np.nan_to_num(labels_NS[:, 2], nan=-1.0)

    def lacks(self, labels_NS: np.ndarray) -> str | None:
        """Return "an event" where there are times alone."""
        return super().lacks(labels_NS) or (None if (labels_NS[:, 1] == 1).any() else "an event")

    def strata(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return whether each has the event, and its cohort."""
        named = pd.Series(labels_NS[:, 1]).map({1.0: "event", 0.0: "censored"})
        if self.target.cohorts:
            named = named + " in " + self._cohort_names(labels_NS)
        return named.fillna(GAP).to_numpy(dtype=str)

    def _cohort_names(self, labels_NS: np.ndarray) -> np.ndarray:
        return np.array([*self.target.cohorts, GAP], dtype=object)[np.nan_to_num(labels_NS[:, 2], nan=-1).astype(int)]

    def content(self, labels_NS: np.ndarray) -> bytes:
        """Return times, events and numbers of cohorts."""
        return np.ascontiguousarray(labels_NS).tobytes()

    def straight_path(self, columns_NP: np.ndarray, labels_NS: np.ndarray, seed: int) -> np.ndarray | None:
        """Return the coefficients of Cox's model, stratified by cohort, where the output is a log hazard; else None."""
        return cox_ridge_coefficients(columns_NP, labels_NS, seed) if self.target.learned_by == "cox" else None

    def simple_methods(
        self, features: Any, train_rows: np.ndarray, labels_NS: np.ndarray, test_rows: np.ndarray, seed: int
    ) -> dict[str, Callable[[], np.ndarray | None]]:
        """Return methods that give a risk and, some of them, survival at the target's times; of patients others."""
        methods = PATIENT_METHODS if isinstance(features, PatientInputs) else SURVIVAL_METHODS
        given = (features, train_rows, labels_NS, test_rows, seed, self.target.times)
        return {name: partial(method, *given) for name, method in methods.items()}

    def from_another(self, other: Target, meaning_NK: np.ndarray) -> np.ndarray | None:
        """Return the other's risk, and its survival where that is told at the same times; None of another kind."""
        if not isinstance(other, SurvivalTime):
            return None
        if other.times == self.target.times:
            return meaning_NK
        return np.column_stack([meaning_NK[:, 0], np.full((len(meaning_NK), len(self.target.times)), np.nan)])

    def scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return the scores of one fold, without intervals; NaN where a risk is not finite."""
        folds = np.zeros(len(labels_NS))
        if not np.isfinite(predicted[:, 0]).all():
            return {"c_index": np.nan}
        statistics = survival_statistics(
            *self._given(labels_NS, predicted), **self._options(labels_NS, predicted, folds)
        )
        return {name: value.item() for name, value in statistics(once(len(labels_NS))).items()}

    def validation_scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return the C-index within cohorts, 0.5 where no two rows can be compared or a risk is not finite."""
        if not np.isfinite(predicted[:, 0]).all():
            return {"c_index": 0.5}
        c_index = harrell_c(*self._given(labels_NS, predicted), strata=labels_NS[:, 2]).c
        return {"c_index": 0.5 if np.isnan(c_index) else c_index}

    def merit(self, scores: Mapping[str, float]) -> float:
        """Return by how much the C-index is above chance, 1 where it is perfect."""
        return 2 * scores["c_index"] - 1

    def leading_score(
        self, labels_NS: np.ndarray, predicted: np.ndarray, *, folds: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return the C-index as a function of weights."""
        return c_index_in_resamples(*self._given(labels_NS, predicted), strata=_strata(labels_NS, folds))

    def evaluate(
        self,
        labels_NS: np.ndarray,
        predicted: np.ndarray,
        *,
        folds: np.ndarray,
        groups: np.ndarray | None,
        rng: np.random.Generator,
    ) -> SurvivalScored:
        """Score risks and, where it is told, survival; within cohorts and folds."""
        options = self._options(labels_NS, predicted, folds)
        scores = evaluate_survival(*self._given(labels_NS, predicted), **options, groups=groups, rng=rng)
        return SurvivalScored(scores, self._per_cohort(labels_NS, predicted, folds, groups, rng))

    def _per_cohort(
        self,
        labels_NS: np.ndarray,
        predicted: np.ndarray,
        folds: np.ndarray,
        groups: np.ndarray | None,
        rng: np.random.Generator,
    ) -> pd.DataFrame:
        """Score each cohort by itself, where there are several."""
        rows = []
        for number, name in enumerate(self.target.cohorts):
            members = labels_NS[:, 2] == number
            if not members.any():
                continue
            given, within = self._given(labels_NS[members], predicted[members]), folds[members]
            of_members = None if groups is None else groups[members]
            c_index = c_index_in_resamples(*given, strata=within)
            interval = bootstrap(partial(_named, c_index), int(members.sum()), of_members, rng)
            counts = counted(*given[:2], strata=within)
            rows.append({"cohort": name, **counts, **with_intervals(interval, [self.leading])})
        return pd.DataFrame(rows)

    @staticmethod
    def _given(labels_NS: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return event times, events and risks."""
        return labels_NS[:, 0], labels_NS[:, 1].astype(bool), predicted[:, 0]

    def _options(self, labels_NS: np.ndarray, predicted: np.ndarray, folds: np.ndarray) -> dict[str, Any]:
        """Return what the scores need beside risks; the censoring is that of these rows."""
        strata = _strata(labels_NS, folds)
        by_cohort = strata if len(self.target.cohorts) > 1 else None
        told = np.isfinite(predicted[:, 1:]).all()
        return {
            "strata": strata,
            "censoring": Censoring.of(labels_NS[:, 0], labels_NS[:, 1].astype(bool), by_cohort),
            "horizon": self.target.horizon,
            "curves": PredictedCurves(np.asarray(self.target.times), predicted[:, 1:]) if told else None,
        }

    def written(self, labels_NS: np.ndarray) -> dict[str, np.ndarray]:
        """Return event times, events and, of several, cohorts."""
        columns = {"event_time": labels_NS[:, 0], "event": labels_NS[:, 1].astype(int)}
        return columns | ({"cohort": self._cohort_names(labels_NS)} if self.target.cohorts else {})

    def written_prediction(self, predicted: np.ndarray) -> np.ndarray:
        """Return the risks."""
        return predicted[:, 0]

    def tables(
        self, scored: Mapping[str, SurvivalScored], names: "pd.Index[Any]", predicted: np.ndarray, ours: str
    ) -> dict[str, pd.DataFrame]:
        """Return the survival that the fine-tuned network tells; of several cohorts the scores of each."""
        columns = [f"{time:g}" for time in self.target.times]
        tables = {"probabilities": pd.DataFrame(predicted[:, 1:], index=names, columns=columns)}
        if len(self.target.cohorts) > 1:
            of_methods = pd.concat({name: one.per_cohort for name, one in scored.items()}, names=["method"])
            tables["per_cohort"] = of_methods.reset_index("method").reset_index(drop=True)
        return tables

    def caution(self, predictions: pd.DataFrame) -> str | None:
        """Say where there are fewer than ten events, of which no score says much, or follow-up ends too early."""
        n_events, rows = int(predictions["event"].sum()), f"test {predictions.columns[0]}s"
        if n_events < FEWEST_EVENTS:
            return f"Only {n_events} of {len(predictions)} {rows} have the event; no score says much"
        times, n_late = self._without_follow_up(predictions)
        said = []
        if n_late:
            said.append(
                f"Uno's C leaves out {n_late} of {n_events} events, as with an earlier end: when they come, some "
                f"cohort's or fold's {rows} are no longer followed"
            )
        if times:
            told = f"{len(times)} of {len(self.target.times)} times ({', '.join(f'{time:g}' for time in times)})"
            said.append(f"Brier scores leave out {told}: there some cohort's or fold's {rows} are no longer followed")
        return "; ".join(said) or None

    def _without_follow_up(self, predictions: pd.DataFrame) -> tuple[list[float], int]:
        """Return the target's times at which there is no Brier score, and the events that have no weight in Uno's C."""
        codes = {name: predictions[name].factorize()[0] for name in ("cohort", "fold") if name in predictions}
        zeros = np.zeros(len(predictions))
        labels = predictions["event_time"], predictions["event"], codes.get("cohort", zeros)
        labels_NS = np.column_stack(labels).astype(float)
        options = self._options(labels_NS, zeros[:, None], codes.get("fold", zeros))
        how = {name: options[name] for name in ("censoring", "strata")}
        followed = are_followed(labels_NS[:, 0], np.asarray(self.target.times), **how)
        times = [time for time, is_followed in zip(self.target.times, followed, strict=True) if not is_followed]
        return times, n_without_weight(labels_NS[:, 0], labels_NS[:, 1], **how)

    @property
    def asked(self) -> str:
        """What is learned, for the title of a page."""
        return f"survival ({self.target.name})"

    @property
    def scores_in_words(self) -> str:
        """What the scores mean, and which way is better."""
        return (
            "C-index: of two patients, how often the one with the higher risk has the event first; 0.5 is chance, 1 "
            f"perfect. The horizon is {self.target.horizon:g} (unit of {self.target.time}). Of Brier scores and the "
            "calibration error less is better."
        )

    def figures(self, tables: Mapping[str, pd.DataFrame], tested: str, ours: str) -> "dict[str, Figure]":
        """Draw how thirds by risk fare, and whether survival at the horizon is what it is said to be."""
        predictions, probabilities = tables["predictions"], tables["probabilities"]
        given = predictions["event_time"].to_numpy(), predictions["event"].to_numpy(dtype=bool)
        within = predictions[[name for name in ("cohort", "fold") if name in predictions]]
        strata = within.groupby(list(within)).ngroup().to_numpy() if len(within.columns) else None
        figures = {
            "risk_groups": risk_groups_figure(
                *given, predictions[ours].to_numpy(), strata=strata, unit_of=self.target.time
            )
        }
        at_horizon = probabilities[f"{self.target.horizon:g}"].to_numpy()
        if np.isfinite(at_horizon).all():
            figures["calibration"] = calibration_figure(calibration(*given, at_horizon, self.target.horizon))
        return figures

    def sections(self, tested: str, pictures: "Mapping[str, Figure]") -> list[Section]:
        """Say what the pictures of survival show."""
        name = self.target.name
        sections = [
            Section(
                f"{name}: does the risk part those who fare well from others",
                f"Test {tested} in thirds by the fine-tuned model's risk, within their cohort and fold; how many are "
                "without the event over time (Kaplan–Meier).",
                "What the model adds to age, stage and other clinical columns: compare the rows of the table.",
                figure=pictures["risk_groups"],
            )
        ]
        if "calibration" in pictures:
            sections.append(
                Section(
                    f"{name}: can the predicted survival be believed",
                    f"Predicted against observed share without the event at {self.target.horizon:g} (unit of "
                    f"{self.target.time}), by groups of "
                    "predicted survival. On the diagonal the number means what it says.",
                    "Calibration in other cohorts, where it is usually worse.",
                    figure=pictures["calibration"],
                )
            )
        return sections


def _named(c_index: Callable[[np.ndarray], np.ndarray], weights_NR: np.ndarray) -> Statistics:
    return {"c_index": c_index(weights_NR)}


def _strata(labels_NS: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Number the cohorts of each fold: only rows of one are compared."""
    return np.unique(np.stack([labels_NS[:, 2], folds], axis=1), axis=0, return_inverse=True)[1].ravel()
