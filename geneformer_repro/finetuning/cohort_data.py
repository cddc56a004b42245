"""Samples of several cohorts with their survival, and how a study of them is made."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.expression import ExpressionInputs
from geneformer_repro.finetuning.kinds.survival import FEWEST_EVENTS, read_survival, survival_target
from geneformer_repro.finetuning.problems.samples import ExpressionProblem
from geneformer_repro.finetuning.settings.samples import CohortStudyConfig
from geneformer_repro.sample_reading import as_inputs
from geneformer_repro.targets import SurvivalTime
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.measures import Measure

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CohortData:
    """Samples of several cohorts with their labels."""

    inputs: ExpressionInputs
    target: SurvivalTime
    labels: np.ndarray
    obs: pd.DataFrame
    config: CohortStudyConfig

    @classmethod
    def read(cls, adata: "AnnData", config: CohortStudyConfig) -> "CohortData":
        """Read values and labels; leave out, and count in the log, samples without a label."""
        event, covariates = config.event, list(config.compare.covariates)
        wanted = [event, config.survival[event], str(config.follow_up.cohort), *covariates]
        wanted += [config.split.group] if config.split.group else []
        for name in wanted:
            if name not in adata.obs:
                raise InputError(f"The samples have no obs column {name!r}. {did_you_mean(name, adata.obs.columns)}")
        obs = adata.obs[list(dict.fromkeys(wanted))]
        if not obs.index.is_unique:
            first = obs.index[obs.index.duplicated()][0]
            raise InputError(f"Sample {first!r} stands twice. Keep one sample of a patient, or name them apart.")
        target, labels = read_survival(event, obs, config.survival[event], config.follow_up, learned_by="cox")
        labelled = np.flatnonzero(~np.isnan(labels).any(axis=1))
        if len(labelled) < len(obs):
            logger.info("%s: %d samples have no label; left out.", event, len(obs) - len(labelled))
        inputs = as_inputs(adata, Measure(config.values, config.log2)).select(labelled)
        given = cls(inputs, target, labels[labelled], obs.iloc[labelled], config)
        given.require_one_cohort_a_group()
        return given

    def require_one_cohort_a_group(self) -> None:
        """Raise if samples of a group, such as a patient, are in two cohorts: one would be learned, one reported."""
        if self.config.split.group is None:
            return
        cohort_of = pd.Series(self.cohorts, as_labels(self.obs[self.config.split.group]).to_numpy())
        several = cohort_of.groupby(level=0).unique().loc[lambda names: names.map(len) > 1]
        if len(several):
            raise InputError(
                f"{self.config.split.group} {str(several.index[0])!r} has samples in cohorts "
                f"{' and '.join(map(repr, several.iloc[0].tolist()))}; one would be learned from before the other is "
                "reported. Keep those of one cohort."
            )

    @property
    def cohorts(self) -> np.ndarray:
        """Cohort of each sample."""
        return np.array(self.target.cohorts)[self.labels[:, 2].astype(int)]

    def problem(self, rows: np.ndarray) -> ExpressionProblem:
        """Return the problem of some of the samples; when survival is told follows from their events alone."""
        labels, cohorts = self.labels[rows].copy(), self.target.cohorts
        if len(np.unique(labels[:, 2])) == 1:
            labels[:, 2], cohorts = 0, ()
        target = survival_target(
            self.target.name, self.target.time, labels, self.config.follow_up, cohorts=cohorts, learned_by="cox"
        )
        inputs, obs = self.inputs.select(rows), self.obs.iloc[rows]
        return ExpressionProblem(inputs, (target,), labels, obs, self.config.split.group)

    def targets(self) -> tuple[list[str], pd.DataFrame]:
        """Return the cohorts that are a target in their turn, the smallest last, and those that are not, and why."""
        table = pd.DataFrame({"cohort": self.cohorts, "event": self.labels[:, 1].astype(int)})
        sizes = table.groupby("cohort").agg(n=("event", "size"), n_events=("event", "sum"))
        sizes = sizes.sort_values("n", ascending=False, kind="stable").reset_index()
        if len(sizes) < 2:
            raise InputError(
                f"There is one cohort in {self.config.follow_up.cohort!r}: {sizes['cohort'][0]!r}. What others teach "
                "needs at least two."
            )
        for name in self.config.cohorts:
            if name not in set(sizes["cohort"]):
                raise InputError(f"cohorts names {name!r}. {did_you_mean(name, sizes['cohort'])}")
        named = sizes["cohort"].isin(self.config.cohorts or sizes["cohort"])
        sizes["why"] = np.where(~named, "not asked for", f"fewer than {FEWEST_EVENTS} events")
        is_target = named & (sizes["n_events"] >= FEWEST_EVENTS)
        left_out = sizes[~is_target].reset_index(drop=True)
        for row in left_out[left_out["why"] != "not asked for"].itertuples():
            logger.warning(
                "%s: %d events among %d samples; no target, but learned from.", row.cohort, row.n_events, row.n
            )
        if not is_target.any():
            raise InputError(f"No cohort has {FEWEST_EVENTS} events of {self.config.event!r}; no score would say much.")
        return sizes.loc[is_target, "cohort"].tolist(), left_out
