"""What a study of two screens came to, in tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.finetuning.difference_tests import DifferenceTest, paired_test
from geneformer_repro.finetuning.evaluation import Evaluation
from geneformer_repro.finetuning.kinds.response_methods import MEAN_EFFECTS
from geneformer_repro.finetuning.responses import MODELS

PRETRAINED, SCRATCH = "pretrained", "scratch"
"""What follows the names of networks."""
OF_SOURCE = "mean effects of the source"
"""The method that knows of the target nothing but who its samples and drugs are."""


@dataclass(frozen=True, eq=False)
class ResponseStudy:
    """What a study of two screens found.

    See Also
    --------
    transfer_study : Makes it.

    Examples
    --------
    >>> import dataclasses
    >>> import geneformer_repro as gf
    >>> [field.name for field in dataclasses.fields(gf.ResponseStudy)]
    ['table', 'differences', 'evaluations', 'networks']
    """

    table: pd.DataFrame
    """``use``, ``n`` (pairs learned, "all" as their number), ``method``, ``network`` and ``pretrained`` (of networks),
    and each score as its mean over folds with ``…_se`` (standard deviation over folds by the root of their number)."""
    differences: pd.DataFrame
    """Pretrained networks less the same from random weights, and every method less the mean that says more (of the
    target's drugs for new samples, of its samples for new drugs; or mean effects of the source): ``use``, ``n``,
    ``method``, ``other``, ``score``, ``difference``, ``p`` (paired over samples, or drugs), ``p_folds`` (over folds,
    corrected after Nadeau and Bengio), ``direction``."""
    evaluations: Mapping[tuple[str, int], Evaluation]
    """By use and number of pairs."""
    networks: Mapping[tuple[str, str], Checkpoint]
    """Those that learned the source, by use and network."""


def table_of(evaluations: Mapping[tuple[str, int], Evaluation]) -> pd.DataFrame:
    """Return the mean over folds of each score, and its standard error, a row a method, use and number of pairs."""
    rows = []
    for (use, n), evaluation in evaluations.items():
        scores = evaluation.methods if evaluation.folds is None else None
        for method in evaluation.methods.index:
            row: dict[str, Any] = {"use": use, "n": n, "method": method, **_network_of(method)}
            if scores is not None:
                row |= {name: scores.loc[method, name] for name in evaluation.kind.spelled if name in scores}
            else:
                assert evaluation.folds is not None
                of_method = evaluation.folds[evaluation.folds["method"] == method].set_index("score")
                for name in evaluation.kind.spelled:
                    if name in of_method.index:
                        row[name] = of_method.loc[name, "mean"]
                        row[f"{name}_se"] = of_method.loc[name, "sd"] / np.sqrt(of_method.loc[name, "n"])
            rows.append(row)
    return pd.DataFrame(rows)


def _network_of(method: str) -> dict[str, Any]:
    name, _, way = method.rpartition(", ")
    is_network = way in (PRETRAINED, SCRATCH) and name in MODELS.values()
    return {"network": name, "pretrained": way == PRETRAINED} if is_network else {"network": None, "pretrained": None}


def differences_of(evaluations: Mapping[tuple[str, int], Evaluation]) -> pd.DataFrame:
    """Test networks that learned the source against those that did not, and every method against the better mean."""
    rows = []
    for (use, n), evaluation in evaluations.items():
        assert evaluation.per_group is not None
        aggregation = aggregation_of(use)
        groups = evaluation.per_group[evaluation.per_group["aggregation"] == aggregation]
        of_methods = {str(method): of_method for method, of_method in groups.groupby("method", sort=False)}
        means = _better_mean(use, of_methods)
        pairs = [(f"{network}, {PRETRAINED}", f"{network}, {SCRATCH}") for network in MODELS.values()]
        pairs += [(method, means) for method in of_methods if not method.endswith("mean") and method != OF_SOURCE]
        for method, other in pairs:
            if method in of_methods and other in of_methods:
                test, p_folds = _tested(of_methods[method], of_methods[other])
                rows.append(
                    {
                        "use": use,
                        "n": n,
                        "method": method,
                        "other": other,
                        "score": f"pearson_{aggregation}",
                        "difference": test.difference,
                        "p": test.p,
                        "p_folds": p_folds,
                        "direction": test.direction,
                    }
                )
    return pd.DataFrame(rows)


def aggregation_of(use: str) -> str:
    """Return within what a question is scored: a new drug over its samples, whatever else is new over its drugs."""
    return "within_drug" if use in ("drug", "both") else "within_sample"


def means_of(use: str) -> tuple[str, str]:
    """Return the methods that a network must beat to be worth it: means of what is not new, and of the source."""
    return {"sample": "drug mean", "drug": "sample mean"}.get(use, MEAN_EFFECTS), OF_SOURCE


def _better_mean(use: str, of_methods: Mapping[str, pd.DataFrame]) -> str:
    """Return of these methods the one that says more: before many pairs are known that is the source's."""
    there = [name for name in means_of(use) if name in of_methods]
    return max(there, key=lambda name: of_methods[name]["pearson"].mean())


def _tested(method: pd.DataFrame, other: pd.DataFrame) -> tuple[DifferenceTest, float]:
    """Return the paired test over groups, and p of the corrected one over folds."""
    n_folds = method["fold"].nunique()
    by_group, by_fold = ([one.groupby(by)["pearson"].mean() for one in (method, other)] for by in ("group", "fold"))
    of_folds = paired_test(*(one.to_numpy() for one in by_fold), test_to_train=1 / max(1, n_folds - 1))
    return paired_test(*(one.to_numpy() for one in by_group)), of_folds.p
