"""What a statistician would do without a network: risks from clinical columns, components, genes or trees.

A weak method would flatter the network beside it. So Cox's model sees few columns (principal components, in the order
of their variance) under a penalty; how many, and which penalty, is chosen by the partial likelihood of patients that
inner folds of the training patients leave out (Verweij and van Houwelingen, Stat. Med. 12, 2305 (1993)), which moves
with less noise than their C-index. Everything is fitted on training rows: what is usual of a gene, components,
penalties. (Inner folds share scaling and components, which look at no follow-up.)

A gene's value is pulled into the range of 98 % of the training patients: z-scores of genes that are almost silent
reach 17,000 in TCGA, and a linear model follows them.

Cox's models of several cohorts are stratified. Those of scikit-survival cannot be; there, cohorts are only told apart
by their genes.

Shapes: N patients, M test patients, P columns, A penalties, K models, T times.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from geneformer_repro.finetuning.baselines import FAR, Features, Method, components, standardised
from geneformer_repro.finetuning.kinds.survival_scores import kaplan_meier
from geneformer_repro.hazards import RiskSets, baseline_hazard
from geneformer_repro.tokenizer.labels import as_labels

logger = logging.getLogger(__name__)

_PENALTIES = np.logspace(1, -3, num=7)
"""Of squared coefficients of columns whose largest standard deviation is 1, beside the loss an event."""
_COMPONENTS = (5, 20, 50)
_PRECISE = {"ftol": 1e-10, "gtol": 1e-6}
_FOLDS = 5
_LINEAR_GENES, _TREE_GENES = 2000, 500
"""The most variable genes are looked at."""
_TREE_TIMES, _TREE_PATIENTS = 50, 1000
"""Different times, and drawn patients, that each tree of a forest is shown: its memory and time grow with them."""


def _kaplan_meier(
    features: Features,  # noqa: ARG001
    train: np.ndarray,  # noqa: ARG001
    labels_NS: np.ndarray,
    test: np.ndarray,
    seed: int,  # noqa: ARG001
    times: Sequence[float],
) -> np.ndarray:
    """Give all patients the same risk, and the curve of all training patients."""
    curve = kaplan_meier(labels_NS[:, 0], labels_NS[:, 1])
    survival_T = curve.at(np.minimum(times, curve.times[-1]))  # after the last time as the other methods: it stays
    return np.tile(np.append(0.0, survival_T), (len(test), 1))


def _on(columns: Callable[..., tuple[np.ndarray, np.ndarray] | None], fit: Callable[..., Any]) -> Method:
    """Return the method that fits `fit` on what `columns` makes of the features.

    Its arguments are those of methods of other kinds, and `times`; it returns a row a test row, the risk and survival
    at each of the times (NaN where it is not told), or None where what it needs is not at hand.
    """

    def fit_predict(
        features: Features,
        train: np.ndarray,
        labels_NS: np.ndarray,
        test: np.ndarray,
        seed: int,
        times: Sequence[float],
    ) -> np.ndarray | None:
        """Fit on training rows, whose labels these are, and predict the test rows."""
        made, at = columns(features, train, test, seed), np.asarray(times, dtype=float)
        if made is None:
            return None
        if not made[0].shape[1]:  # no column varies
            return _told(np.zeros(len(train)), np.zeros(len(test)), labels_NS, at)
        return fit(*made, labels_NS, seed, at)

    return fit_predict


# What is looked at


def _genes(
    features: Features,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,  # noqa: ARG001
    *,
    most: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the most variable genes, standardised, for methods of scikit-survival."""
    if features.expression is None or not _has_scikit_survival():
        return None
    return standardised(features.expression, train, test, most)


def _components(
    features: Features, train: np.ndarray, test: np.ndarray, seed: int, *, of: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the principal components of a matrix of the features, by falling variance."""
    values = getattr(features, of)
    return None if values is None else components(values, train, test, seed, most=_COMPONENTS[-1])


def _clinical(
    features: Features,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,  # noqa: ARG001
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return clinical columns as numbers: numbers standardised, of labels one column each."""
    if features.covariates is None:
        return None
    encoded = [
        _numbers(column, train) if pd.api.types.is_numeric_dtype(column.dtype) else _levels(column, train)
        for _, column in features.covariates.items()
    ]
    columns = np.column_stack([np.empty((len(features.covariates), 0)), *encoded])
    return columns[train], columns[test]


def _numbers(column: pd.Series, train: np.ndarray) -> np.ndarray:
    """Return a column of numbers, none if it says nothing about the training rows; missing is their median."""
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    of_train = values[train]
    if not np.isfinite(of_train).any() or np.nanstd(of_train) == 0:
        return np.empty((len(values), 0))
    values = np.where(np.isnan(values), np.nanmedian(of_train), values)
    return ((values - values[train].mean()) / values[train].std()).clip(-FAR, FAR)


def _levels(column: pd.Series, train: np.ndarray) -> np.ndarray:
    """Return a column for each label of the training rows but the most frequent; missing is a label of its own."""
    labels = as_labels(column).fillna("").to_numpy(dtype=str)
    of_train, n = np.unique(labels[train], return_counts=True)
    return (labels[:, None] == np.delete(of_train, n.argmax())).astype(float)


# Cox's model under a penalty


def _cox_ridge(
    of_train: np.ndarray,
    of_test: np.ndarray,
    labels_NS: np.ndarray,
    seed: int,
    times: np.ndarray,
    *,
    choices: Sequence[int],
) -> np.ndarray:
    """Fit as many of the first columns, under the penalty, as inner folds choose; `choices` has one at least."""
    scale = of_train.std(axis=0).max()
    of_train, of_test = of_train / scale, of_test / scale
    coefficients_P = _chosen_ridge(of_train, labels_NS, seed, choices)
    return _told(of_train @ coefficients_P, of_test @ coefficients_P, labels_NS, times)


def cox_ridge_coefficients(columns_NP: np.ndarray, labels_NS: np.ndarray, seed: int) -> np.ndarray:
    """Return the coefficients of Cox's model on all columns, (P,), under the penalty that inner folds choose.

    Parameters
    ----------
    columns_NP
        Of training rows; zeros where none varies.
    labels_NS
        Event time, event and number of the cohort, which is a stratum.
    seed
        Of the inner folds.
    """
    scale = columns_NP.std(axis=0).max()
    if scale == 0:
        return np.zeros(columns_NP.shape[1])
    return _chosen_ridge(columns_NP / scale, labels_NS, seed, [columns_NP.shape[1]]) / scale


def _chosen_ridge(columns_NP: np.ndarray, labels_NS: np.ndarray, seed: int, choices: Sequence[int]) -> np.ndarray:
    n_columns = np.unique(np.minimum(choices, columns_NP.shape[1]))
    n_columns_K, penalty_K = (grid.ravel() for grid in np.meshgrid(n_columns, _PENALTIES, indexing="ij"))
    loss_K = np.zeros(len(penalty_K))
    for rest, loss_of_others in _inner_folds(labels_NS, seed):
        coefficients_KP = _ridge(columns_NP[rest], labels_NS[rest], n_columns_K, penalty_K)
        loss_K += loss_of_others(coefficients_KP @ columns_NP.T)
    best = [loss_K.argmin()]
    return _ridge(columns_NP, labels_NS, n_columns_K[best], penalty_K[best])[0]


def _inner_folds(labels_NS: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
    """Yield rows to fit on, and what gives the loss of the others for risks of all rows, (A, N).

    That is by how much the partial likelihood of all rows is below that of the rows fitted on. Folds share events
    alike; there are none of fewer than two events.
    """
    event = labels_NS[:, 1] == 1
    order = np.random.default_rng(seed).permutation(len(event))
    order = order[np.argsort(labels_NS[order, 2] + 0.5 * event[order], kind="stable")]
    n_folds = min(_FOLDS, int(event.sum()))
    fold = np.empty(len(event), dtype=int)
    fold[order] = np.arange(len(event)) % max(n_folds, 1)
    everyone = _risk_sets(labels_NS)
    for i in range(n_folds):
        rest = np.flatnonzero(fold != i)
        if event[rest].any():
            of_rest = _risk_sets(labels_NS[rest])
            yield rest, partial(_loss_of_others, everyone, of_rest, rest)


def _loss_of_others(everyone: RiskSets, of_rest: RiskSets, rest: np.ndarray, risk_AN: np.ndarray) -> np.ndarray:
    risk = torch.from_numpy(risk_AN)
    return (everyone.loss(risk) - of_rest.loss(risk[:, rest])).numpy()


def _risk_sets(labels_NS: np.ndarray) -> RiskSets:
    return RiskSets(labels_NS[:, 0], labels_NS[:, 1], strata=labels_NS[:, 2])


def _ridge(columns_NP: np.ndarray, labels_NS: np.ndarray, n_columns_K: np.ndarray, penalty_K: np.ndarray) -> np.ndarray:
    """Return coefficients (K, P) of as many of the first columns as each model has, under its penalty.

    They minimise the loss an event and half the penalty times the squared coefficients. All models are fitted at once,
    which for few patients costs little more than one; the search is among coefficients whose curvatures are about the
    same, so that some ten steps are enough.
    """
    curvature_KP = np.sqrt(columns_NP.var(axis=0) + penalty_K[:, None])
    there_KP = np.arange(columns_NP.shape[1]) < n_columns_K[:, None]
    unit_KP, columns_PN = torch.from_numpy(there_KP / curvature_KP), torch.from_numpy(columns_NP.T.copy())
    risk_sets, penalty_K1 = _risk_sets(labels_NS), torch.from_numpy(penalty_K[:, None])

    def loss_and_slope(steps: np.ndarray) -> tuple[float, np.ndarray]:
        steps_KP = torch.tensor(steps.reshape(there_KP.shape), requires_grad=True)
        coefficients_KP = steps_KP * unit_KP
        loss_K = risk_sets.loss(coefficients_KP @ columns_PN) / risk_sets.n_events
        loss = loss_K.sum() + (penalty_K1 * coefficients_KP**2).sum() / 2
        (slope_KP,) = torch.autograd.grad(loss, steps_KP)
        return loss.item(), slope_KP.numpy().ravel()

    with threadpool_limits(1, "blas"):  # whose threads take longer to meet than the search's small products
        found = minimize(loss_and_slope, np.zeros(there_KP.size), jac=True, method="L-BFGS-B", options=_PRECISE)
    return found.x.reshape(there_KP.shape) * unit_KP.numpy()


def _told(
    log_hazard_N: np.ndarray, asked_log_hazard: np.ndarray, labels_NS: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Return the risk and survival of who is asked, on Breslow's baseline; each of several cohorts has its own."""
    if len(np.unique(labels_NS[:, 2])) > 1:
        hazard_T = np.full(len(times), np.nan)
    else:
        log_hazard, event_time, event = map(torch.tensor, (log_hazard_N, labels_NS[:, 0], labels_NS[:, 1]))
        hazard_T = baseline_hazard(log_hazard, event_time, event, times).numpy()
    with np.errstate(over="ignore"):
        return np.column_stack([asked_log_hazard, np.exp(-hazard_T * np.exp(asked_log_hazard)[:, None])])


# scikit-survival


@cache
def _has_scikit_survival() -> bool:
    """Whether it is installed; said once where it is not."""
    try:
        import sksurv  # noqa: F401
    except ImportError:
        logger.warning(
            "scikit-survival is not installed, so Cox elastic net, random survival forest and gradient boosting are "
            "left out of the comparison: pip install 'geneformer-repro[survival]'."
        )
        return False
    return True


def _outcome(labels_NS: np.ndarray) -> np.ndarray:
    """Return follow-up in the form of scikit-survival."""
    return np.array(
        [(event == 1, time) for time, event in labels_NS[:, :2]], dtype=[("event", bool), ("time", np.float64)]
    )


def _elastic_net(
    of_train: np.ndarray, of_test: np.ndarray, labels_NS: np.ndarray, seed: int, times: np.ndarray
) -> np.ndarray:
    """Fit a path of penalties; inner folds choose one, where scikit-survival would take the last, the weakest."""
    coefficients_PA, alphas_A = _elastic_net_path(of_train, labels_NS, None)
    together = np.column_stack([labels_NS[:, :2], np.zeros(len(labels_NS))])
    loss_A = np.zeros(len(alphas_A))
    for rest, loss_of_others in _inner_folds(together, seed):
        of_rest_PA, _ = _elastic_net_path(of_train[rest], labels_NS[rest], alphas_A)
        loss_A[of_rest_PA.shape[1] :] = np.inf  # the path ends where nothing is left to explain
        n = of_rest_PA.shape[1]
        loss_A[:n] += loss_of_others(np.ascontiguousarray((of_train @ of_rest_PA).T))
    coefficients_P = coefficients_PA[:, loss_A.argmin()]
    return _told(of_train @ coefficients_P, of_test @ coefficients_P, labels_NS, times)


def _elastic_net_path(
    columns_NP: np.ndarray, labels_NS: np.ndarray, alphas_A: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients (P, A) and penalties, the strongest first."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    model = CoxnetSurvivalAnalysis(l1_ratio=0.5, n_alphas=20, alphas=alphas_A, alpha_min_ratio=0.1)
    with warnings.catch_warnings():  # that all coefficients are 0, or not converged to the last digit
        warnings.simplefilter("ignore")
        model.fit(columns_NP, _outcome(labels_NS))
    return model.coef_, model.alphas_


def _forest(
    of_train: np.ndarray, of_test: np.ndarray, labels_NS: np.ndarray, seed: int, times: np.ndarray
) -> np.ndarray:
    """Grow trees on times in bins of as many patients each; the risk is the sum of the hazards."""
    from sksurv.ensemble import RandomSurvivalForest

    ends = np.unique(np.quantile(labels_NS[:, 0], np.linspace(0, 1, _TREE_TIMES + 1)[1:], method="inverted_cdf"))
    binned_NS = labels_NS.copy()
    binned_NS[:, 0] = ends[np.searchsorted(ends, labels_NS[:, 0])]
    model = RandomSurvivalForest(
        100,
        min_samples_leaf=_leaf(labels_NS),
        max_features="sqrt",
        max_samples=min(_TREE_PATIENTS, len(labels_NS)),
        random_state=seed,
        n_jobs=1,
    ).fit(of_train, _outcome(binned_NS))
    hazard_MT = model.predict_cumulative_hazard_function(of_test, return_array=True)
    place = np.searchsorted(model.unique_times_, times, side="right") - 1
    survival_MT = np.where(place < 0, 1.0, np.exp(-hazard_MT[:, place]))
    return np.column_stack([hazard_MT.sum(axis=1), survival_MT])


def _boosting(
    of_train: np.ndarray, of_test: np.ndarray, labels_NS: np.ndarray, seed: int, times: np.ndarray
) -> np.ndarray:
    """Grow small trees one after the other on Cox's loss."""
    from sksurv.ensemble import GradientBoostingSurvivalAnalysis

    model = GradientBoostingSurvivalAnalysis(
        min_samples_leaf=_leaf(labels_NS), max_features="sqrt", subsample=0.5, random_state=seed
    ).fit(of_train, _outcome(labels_NS))
    return _told(model.predict(of_train), model.predict(of_test), labels_NS, times)


def _leaf(labels_NS: np.ndarray) -> int:
    """Return the fewest patients of a leaf: 15, of few patients a tenth."""
    return max(1, min(15, len(labels_NS) // 10))


def _on_genes(fit: Callable[..., np.ndarray], most: int) -> Method:
    return _on(partial(_genes, most=most), fit)


SURVIVAL_METHODS: Mapping[str, Method] = {
    "Kaplan–Meier": _kaplan_meier,
    "Cox, clinical": _on(_clinical, partial(_cox_ridge, choices=[sys.maxsize])),
    "Cox ridge, PCA": _on(partial(_components, of="expression"), partial(_cox_ridge, choices=_COMPONENTS)),
    "Cox elastic net, genes": _on_genes(_elastic_net, _LINEAR_GENES),
    "random survival forest": _on_genes(_forest, _TREE_GENES),
    "gradient boosting, survival": _on_genes(_boosting, _TREE_GENES),
    "Cox ridge, frozen embedding": _on(partial(_components, of="embedding"), partial(_cox_ridge, choices=_COMPONENTS)),
}
"""Name → ``fit_predict(features, train, labels, test, seed, times)``: labels are event time, event and number of the
cohort; what comes back has a row a test row, the risk and survival at each of the times."""

PATIENT_METHODS: Mapping[str, Method] = {
    "Kaplan–Meier": _kaplan_meier,
    "Cox ridge, PCA of pseudobulk": _on(
        partial(_components, of="pseudobulk"), partial(_cox_ridge, choices=_COMPONENTS)
    ),
    "Cox ridge, cell-type composition": _on(
        partial(_components, of="composition"), partial(_cox_ridge, choices=_COMPONENTS)
    ),
    "Cox ridge, mean vector": _on(partial(_components, of="embedding"), partial(_cox_ridge, choices=_COMPONENTS)),
}
"""The same of `PatientInputs`."""
