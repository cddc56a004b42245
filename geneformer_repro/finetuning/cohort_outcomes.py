"""What cohorts are compared by: survival, labels of cells or samples, drug response.

Of each the same is asked: what one cohort tells of the rows of another, and what the other tells of itself, with the
rows left out fold by fold; both are scored on the same rows, within the same folds. One linear method on principal
components for each, which needs no network and no choice, so that what is seen is the cohorts', and so that what it
makes of each gene can be said exactly.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from geneformer_repro.drugs import same_drugs
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.baselines import Features, PairInputs, column_effects, components
from geneformer_repro.finetuning.kinds.class_scores import Calls
from geneformer_repro.finetuning.kinds.response_methods import MEAN_EFFECTS, RESPONSE_METHODS
from geneformer_repro.finetuning.kinds.response_scores import Pairs, response_statistics
from geneformer_repro.finetuning.kinds.survival_methods import SURVIVAL_METHODS
from geneformer_repro.finetuning.kinds.survival_scores import c_index_in_resamples
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.responses import sensitive_is_low

Score = Callable[[np.ndarray], np.ndarray]
"""Gives a score in resamples, from weights (rows, resamples)."""
Parts = list[tuple[np.ndarray, np.ndarray]]
"""Of each fold the rows that are learned, and those that are left out."""
_COMPONENTS = 50
_LEAST_PROBABILITY = 1e-300


class Told(NamedTuple):
    """What two cohorts tell of the rows of one of them."""

    within: Score
    cross: Score
    n_rows: int
    units: np.ndarray | None
    """Of each row what is drawn as a whole, such as its donor; None: rows."""
    facts: dict[str, Any]


class CohortOutcome(ABC):
    """Cohorts with what is to be predicted.

    Parameters
    ----------
    values
        Of all samples, samples × genes (or × length of a vector), on a scale on which sums make sense.
    genes
        Name of each column; None where columns are no genes.
    members
        The samples of each cohort.
    units
        What samples belong together, such as cells of a donor; None: each by itself.
    n_folds, seed
        In which a cohort is tested on itself; of all that is drawn.
    """

    metric: str
    method: str

    def __init__(
        self,
        values: np.ndarray,
        genes: "pd.Index[str] | None",
        members: Mapping[str, np.ndarray],
        units: np.ndarray | None,
        n_folds: int,
        seed: int,
    ) -> None:
        self.values, self.genes, self.members, self.units = values, genes, members, units
        self.n_folds, self.seed = n_folds, seed

    def rows(self, train: str, test: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of two cohorts that are compared."""
        return self.members[train], self.members[test]

    @abstractmethod
    def told(self, train: str, test: str, of_train: np.ndarray, of_test: np.ndarray) -> Told:
        """Return what both tell of the one tested.

        Parameters
        ----------
        train, test
            Cohorts.
        of_train, of_test
            Their values, on one scale, of the samples that `rows` names.
        """

    @abstractmethod
    def effects(self, cohort: str, samples: np.ndarray) -> pd.DataFrame:
        """Return what the method, fitted to some samples of a cohort, makes of each column.

        Returns
        -------
        Columns of the values × what is predicted (the risk, each class, each drug), by standard deviation of a column.
        """

    def halves(self, cohort: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of a cohort in two halves, units together."""
        rows = self.members[cohort]
        first, second = self.parts(cohort, rows, 2)[0]
        return rows[first], rows[second]

    @abstractmethod
    def parts(self, cohort: str, rows: np.ndarray, n: int) -> Parts:
        """Cut some samples of a cohort into folds: places among them."""


@dataclass(frozen=True)
class _Whole:
    """Folds by strata, units as wholes where there are enough."""

    n: int
    seed: int

    def of(self, strata: np.ndarray | None, units: np.ndarray | None, n_rows: int) -> Parts:
        rows = np.zeros((n_rows, 1))
        if units is not None and len(np.unique(units)) >= self.n:
            if strata is None:
                order = np.random.default_rng(self.seed).permutation(np.unique(units))
                codes = pd.Index(order).get_indexer(units)
                return list(GroupKFold(self.n).split(rows, groups=codes))
            folds: Any = StratifiedGroupKFold(self.n, shuffle=True, random_state=self.seed)
            return list(folds.split(rows, strata, units))
        if strata is None:
            return list(KFold(self.n, shuffle=True, random_state=self.seed).split(rows))
        return list(StratifiedKFold(self.n, shuffle=True, random_state=self.seed).split(rows, strata))


def parts_of(n: int, seed: int, strata: np.ndarray | None, units: np.ndarray | None, n_rows: int) -> Parts:
    """Cut rows into folds, alike in strata; units as wholes, where there are as many as folds."""
    return _Whole(n, seed).of(strata, units, n_rows)


# Survival


class SurvivalOutcome(CohortOutcome):
    """Times until an event, by Cox ridge."""

    metric, method = "c_index", "Cox ridge, PCA"

    def __init__(self, labels_NS: np.ndarray, *shared: Any) -> None:
        super().__init__(*shared)
        self._labels = labels_NS
        self._within: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def told(self, train: str, test: str, of_train: np.ndarray, of_test: np.ndarray) -> Told:
        """Return the risks of the cohort tested by both."""
        labels, tested = self._labels[self.members[train]], self._labels[self.members[test]]
        cross = self._risk(np.concatenate([of_train, of_test]), labels, len(of_train))
        within, fold = self._of_itself(test)
        event_time, event = tested[:, :2].T
        of_within, of_cross = (c_index_in_resamples(event_time, event, risk, strata=fold) for risk in (within, cross))
        facts = {
            "n_train": len(of_train),
            "events_train": int(labels[:, 1].sum()),
            "n_test": len(of_test),
            "events_test": int(event.sum()),
        }
        return Told(of_within, of_cross, len(of_test), None, facts)

    def _of_itself(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the risk of each patient of a cohort by the others of it, and the fold in which it was left out."""
        if name not in self._within:
            rows = self.members[name]
            values, labels = self.values[rows], self._labels[rows]
            risk, fold = np.empty(len(values)), np.empty(len(values), dtype=int)
            for i, (rest, left_out) in enumerate(self.parts(name, rows, self.n_folds)):
                of_both = np.concatenate([values[rest], values[left_out]])
                risk[left_out], fold[left_out] = self._risk(of_both, labels[rest], len(rest)), i
            self._within[name] = risk, fold
        return self._within[name]

    def _risk(self, values: np.ndarray, labels: np.ndarray, n_train: int) -> np.ndarray:
        """Return the risk of the rows after the first, which are learned."""
        train, test = np.arange(n_train), np.arange(n_train, len(values))
        predicted = SURVIVAL_METHODS[self.method](Features.of_samples(values), train, labels, test, self.seed, ())
        assert predicted is not None  # expression is at hand
        return predicted[:, 0]

    def effects(self, cohort: str, samples: np.ndarray) -> pd.DataFrame:
        """Return what each column adds to the log hazard."""
        values = self.values[samples]
        risk = self._risk(np.concatenate([values, values]), self._labels[samples], len(values))
        return pd.DataFrame(column_effects(values, np.arange(len(values)), risk[:, None]), columns=["risk"])

    def parts(self, cohort: str, rows: np.ndarray, n: int) -> Parts:
        """Folds are alike in events."""
        return parts_of(n, self.seed, self._labels[rows, 1], None, len(rows))


# Labels


class LabelOutcome(CohortOutcome):
    """Labels of cells or samples, by logistic regression; classes that one of two cohorts lacks are left out."""

    metric, method = "macro_f1", "logistic regression, PCA"

    def __init__(self, labels: np.ndarray, fewest: int, *shared: Any) -> None:
        super().__init__(*shared)
        self._labels, self._fewest = labels, fewest

    def classes(self, cohort: str) -> list[str]:
        """Return the labels that are frequent enough in a cohort."""
        names, n = np.unique(self._labels[self.members[cohort]].astype(str), return_counts=True)
        return names[n >= self._fewest].tolist()

    def shared_classes(self, train: str, test: str) -> list[str]:
        """Return the labels of both.

        Raises
        ------
        InputError
            There are fewer than two.
        """
        shared = sorted(set(self.classes(train)) & set(self.classes(test)))
        if len(shared) < 2:
            raise InputError(
                f"{train!r} and {test!r} share {len(shared)} labels of {self._fewest} samples or more each; two are "
                f"told apart. {train!r} has {', '.join(self.classes(train)) or 'none'}; {test!r} has "
                f"{', '.join(self.classes(test)) or 'none'}."
            )
        return shared

    def rows(self, train: str, test: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples with a label that both have."""
        shared = self.shared_classes(train, test)
        first, second = (
            self.members[name][np.isin(self._labels[self.members[name]], shared)] for name in (train, test)
        )
        return first, second

    def told(self, train: str, test: str, of_train: np.ndarray, of_test: np.ndarray) -> Told:
        """Return how well both tell the labels of the one tested."""
        shared = pd.Index(self.shared_classes(train, test))
        rows = self.rows(train, test)
        learned, true = (shared.get_indexer(self._labels[of]) for of in rows)
        both = np.concatenate([of_train, of_test])
        cross = self._log_probabilities(both, learned, len(of_train), len(shared))
        within, values = np.empty_like(cross), self.values[rows[1]]
        for rest, left_out in self.parts(test, rows[1], self.n_folds):
            of_both = np.concatenate([values[rest], values[left_out]])
            within[left_out] = self._log_probabilities(of_both, true[rest], len(rest), len(shared))
        units = None if self.units is None else self.units[rows[1]]
        facts = {
            "n_train": len(of_train),
            "n_test": len(of_test),
            "n_classes": len(shared),
            "n_donors_test": 0 if units is None else len(np.unique(units)),
        }
        of_within, of_cross = (Calls(true, np.exp(of)).macro_f1 for of in (within, cross))
        return Told(of_within, of_cross, len(of_test), units, facts)

    def _log_probabilities(self, values: np.ndarray, codes: np.ndarray, n_train: int, n_classes: int) -> np.ndarray:
        """Return log probabilities of the rows after the first, which are learned."""
        train, test = np.arange(n_train), np.arange(n_train, len(values))
        of_train, of_test = components(values, train, test, self.seed, most=_COMPONENTS)
        told = np.full((len(test), n_classes), np.log(_LEAST_PROBABILITY))
        if len(np.unique(codes)) == 1:
            told[:, codes[0]] = 0
            return told
        model = LogisticRegression(max_iter=2000).fit(of_train, codes)
        told[:, model.classes_] = np.log(model.predict_proba(of_test).clip(_LEAST_PROBABILITY))
        return told

    def effects(self, cohort: str, samples: np.ndarray) -> pd.DataFrame:
        """Return what each column adds to the log probability of each class, less that of the mean class."""
        names = pd.Index(self.classes(cohort))
        samples = samples[np.isin(self._labels[samples], names)]
        values, codes = self.values[samples], names.get_indexer(self._labels[samples])
        told = self._log_probabilities(np.concatenate([values, values]), codes, len(values), len(names))
        told -= told.mean(axis=1, keepdims=True)
        return pd.DataFrame(column_effects(values, np.arange(len(values)), told), columns=names)

    def parts(self, cohort: str, rows: np.ndarray, n: int) -> Parts:
        """Folds are alike in labels; donors stay whole where there are as many as folds."""
        units = None if self.units is None else self.units[rows]
        return parts_of(n, self.seed, self._labels[rows].astype(str), units, len(rows))


# Drug response


class _Shared(NamedTuple):
    """The pairs of two studies with drugs that both have, drugs numbered alike."""

    drugs: list[str]
    pairs: tuple[np.ndarray, np.ndarray]
    """Of each study: sample, among the study's, and drug of each row."""
    values: tuple[np.ndarray, np.ndarray]
    """Responses; those of the first turned round where its measure points the other way."""


class ResponseOutcome(CohortOutcome):
    """Responses of samples to drugs that two studies share, by ridge on components × drug, beyond each drug's mean.

    Samples of the fold that is tested are unknown to both, by who they are.
    """

    metric, method = "pearson_within_sample_normalised", "ridge, PCA × drug"

    def __init__(self, studies: Mapping[str, PairProblem], *shared: Any) -> None:
        super().__init__(*shared)
        self._studies = studies

    @cached_property
    def _keys(self) -> dict[str, np.ndarray]:
        """Who the samples of each study are."""
        return {name: study.sample_keys for name, study in self._studies.items()}

    def _shared(self, train: str, test: str) -> _Shared:
        first, second = self._studies[train], self._studies[test]
        given = [study.drugs.select(np.unique(study.pairs[:, 1])) for study in (first, second)]
        same = same_drugs(*given).drop_duplicates("a").drop_duplicates("b")
        names = same["b"].tolist()
        pairs, values = [], []
        for study, column in ((first, "a"), (second, "b")):
            number = pd.Index(same[column]).get_indexer(list(study.drugs.names))[study.pairs[:, 1]]
            pairs.append(np.column_stack([study.pairs[:, 0], number])[number >= 0])
            values.append(study.labels[number >= 0, 0])
        if sensitive_is_low(first.measure) != sensitive_is_low(second.measure):
            values[0] = -values[0]
        if len(names) < 2 or not min(map(len, values)):
            raise InputError(
                f"{train!r} and {test!r} share {len(names)} drugs with responses; two are needed to say which helps a "
                "sample more. Give drugs with their structures (drugs=), by which other names are led together."
            )
        return _Shared(names, (pairs[0], pairs[1]), (values[0], values[1]))

    def told(self, train: str, test: str, of_train: np.ndarray, of_test: np.ndarray) -> Told:
        """Return how well both tell which drug helps a sample more than others, beyond each drug's mean."""
        shared = self._shared(train, test)
        (pairs, tested), (learned, true) = shared.pairs, shared.values
        both = np.concatenate([of_train, of_test])
        moved = tested + np.array([len(of_train), 0])
        left = {name: np.empty((2, len(tested))) for name in ("within", "cross")}
        fold = np.empty(len(tested), dtype=int)
        present = np.unique(tested[:, 0])
        for i, (_, left_out) in enumerate(self.parts(test, self.members[test][present], self.n_folds)):
            here = np.isin(tested[:, 0], present[left_out])
            fold[here] = i
            of_study = self._values(test)
            left["within"][:, here] = self._beyond(of_study, tested[~here], true[~here], tested[here], true[here])
            known = ~np.isin(self._keys[train][pairs[:, 0]], self._keys[test][present[left_out]])
            predicted = self._beyond(both, pairs[known], learned[known], moved[here], true[here])[1]
            left["cross"][:, here] = left["within"][0, here], predicted
        of_within, of_cross = (self._score(left[name], tested, fold) for name in ("within", "cross"))
        facts = {
            "n_train": len(learned),
            "n_test": len(true),
            "n_drugs": len(shared.drugs),
            "n_samples_train": len(np.unique(pairs[:, 0])),
            "n_samples_test": len(present),
            **self._measured_twice(train, test, shared),
        }
        return Told(of_within, of_cross, len(true), tested[:, 0], facts)

    def _values(self, study: str) -> np.ndarray:
        return self.values[self.members[study]]

    def _beyond(
        self, samples: np.ndarray, train: np.ndarray, responses: np.ndarray, test: np.ndarray, true: np.ndarray
    ) -> np.ndarray:
        """Return the responses of test pairs, and what is predicted, less the mean of each drug; (2, rows)."""
        inputs = PairInputs(
            samples=samples,
            drugs=None,
            pairs=np.concatenate([train, test]),
            tissues=np.zeros(len(samples), dtype=int),
        )
        first, last = np.arange(len(train)), np.arange(len(train), len(train) + len(test))
        predicted, naive = (
            RESPONSE_METHODS[name](inputs, first, responses, last, self.seed) for name in (self.method, MEAN_EFFECTS)
        )
        assert predicted is not None
        assert naive is not None
        return np.stack([true - naive, predicted - naive])

    @staticmethod
    def _score(left: np.ndarray, pairs: np.ndarray, fold: np.ndarray) -> Score:
        told = Pairs(left[0], pairs[:, 0], pairs[:, 1], fold)
        statistics = response_statistics(told, left[1], aggregations=["within_sample"])
        return lambda weights_NR: statistics(weights_NR)["pearson_within_sample"]

    def _measured_twice(self, train: str, test: str, shared: _Shared) -> dict[str, Any]:
        """Say how far the two studies measured the same of the same pairs, beyond each drug's mean."""
        tables = []
        for name, pairs, values in zip((train, test), shared.pairs, shared.values, strict=True):
            table = pd.DataFrame({"sample": self._keys[name][pairs[:, 0]], "drug": pairs[:, 1], "value": values})
            tables.append(table.groupby(["sample", "drug"])["value"].mean())
        both = pd.concat(tables, axis=1, keys=["first", "second"]).dropna()
        left = both - both.groupby(level="drug").transform("mean")
        sample = left.index.get_level_values("sample").factorize()[0]
        drug = left.index.get_level_values("drug").to_numpy()
        told = Pairs(left["second"].to_numpy(), sample, drug, np.zeros(len(left)))
        if not len(left):
            return {"n_measured_twice": 0, "measured_twice": np.nan}
        agreement = response_statistics(told, left["first"].to_numpy(), aggregations=["within_sample"])
        found = agreement(np.ones((len(left), 1)))["pearson_within_sample"].item()
        return {"n_measured_twice": len(left), "measured_twice": found}

    def effects(self, cohort: str, samples: np.ndarray) -> pd.DataFrame:
        """Return what each column adds to the response to each drug of a sample that is new, beyond the drug's mean."""
        study, values = self._studies[cohort], self._values(cohort)
        rows = np.flatnonzero(np.isin(study.pairs[:, 0], samples - self.members[cohort][0]))
        fitted, given = np.unique(study.pairs[rows, 0]), np.unique(study.pairs[rows, 1])
        as_new = np.concatenate([values, values])  # under other numbers, of which nothing is known
        asked = np.stack(np.meshgrid(fitted + len(values), given, indexing="ij"), axis=-1).reshape(-1, 2)
        left = self._beyond(as_new, study.pairs[rows], study.labels[rows, 0], asked, np.zeros(len(asked)))[1]
        turned = 1 if sensitive_is_low(study.measure) else -1
        effects = turned * column_effects(values, fitted, left.reshape(len(fitted), len(given)))
        keys = pd.Index([study.drugs.keys[drug] for drug in given])
        return pd.DataFrame(effects, columns=keys).loc[:, ~keys.duplicated()]

    def parts(self, cohort: str, rows: np.ndarray, n: int) -> Parts:
        """A sample under two names is on one side."""
        return parts_of(n, self.seed, None, self._keys[cohort][rows - self.members[cohort][0]], len(rows))


def with_enough(sizes: Mapping[str, int], fewest: int, what: str) -> Sequence[str]:
    """Return the cohorts that are large enough.

    Raises
    ------
    InputError
        There are fewer than two.
    """
    usable = [name for name, n in sizes.items() if n >= fewest]
    if len(usable) < 2:
        raise InputError(f"{len(usable)} cohorts have {fewest} {what} ({dict(sizes)}); two are compared.")
    return usable
