"""What each method reached on the test cells, with intervals, as tables."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.finetuning.difference_tests import SIGNIFICANT
from geneformer_repro.finetuning.group_scores import (
    FEW_GROUPS,
    are_of_groups,
    over_groups,
    rows_of_groups,
    scores_in_groups,
)
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM, Kind
from geneformer_repro.finetuning.metrics import differences, over_folds
from geneformer_repro.targets import Target

logger = logging.getLogger(__name__)

VS_BEST = "_vs_best_simple"
INDEXED = ("methods", "confusion", "probabilities", "methods_by_group", "within_groups")
"""Tables whose index is written as well."""
TABLES = (
    *INDEXED,
    "predictions",
    "folds",
    "per_class",
    "confusion_intervals",
    "reliability",
    "per_cohort",
    "predictions_by_group",
    "per_group",
    "difference_tests",
    "block_use",
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well one target was predicted; all methods on the same test cells."""

    target: Target
    """What was predicted."""
    methods: pd.DataFrame
    """A row a method: each score with ``_low`` and ``_high`` (95 % bootstrap interval). Where there are simple methods,
    at the end ``SCORE_vs_best_simple``, with both: by how much the score (macro-F1, or R² of a number) is above that of
    the simple method in which it is highest, on the same resamples; 0 for this method itself."""
    predictions: pd.DataFrame
    """A row a test cell: ``cell``, ``fold`` (of several), ``true``, and each method's prediction. Of folds that are
    dealt several times a row a cell and ``repeat``, which stands after the fold."""
    folds: pd.DataFrame | None = None
    """Over the folds, of several: ``method``, ``score``, ``mean``, ``sd``, ``n``; without folds of one class."""
    probabilities: pd.DataFrame | None = None
    """The fine-tuned model's, a row a test cell, a column a class; of survival to be free of the event, a column a
    time. None for a number, as what follows."""
    per_class: pd.DataFrame | None = None
    """``method``, ``class``, ``n``, and precision, recall, F1, AUROC and AUPRC with intervals."""
    confusion: pd.DataFrame | None = None
    """Test cells by true and predicted class, of the fine-tuned model."""
    confusion_intervals: pd.DataFrame | None = None
    """``true``, ``predicted``, ``n``, ``share`` of the true class, with its interval."""
    reliability: pd.DataFrame | None = None
    """``method``, and for each bin of confidence its mean, the ``accuracy`` there with its interval, and ``n``."""
    per_cohort: pd.DataFrame | None = None
    """Of survival in several cohorts: ``method``, ``cohort``, ``n``, ``n_events``, ``n_pairs``, C-index."""
    per_group: pd.DataFrame | None = None
    """Of responses: ``method``, ``aggregation``, ``fold``, ``group`` (the sample, or drug), ``n``, and its scores. Of
    classes and numbers that differ within groups, such as donors: ``method``, ``group``, ``n``, and its scores."""
    difference_tests: pd.DataFrame | None = None
    """Of responses: ``method``, ``other``, ``score``, ``test``, and of what is tested the ``difference``, ``t``, ``p``,
    ``n`` and ``direction``."""
    block_use: pd.DataFrame | None = None
    """Of networks that look at several blocks of inputs (`block_use.uses_of_blocks`): ``method``, ``block``, ``score``,
    and its ``fall`` (``low``, ``high``) once the block is dealt out anew among test rows."""
    networks: tuple[str, ...] = (FINE_TUNED, RANDOM)
    """Methods that are no simple ones; tables of one method are of the first."""
    reference: str | None = None
    """A network that all methods are compared with as well: ``SCORE_vs_REFERENCE`` in `methods`."""
    group: str | None = None
    """What groups are called, such as the column of donors, where rows have some."""
    by_group: "Evaluation | None" = None
    """Where all rows of a group have one label: the same of groups, each predicted as the mean of its rows."""
    within_groups: pd.DataFrame | None = None
    """Where labels differ within groups: how scores lie over groups, see `group_scores.over_groups`."""

    @property
    def ours(self) -> str:
        """The method that is asked about."""
        return self.networks[0]

    @property
    def leading(self) -> str:
        """The score by which methods are compared."""
        return self.kind.leading

    @property
    def kind(self) -> Kind[Any]:
        """What such labels are."""
        return kind_of(self.target)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables that there are, by the names of their files."""
        of_groups = self.by_group
        named = {name: getattr(self, name) for name in TABLES if not name.endswith("_by_group")}
        if of_groups is not None:
            named |= {"methods_by_group": of_groups.methods, "predictions_by_group": of_groups.predictions}
        return {name: table for name, table in named.items() if table is not None}

    @property
    def caution(self) -> str | None:
        """What the test rows cannot tell, in a sentence: all of them, or of a fold, are of one class, or a class lacks.

        None where nothing lacks.
        """
        return self.kind.caution(self.predictions)

    @property
    def verdict(self) -> str | None:
        """Whether fine-tuning was worth it, in a sentence; None where there is nothing to compare with.

        "Better" and "worse" where 0 is outside of the interval of the difference to the best simple method.
        """
        best = _best_simple(self.methods[self.leading], self.networks)
        return None if best is None else self._compared(best, VS_BEST)

    @property
    def verdicts(self) -> list[str]:
        """The `verdict`, the same of the difference to `reference`, and of groups, where there are such."""
        to_reference = None if self.reference is None else self._compared(self.reference, vs(self.reference))
        return [sentence for sentence in (self.verdict, to_reference, self.verdict_of_groups) if sentence]

    @property
    def verdict_of_groups(self) -> str | None:
        """What groups say, in a sentence: of a donor's mean prediction, or of the scores within donors; None without.

        Within groups "better" and "worse" where a paired t-test over groups has p < 0.05.
        """
        if self.by_group is not None:
            n = self.by_group.predictions.iloc[:, 0].nunique()
            said = self.by_group.verdict or self.by_group.caution
            return said and f"over {n} groups of {self.group!r} (mean of each){_rough(n)}, {said}"
        column, best = f"{self.leading}{VS_BEST}", _best_simple(self.methods[self.leading], self.networks)
        if self.within_groups is None or column not in self.within_groups:
            return None
        names = ["n_groups", "n_above", "p_value", column, f"{column}_lowest", f"{column}_highest"]
        n_groups, n_above, p, difference, lowest, highest = map(float, self.within_groups.loc[self.ours, names])
        judged = "no clear difference" if not p < SIGNIFICANT else "better" if difference > 0 else "worse"
        where, score = f"{n_groups:.0f} groups of {self.group!r}{_rough(n_groups)}", self.kind.spelled[self.leading]
        ends = f"({_signed(lowest)} to {_signed(highest)}; median and range)"
        return (
            f"within {where}, {self.ours} less {best} is {_signed(difference)} {score} {ends}, above 0 in "
            f"{n_above:.0f}: {judged}"
        )

    def _compared(self, other: str, suffix: str) -> str | None:
        columns = [f"{self.leading}{suffix}{end}" for end in ("", "_low", "_high")]
        if columns[0] not in self.methods or self.methods.loc[self.ours, columns].isna().any():
            return None
        difference, low, high = map(float, self.methods.loc[self.ours, columns])
        judged = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        where = "above"
        if difference < 0:
            where, difference, low, high = "below", -difference, -high, -low
        by_how_much = f"{_signed(difference)} ({_signed(low)} to {_signed(high)})"
        return f"{self.ours} is {by_how_much} {self.kind.spelled[self.leading]} {where} {other}: {judged}"


def evaluate_target(
    target: Target,
    names: np.ndarray,
    labels: np.ndarray,
    predicted: Mapping[str, np.ndarray | None],
    *,
    folds: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
    repeats: np.ndarray | None = None,
    named: str = "cell",
    group: str | None = None,
    networks: Sequence[str] = (FINE_TUNED, RANDOM),
    reference: str | None = None,
    block_use: pd.DataFrame | None = None,
) -> Evaluation:
    """Score every method on the test cells that have a label.

    Parameters
    ----------
    target
        What was predicted.
    names
        Name of each test cell.
    labels
        Class number, number, or time, event and cohort of each; NaN where not known; (cells,), or (cells, numbers of a
        label).
    predicted
        By method: what its kind predicts, a row a cell; None where it could not run.
    folds
        The fold in which each was tested, from 0.
    groups
        What the intervals resample as wholes; None resamples cells.
    seed
        Of the resampling, the same for every method.
    repeats
        The repeat in which each was tested, from 0, of folds that are dealt several times; None where they are once.
    named
        What a row is called.
    group
        What groups are called, if methods are to be scored by group as well.
    networks
        Methods that are no simple ones, the one that is asked about first.
    reference
        A method that all are compared with, beside the best simple one.
    block_use
        As in `Evaluation`.
    """
    labels_NS = labels.reshape(len(labels), -1)
    known = ~np.isnan(labels_NS).any(axis=1)
    repeats = np.zeros_like(folds) if repeats is None else repeats
    names, labels_NS, folds, repeats = names[known], labels_NS[known], folds[known], repeats[known]
    groups = None if groups is None else groups[known]
    ran = {name: one[known] for name, one in predicted.items() if one is not None}
    kind, several = kind_of(target).beside(ran), bool(folds.max() > 0)
    scored = {
        name: kind.evaluate(labels_NS, one, folds=folds, groups=groups, rng=np.random.default_rng(seed))
        for name, one in ran.items()
    }
    rows = [scored[name].scores if name in scored else {} for name in predicted]
    methods = pd.DataFrame(rows, index=pd.Index(list(predicted), name="method"))
    dealt = {"fold": folds + 1} if several else {}
    dealt |= {"repeat": repeats + 1} if repeats.max() > 0 else {}
    columns = {named: names, **dealt, **kind.written(labels_NS)}
    compared = {VS_BEST: _best_simple(methods[kind.leading], networks)}
    if reference is not None and not np.isnan(methods[kind.leading].to_dict()[reference]):
        compared[vs(reference)] = reference
    score_of = {name: kind.leading_score(labels_NS, one, folds=folds) for name, one in ran.items()}
    for suffix, other in compared.items():
        if other is not None:
            found = differences(score_of, other, n_rows=len(names), groups=groups, rng=np.random.default_rng(seed))
            columns_of = {name: one.columns(f"{kind.leading}{suffix}") for name, one in found.items()}
            methods = methods.join(pd.DataFrame.from_dict(columns_of, orient="index").astype(float))
    evaluation = Evaluation(
        target,
        methods,
        pd.DataFrame(columns | {name: kind.written_prediction(one) for name, one in ran.items()}),
        _over_folds(kind, folds, labels_NS, ran) if several else None,
        **kind.tables(scored, pd.Index(names, name=named), ran[networks[0]], networks[0]),
        block_use=block_use,
        networks=tuple(networks),
        reference=reference,
        group=None,
        by_group=None,
    )
    if group is None or groups is None or not kind.has_means:
        return evaluation
    return _with_groups(evaluation, group, labels_NS, ran, groups=groups, folds=folds, repeats=repeats, seed=seed)


def _with_groups(
    found: Evaluation,
    group: str,
    labels_NS: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray,
    folds: np.ndarray,
    repeats: np.ndarray,
    seed: int,
) -> Evaluation:
    """Add what groups say: at least two, one of several rows, and labels of more than one value."""
    of_fold = pd.MultiIndex.from_arrays([folds, groups])
    if len(np.unique(groups)) < 2 or of_fold.is_unique or len(np.unique(labels_NS, axis=0)) < 2:
        return found
    if not are_of_groups(labels_NS, groups):
        per_group = scores_in_groups(found.kind, labels_NS, predicted, groups=groups, folds=folds)
        best = _best_simple(found.methods[found.leading], found.networks)
        table = over_groups(per_group, leading=found.leading, best=best)
        return replace(found, group=group, per_group=per_group, within_groups=table)
    rows = rows_of_groups(labels_NS, predicted, groups=groups, folds=folds, repeats=repeats)
    named = group if group not in ("fold", "repeat", "true", *predicted) else "group"
    by_group = evaluate_target(
        found.target,
        rows.names,
        rows.labels_GS,
        rows.predicted,
        folds=rows.folds,
        groups=rows.names,
        seed=seed,
        repeats=rows.repeats,
        named=named,
        networks=found.networks,
    )
    return replace(found, group=group, by_group=by_group)


def _rough(n_groups: float) -> str:
    return ", too few to rely on" if n_groups < FEW_GROUPS else ""


def vs(reference: str) -> str:
    """Return what follows the score in names of columns of differences to a method."""
    return f"_vs_{reference.replace(' ', '_').replace('-', '_')}"


def _best_simple(scores: pd.Series, networks: Sequence[str]) -> str | None:
    """Return the method that is best but for the networks; the first of equals."""
    simple = scores.drop(list(networks), errors="ignore").dropna()
    return str(simple.idxmax()) if len(simple) else None


def _signed(value: float) -> str:
    return f"{value:z.2f}".replace("-", "−")


def log_verdicts(evaluations: Iterable[Evaluation]) -> None:
    """Say in the log of every target whether fine-tuning was worth it, or why that cannot be told."""
    for evaluation in evaluations:
        if processes.is_first() and evaluation.caution:
            logger.warning("%s: %s.", evaluation.target.name, evaluation.caution)
        for verdict in evaluation.verdicts if processes.is_first() else []:
            logger.info("%s: %s.", evaluation.target.name, verdict)


def _over_folds(
    kind: Kind[Any], folds: np.ndarray, labels_NS: np.ndarray, predicted: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    of_folds: dict[str, list[dict[str, float]]] = {name: [] for name in predicted}
    for members in (folds == fold for fold in np.unique(folds)):
        of_fold = {name: one[members] for name, one in predicted.items()}
        scoring = kind.beside(of_fold)
        for name, one in of_fold.items():
            of_folds[name].append(scoring.scores(labels_NS[members], one))
    of_method = {name: over_folds(scores) for name, scores in of_folds.items()}
    return pd.concat(of_method, names=["method"]).reset_index()
