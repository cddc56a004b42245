"""Labels that are responses of samples to drugs.

The score by which methods are compared is the correlation that is left when the naive mean effects are taken off truth
and prediction (`pearson_global_normalised`): whoever knows the potency of drugs has 0.8 or 0.9 over all pairs and says
nothing that a mean does not. It is the same question whatever is new in the test, a sample, a drug or both, where
correlation within a drug is trivial for new drugs (samples differ in sensitivity), and within a sample for new samples.
It does not forgive a model that is worse at the means, and, where training rows are few, it rewards one that trusts
them less: of ten rows, the overall mean may score above 0.

The naive prediction of each row is that of the method "mean effects", fitted on the training rows of its fold, in the
same table; without simple methods nothing is normalised, and nothing compared.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.finetuning.difference_tests import DifferenceTest, paired_test, unpaired_test
from geneformer_repro.finetuning.kinds.kind import Kind, Scored
from geneformer_repro.finetuning.kinds.numbers import fifths, mean_and_sd
from geneformer_repro.finetuning.kinds.response_figures import aggregations_figure, per_drug_figure, residuals_figure
from geneformer_repro.finetuning.kinds.response_methods import MEAN_EFFECTS, RESPONSE_METHODS
from geneformer_repro.finetuning.kinds.response_scores import (
    AGGREGATIONS,
    NORMALISED,
    Aggregation,
    Pairs,
    counts,
    evaluate_responses,
    named,
    response_statistics,
    scores_of_groups,
)
from geneformer_repro.finetuning.metrics import once
from geneformer_repro.report import Section
from geneformer_repro.targets import Response, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ResponseScored(Scored):
    """What one method reached on the test rows, over all and in each group."""

    by_group: Mapping[Aggregation, pd.DataFrame]
    """From `scores_of_groups`."""


class ResponseLabels(Kind[Response]):
    """Responses: scored within samples, within drugs and over all, with and without the mean effects.

    Parameters
    ----------
    target
        Of these labels.
    naive
        What the mean effects predict for the rows that are scored, (rows,); see `beside`.
    """

    leading = f"pearson_global{NORMALISED}"
    spelled = {  # noqa: RUF012
        leading: "residual correlation",
        "pearson_within_drug": "r within drugs",
        "pearson_within_sample": "r within samples",
    }
    on_page = {  # noqa: RUF012
        leading: "residual correlation",
        "pearson_within_drug": "r within drugs",
        f"pearson_within_drug{NORMALISED}": "residual r within drugs",
        "pearson_within_sample": "r within samples",
        f"pearson_within_sample{NORMALISED}": "residual r within samples",
        "pearson_global": "r over all pairs",
        "rmse_within_drug": "RMSE within drugs",
        "rmse_global": "RMSE over all pairs",
    }
    strata_are_classes = False
    scores_in_words = (
        "Residual correlation is that of truth and prediction with the mean effects of samples and drugs taken off "
        "both; r within drugs is over the samples of a drug, the mean over drugs, and r within samples over the drugs "
        "of a sample. 0 is chance, 1 perfect. RMSE is in the unit of the response."
    )

    def __init__(self, target: Response, naive: np.ndarray | None = None) -> None:
        super().__init__(target)
        self._naive = naive

    @property
    def asked(self) -> str:
        """What is learned, for the title of a page."""
        return f"response to drugs ({self.target.measure})"

    def scaled(self, labels_NS: np.ndarray) -> Response:
        """Return the target with mean and sd of these values."""
        mean, sd = mean_and_sd(self.target.name, labels_NS[:, 0])
        return replace(self.target, mean=mean, sd=sd)

    def strata(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return in which fifth of the values each is."""
        return fifths(labels_NS[:, 0])

    def content(self, labels_NS: np.ndarray) -> bytes:
        """Return values, and numbers of sample, drug and tissue."""
        return np.ascontiguousarray(labels_NS).tobytes()

    def simple_methods(
        self, features: Any, train_rows: np.ndarray, labels_NS: np.ndarray, test_rows: np.ndarray, seed: int
    ) -> dict[str, Callable[[], np.ndarray | None]]:
        """Return methods that give responses, from `PairInputs`."""
        given = (features, train_rows, labels_NS[:, 0], test_rows, seed)
        return {name: partial(method, *given) for name, method in RESPONSE_METHODS.items()}

    def beside(self, predicted: Mapping[str, np.ndarray]) -> "ResponseLabels":
        """Return the kind that knows what the mean effects predict for the rows that are scored."""
        return ResponseLabels(self.target, predicted.get(MEAN_EFFECTS))

    def as_predicted(self, meaning_NK: np.ndarray) -> np.ndarray:
        """Return the response of each row, (rows,), in the unit of the measure."""
        return meaning_NK[:, 0]

    def from_another(self, other: Target, meaning_NK: np.ndarray) -> np.ndarray | None:
        """Return the responses of a target with the same measure; None of any other."""
        same = isinstance(other, Response) and other.measure == self.target.measure
        return meaning_NK[:, 0] if same else None

    def scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return the scores of one fold, without intervals; NaN where a prediction is not finite."""
        if not np.isfinite(predicted).all():
            return {self.leading: np.nan}
        statistics = response_statistics(_pairs(labels_NS), predicted, naive=self._naive)
        return {name: value.item() for name, value in statistics(once(len(labels_NS))).items()}

    def validation_scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return the root of the mean squared error, and the correlation over all rows, 0 where it is not defined."""
        statistics = response_statistics(_pairs(labels_NS), predicted, aggregations=["global"])
        scores = {name: value.item() for name, value in statistics(once(len(labels_NS))).items()}
        return {"rmse": scores["rmse_global"], "pearson": float(np.nan_to_num(scores["pearson_global"]))}

    def merit(self, scores: Mapping[str, float]) -> float:
        """Return the share of the training values' variance that is explained, as the loss has it."""
        return 1 - (scores["rmse"] / self.target.sd) ** 2

    def leading_score(
        self, labels_NS: np.ndarray, predicted: np.ndarray, *, folds: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return the correlation beyond the mean effects as a function of weights; NaN without these."""
        if self._naive is None:
            return lambda weights_NR: np.full(weights_NR.shape[1], np.nan)
        statistics = response_statistics(
            _pairs(labels_NS, folds), predicted, naive=self._naive, aggregations=["global"]
        )
        return lambda weights_NR: statistics(weights_NR)[self.leading]

    def evaluate(
        self,
        labels_NS: np.ndarray,
        predicted: np.ndarray,
        *,
        folds: np.ndarray,
        groups: np.ndarray | None,
        rng: np.random.Generator,
    ) -> ResponseScored:
        """Score responses at all aggregations, and count the groups that have no score."""
        pairs = _pairs(labels_NS, folds)
        scores = evaluate_responses(pairs, predicted, naive=self._naive, groups=groups, rng=rng)
        by_group = {
            aggregation: scores_of_groups(pairs, predicted, naive=self._naive, aggregation=aggregation)
            for aggregation in AGGREGATIONS
        }
        lacking = {} if self.leading in scores else {f"{self.leading}{end}": np.nan for end in ("", "_low", "_high")}
        return ResponseScored({**scores, **lacking, **counts(by_group)}, by_group)

    def written(self, labels_NS: np.ndarray) -> dict[str, np.ndarray]:
        """Return sample, drug and value."""
        _, samples, drugs, _ = labels_NS.T
        return {
            "sample": _names(samples, self.target.samples),
            "drug": _names(drugs, self.target.drugs),
            "true": labels_NS[:, 0],
        }

    def written_prediction(self, predicted: np.ndarray) -> np.ndarray:
        """Return the responses."""
        return predicted

    def tables(
        self, scored: Mapping[str, ResponseScored], names: "pd.Index[Any]", predicted: np.ndarray, ours: str
    ) -> dict[str, pd.DataFrame]:
        """Return the scores of every sample and drug, and tests of differences between methods."""
        parts = {
            (method, aggregation): table.assign(
                group=_names(table["number"].to_numpy(), self._names_of(aggregation)), fold=table["fold"] + 1
            )
            for method, one in scored.items()
            for aggregation, table in one.by_group.items()
        }
        per_group = pd.concat(parts, names=["method", "aggregation"]).reset_index([0, 1]).reset_index(drop=True)
        per_group.insert(3, "group", per_group.pop("group"))
        return {
            "per_group": per_group.drop(columns="number"),
            "difference_tests": pd.DataFrame(_difference_tests(scored, ours)),
        }

    def _names_of(self, aggregation: Aggregation) -> tuple[str, ...]:
        return {"within_sample": self.target.samples, "within_drug": self.target.drugs}.get(aggregation, ("all",))

    def caution(self, predictions: pd.DataFrame) -> str | None:
        """Say that nothing is compared where there are no mean effects."""
        if MEAN_EFFECTS in predictions:
            return None
        return "Without the simple methods there are no mean effects, so no score says what is predicted beyond them"

    def figures(self, tables: Mapping[str, pd.DataFrame], tested: str, ours: str) -> "dict[str, Figure]":
        """Draw the scores at all aggregations, what is predicted beyond the mean effects, and each drug."""
        figures = {"aggregations": aggregations_figure(tables["methods"], ours, MEAN_EFFECTS)}
        predictions, per_group = tables["predictions"], tables["per_group"]
        if MEAN_EFFECTS in predictions and ours != MEAN_EFFECTS:
            left = predictions[["true", ours]].sub(predictions[MEAN_EFFECTS], axis=0)
            figures["residuals"] = residuals_figure(*left.to_numpy().T, measure=self.target.measure)
        of_drugs = per_group[(per_group["method"] == ours) & (per_group["aggregation"] == "within_drug")]
        figures["per_drug"] = per_drug_figure(of_drugs.groupby("group")["pearson"].mean())
        return figures

    def sections(self, tested: str, pictures: "Mapping[str, Figure]") -> list[Section]:
        """Say what the pictures of responses show."""
        name, says = self.target.name, {
            "aggregations": (
                "which drug for this sample, and whom does this drug help",
                "Correlation of predicted and true responses over the drugs of a sample, over the samples of a drug, "
                "and over all pairs, of a fold each; with the mean effects taken off, and of the mean effects alone.",
                "A benefit for anyone: order within a sample is mostly the potency of drugs, which all samples share.",
            ),
            "residuals": (
                "what is predicted beyond the mean effects",
                f"Test {tested}: response less the mean effects', true and predicted. Without a slope the model says "
                "nothing that the means of training rows do not.",
                "How much of what is left could be predicted at all: replicates differ, too.",
            ),
            "per_drug": (
                "each drug",
                "Correlation over the samples of each drug, the mean over folds.",
                "Drugs with few samples well: their correlations scatter widely.",
            ),
        }  # fmt: skip
        return [
            Section(f"{name}: {title}", shows, does_not, figure=pictures[picture])
            for picture, (title, shows, does_not) in says.items()
            if picture in pictures
        ]


def _pairs(labels_NS: np.ndarray, folds: np.ndarray | None = None) -> Pairs:
    true, samples, drugs, _ = labels_NS.T
    return Pairs(true, samples, drugs, np.zeros(len(true)) if folds is None else folds)


def _names(numbers_N: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Return names by number; the numbers where there are no names."""
    numbers = numbers_N.astype(int)
    return np.array(names, dtype=object)[numbers] if names else numbers


def _difference_tests(scored: Mapping[str, ResponseScored], ours: str) -> Iterator[dict[str, Any]]:
    """Yield tests of every method against the mean effects, and of ours against every method."""
    compared = [(name, MEAN_EFFECTS) for name in scored] + [(ours, name) for name in scored]
    for method, other in dict.fromkeys(compared):
        if method == other or other not in scored:
            continue
        for aggregation in AGGREGATIONS:
            both = [scored[name].by_group[aggregation] for name in (method, other)]
            for score in (name for name in ("pearson", f"pearson{NORMALISED}") if name in both[0]):
                for test, result in _tests(*(table[["fold", "number", "n", score]] for table in both)):
                    columns = {**result._asdict(), "direction": result.direction}
                    yield {
                        "method": method,
                        "other": other,
                        "score": named(score, aggregation),
                        "test": test,
                        **columns,
                    }


def _tests(first: pd.DataFrame, second: pd.DataFrame) -> Iterator[tuple[str, DifferenceTest]]:
    """Yield the tests of two methods' scores of the same groups: over samples or drugs, and over folds."""
    score = first.columns[-1]
    if first["number"].nunique() > 1:
        yield "paired, groups", paired_test(*(_mean_by(table, "number", score) for table in (first, second)))
    n_rows = first.groupby("fold")["n"].sum()
    if len(n_rows) > 1:
        of_folds = [_mean_by(table, "fold", score) for table in (first, second)]
        ratio = float((n_rows / (n_rows.sum() - n_rows)).mean())
        yield "corrected, folds", paired_test(*of_folds, test_to_train=ratio)
        yield "paired, folds", paired_test(*of_folds)
        yield "unpaired, folds", unpaired_test(*of_folds)


def _mean_by(table: pd.DataFrame, by: str, score: str) -> np.ndarray:
    return table.groupby(by)[score].mean().to_numpy()
