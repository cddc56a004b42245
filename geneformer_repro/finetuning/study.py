"""From a source to a target: a classifier learns one data set's labels, then another's, and what that was worth.

All networks of the target take the same number of steps on the same cells; those "from source" have taken others
before, on the source, whose cost stands in none of the rows. A gain over "fine-tuned" is what the source's labels
bought, one over "scratch" what pretraining and source bought together.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast, overload

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import resolved, with_settings
from geneformer_repro.errors import InputError
from geneformer_repro.files import provenance
from geneformer_repro.finetuning.cohort_tables import CohortStudy
from geneformer_repro.finetuning.cohorts import study_cohorts
from geneformer_repro.finetuning.experiment import Findings
from geneformer_repro.finetuning.finetune import CellExperiment, Finetuned, learned_too, prepared, refuse_tested
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED
from geneformer_repro.finetuning.methods import NetworkMethod, kept
from geneformer_repro.finetuning.problems.cells import CellProblem, labelled_cells
from geneformer_repro.finetuning.response_data import ResponseData
from geneformer_repro.finetuning.response_study import study_responses
from geneformer_repro.finetuning.response_tables import ResponseStudy
from geneformer_repro.finetuning.settings.cells import TransferStudyConfig
from geneformer_repro.finetuning.settings.networks import TransferConfig
from geneformer_repro.finetuning.settings.pairs import ResponseStudyConfig
from geneformer_repro.finetuning.settings.samples import CohortStudyConfig
from geneformer_repro.finetuning.splits import Split, nested_draw
from geneformer_repro.heads import CellClassifier
from geneformer_repro.targets import columns_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.samples import read_samples

logger = logging.getLogger(__name__)

FROM_SOURCE, ZERO_SHOT = "fine-tuned from source", "zero-shot"
"""What the network that goes on, and the source's own classifier, are called in the tables."""


@dataclass(frozen=True, eq=False)
class TransferStudy(Finetuned):
    """What a study found; its ``checkpoint`` is the classifier of the target that went on from the source's.

    See Also
    --------
    transfer_study : Makes it.

    Examples
    --------
    >>> import dataclasses
    >>> import geneformer_repro as gf
    >>> [field.name for field in dataclasses.fields(gf.TransferStudy)]
    ['checkpoint', 'evaluations', 'split', 'history', 'curve', 'trials', 'source']
    """

    source: Checkpoint = dataclasses.field(kw_only=True)
    """The classifier of the source."""


@overload
def transfer_study(
    start: Checkpoint,
    source: TokenizedDataset,
    target: TokenizedDataset,
    config: TransferStudyConfig,
    *,
    out: str | Path,
    counts: AnnData | str | Path | None = None,
    overwrite: bool = False,
) -> TransferStudy: ...
@overload
def transfer_study(
    start: AnnData | str | Path,
    *,
    config: CohortStudyConfig,
    cohort: str | None = None,
    out: str | Path,
    workers: int | None = None,
    ray: bool = False,
    overwrite: bool = False,
) -> CohortStudy: ...
@overload
def transfer_study(
    start: Checkpoint | None,
    source: ResponseData,
    target: ResponseData,
    config: ResponseStudyConfig,
    *,
    out: str | Path,
    workers: int | None = None,
    overwrite: bool = False,
) -> ResponseStudy: ...
@typed
def transfer_study(
    start: Checkpoint | AnnData | str | Path | None,
    source: TokenizedDataset | ResponseData | None = None,
    target: TokenizedDataset | ResponseData | None = None,
    config: TransferStudyConfig | CohortStudyConfig | ResponseStudyConfig | None = None,
    *,
    cohort: str | None = None,
    out: str | Path,
    counts: AnnData | str | Path | None = None,
    workers: int | None = None,
    ray: bool = False,
    overwrite: bool = False,
) -> TransferStudy | CohortStudy | ResponseStudy:
    """Learn one data set, go on with another, and ask what that was worth: of cells, cohorts, or drug response.

    Of cells, a classifier learns the labels of a source, then those of a target. Of bulk samples of several cohorts,
    each cohort is the target once: settings are searched on the others, a network learns their survival, and goes on
    with the target's training samples. Of drug response, networks learn a large screen, and go on with few pairs of
    the target and with more.

    Parameters
    ----------
    start
        Of cells a pretrained model, left as it is. Of cohorts the samples, as `read_samples` returns them: an AnnData
        or an ``.h5ad`` with expression in ``X``. Of drug response None, or the encoder with which
        ``networks=("encoder",)`` begins to learn the source.
    source
        Tokenised cells whose labels (``config.source``) are learned first; all that have one. Of drug response the
        screen that is learned first.
    target
        Tokenised cells of the comparison, split, learned and reported as in `finetune`. Of drug response the other
        screen, of which more and more pairs are learned.
    config
        What to learn and how; a `CohortStudyConfig` of cohorts, a `ResponseStudyConfig` of drug response.
    cohort
        Obs column of the cohorts, if the configuration does not name it (``follow_up.cohort``).
    out, counts, overwrite
        As in `finetune`; `out` also has the classifier of the source, in ``source``, or a folder for each cohort, with
        the network of the others in ``others``. Counts are those of the target cells.
    workers
        Processes that share the search on other cohorts, or the trainings on drug response; the result does not depend
        on it.
    ray
        Of cohorts: share the search over Ray (extra ``ray``; ``RAY_ADDRESS`` names a cluster) instead; `workers` is
        then the most at a time.

    Returns
    -------
    Of cohorts a `CohortStudy`, of drug response a `ResponseStudy`. Of cells tables with a row for "fine-tuned from
    source" (all of it learns, from the source's classifier), the simple methods, "fine-tuned" (from `start`), "probe
    from source" and "probe" (the head alone learns, on the encoder of either), "scratch" (from random weights) and
    "zero-shot" (the source's classifier as it is, where it has a class of the same name for each of the target's; their
    probabilities are brought to a sum of 1). All networks of the target take the same number of steps. Beside the
    difference to the best simple method stands that to "fine-tuned" (``macro_f1_vs_fine_tuned``, or
    ``r2_vs_fine_tuned``), on the same resamples. With ``config.compare.curve`` all of them are trained on so many
    labels, too.

    Raises
    ------
    InputError
        A cell that is reported is among the source's (by its tokens); or as in `finetune`. Of cohorts: an obs column
        is missing, times are not above 0 or events not 0 and 1, a sample stands twice, or no cohort has ten events. Of
        drug response: a network does not find what it reads in both screens, they have no gene in common, or all that
        was to be learned of the source is in the target.
    DataFormatError
        The samples do not hold what ``config.values`` says.
    FileExistsError
        `out` exists, or an unfinished run with other settings.

    See Also
    --------
    finetune : The same without a source.
    read_samples : Joins expression and clinical columns of bulk samples.

    Examples
    --------
    Cells of a phase are told apart after types have been, in other cells:

    >>> import geneformer_repro as gf
    >>> base = gf.Checkpoint.from_pretrained("runs/base")
    >>> cells = gf.TokenizedDataset.open("cells.tok", max_length=32)
    >>> source, target = cells.select(range(60)), cells.select(range(60, 120))
    >>> config = gf.TransferStudyConfig(
    ...     target="phase",
    ...     min_cells=5,
    ...     source={"target": "cell_type"},
    ...     training={"epochs": 1, "batch_size": 16},
    ...     compare={"baselines": False},
    ... )
    >>> study = gf.transfer_study(base, source, target, config, out="runs/study")
    >>> study.methods.index.tolist()
    ['fine-tuned from source', 'fine-tuned', 'probe from source', 'probe', 'scratch', 'zero-shot']
    >>> study.source.head.targets[0].name, study.checkpoint.head.targets[0].name
    ('cell_type', 'phase')

    Of samples of two cohorts, with the smallest of searches:

    >>> samples = gf.datasets.pbmc700()[:120].copy()
    >>> samples.obs["days"] = [10.0 + 7 * i % 100 for i in range(120)]
    >>> samples.obs["died"] = [i % 2 for i in range(120)]
    >>> config = gf.CohortStudyConfig(
    ...     survival={"died": "days"},
    ...     values="counts",
    ...     cohorts=("G1",),
    ...     halving={"n_trials": 2, "rungs": 1},
    ...     split={"folds": 2, "repeats": 1},
    ...     training={"epochs": 2, "steps": 2, "rates": (0.001,)},
    ...     compare={"baselines": False},
    ... )
    >>> study = gf.transfer_study(samples, config=config, cohort="phase", out="runs/cohorts")
    >>> study.cohorts[["cohort", "n"]].values.tolist()
    [['G1', 80]]
    """
    if isinstance(source, ResponseData) or isinstance(target, ResponseData):
        if not (isinstance(source, ResponseData) and isinstance(target, ResponseData)):
            raise InputError("A study of drug response goes from one ResponseData to another; one of the two is none.")
        if not isinstance(start, Checkpoint | None) or not isinstance(config, ResponseStudyConfig):
            raise InputError(
                "A study of drug response needs config=ResponseStudyConfig(…), and as start None, or an encoder for "
                'networks=("encoder",).'
            )
        return study_responses(start, source, target, config, out=out, workers=workers, overwrite=overwrite)
    if start is None:
        raise InputError("start is missing: a checkpoint for cells, or the samples of several cohorts.")
    if isinstance(start, Checkpoint):
        if source is None or target is None or not isinstance(config, TransferStudyConfig):
            raise InputError("A study of cells needs source=, target= and config=TransferStudyConfig(…).")
        return _study_of_cells(start, source, target, config, out=out, counts=counts, overwrite=overwrite)
    if not isinstance(config, CohortStudyConfig):
        raise InputError("A study of samples needs config=CohortStudyConfig(…) and cohort=, the obs column of cohorts.")
    if cohort is not None:
        config = with_settings(config, cohort=cohort)
    samples = start if isinstance(start, AnnData) else read_samples(start)
    return study_cohorts(samples, config, out=out, workers=workers, ray=ray, overwrite=overwrite)


def _study_of_cells(
    checkpoint: Checkpoint,
    source: TokenizedDataset,
    target: TokenizedDataset,
    config: TransferStudyConfig,
    *,
    out: str | Path,
    counts: AnnData | str | Path | None,
    overwrite: bool,
) -> TransferStudy:
    experiment = prepared(checkpoint, target, config)
    checkpoint.require_matching(source)
    first = labelled_cells(
        source, config.source.targets, regression=config.source.regression, survival=config.source.survival,
        follow_up=config.follow_up, min_cells=config.min_cells, rng=np.random.default_rng(config.seed),
    )  # fmt: skip
    refuse_tested(
        experiment,
        first.cells.digests(),
        "the cells of the source, whose labels are learned. Leave them out of the source, or report other cells "
        "(split.split_file, split.test_groups).",
    )
    study = _StudyExperiment(**vars(experiment), source_cells=source, source_problem=first)
    return cast(TransferStudy, study.carry_out(out=out, counts=counts, overwrite=overwrite))


@dataclass(frozen=True, eq=False, kw_only=True)
class _StudyExperiment(CellExperiment):
    """An experiment whose networks may begin with a classifier of a source, which is learned first."""

    source_cells: TokenizedDataset
    source_problem: CellProblem
    """Those of the cells that have a label."""
    step = "transfer_study"

    def inputs(self, counted: csr_matrix | None) -> dict[str, str | None]:
        """Add the source's."""
        of_source = {"source": self.source_cells.fingerprint, "source_labels": self.source_problem.digest()}
        return super().inputs(counted) | of_source

    def begun(self, inputs: Mapping[str, Any], work: Path) -> Self:
        """Learn the source; return the experiment with the networks that may begin so, and what that says by itself."""
        source = self._learn_source(inputs, work / "source")
        probe = {"transfer": TransferConfig(strategy="probe")}
        networks = (
            NetworkMethod(FROM_SOURCE, "fine-tuned-from-source", start=source),
            NetworkMethod(FINE_TUNED, "fine-tuned", step=", without source"),
            NetworkMethod(
                "probe from source", "probe-from-source", step=", probe from source", start=source, changes=probe
            ),
            NetworkMethod("probe", "probe", step=", probe", changes=probe),
            NetworkMethod("scratch", "scratch", pretrained=False, step=", random weights"),
        )
        ready = {ZERO_SHOT: _zero_shot(self.problem, source, work)}
        return dataclasses.replace(self, networks=networks, ready=ready, reference=FINE_TUNED)

    def _learn_source(self, inputs: Mapping[str, Any], work: Path) -> Checkpoint:
        """Train on the source; a tenth of its cells, of each class its share, choose the epoch."""
        problem, config, strata = self.source_problem, self.config, self.source_problem.strata
        rows = np.arange(len(strata))
        n = max(len(rows) // 10, len(np.unique(strata)))
        chosen = nested_draw(strata, rows, n, np.random.default_rng(config.seed))
        network, _ = problem.train(
            self.start,
            with_settings(config, epochs=config.source.epochs or config.training.epochs, task_weights={}),
            Split(np.setdiff1d(rows, chosen), chosen),
            work=work,
            step="source",
        )
        record = provenance("transfer_study_source", config=resolved(config), inputs=inputs)
        seen = learned_too(self.start, problem.cells)
        return Checkpoint(network, self.start.vocabulary, record, seen, name="checkpoint of the source")

    def result(self, checkpoint: Checkpoint, found: Findings) -> TransferStudy:
        """Add the classifier of the source."""
        return TransferStudy(**vars(super().result(checkpoint, found)), source=self.networks[0].start)

    def write_into(self, folder: Path, result: Finetuned, work: Path, **facts: Any) -> None:
        """Add the classifier of the source."""
        facts = {"source": ", ".join(self.config.source.targets), "source cells": len(self.source_problem.labels)}
        super().write_into(folder, result, work, **facts)
        (folder / "source").mkdir()
        self.networks[0].start.write_into(folder / "source")


def _zero_shot(problem: CellProblem, source: Checkpoint, work: Path) -> list[np.ndarray | None]:
    """Return for each target what the source's classifier says of all cells; None where it has no such classes.

    It is asked about its target of the same name or, where both have a single one, about that.
    """
    network = source.model
    assert isinstance(network, CellClassifier)
    rows = np.arange(len(problem.labels))
    said = kept(work / "zero-shot.npy", lambda: problem.ask(network, rows), by_all=True)
    assert said is not None
    meaning_of = dict(zip(network.head.targets, columns_of(network.head.targets, said), strict=True))
    predicted: list[np.ndarray | None] = []
    for target in problem.targets:
        alone = len(meaning_of) == len(problem.targets) == 1
        alike = next((other for other in meaning_of if alone or other.name == target.name), None)
        predicted.append(None if alike is None else kind_of(target).from_another(alike, meaning_of[alike]))
        if predicted[-1] is None and processes.is_first():
            logger.info("zero-shot: the source's classifier has no class of the name of each of %r.", target.name)
    return predicted
