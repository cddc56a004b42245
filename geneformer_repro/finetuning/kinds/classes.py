"""Labels that are classes: of cells, of genes, of any row."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from geneformer_repro.errors import InputError, listed
from geneformer_repro.finetuning.baselines import (
    BOOSTED_CELLS,
    GeneInputs,
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
from geneformer_repro.finetuning.figures import rows_figure
from geneformer_repro.finetuning.kinds.class_scores import (
    Calls,
    ClassEvaluation,
    evaluate_classes,
    scores,
    validation_scores,
)
from geneformer_repro.finetuning.kinds.kind import GAP, Kind
from geneformer_repro.report import CATEGORIES, GREY, Section, draw_points, legend_beside, new_axes
from geneformer_repro.targets import Classes, Target
from geneformer_repro.tokenizer.labels import as_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def read_classes(name: str, column: pd.Series, min_cells: int = 0, *, row: str = "cell") -> tuple[Classes, np.ndarray]:
    """Read an obs column: its classes, and the number of each row's, NaN where there is none.

    Parameters
    ----------
    name, column
        Of the column.
    min_cells
        Labels of classes with fewer cells count as missing.
    row
        What a row is called.

    Raises
    ------
    InputError
        There are fewer than two classes.
    """
    names = as_labels(column)
    n_cells = names.value_counts()
    rare = sorted(n_cells.index[n_cells < min_cells])
    if rare:
        n_rare = int(n_cells[rare].sum())
        logger.info(
            "%s: %d cells are of classes with fewer than %d cells (%s); left out.",
            name, n_rare, min_cells, ", ".join(rare),
        )  # fmt: skip
    classes = tuple(sorted(set(n_cells.index) - set(rare)))
    if len(classes) < 2:
        raise InputError(
            f"obs column {name!r} has {len(classes)} class{'' if len(classes) == 1 else 'es'} "
            f"({', '.join(map(repr, classes)) or 'all missing'}) among {int(n_cells.sum())} labelled {row}s; at least "
            f"two are needed."
        )
    codes = pd.Index(classes).get_indexer(names).astype(float)
    return Classes(name, classes), np.where(codes < 0, np.nan, codes)


class ClassLabels(Kind[Classes]):
    """Classes: scored by macro-F1 and more, confusion, calibration."""

    leading = "macro_f1"
    spelled = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}  # noqa: RUF012
    on_page = {  # noqa: RUF012
        "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "auroc": "AUROC",
        "auprc": "AUPRC", "ece": "calibration error",
    }  # fmt: skip
    scores_in_words = (
        "Macro-F1 is the mean over classes of how exact and how complete each is told (F1); balanced accuracy the mean "
        "of how complete. Rare classes count as much as common ones; 1 is perfect. AUROC and "
        "AUPRC are means over classes. Calibration error is how far probabilities lie from shares; 0 is perfect."
    )
    strata_are_classes = True
    has_means = True

    def _codes(self, labels_NS: np.ndarray) -> np.ndarray:
        """Number of each row's class; one more than there are where there is none."""
        return np.where(np.isnan(labels_NS[:, 0]), len(self.target.classes), labels_NS[:, 0]).astype(int)

    def strata(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return the classes."""
        return np.array([*self.target.classes, GAP])[self._codes(labels_NS)]

    def class_names(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return the class of each row, None where there is none."""
        return np.array([*self.target.classes, None], dtype=object)[self._codes(labels_NS)]

    def content(self, labels_NS: np.ndarray) -> bytes:
        """Return the classes by name, whatever their numbers."""
        return "\n".join([*self.strata(labels_NS), ""]).encode()

    def class_weights(self, labels_NS: np.ndarray) -> list[float]:
        """Return one over the share of each class, so that the mean over rows is 1; 0 for a class without rows."""
        n_rows = np.bincount(self._codes(labels_NS), minlength=len(self.target.classes))[: len(self.target.classes)]
        return [float(n_rows.sum() / ((n_rows > 0).sum() * n)) if n else 0.0 for n in n_rows]

    def row_weights(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return the weight of each row's class; 1 for a row without one."""
        return np.array([*self.class_weights(labels_NS), 1.0])[self._codes(labels_NS)]

    def simple_methods(
        self, features: Any, train_rows: np.ndarray, labels_NS: np.ndarray, test_rows: np.ndarray, seed: int
    ) -> dict[str, Callable[[], np.ndarray | None]]:
        """Return methods that give probabilities; of genes and patients others, by what is known of them."""
        others: Mapping[type, Mapping[str, Method]] = {GeneInputs: GENE_METHODS, PatientInputs: PATIENT_METHODS}
        methods = others.get(type(features), CLASS_METHODS)
        given = (features, train_rows, self._codes(labels_NS), len(self.target.classes), test_rows, seed)
        return {name: partial(method, *given) for name, method in methods.items()}

    def from_another(self, other: Target, meaning_NK: np.ndarray) -> np.ndarray | None:
        """Return the probabilities of the classes of the same names, brought to a sum of 1, if all are there."""
        if not (isinstance(other, Classes) and set(self.target.classes) <= set(other.classes)):
            return None
        of_same = meaning_NK[:, [other.classes.index(name) for name in self.target.classes]]
        return np.asarray(of_same / np.maximum(of_same.sum(axis=1, keepdims=True), np.finfo(float).tiny))

    def scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return `CLASS_SCORES`."""
        return scores(self._codes(labels_NS), predicted)

    def validation_scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return accuracy and macro-F1."""
        return validation_scores(self._codes(labels_NS), predicted)

    def merit(self, scores: Mapping[str, float]) -> float:
        """Return macro-F1."""
        return scores["macro_f1"]

    def leading_score(
        self, labels_NS: np.ndarray, predicted: np.ndarray, *, folds: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return macro-F1 as a function of weights."""
        return Calls(self._codes(labels_NS), predicted).macro_f1

    def evaluate(
        self,
        labels_NS: np.ndarray,
        predicted: np.ndarray,
        *,
        folds: np.ndarray,
        groups: np.ndarray | None,
        rng: np.random.Generator,
    ) -> ClassEvaluation:
        """Score probabilities, over all and by class."""
        return evaluate_classes(self._codes(labels_NS), predicted, self.target.classes, groups=groups, rng=rng)

    def written(self, labels_NS: np.ndarray) -> dict[str, np.ndarray]:
        """Return the names of the classes."""
        return {"true": np.asarray(self.target.classes)[self._codes(labels_NS)]}

    def written_prediction(self, predicted: np.ndarray) -> np.ndarray:
        """Return the likeliest class; the first of equals."""
        return np.asarray(self.target.classes)[predicted.argmax(1)]

    def tables(
        self, scored: Mapping[str, ClassEvaluation], names: "pd.Index[Any]", predicted: np.ndarray, ours: str
    ) -> dict[str, pd.DataFrame]:
        """Return probabilities and confusion of the fine-tuned network; scores by class and calibration of all."""
        of_ours = scored[ours]
        return {
            "probabilities": pd.DataFrame(predicted, index=names, columns=list(self.target.classes)),
            "per_class": _by_method({name: one.per_class.reset_index() for name, one in scored.items()}),
            "confusion": of_ours.confusion,
            "confusion_intervals": of_ours.confusion_intervals,
            "reliability": _by_method({name: one.reliability for name, one in scored.items()}),
        }

    def caution(self, predictions: pd.DataFrame) -> str | None:
        """Say which classes the test rows lack, and which folds have a single one."""
        rows, held = f"{predictions.columns[0]}s", set(predictions["true"])
        if len(held) == 1:
            return f"All test {rows} are of class {min(held)!r}; no score can tell how well classes are told apart"
        said = []
        if lacking := [repr(name) for name in self.target.classes if name not in held]:
            said.append(f"No test {rows} are of class {listed(lacking)}; scores are of the others")
        in_folds = predictions.groupby("fold")["true"].nunique() if "fold" in predictions else pd.Series(dtype=int)
        if alone := [str(fold) for fold in in_folds.index[in_folds == 1]]:
            folds = f"fold{'s' * (len(alone) > 1)} {', '.join(alone)}"
            said.append(f"All test {rows} of {folds} are of one class; there are scores over all folds only")
        return ". ".join(said) or None

    def figures(self, tables: Mapping[str, pd.DataFrame], tested: str, ours: str) -> "dict[str, Figure]":
        """Draw confusion and scores by class of the fine-tuned network; calibration, beside the best other method."""
        per_class, reliability = tables["per_class"], tables["reliability"]
        of_ours = per_class[per_class["method"] == ours].set_index("class")
        others = tables["methods"][self.leading].drop(ours).dropna()
        shown = [ours, *([str(others.idxmax())] if len(others) else [])]
        return {
            "confusion": confusion_figure(tables["confusion"]),
            "per_class": per_class_figure(of_ours, tested=tested),
            "reliability": reliability_figure({name: reliability[reliability["method"] == name] for name in shown}),
        }

    def sections(self, tested: str, pictures: "Mapping[str, Figure]") -> list[Section]:
        """Say what the pictures of classes show."""
        name = self.target.name
        return [
            Section(
                f"{name}: which classes are found",
                "Recall and precision of the fine-tuned model for each class.",
                f"Anything firm about classes of few test {tested}: look at the bars.",
                figure=pictures["per_class"],
            ),
            Section(
                f"{name}: which classes are confused",
                f"Test {tested} by true and predicted class; the colour is the share of the true class.",
                "Errors of the model alone: the labels may be wrong as well.",
                figure=pictures["confusion"],
            ),
            Section(
                f"{name}: can the probabilities be believed",
                "How often a prediction is right, by how sure the method is. On the diagonal the probability means "
                "what it says; below it the method is too sure.",
                "Calibration on other donors or protocols, where it is usually worse.",
                figure=pictures["reliability"],
            ),
        ]


def _by_method(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, names=["method"]).reset_index("method").reset_index(drop=True)


# Methods that need no network

_MAX_ITERATIONS = 2000


def _probabilities(looks_at: str, make: Make, *, most: int | None = None) -> Method:
    """Return the method that fits what `make` makes on one of the inputs, and gives probabilities.

    With `most`, it is fitted on so many training rows at most, of each class its share, and asked some rows at a time.
    """

    def fit_predict(
        inputs: Any, train: np.ndarray, codes: np.ndarray, n_classes: int, test: np.ndarray, seed: int
    ) -> np.ndarray | None:
        """Fit on some rows and predict others.

        Parameters
        ----------
        inputs
            `Features` of cells or `GeneInputs`.
        train, test
            Row numbers.
        codes
            Class of each training row, from 0; classes may be absent, and get probability 0.
        n_classes
            Columns of the result.
        seed
            Of what is random in the method.

        Returns
        -------
        Probabilities, test rows × classes; None where what it looks at is not at hand.
        """
        known = getattr(inputs, looks_at)
        if known is None:
            return None
        chosen = sample(codes, most, seed)
        model = fitted(make if len(np.unique(codes)) > 1 else _majority, known[train[chosen]], codes[chosen], seed)
        probabilities = np.zeros((len(test), n_classes))
        probabilities[:, model.classes_] = asked_in_blocks(model.predict_proba, known, test, most)
        return probabilities

    return fit_predict


def _majority(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return DummyClassifier(strategy="prior")


def _logistic_regression(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return LogisticRegression(max_iter=_MAX_ITERATIONS)


def _standardised_logistic_regression(shape: tuple[int, int], seed: int) -> Any:
    return make_pipeline(_imputer(), StandardScaler(), _logistic_regression(shape, seed))


def _imputer() -> SimpleImputer:
    return SimpleImputer(strategy="median", keep_empty_features=True)


def _scaled_logistic_regression(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return make_pipeline(MaxAbsScaler(), LogisticRegression(C=10, max_iter=_MAX_ITERATIONS))


_boosted_class = partial(boosted, HistGradientBoostingClassifier)


def _boosted_gene_class(shape: tuple[int, int], seed: int) -> Any:
    """Imputed, since a feature that no training gene has makes scikit-learn 1.9's boosting fail."""
    return make_pipeline(_imputer(), _boosted_class(shape, seed))


CLASS_METHODS: Mapping[str, Method] = {
    "majority class": _probabilities("nothing", _majority),
    "logistic regression, counts": _probabilities("expression", _logistic_regression),
    "logistic regression, rank values": _probabilities("ranks", _scaled_logistic_regression),
    "nearest neighbours, PCA of counts": _probabilities("expression", partial(nearest, KNeighborsClassifier)),
    "gradient boosting, counts": _probabilities("expression", on_few_genes(_boosted_class), most=BOOSTED_CELLS),
    "logistic regression, frozen embedding": _probabilities("embedding", _standardised_logistic_regression),
}
"""Name → ``fit_predict(features, train, codes, n_classes, test, seed)``, in the order of the table."""

GENE_METHODS: Mapping[str, Method] = {
    "majority class": _probabilities("nothing", _majority),
    "logistic regression, gene features": _probabilities("numbers", _standardised_logistic_regression),
    "gradient boosting, gene features": _probabilities("numbers", _boosted_gene_class),
    "logistic regression, co-expression": _probabilities("coexpression", _standardised_logistic_regression),
    "logistic regression, random vectors": _probabilities("random", _standardised_logistic_regression),
    "logistic regression, frozen embedding": _probabilities("embedding", _standardised_logistic_regression),
}
"""Name → ``fit_predict(gene_inputs, train, codes, n_classes, test, seed)``."""

PATIENT_METHODS: Mapping[str, Method] = {
    "majority class": _probabilities("nothing", _majority),
    "logistic regression, PCA of pseudobulk": _probabilities("pseudobulk", on_components(_logistic_regression)),
    "logistic regression, cell-type composition": _probabilities("composition", _standardised_logistic_regression),
    "logistic regression, mean vector": _probabilities("embedding", _standardised_logistic_regression),
}
"""Name → ``fit_predict(patient_inputs, train, codes, n_classes, test, seed)``."""


# Figures


def confusion_figure(confusion: pd.DataFrame) -> "Figure":
    """Draw a confusion matrix: shares of each true class (rows), with the numbers of cells written in.

    Parameters
    ----------
    confusion
        Cells, true class × predicted class.
    """
    side = 2.4 + 0.48 * len(confusion)
    figure, axes = new_axes(side + 1.2, side)
    shares = confusion.div(confusion.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(confusion.to_numpy()), strict=True):
        axes.text(
            column,
            row,
            str(confusion.iat[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[row, column] > 0.5 else "#111827",
        )
    axes.set(xticks=range(len(confusion)), yticks=range(len(confusion)), xlabel="predicted", ylabel="true")
    axes.set_xticklabels(confusion.columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticklabels(confusion.index, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def per_class_figure(per_class: pd.DataFrame, *, tested: str = "cells") -> "Figure":
    """Draw recall and precision of each class, with intervals and the numbers of cells.

    Parameters
    ----------
    per_class
        Indexed by class, the first on top: ``n``, ``recall``, ``precision``, and of both ``…_low`` and ``…_high``. What
        is NaN is not drawn.
    tested
        What was predicted.
    """
    labels = [f"{name} ({n})" for name, n in per_class["n"].items()]
    figure, axes = rows_figure(per_class, labels, {"recall": "recall", "precision": "precision"})
    axes.set(xlim=(-0.02, 1.02), xlabel=f"share (bar: 95 % interval; in brackets: test {tested})")
    return figure


def reliability_figure(reliabilities: Mapping[str, pd.DataFrame]) -> "Figure":
    """Draw how often methods are right against how sure they are, with intervals.

    Parameters
    ----------
    reliabilities
        By method: ``confidence``, ``accuracy``, ``accuracy_low`` and ``accuracy_high``, a row a bin.
    """
    figure, axes = new_axes(7.6, 4.2)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as often right as sure")
    for i, (name, table) in enumerate(reliabilities.items()):
        colour, confidence = CATEGORIES[i % len(CATEGORIES)], table["confidence"].to_numpy()
        axes.plot(confidence, table["accuracy"], color=colour, linewidth=1.2, alpha=0.6)
        draw_points(axes, confidence, table, "accuracy", colour=colour, label=name, upright=True)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel="confidence (probability of the predicted class)", ylabel="accuracy (bar: 95 % interval)")
    legend_beside(axes)
    return figure
