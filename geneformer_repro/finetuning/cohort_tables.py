"""What transfer was worth over all cohorts: the unit is the cohort, not the patient.

Wins are counted (sign test), differences ranked (Wilcoxon), and their mean has an interval over cohorts. Networks that
go on from the same other cohorts are no independent trials: p-values over cohorts are somewhat too small.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, spearmanr, t, wilcoxon

from geneformer_repro.finetuning.curve import over_draws
from geneformer_repro.finetuning.evaluation import Evaluation, vs
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED

SCRATCH, ZERO_SHOT, HEAD_ONLY, DISCRIMINATIVE = "scratch", "zero-shot", "head only", "discriminative"
WITH_CLINICAL = "fine-tuned, with clinical columns"
COMPONENTS, CLINICAL = "Cox ridge, PCA", "Cox, clinical"
_COMPARED = (
    (FINE_TUNED, SCRATCH),
    (ZERO_SHOT, SCRATCH),
    (HEAD_ONLY, SCRATCH),
    (DISCRIMINATIVE, SCRATCH),
    (FINE_TUNED, COMPONENTS),
    (SCRATCH, COMPONENTS),
    (FINE_TUNED, CLINICAL),
    (WITH_CLINICAL, CLINICAL),
    (WITH_CLINICAL, FINE_TUNED),
)
"""What is compared over all cohorts; the last two say whether expression adds to clinical columns, and these to it."""
_OVER_COHORTS = (
    "method", "other", "cohorts", "wins", "difference", "difference_low", "difference_high", "p_sign", "p_wilcoxon",
    "size_correlation", "p_size",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class CohortStudy:
    """What a study found.

    See Also
    --------
    transfer_study : Makes it.

    Examples
    --------
    >>> import dataclasses
    >>> import geneformer_repro as gf
    >>> [field.name for field in dataclasses.fields(gf.CohortStudy)]
    ['cohorts', 'comparisons', 'evaluations', 'trials', 'cost', 'left_out', 'curve']
    """

    cohorts: pd.DataFrame
    """A row a cohort: what transfer was worth in it (see `cohort_table`)."""
    comparisons: pd.DataFrame
    """A row a pair of methods: which is better over all cohorts (see `compare_over_cohorts`)."""
    evaluations: Mapping[str, Evaluation]
    """By cohort, what each method reached."""
    trials: pd.DataFrame
    """The trials of the searches: ``cohort`` that was left out, settings, scores on validation samples of others."""
    cost: pd.DataFrame
    """Over the splits of a cohort the median of what each network took: ``cohort``, ``method``, ``steps`` to the best
    score on validation samples, ``seconds`` of the processor for all its rates; and the ``learning_rate`` that was best
    in most splits, of equals the lowest."""
    left_out: pd.DataFrame
    """Cohorts that were no target: ``cohort``, ``n``, ``n_events``, ``why``. They are learned from all the same."""
    curve: pd.DataFrame | None = None
    """The learning curves, if asked for: ``cohort``, ``method``, ``n``, ``draw`` and scores."""

    @property
    def target(self) -> str:
        """The obs column of the event."""
        return next(iter(self.evaluations.values())).target.name

    @property
    def methods(self) -> pd.DataFrame:
        """A row a method, with its C-index in every cohort, and their ``mean``."""
        return methods_table(self.evaluations).set_index("method")

    @property
    def block_use(self) -> pd.DataFrame | None:
        """A row a cohort and block of inputs: what the network with clinical columns makes of it; None without such."""
        uses = {cohort: one.block_use for cohort, one in self.evaluations.items() if one.block_use is not None}
        return pd.concat(uses, names=["cohort"]).reset_index("cohort").reset_index(drop=True) if uses else None


def cohort_table(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return what transfer was worth in each cohort.

    Parameters
    ----------
    evaluations
        By cohort.

    Returns
    -------
    A row a cohort, the largest first: ``cohort``, ``n``, ``n_events``, the C-index ``c_scratch``, ``c_zero_shot`` and
    ``c_fine_tuned``, and ``difference`` (fine-tuned less scratch) with ``difference_low`` and ``difference_high``
    (95 %, paired bootstrap over patients) and ``p`` (two-sided, from the width of that interval).
    """
    rows = []
    for cohort, evaluation in evaluations.items():
        methods = evaluation.methods
        columns = [f"{evaluation.leading}{vs(SCRATCH)}{end}" for end in ("_low", "", "_high")]
        low, difference, high = map(float, methods.loc[FINE_TUNED, columns].to_numpy(dtype=float))
        predictions = evaluation.predictions.drop_duplicates(evaluation.predictions.columns[0])
        rows.append(
            {
                "cohort": cohort,
                "n": len(predictions),
                "n_events": int(predictions["event"].sum()),
                **{
                    f"c_{name.replace('-', '_')}": methods.loc[name, evaluation.leading]
                    for name in (SCRATCH, ZERO_SHOT, FINE_TUNED)
                },
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
                "p": _p_of_interval(difference, low, high),
            }
        )
    return pd.DataFrame(rows).sort_values("n", ascending=False, ignore_index=True)


def _p_of_interval(difference: float, low: float, high: float) -> float:
    error = (high - low) / (2 * norm.ppf(0.975))
    return float(2 * norm.sf(abs(difference) / error)) if error > 0 else float("nan")


def compare_over_cohorts(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return which of two methods is better over all cohorts.

    Returns
    -------
    A row a pair of methods: ``method``, ``other``, ``cohorts`` in which both ran, ``wins`` of the first, the mean
    ``difference`` of the C-index with ``difference_low`` and ``difference_high`` (95 %, Student's t over cohorts),
    two-sided ``p_sign`` (wins alone; ties are left out) and ``p_wilcoxon`` (signed ranks), and ``size_correlation``
    with ``p_size``: Spearman's of the difference with the number of patients, negative where small cohorts gain more.
    NaN with fewer than three cohorts; the last two also where all cohorts are of one size.
    """
    scores = pd.DataFrame({cohort: one.methods[one.leading] for cohort, one in evaluations.items()}).T
    sizes = pd.Series({cohort: len(one.predictions) for cohort, one in evaluations.items()})
    pairs = [(method, other) for method, other in _COMPARED if {method, other} <= set(scores)]
    return pd.DataFrame([_compared(scores, sizes, *pair) for pair in pairs], columns=_OVER_COHORTS)


def _compared(scores: pd.DataFrame, sizes: pd.Series, method: str, other: str) -> dict[str, Any]:
    difference = (scores[method] - scores[other]).dropna()
    n, wins, losses = len(difference), int((difference > 0).sum()), int((difference < 0).sum())
    row = {"method": method, "other": other, "cohorts": n, "wins": wins, "difference": difference.mean()}
    if n < 3:
        return row
    low, high = t.interval(0.95, n - 1, loc=difference.mean(), scale=difference.std() / np.sqrt(n))
    in_order = sizes[difference.index]
    varies = min(in_order.nunique(), difference.nunique()) > 1
    correlation, p_size = spearmanr(difference, in_order) if varies else (np.nan, np.nan)
    return {
        **row,
        "difference_low": low,
        "difference_high": high,
        "p_sign": binomtest(wins, wins + losses).pvalue if wins + losses else np.nan,
        "p_wilcoxon": wilcoxon(difference).pvalue if losses + wins else np.nan,
        "size_correlation": correlation,
        "p_size": p_size,
    }


def sentence(row: Any) -> str:
    """Say what a row of `compare_over_cohorts` says; also where wins and mean point to different methods."""
    judged = "no clear difference"
    if row.difference_low > 0 or row.difference_high < 0:
        judged = "better" if row.difference > 0 else "worse"
    wins_most = 2 * row.wins >= row.cohorts
    mean = f"by {row.difference:+.3f} C-index on average"
    if row.difference < 0 or not wins_most:
        side = "below" if row.difference < 0 else "above"
        mean = (
            f"{'but' if wins_most or side == 'above' else 'and'} {abs(row.difference):.3f} C-index {side} it on average"
        )
    return (
        f"{row.method} is above {row.other} in {row.wins} of {row.cohorts} cohorts, {mean} "
        f"({row.difference_low:+.3f} to {row.difference_high:+.3f}): {judged}"
    ).replace("-0.", "−0.")


def methods_table(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return the C-index of every method in every cohort: ``method``, a column a cohort, and their ``mean``."""
    scores = pd.DataFrame({cohort: one.methods[one.leading] for cohort, one in evaluations.items()})
    return scores.assign(mean=scores.mean(axis=1)).rename_axis("method").reset_index()


def needed(curve: pd.DataFrame, target: str) -> pd.DataFrame:
    """Return how many patients a fine-tuned network needs for the C-index that one from scratch reaches with all.

    Parameters
    ----------
    curve
        ``cohort``, and what `curve.learning_curve` returns.
    target
        Whose scores.

    Returns
    -------
    ``cohort``, ``n_scratch`` (all patients that can be learned from), ``c_scratch`` with them, and ``n_fine_tuned``
    needed for as much, on a line in log n between the sizes that were tried; NaN where no size reaches it, the smallest
    size where that does.
    """
    rows = []
    for cohort, of_cohort in curve.groupby("cohort", sort=False):
        means = over_draws(of_cohort, target, "c_index").set_index(["method", "n"])["score"]
        scratch, tuned = means[SCRATCH], means[FINE_TUNED]
        rows.append(
            {
                "cohort": cohort,
                "n_scratch": int(scratch.index[-1]),
                "c_scratch": scratch.iloc[-1],
                "n_fine_tuned": _reaching(tuned, scratch.iloc[-1]),
            }
        )
    return pd.DataFrame(rows)


def _reaching(scores: pd.Series, wanted: float) -> float:
    """Return where on the log scale a curve first reaches a score."""
    sizes, reached = np.log(scores.index.to_numpy(dtype=float)), scores.to_numpy() >= wanted
    if not reached.any():
        return float("nan")
    first = int(reached.argmax())
    if first == 0:
        return float(scores.index[0])
    low, high = scores.iloc[first - 1], scores.iloc[first]
    share = (wanted - low) / (high - low)
    return float(np.exp(sizes[first - 1] + share * (sizes[first] - sizes[first - 1])))
