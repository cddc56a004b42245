"""Two cohorts beside each other: what is lost from one to the other, how far apart they lie, which genes both use.

How far apart two cohorts lie is how well a classifier tells them, of samples that neither it nor the harmonisation has
seen, before and after each way of harmonising: one table for all of them, since the way that is taken is a choice.
Whether both use the same genes is asked of the method fitted to each cohort by itself; beside it stands how far two
halves of the cohort tested agree, without which a low agreement would say nothing: few patients pick few genes twice.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geneformer_repro.agreement import chance_jaccard, jaccard_of_tops, spearman
from geneformer_repro.finetuning.cohort_outcomes import CohortOutcome, parts_of
from geneformer_repro.finetuning.metrics import Statistics, bootstrap, with_intervals
from geneformer_repro.harmonise import Harmoniser
from geneformer_repro.progress import progress

Harmonise = Literal["none", "standardise", "quantile", "combat", "reference"]
HARMONISED: tuple[Harmonise, ...] = get_args(Harmonise)
SCORES = ("within", "cross", "drop")
SPELLED = {
    "c_index": "C-index",
    "macro_f1": "macro-F1",
    "pearson_within_sample_normalised": "correlation over the drugs of a sample",
}
"""What scores are called in sentences and pictures."""
_DOMAIN_COMPONENTS, _DOMAIN_FOLDS = 20, 5
_ROUNDING = 1e-12


class CohortPairs:
    """Cohorts of which any two are compared; what a cohort makes of genes is asked once.

    Parameters
    ----------
    outcome
        What is predicted.
    harmonise
        How both are brought to one scale.
    top
        Genes with the largest effects that are compared.
    """

    def __init__(self, outcome: CohortOutcome, harmonise: Harmonise, top: int) -> None:
        self._outcome, self._harmonise, self._top = outcome, harmonise, top
        self._effects: dict[str, pd.DataFrame] = {}

    def table(self, train: Sequence[str], test: Sequence[str], *, step: str) -> pd.DataFrame:
        """Return a row a cohort that is learned and another that is tested; `step` is the word before a bar."""
        pairs, rows = [(one, other) for one in train for other in test if one != other], []
        with progress(step, total=len(pairs), unit="pairs of cohorts") as bar:
            for one, other in pairs:
                bar.set_postfix_str(f"{one} → {other}")
                rows.append(self.compared(one, other))
                bar.update()
        return pd.DataFrame(rows)

    def effects(self) -> pd.DataFrame:
        """Return what each cohort makes of each gene: ``cohort``, ``output``, ``gene``, ``effect``; 0 is left out."""
        rows = []
        for cohort, effects in self._effects.items():
            named = effects.rename_axis("gene").reset_index()
            long = named.melt("gene", var_name="output", value_name="effect").assign(cohort=cohort)
            rows.append(long[long["effect"] != 0])
        columns = ["cohort", "output", "gene", "effect"]
        return pd.concat(rows)[columns].reset_index(drop=True) if rows else pd.DataFrame(columns=columns)

    def compared(self, train: str, test: str) -> dict[str, Any]:
        """Return the row of a pair."""
        outcome = self._outcome
        of_train, of_test = outcome.rows(train, test)
        rows = np.concatenate([of_train, of_test])
        names = np.repeat([train, test], [len(of_train), len(of_test)])
        values = harmonised(outcome.values[rows], names, np.arange(len(rows)), self._harmonise, train)
        told = outcome.told(train, test, values[: len(of_train)], values[len(of_train) :])

        def statistics(weights_NR: np.ndarray) -> Statistics:
            within, cross = told.within(weights_NR), told.cross(weights_NR)
            return {"within": within, "cross": cross, "drop": within - cross}

        scores = bootstrap(statistics, told.n_rows, told.units, np.random.default_rng(outcome.seed))
        return {
            "train_cohort": train,
            "test_cohort": test,
            "metric": outcome.metric,
            **with_intervals(scores, SCORES),
            **told.facts,
            **self._domain_aucs(rows, names, train),
            **self._agreement(train, test),
        }

    # Told apart

    def _domain_aucs(self, rows: np.ndarray, names: np.ndarray, train: str) -> dict[str, float]:
        """Return the AUC by which the two are told apart, by way of harmonisation.

        Samples are compared within a fold, and cohorts count alike: once means are equal a model says nothing but how
        many of each it was given, of which a fold that has more leaves fewer.
        """
        values, is_train = self._outcome.values[rows], names == train
        units = None if self._outcome.units is None else self._outcome.units[rows]
        if units is not None and min(len(np.unique(units[names == name])) for name in np.unique(names)) < 2:
            units = None
        seed, weights = self._outcome.seed, []
        areas: dict[Harmonise, list[float]] = {way: [] for way in HARMONISED}
        for rest, left_out in parts_of(_DOMAIN_FOLDS, seed, is_train, units, len(rows)):
            n_pairs = int(is_train[left_out].sum()) * int((~is_train[left_out]).sum())
            if not n_pairs:  # a fold of donors of one cohort
                continue
            weights.append(n_pairs)
            for way, of_folds in areas.items():
                seen = harmonised(values, names, rest, way, train)
                n = min(_DOMAIN_COMPONENTS, values.shape[1], len(rest) - 1)
                regression = LogisticRegression(max_iter=1000, class_weight="balanced")
                model = make_pipeline(StandardScaler(), PCA(n, random_state=seed), regression)
                told = model.fit(seen[rest], is_train[rest]).decision_function(seen[left_out])
                of_folds.append(roc_auc_score(is_train[left_out], told))
        auc = {way: float(np.average(of, weights=weights)) if weights else np.nan for way, of in areas.items()}
        named = {"domain_auc_before": auc["none"], "domain_auc_after": auc[self._harmonise]}
        return named | {f"domain_auc_{way}": value for way, value in auc.items() if way != "none"}

    # Genes

    def _agreement(self, train: str, test: str) -> dict[str, float]:
        if self._outcome.genes is None:
            return {}
        halves = [self._outcome.effects(test, rows) for rows in self._outcome.halves(test)]
        across = agreement(self._of(train), self._of(test), self._top)
        within = agreement(halves[0], halves[1], self._top)
        return across | {f"{name}_within": within[name] for name in ("effects_spearman", "effects_top")}

    def _of(self, cohort: str) -> pd.DataFrame:
        if cohort not in self._effects:
            assert self._outcome.genes is not None
            effects = self._outcome.effects(cohort, self._outcome.members[cohort])
            self._effects[cohort] = effects.set_axis(self._outcome.genes, axis=0)
        return self._effects[cohort]


def agreement(first: pd.DataFrame, second: pd.DataFrame, top: int) -> dict[str, float]:
    """Return how far two fits agree on genes that both look at, medians over what both predict.

    Parameters
    ----------
    first, second
        Effects, genes × outputs; 0 of a gene that was not looked at.
    top
        Genes with the largest absolute effects that are compared.

    Returns
    -------
    ``effects_spearman`` of the effects with their sign; ``effects_top``, Jaccard index of the genes with the largest;
    ``effects_top_chance``, that of two random choices; ``n_genes``, looked at by both; ``n_outputs``.
    """
    shared = first.columns.intersection(second.columns)
    found = []
    for name in shared:
        both = np.column_stack([first[name], second[name]])
        both = both[(np.abs(both) > _ROUNDING).all(axis=1)]
        if len(both) > top:
            a, b = both.T
            jaccard = jaccard_of_tops(np.abs(a), np.abs(b), top)
            found.append((spearman(a, b), jaccard, chance_jaccard(top, len(both)), len(both)))
    median = np.nanmedian(np.array(found, dtype=float), axis=0) if found else np.full(4, np.nan)
    named = zip(("effects_spearman", "effects_top", "effects_top_chance", "n_genes"), median.tolist(), strict=True)
    return {**dict(named), "n_outputs": len(found)}


def harmonised(
    values: np.ndarray, names: np.ndarray, fitted_on: np.ndarray, way: Harmonise, reference: str
) -> np.ndarray:
    """Return the values of two cohorts on one scale.

    Parameters
    ----------
    values, names
        Of samples, and the cohort of each.
    fitted_on
        Rows that say how.
    way
        Of `Harmoniser`, or "none".
    reference
        Cohort whose samples stay as they are, of "reference".
    """
    if way == "none":
        return values
    fitted = Harmoniser.fit(
        values[fitted_on], names[fitted_on], method=way, reference=reference if way == "reference" else None
    )
    return fitted.apply(values, names)


NO_EFFECTS = "Effects of genes are not known: vectors of a checkpoint were looked at, whose numbers stand for no genes."


def summary(table: pd.DataFrame, harmonise: str) -> str:
    """Say what is lost from one cohort to another, in a sentence.

    Parameters
    ----------
    table
        Of `CohortPairs.table`.
    harmonise
        How both were brought to one scale.
    """
    clear, metric = int((table["drop_low"] > 0).sum()), str(table["metric"].iloc[0])
    before, after = table["domain_auc_before"].median(), table["domain_auc_after"].median()
    said = (
        f"{len(table)} {'pair' if len(table) == 1 else 'pairs'} of cohorts: {SPELLED.get(metric, metric)} "
        f"{table['within'].mean():.3f} learned within the cohort tested, {table['cross'].mean():.3f} learned in the "
        f"other; what is lost is surely above 0 in {clear} of {len(table)}. A classifier tells the cohorts apart with "
        f"an AUC of {before:.2f} as they are"
    )
    said += "" if harmonise == "none" else f", of {after:.2f} once harmonised ({harmonise})"
    said += " (medians; 0.5 is not at all)."
    if "effects_spearman" in table and table["effects_spearman"].notna().any():
        said += (
            f" Effects of genes agree across cohorts with Spearman {table['effects_spearman'].median():.2f}, between "
            f"halves of one cohort with {table['effects_spearman_within'].median():.2f}."
        )
    elif "effects_spearman" not in table:
        said += f" {NO_EFFECTS}"
    return said
