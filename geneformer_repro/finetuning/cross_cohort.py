"""Whether what one cohort teaches holds in another: on the same rows, scored by both, and how far apart both lie.

One linear method a question (Cox ridge, logistic regression, ridge on components × drug; all on principal components),
which needs no network and no choice, so that what is seen is the cohorts'. The same test rows are scored by their own
cohort (left out fold by fold) and by the other, and always within the folds, so that the drop is not that of other
pairs of patients. A classifier of the cohort says what platform and centre leave in the expression, before and after
each way of harmonising, and the method's effects of genes whether both cohorts say the same for the same reason.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.utils.sparsefuncs import mean_variance_axis

from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.embedding import embed
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.finetuning.cohort_outcomes import (
    CohortOutcome,
    LabelOutcome,
    ResponseOutcome,
    SurvivalOutcome,
    with_enough,
)
from geneformer_repro.finetuning.cohort_pairs import CohortPairs, Harmonise, summary
from geneformer_repro.finetuning.kinds.survival import FEWEST_EVENTS, read_survival
from geneformer_repro.finetuning.response_data import ResponseData
from geneformer_repro.finetuning.settings.labels import FollowUpConfig, require_one_time
from geneformer_repro.finetuning.settings.pairs import ResponseConfig
from geneformer_repro.sample_reading import measured
from geneformer_repro.tokenizer.counts import rank_values
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.matrices import dense
from geneformer_repro.tokenizer.measures import Measure, Values

logger = logging.getLogger(__name__)

FEWEST_SAMPLES = 10
"""With a label, in a cohort, for the label to be told."""
_GENES = 2000
"""Of cells, and of drug response, the most variable genes of all cohorts together are looked at."""


@typed
def cross_cohort(
    samples: AnnData | TokenizedDataset | Mapping[str, ResponseData],
    survival: Mapping[str, str] | None = None,
    *,
    cohort: str | None = None,
    target: str | None = None,
    donor: str | None = None,
    checkpoint: Checkpoint | None = None,
    values: Values | None = None,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    harmonise: Harmonise = "standardise",
    folds: int = 5,
    max_cells: int = 2000,
    top: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Train on one cohort, test on another, and compare with what the other tells of itself.

    Parameters
    ----------
    samples
        Of survival: expression on a scale on which sums make sense (log2), a row a patient, without missing values. Of
        labels: the same, or cells with raw counts, or tokenised cells. Of drug response: by name of the study, its
        samples, drugs and responses.
    survival
        Column of ``obs`` with events (1, or 0 for censored) → column with times: survival is predicted. Rows without a
        usable time are left out.
    cohort
        Column of ``obs`` with the cohorts; studies of drug response are cohorts by their names. Those with fewer than
        ten events, or with fewer than ten samples of two labels, are left out.
    target
        Column of ``obs`` with labels, such as cell types: these are predicted. Labels that one of two cohorts has in
        fewer than ten samples are left out of the pair.
    donor
        With `target`, the column of donors or patients, the replicate: they are drawn as wholes in intervals, and stay
        whole in folds, where a cohort has as many as there are folds.
    checkpoint
        With tokenised cells: their vectors (`embed`) are looked at, in place of rank values; effects of genes are then
        not told.
    values
        What a matrix holds. With `target` "counts" by default, which become log1p of counts per 10,000; "expression"
        becomes log1p; "zscore" is taken as it is, as values of survival are. Of matrices of drug response it must be
        said.
    train, test
        Cohorts that are trained on and tested; by default all.
    harmonise
        How both are brought to one scale (`Harmoniser`; "reference" is the cohort trained on), or "none". It sees the
        expression of both, and outcomes of neither.
    folds
        In which a cohort is tested on itself, alike in events or labels.
    max_cells
        With `target`, samples of a cohort that are looked at, drawn from more.
    top
        Genes with the largest effects, which are compared between cohorts.
    seed
        Of folds, components, resamples and draws.

    Returns
    -------
    A row an outcome, cohort trained on and cohort tested.

    - ``event``, ``target`` or ``measure``; ``train_cohort``, ``test_cohort``; ``metric``: "c_index"; "macro_f1"; or
      "pearson_within_sample_normalised", the mean over samples of the correlation over drugs, each drug's mean taken
      off truth and prediction (of the study that predicts), with samples that both have unknown to either.
    - ``within``, of the rows tested as their own cohort tells them, ``cross``, as the other does, and ``drop``, within
      less cross, each with the 95 % interval over resampled patients, donors or samples (``_low``, ``_high``).
    - ``n_train``, ``n_test`` and more of the sizes (events, classes, donors, drugs). Of drug response
      ``measured_twice``: the same correlation of the responses that both studies measured, which bounds ``cross``.
    - ``domain_auc_before``, with which logistic regression tells the two cohorts apart, in samples (donors where there
      are two in each) that neither it nor the harmoniser has seen; the same after each way,
      ``domain_auc_standardise``, ``_quantile``, ``_combat``, ``_reference``; ``domain_auc_after`` is that of
      `harmonise`. 0.5: they are not told apart.
    - ``effects_spearman``, of the effects of genes in the method fitted to either cohort; ``effects_top``, the Jaccard
      index of the `top` genes with the largest, beside its chance ``effects_top_chance``; medians over labels or
      drugs (``n_outputs``), of genes that both look at (``n_genes``). ``effects_spearman_within`` and
      ``effects_top_within``: the same between two halves of the cohort tested, which have half as much to learn from.

    ``attrs``: ``sentence``; ``effects``, a table of ``cohort``, ``output``, ``gene``, ``effect`` by standard deviation
    of the gene; ``called``, names of genes and drugs by what tells them; ``facts``.

    Raises
    ------
    InputError
        A column or cohort is missing, fewer than two cohorts are large enough, a value of the expression is missing, or
        arguments do not fit the samples.

    See Also
    --------
    plot_cross_cohort : Draws the table.
    write_cross_cohort_report : A page of it.
    Harmoniser : What brings cohorts to one scale.
    transfer_study : Whether a network that has learned one data set learns another better.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> import geneformer_repro as gf
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(120, 30))
    >>> time = rng.exponential(np.exp(-values[:, :5].sum(axis=1)))
    >>> obs = pd.DataFrame({"OS": 1, "OS.time": time, "study": ["A", "B"] * 60}, index=[f"P{i}" for i in range(120)])
    >>> table = gf.cross_cohort(AnnData(values, obs=obs), {"OS": "OS.time"}, cohort="study", top=5)
    >>> table[["train_cohort", "test_cohort", "n_test"]].to_numpy().tolist()
    [['A', 'B', 60], ['B', 'A', 60]]
    >>> bool((table["effects_top"] > table["effects_top_chance"]).all())
    True
    """
    require_at_least(folds=(folds, 2), max_cells=(max_cells, FEWEST_SAMPLES), top=(top, 1), seed=(seed, 0))
    _require_one_question(samples, survival, cohort, target, checkpoint)
    if donor is not None and target is None:
        raise InputError("donor= is for labels (target=); patients of survival and samples of drug response are rows.")
    facts = {"harmonise": harmonise, "folds": folds, "seed": seed, "cohort": cohort}
    outcomes: Mapping[tuple[str, str], CohortOutcome]
    if isinstance(samples, Mapping):
        outcomes = _of_response(samples, values, folds, seed)
    elif survival is not None:
        assert isinstance(samples, AnnData)
        outcomes = _of_survival(samples, survival, str(cohort), folds, seed)
    else:
        outcomes = _of_labels(samples, str(target), str(cohort), donor, checkpoint, values, max_cells, folds, seed)
    tables, effects = [], []
    for (kind, name), outcome in outcomes.items():
        pairs = CohortPairs(outcome, harmonise, top)
        table = pairs.table(_chosen(train, outcome.members), _chosen(test, outcome.members), step=name)
        table.insert(0, kind, name)
        tables.append(table)
        effects.append(pairs.effects().assign(**{kind: name}))
        facts |= {"method": outcome.method}
    if not any(map(len, tables)):
        raise InputError("train= and test= name one cohort; a cohort is compared with another.")
    together = pd.concat(tables, ignore_index=True)
    together.attrs = {
        "sentence": summary(together, harmonise),
        "effects": pd.concat(effects, ignore_index=True),
        "called": _called(samples),
        "facts": {name: value for name, value in facts.items() if value is not None},
    }
    return together


def _called(samples: AnnData | TokenizedDataset | Mapping[str, ResponseData]) -> dict[str, str]:
    """Return what the genes are called, by id, and drugs, by what tells them: a structure, if it is known."""
    named: Iterable[tuple[Any, Any]]
    if isinstance(samples, TokenizedDataset):
        named = zip(samples.vocabulary.gene_ids, samples.vocabulary.gene_names, strict=True)
    elif isinstance(samples, AnnData):
        named = zip(samples.var_names, samples.var.get("gene_name", samples.var_names), strict=True)
    else:
        studies = reversed([data.drugs for data in samples.values()])  # names of the first study win
        named = (pair for drugs in studies for pair in zip(drugs.keys, drugs.names, strict=True))
    return {str(key): str(name) for key, name in named if pd.notna(name) and str(name)}


def _require_one_question(
    samples: Any, survival: Any, cohort: str | None, target: str | None, checkpoint: Checkpoint | None
) -> None:
    if isinstance(samples, Mapping):
        if len(samples) < 2:
            raise InputError(f"Drug response is compared between studies, found {len(samples)}. Give two or more.")
        if survival is not None or target is not None or cohort is not None:
            raise InputError("Studies of drug response are the cohorts; leave survival=, target= and cohort= out.")
        return
    if (survival is None) == (target is None):
        raise InputError("Say what is predicted: survival={event: time}, or target= a column of labels; one of both.")
    if cohort is None:
        raise InputError("cohort= is missing: the obs column that says of which cohort each sample is.")
    if survival is not None and not isinstance(samples, AnnData):
        raise InputError("Survival is predicted from a matrix of expression (AnnData), not from tokens.")
    if checkpoint is not None and not isinstance(samples, TokenizedDataset):
        raise InputError("checkpoint= reads tokenised cells; a matrix is looked at by itself.")


def _chosen(names: str | Sequence[str] | None, members: Mapping[str, np.ndarray]) -> list[str]:
    chosen = list(members) if names is None else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in members:
            raise InputError(f"There is no cohort {name!r} that is large enough. {did_you_mean(name, members)}")
    return chosen


def _obs(samples: AnnData | TokenizedDataset, column: str) -> pd.Series:
    if isinstance(samples, TokenizedDataset):
        return samples.labels(column)
    if column not in samples.obs:
        raise InputError(f"The samples have no obs column {column!r}. {did_you_mean(column, samples.obs.columns)}")
    return as_labels(samples.obs[column])


# Survival


def _of_survival(
    samples: AnnData, survival: Mapping[str, str], cohort: str, folds: int, seed: int
) -> Mapping[tuple[str, str], SurvivalOutcome]:
    require_one_time(survival)
    for column in (cohort, *survival, *survival.values()):
        _obs(samples, column)
    values = dense(samples.X, np.float64)
    if not np.isfinite(values).all():
        raise InputError(
            f"{(~np.isfinite(values)).sum():,} values of the expression are missing; fill or leave them out."
        )
    found = {}
    for event, time in survival.items():
        target, labels_NS = read_survival(event, samples.obs, time, FollowUpConfig(cohort=cohort, unusable="leave_out"))
        members = {name: np.flatnonzero(labels_NS[:, 2] == i) for i, name in enumerate(target.cohorts)}
        n_events = {name: int(labels_NS[rows, 1].sum()) for name, rows in members.items()}
        few = [f"{name} ({n})" for name, n in n_events.items() if n < FEWEST_EVENTS]
        if few:
            listed = ", ".join(few)
            logger.warning("%s: cohorts with fewer than %d events are left out: %s.", event, FEWEST_EVENTS, listed)
        usable = {name: members[name] for name in with_enough(n_events, FEWEST_EVENTS, f"events of {event}")}
        found["event", event] = SurvivalOutcome(labels_NS, values, samples.var_names, usable, None, folds, seed)
    return found


# Labels


def _of_labels(
    samples: AnnData | TokenizedDataset,
    target: str,
    cohort: str,
    donor: str | None,
    checkpoint: Checkpoint | None,
    values: Values | None,
    max_cells: int,
    folds: int,
    seed: int,
) -> Mapping[tuple[str, str], LabelOutcome]:
    columns = [_obs(samples, name) for name in (target, cohort, *([donor] if donor else []))]
    known = np.logical_and.reduce([column.notna().to_numpy() for column in columns])
    if isinstance(samples, TokenizedDataset):
        known &= samples.has_gene
    label, of_cohort, *units = (column.astype(object).to_numpy() for column in columns)
    rng, drawn = np.random.default_rng(seed), {}
    for name in pd.unique(of_cohort[known]):
        rows = np.flatnonzero(known & (of_cohort == name))
        drawn[str(name)] = np.sort(rng.choice(rows, max_cells, replace=False)) if len(rows) > max_cells else rows
    n_labels = {
        name: int((pd.Series(label[rows]).value_counts() >= FEWEST_SAMPLES).sum()) for name, rows in drawn.items()
    }
    usable = with_enough(n_labels, 2, f"labels of {FEWEST_SAMPLES} samples or more")
    if few := [name for name in drawn if name not in usable]:
        logger.warning(
            "Cohorts with fewer than two labels of %d samples are left out: %s.", FEWEST_SAMPLES, ", ".join(few)
        )
    kept = np.concatenate([drawn[name] for name in usable])
    ends = np.cumsum([0, *(len(drawn[name]) for name in usable)])
    members = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(usable)}
    matrix, genes = _looked_at(samples, kept, checkpoint, values)
    of_units = units[0][kept].astype(str) if units else None
    shared = (matrix, genes, members, of_units, folds, seed)
    return {("target", target): LabelOutcome(label[kept].astype(str), FEWEST_SAMPLES, *shared)}


def _looked_at(
    samples: AnnData | TokenizedDataset, rows: np.ndarray, checkpoint: Checkpoint | None, values: Values | None
) -> "tuple[np.ndarray, pd.Index[str] | None]":
    """Return what is looked at of some samples, and the gene of each column."""
    if isinstance(samples, AnnData):
        chosen = samples[rows]
        return _most_variable(measured(chosen, Measure(values or "counts", False)), chosen.var_names)
    if values is not None:
        raise InputError("values= says what a matrix holds; tokens say it themselves. Leave it out.")
    if checkpoint is not None:
        return dense(embed(checkpoint, samples.select(rows)).X, np.float64), None
    return _most_variable(rank_values(samples.select(rows)), pd.Index(samples.vocabulary.gene_ids))


def _most_variable(matrix: csr_matrix, genes: "pd.Index[str]") -> "tuple[np.ndarray, pd.Index[str]]":
    chosen = np.arange(matrix.shape[1])
    if len(chosen) > _GENES:
        chosen = np.sort(np.argsort(-mean_variance_axis(matrix, axis=0)[1], kind="stable")[:_GENES])
    return dense(matrix[:, chosen], np.float64), genes[chosen]


# Drug response


def _of_response(
    studies: Mapping[str, ResponseData], values: Values | None, folds: int, seed: int
) -> Mapping[tuple[str, str], ResponseOutcome]:
    config = ResponseConfig(values=values)
    problems = {name: data.problem(config) for name, data in studies.items()}
    tables = {name: problem.expression_table() for name, problem in problems.items()}
    genes = pd.Index(next(iter(tables.values())).columns)
    for table in tables.values():
        genes = genes[genes.isin(table.columns)]
    if not len(genes):
        raise InputError(f"{' and '.join(studies)} share no gene by name. Give expression with the same gene ids.")
    ends = np.cumsum([0, *map(len, tables.values())])
    members = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(tables)}
    matrix = np.concatenate([table[genes].to_numpy(np.float64) for table in tables.values()])
    if not np.isfinite(matrix).all():
        raise InputError(f"{(~np.isfinite(matrix)).sum():,} values of the expression are missing; fill them before.")
    matrix, genes = _most_variable(csr_matrix(matrix), genes)
    who = np.concatenate([problem.sample_keys for problem in problems.values()])
    measure = " → ".join(dict.fromkeys(problem.measure for problem in problems.values()))
    return {("measure", measure): ResponseOutcome(problems, matrix, genes, members, who, folds, seed)}
