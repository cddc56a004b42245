"""Does what other tumours teach help with this one? Every cohort in its turn is the target, all others the source.

Of the target nothing but its training samples is ever seen before its scores: settings are searched, and a network is
trained, on the other cohorts alone, which are all that these steps are given. Then networks learn the target's training
samples, at equal numbers of steps, each way of transfer with its own best learning rate: from the weights of the
others ("fine-tuned", "discriminative", "head only"), from random ones ("scratch"), or not at all ("zero-shot"). Beside
them stands what a statistician would do, and, where there are clinical columns, a network that has these too: does
expression add to age and stage? Folds are dealt several times, and samples are compared within a fold.

Values are standardised within each cohort by its training samples, since cohorts, and platforms, lie elsewhere.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import resolved, with_settings
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionNetwork, InputScale
from geneformer_repro.files import provenance
from geneformer_repro.finetuning.cohort_data import CohortData
from geneformer_repro.finetuning.cohort_results import write_study
from geneformer_repro.finetuning.cohort_tables import (
    DISCRIMINATIVE,
    HEAD_ONLY,
    SCRATCH,
    WITH_CLINICAL,
    ZERO_SHOT,
    CohortStudy,
    cohort_table,
    compare_over_cohorts,
)
from geneformer_repro.finetuning.curve import learning_curve
from geneformer_repro.finetuning.evaluation import Evaluation
from geneformer_repro.finetuning.experiment import Experiment, splits_of
from geneformer_repro.finetuning.expression_training import Examples, Trainee, train_expression
from geneformer_repro.finetuning.halving import halve
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED
from geneformer_repro.finetuning.methods import Comparison, NetworkMethod, file_name
from geneformer_repro.finetuning.networks import best_entry, read_history, trained_once
from geneformer_repro.finetuning.problems.samples import ExpressionProblem
from geneformer_repro.finetuning.settings.samples import CohortStudyConfig, SampleNetworkConfig, SampleTrainConfig
from geneformer_repro.finetuning.splits import Split, nested_draw
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.sharing import require_ray
from geneformer_repro.targets import Target
from geneformer_repro.work import working_on

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

VERSION = 4
"""Raised when the same call gives other results."""
_VALIDATED = 0.2
"""Share of each other cohort that chooses settings and epoch of what is learned of it."""


def study_cohorts(
    samples: "AnnData",
    config: CohortStudyConfig,
    *,
    out: str | Path,
    workers: int | None = None,
    ray: bool = False,
    overwrite: bool = False,
) -> CohortStudy:
    """Carry out the study; see `transfer_study`."""
    if processes.count() > 1:
        raise InputError("A study of cohorts is one process that shares its search by workers=; start it by itself.")
    if ray:
        require_ray()
    if config.follow_up.cohort is None:
        raise InputError("A study of cohorts needs their obs column: cohort=, or follow_up.cohort.")
    given = CohortData.read(samples, config)
    targets, left_out = given.targets()
    studies = [_CohortExperiment.of(given, cohort, {"workers": workers, "ray": ray}) for cohort in targets]
    for study in studies:
        study.require_labels()
    every = given.problem(np.arange(len(given.obs)))
    plan = {
        "step": "cohort_study",
        "version": VERSION,
        "config": resolved(with_settings(config, split_file=None)),
        "samples": every.digest(),
        "splits": [study.digest_of_splits() for study in studies],
    }
    with working_on(out, plan, what="study", marker="provenance.json", overwrite=overwrite) as work:
        found = []
        for number, study in enumerate(studies, 1):
            logger.info("Cohort %d of %d: %s.", number, len(studies), study.cohort)
            found.append(study.found(work.folder / file_name(study.cohort)))
        result = _joined(targets, found, left_out)
        record = provenance("cohort_study", config=resolved(config), inputs={"samples": plan["samples"]})
        with work.result() as folder:
            write_study(folder, result, config, record)
            for study, one in zip(studies, found, strict=True):
                study.write_networks(folder / file_name(study.cohort), one, record)
    return result


def _joined(targets: list[str], found: list["_Found"], left_out: pd.DataFrame) -> CohortStudy:
    evaluations = {cohort: one.evaluation for cohort, one in zip(targets, found, strict=True)}
    of_cohorts = partial(_by_cohort, targets)
    curves = [one.curve for one in found if one.curve is not None]
    return CohortStudy(
        cohort_table(evaluations),
        compare_over_cohorts(evaluations),
        evaluations,
        of_cohorts([one.trials for one in found]),
        of_cohorts([one.cost for one in found]),
        left_out,
        of_cohorts(curves) if curves else None,
    )


def _by_cohort(cohorts: list[str], tables: list[pd.DataFrame]) -> pd.DataFrame:
    named = [table.assign(cohort=cohort) for cohort, table in zip(cohorts, tables, strict=True)]
    joined = pd.concat(named, ignore_index=True)
    return joined[["cohort", *(name for name in joined if name != "cohort")]]


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found of one cohort."""

    evaluation: Evaluation
    trials: pd.DataFrame
    cost: pd.DataFrame
    curve: pd.DataFrame | None
    others: ExpressionNetwork
    """Trained on the other cohorts."""
    network: ExpressionNetwork
    """Fine-tuned on all samples of this one."""
    with_clinical: ExpressionNetwork | None
    """The same with clinical columns, where there are such."""


@dataclass(frozen=True, eq=False)
class _CohortExperiment(Experiment):
    """The experiment of one target, and what is learned of the others before."""

    problem: ExpressionProblem
    source: ExpressionProblem = dataclasses.field(kw_only=True)
    """Samples of the other cohorts; the only ones that search and pretraining are given."""
    cohort: str = dataclasses.field(kw_only=True)
    shared_by: Mapping[str, Any] = dataclasses.field(kw_only=True)
    """The search: ``workers`` and ``ray`` of `halve`."""

    @classmethod
    def of(cls, given: CohortData, cohort: str, shared_by: Mapping[str, Any]) -> "_CohortExperiment":
        """Split the samples of a target."""
        config, is_target = given.config, given.cohorts == cohort
        problem = given.problem(np.flatnonzero(is_target))
        splits = splits_of(problem, problem.obs, config)
        source = given.problem(np.flatnonzero(~is_target))
        return cls(problem, None, splits, config, source=source, cohort=cohort, shared_by=shared_by,
                   reference=SCRATCH)  # fmt: skip

    def found(self, work: Path) -> _Found:
        """Learn the others, then the target; what an earlier call finished is not repeated."""
        searched = _Source.of(self.source, self.config, work / "others", self.shared_by)
        config = dataclasses.replace(self.config, network=searched.config, training=searched.training)
        networks = (*NETWORKS, *self._with_clinical(searched.network))
        begun = dataclasses.replace(self, start=searched.network, config=config, networks=networks)
        features = self.problem.features(None, config, None) if config.compare.baselines else None
        found = begun.run(features, work)
        (evaluation,) = found.evaluations.values()
        curve = begun.curve(features, work / "curve") if config.compare.curve else None
        of_others, cost = searched.network, begun.cost(work)
        return _Found(evaluation, searched.trials, cost, curve, of_others, found.network, begun.with_clinical(work))

    def _with_clinical(self, network: ExpressionNetwork) -> Iterator[NetworkMethod]:
        """Yield the network of the others with a straight path for clinical columns, which only the target teaches."""
        problem = self.problem.with_covariates(self.config.compare.covariates)
        if columns := problem.inputs.names["covariates"]:
            yield NetworkMethod(
                WITH_CLINICAL,
                "with-clinical",
                step=", with clinical columns",
                start=network.with_covariates(columns),
                problem=problem,
            )

    def with_clinical(self, work: Path) -> ExpressionNetwork | None:
        """Train the network with clinical columns on the rows of all splits, as long as they found best."""
        network = self.networks[-1]
        if network.problem is None:
            return None
        trained: ExpressionNetwork
        trained, _ = network.problem.train(
            network.start,
            self._settled(network, work),
            Split(self.learned),
            work=work / f"final-{network.folder}",
            step=f"all {self.problem.row}s{network.step}",
        )
        return trained

    def _settled(self, network: NetworkMethod, work: Path) -> SampleNetworkConfig:
        """Return how a network is trained once the splits have found its best rate and steps."""
        settings: SampleNetworkConfig = with_settings(self.config, **network.changes)
        histories = [
            read_history(work / f"fold-{number}" / network.folder) for number in range(1, len(self.splits) + 1)
        ]
        return self.problem.settled(settings, histories) if settings.training.steps else settings

    def write_networks(self, folder: Path, found: _Found, record: Mapping[str, Any]) -> None:
        """Write the network of this cohort into its folder; inside, those of the others and with clinical columns."""
        of_others = found.others.digests(self.source.inputs)
        all_seen = np.union1d(of_others, found.network.digests(self.problem.inputs))
        for network, where, seen in (
            (found.network, folder, all_seen),
            (found.others, folder / "others", np.unique(of_others)),
            (found.with_clinical, folder / "with-clinical", all_seen),
        ):
            if network is None:
                continue
            where.mkdir(exist_ok=True)
            Checkpoint(network, network.scale.vocabulary, record, seen).write_into(where)

    def curve(self, features: Any, work: Path) -> pd.DataFrame:
        """Train on more and more patients, each network at the rate that was best on all."""
        networks = []
        for network in self.networks:
            settings = self._settled(network, work.parent)
            changes = {"rates": settings.training.rates, "steps": settings.training.steps}
            networks.append(dataclasses.replace(network, changes={**network.changes, **changes}))
        pool = len(self.splits[0].train) + len(self.splits[0].validation)
        sizes = [n for n in self.config.compare.curve if n < pool]
        compared = Comparison(self.problem, self.start, features, tuple(networks))
        return learning_curve(compared, self.config, self.splits[0], sizes=sizes, work=work)

    def cost(self, work: Path) -> pd.DataFrame:
        """Return what each network that learns took, over the splits."""
        rows = []
        for network in self.networks:
            for number in range(1, len(self.splits) + 1):
                history = read_history(work / f"fold-{number}" / network.folder)
                if "step" in history:
                    told = best_entry(history)[["step", "seconds", "learning_rate"]]
                    rows.append({"method": network.name, **told.rename({"step": "steps"})})
        by_method = pd.DataFrame(rows).groupby("method", sort=False)
        rate = by_method["learning_rate"].agg(lambda rates: rates.mode()[0])
        return by_method[["steps", "seconds"]].median().join(rate).reset_index()


NETWORKS = (
    NetworkMethod(FINE_TUNED, "fine-tuned"),
    NetworkMethod(HEAD_ONLY, "head-only", step=", head only", changes={"strategy": "probe"}),
    NetworkMethod(DISCRIMINATIVE, "discriminative", step=", discriminative", changes={"strategy": "discriminative"}),
    NetworkMethod(SCRATCH, "scratch", pretrained=False, step=", scratch"),
    NetworkMethod(ZERO_SHOT, "zero-shot", step=", zero-shot", changes={"steps": 0}),
)
"""Ways of transfer; all that learn take the same number of steps."""


@dataclass(frozen=True, eq=False)
class _Source:
    """What was learned of the other cohorts."""

    network: ExpressionNetwork
    config: ExpressionConfig
    training: SampleTrainConfig
    """Settings of the best trial."""
    trials: pd.DataFrame

    @classmethod
    def of(
        cls, problem: ExpressionProblem, config: CohortStudyConfig, work: Path, shared_by: Mapping[str, Any]
    ) -> "_Source":
        """Search settings, and train with the best; a fifth of each cohort chooses both."""
        strata, rows = problem.strata, np.arange(len(problem.labels))
        chosen = nested_draw(strata, rows, round(_VALIDATED * len(rows)), np.random.default_rng(config.seed))
        split = Split(np.setdiff1d(rows, chosen), chosen)
        scale = InputScale.fit(problem.inputs.select(split.train), clip=config.network.clip)
        training, validation = (_standardised(problem, scale, part, split.train) for part in split[:2])
        head = Head(problem.head_targets(split.train))
        score = partial(_c_index, head.targets[0], problem.labels[split.validation])
        halved = halve(training, validation, head, config.halving, work=work / "search", network=config.network,
                       train=config.training, score=score, seed=config.seed, **shared_by)  # fmt: skip
        begun = ExpressionNetwork(halved.network, head, scale.first(halved.network.n_genes), seed=config.seed)

        def train_here() -> tuple[ExpressionNetwork, pd.DataFrame]:
            (trained,) = train_expression(
                [Trainee(begun, halved.training, config.seed)], training, validation, score=score, seed=config.seed
            )
            assert trained.network is not None  # the search has found finite scores
            return trained.network, trained.history

        network, _ = trained_once(work / "network", train_here, like=lambda: begun)
        network.scale = dataclasses.replace(network.scale, within_cohorts=True)
        assert isinstance(halved.training, SampleTrainConfig)
        return cls(network, halved.network, halved.training, halved.trials)


def _standardised(problem: ExpressionProblem, scale: InputScale, rows: np.ndarray, fitted_rows: np.ndarray) -> Examples:
    """Return samples scaled within their cohort, by its training samples."""
    cohorts = problem.labels[:, 2]
    scaled_NI = np.empty((len(rows), len(scale)), dtype=np.float32)
    for cohort in np.unique(cohorts[rows]):
        of_cohort = scale.refitted(problem.inputs.select(fitted_rows[cohorts[fitted_rows] == cohort]))
        members = cohorts[rows] == cohort
        scaled_NI[members] = of_cohort(problem.inputs.select(rows[members]))
    balance = np.unique(problem.strata[rows], return_inverse=True)[1]
    return Examples(scale, scaled_NI, problem.labels[rows], balance)


def _c_index(target: Target, labels_NS: np.ndarray, outputs_NK: np.ndarray) -> float:
    """Return the C-index within cohorts of outputs; NaN where one is not finite."""
    if not np.isfinite(outputs_NK).all():
        return float("nan")
    meaning = target.meaning(torch.from_numpy(outputs_NK).double()).numpy()
    return kind_of(target).validation_scores(labels_NS, meaning)["c_index"]
