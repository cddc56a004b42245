"""Labels that are numbers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.baselines import (
    BOOSTED_CELLS,
    Make,
    Method,
    PatientInputs,
    asked_in_blocks,
    boosted,
    fitted,
    nearest,
    on_components,
    on_few_genes,
    sample,
)
from geneformer_repro.finetuning.kinds.kind import GAP, Kind, Scored
from geneformer_repro.finetuning.metrics import (
    Statistics,
    bootstrap,
    correlation,
    once,
    ratio,
    require_finite,
    variance,
    with_intervals,
)
from geneformer_repro.report import BLUE, GREY, Section, new_axes
from geneformer_repro.targets import Number, Target
from geneformer_repro.tokenizer.labels import as_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER_SCORES = ("r2", "pearson", "spearman", "mae", "rmse")
_STRATA = 5
"""Parts of equal size into which a number is cut so that a split holds all of its range."""


def read_numbers(name: str, column: pd.Series) -> tuple[Number, np.ndarray]:
    """Read an obs column as numbers, NaN where there is none.

    Raises
    ------
    InputError
        It holds other than numbers, or fewer than two different ones.
    """
    numbers = numbers_in(name, column, "by regression, but: {}. Leave it out of regression to learn classes.")
    if len(np.unique(numbers[~np.isnan(numbers)])) < 2:
        raise InputError(f"obs column {name!r} has fewer than two different numbers; there is nothing to learn.")
    return Number(name), numbers


def numbers_in(name: str, column: pd.Series, otherwise: str) -> np.ndarray:
    """Return the numbers of an obs column, of truth values or of text, NaN where there is none.

    Raises
    ------
    InputError
        It holds something else, or infinite numbers; `otherwise` says to what end numbers are wanted, with {} for why.
    """
    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = as_labels(column)  # by whose rule text stands for a missing number too
    try:
        numbers = pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan)
    except (ValueError, TypeError) as error:
        wanted = otherwise.format(error)
        raise InputError(f"obs column {name!r} should hold numbers to be learned {wanted}") from error
    if np.isinf(numbers).any():
        raise InputError(f"obs column {name!r} holds infinite numbers (first: {column.index[np.isinf(numbers)][0]!r}).")
    return numbers


def mean_and_sd(name: str, numbers_N: np.ndarray) -> tuple[float, float]:
    """Return what scales a target: mean and standard deviation of the numbers that there are, 1 where they are equal.

    Raises
    ------
    InputError
        There are none; `name` says of which target.
    """
    given = numbers_N[~np.isnan(numbers_N)]
    if not len(given):
        raise InputError(f"No training cell has a number in {name!r}. Give more cells, or another split.")
    return float(given.mean()), float(given.std()) or 1.0


def fifths(numbers_N: np.ndarray) -> np.ndarray:
    """Return, as text, in which fifth of the numbers each is; `GAP` where there is none."""
    place = pd.Series(numbers_N).rank(method="first", pct=True)
    ranges = place.map(lambda share: f"range {np.ceil(share * _STRATA):.0f} of {_STRATA}", "ignore")
    return ranges.fillna(GAP).to_numpy()


class NumberLabels(Kind[Number]):
    """Numbers: scored by R² and more."""

    leading = "r2"
    spelled = {"r2": "R²", "spearman": "Spearman"}  # noqa: RUF012
    on_page = {  # noqa: RUF012
        "r2": "R²", "spearman": "Spearman", "pearson": "Pearson", "mae": "mean absolute error", "rmse": "RMSE"
    }  # fmt: skip
    scores_in_words = (
        "R² is the share of the variance that is told: 0 is no better than the mean, 1 perfect. Spearman is the "
        "correlation of ranks. Errors are in the unit of the label."
    )
    strata_are_classes = False
    has_means = True

    def scaled(self, labels_NS: np.ndarray) -> Number:
        """Return the target with mean and sd of these labels."""
        return Number(self.target.name, *mean_and_sd(self.target.name, labels_NS[:, 0]))

    def strata(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return in which fifth of the numbers each is."""
        return fifths(labels_NS[:, 0])

    def content(self, labels_NS: np.ndarray) -> bytes:
        """Return the numbers."""
        return np.ascontiguousarray(labels_NS).tobytes()

    def simple_methods(
        self, features: Any, train_rows: np.ndarray, labels_NS: np.ndarray, test_rows: np.ndarray, seed: int
    ) -> dict[str, Callable[[], np.ndarray | None]]:
        """Return methods that give numbers; those of patients for `PatientInputs`."""
        methods = PATIENT_METHODS if isinstance(features, PatientInputs) else NUMBER_METHODS
        given = (features, train_rows, labels_NS[:, 0], test_rows, seed)
        return {name: partial(method, *given) for name, method in methods.items()}

    def as_predicted(self, meaning_NK: np.ndarray) -> np.ndarray:
        """Return the number of each row, (rows,)."""
        return meaning_NK[:, 0]

    def from_another(self, other: Target, meaning_NK: np.ndarray) -> np.ndarray | None:
        """Return the number, in the unit of the other; None unless that is a number."""
        return meaning_NK[:, 0] if isinstance(other, Number) else None

    def scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return `NUMBER_SCORES`."""
        return number_scores(labels_NS[:, 0], predicted)

    def validation_scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return the root of the mean squared error and, where the labels differ, R²."""
        scores = number_scores(labels_NS[:, 0], predicted)
        return {name: scores[name] for name in ("rmse", "r2") if name == "rmse" or not np.isnan(scores[name])}

    def merit(self, scores: Mapping[str, float]) -> float:
        """Return the share of the training labels' variance that is explained."""
        return 1 - (scores["rmse"] / self.target.sd) ** 2

    def leading_score(
        self, labels_NS: np.ndarray, predicted: np.ndarray, *, folds: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return R² as a function of weights."""
        statistics = _number_statistics(labels_NS[:, 0], predicted)
        return lambda weights_NR: statistics(weights_NR)["r2"]

    def evaluate(
        self,
        labels_NS: np.ndarray,
        predicted: np.ndarray,
        *,
        folds: np.ndarray,
        groups: np.ndarray | None,
        rng: np.random.Generator,
    ) -> Scored:
        """Score numbers."""
        return Scored(evaluate_numbers(labels_NS[:, 0], predicted, groups=groups, rng=rng))

    def written(self, labels_NS: np.ndarray) -> dict[str, np.ndarray]:
        """Return the numbers."""
        return {"true": labels_NS[:, 0]}

    def written_prediction(self, predicted: np.ndarray) -> np.ndarray:
        """Return the numbers."""
        return predicted

    def figures(self, tables: Mapping[str, pd.DataFrame], tested: str, ours: str) -> "dict[str, Figure]":
        """Draw predicted against true numbers of the fine-tuned network."""
        predictions = tables["predictions"]
        true, predicted = predictions["true"].to_numpy(), predictions[ours].to_numpy()
        return {"predicted": predicted_numbers_figure(true, predicted)}

    def sections(self, tested: str, pictures: "Mapping[str, Figure]") -> list[Section]:
        """Say what the picture shows."""
        return [
            Section(
                f"{self.target.name}: predicted against true",
                f"The fine-tuned model's number for each test {tested.removesuffix('s')}.",
                "Whether the error matters for your question.",
                figure=pictures["predicted"],
            )
        ]


def number_scores(true_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    """Return `NUMBER_SCORES` as in `evaluate_numbers`, without intervals; all NaN if a prediction is not finite."""
    if not np.isfinite(predicted_N).all():
        return dict.fromkeys(NUMBER_SCORES, np.nan)
    return {name: value.item() for name, value in _number_statistics(true_N, predicted_N)(once(len(true_N))).items()}


def evaluate_numbers(
    true_N: np.ndarray, predicted_N: np.ndarray, *, groups: np.ndarray | None, rng: np.random.Generator
) -> dict[str, float]:
    """Score predicted numbers, each score with ``…_low`` and ``…_high``, a 95 % percentile bootstrap interval.

    Parameters
    ----------
    true_N, predicted_N
        Number of each cell.
    groups, rng
        As in `evaluate_classes`.

    Returns
    -------
    ``r2`` (1: perfect, 0: no better than the mean of these cells, which each resample has its own of; no lower bound),
    ``pearson`` and ``spearman`` correlation (-1 to 1; 0: unrelated; NaN if all numbers are the same), ``mae`` and
    ``rmse``, the mean absolute error and the root of the mean squared one (0: perfect, in the unit of the numbers).
    Spearman's correlation takes the ranks among all cells also in a resample, where they are not ranked anew.

    Raises
    ------
    InputError
        A prediction is not finite.
    """
    require_finite(predicted_N)
    return with_intervals(bootstrap(_number_statistics(true_N, predicted_N), len(true_N), groups, rng), NUMBER_SCORES)


def _number_statistics(true_N: np.ndarray, predicted_N: np.ndarray) -> Callable[[np.ndarray], Statistics]:
    true_N, predicted_N = true_N.astype(np.float64), predicted_N.astype(np.float64)
    error_N = predicted_N - true_N
    rows_SN = np.stack(
        [
            *_moments(true_N, predicted_N),
            *_moments(rankdata(true_N), rankdata(predicted_N)),
            np.abs(error_N),
            error_N**2,
        ]
    )

    def statistics(weights_NR: np.ndarray) -> Statistics:
        means_SR = rows_SN @ weights_NR / weights_NR.sum(axis=0)
        mae_R, mse_R = means_SR[-2:]
        true_mean_R, _, true_square_R = means_SR[:3]
        return {
            "r2": 1 - ratio(mse_R, variance(true_mean_R, true_square_R)),
            "pearson": correlation(*means_SR[:5]),
            "spearman": correlation(*means_SR[5:10]),
            "mae": mae_R,
            "rmse": np.sqrt(mse_R),
        }

    return statistics


def _moments(x_N: np.ndarray, y_N: np.ndarray) -> list[np.ndarray]:
    """What to average for a correlation. Numbers are taken from their medians, so that no digits cancel."""
    x_N, y_N = x_N - np.median(x_N), y_N - np.median(y_N)
    return [x_N, y_N, x_N**2, y_N**2, x_N * y_N]


# Methods that need no network

_ALPHAS = np.logspace(-2, 5, num=8)


def _predicted_numbers(looks_at: str, make: Make, *, most: int | None = None) -> Method:
    """Return the method that fits what `make` makes on one of the inputs, and gives numbers; `most` as for classes."""

    def fit_predict(
        inputs: Any, train: np.ndarray, values: np.ndarray, test: np.ndarray, seed: int
    ) -> np.ndarray | None:
        """Fit on some rows and predict a number for each test row."""
        known = getattr(inputs, looks_at)
        if known is None:
            return None
        chosen = sample(np.zeros(len(train)), most, seed)
        model = fitted(make, known[train[chosen]], values[chosen], seed)
        return asked_in_blocks(model.predict, known, test, most)

    return fit_predict


def _ridge(shape: tuple[int, int], seed: int) -> Any:
    """Five folds choose alpha: leaving one out takes 35 s for 2,700 cells, where this takes 5."""
    folds = KFold(min(5, shape[0]), shuffle=True, random_state=seed)
    return RidgeCV(_ALPHAS, cv=folds, scoring="neg_mean_squared_error")


def _standardised_ridge(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return make_pipeline(StandardScaler(), RidgeCV(_ALPHAS))


_boosted_number = partial(boosted, HistGradientBoostingRegressor)

NUMBER_METHODS: Mapping[str, Method] = {
    "mean": _predicted_numbers("nothing", lambda *_: DummyRegressor()),
    "ridge, counts": _predicted_numbers("expression", _ridge),
    "ridge, rank values": _predicted_numbers("ranks", lambda *given: make_pipeline(MaxAbsScaler(), _ridge(*given))),
    "nearest neighbours, PCA of counts": _predicted_numbers("expression", partial(nearest, KNeighborsRegressor)),
    "gradient boosting, counts": _predicted_numbers("expression", on_few_genes(_boosted_number), most=BOOSTED_CELLS),
    "ridge, frozen embedding": _predicted_numbers("embedding", _standardised_ridge),
}
"""Name → ``fit_predict(features, train, values, test, seed)``."""

PATIENT_METHODS: Mapping[str, Method] = {
    "mean": _predicted_numbers("nothing", lambda *_: DummyRegressor()),
    "ridge, PCA of pseudobulk": _predicted_numbers("pseudobulk", on_components(_ridge)),
    "ridge, cell-type composition": _predicted_numbers("composition", _standardised_ridge),
    "ridge, mean vector": _predicted_numbers("embedding", _standardised_ridge),
}
"""Name → ``fit_predict(patient_inputs, train, values, test, seed)``."""


def predicted_numbers_figure(true: np.ndarray, predicted: np.ndarray) -> "Figure":
    """Draw predicted against true numbers, a point a cell, with the line of perfect prediction.

    Parameters
    ----------
    true, predicted
        Number of each cell.
    """
    figure, axes = new_axes(4.8, 4.4)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1)
    axes.scatter(
        true,
        predicted,
        s=max(3, min(14, 9000 / len(true))),
        color=BLUE,
        alpha=max(0.1, min(0.7, 700 / len(true))),
        linewidths=0,
        rasterized=True,
    )
    axes.set(aspect="equal", xlabel="true", ylabel="predicted")
    return figure
