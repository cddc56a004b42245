"""Learning how samples respond to drugs, beside the means of drugs and samples that are so hard to beat."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import resolved
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError
from geneformer_repro.files import provenance
from geneformer_repro.finetuning.evaluation import Evaluation, log_verdicts
from geneformer_repro.finetuning.experiment import Experiment
from geneformer_repro.finetuning.finetune import planned
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.methods import NetworkMethod
from geneformer_repro.finetuning.pair_splits import make_pair_splits
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.response_data import ResponseData
from geneformer_repro.finetuning.results import write_findings
from geneformer_repro.finetuning.settings.pairs import ResponseConfig
from geneformer_repro.identities import Aliases, same_samples
from geneformer_repro.network_settings import PairModel
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.responses import Responses
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.tables import examples
from geneformer_repro.work import working_on

logger = logging.getLogger(__name__)

VERSION = 2
"""Raised when the same call gives other results, so that a run which an earlier version began is not gone on with."""
MODELS: Mapping[PairModel, str] = {
    "conv_nn": "Conv NN",
    "paccmann": "PaccMann",
    "tdnn": "tDNN",
    "encoder": "encoder and drug",
}
"""What networks that begin with random weights are called in tables."""


@dataclass(frozen=True, eq=False)
class FinetunedResponse:
    """What learning responses made.

    See Also
    --------
    finetune_response : Makes it.

    Examples
    --------
    >>> import dataclasses
    >>> import geneformer_repro as gf
    >>> [field.name for field in dataclasses.fields(gf.FinetunedResponse)]
    ['checkpoint', 'evaluation', 'split', 'history']
    """

    checkpoint: Checkpoint
    """The network; of several folds, one trained on all pairs afterwards."""
    evaluation: Evaluation
    """What each method reached."""
    split: pd.DataFrame
    """``pair``, ``part`` and, of several, ``fold`` and ``repeat``; can be given back as ``split_file``."""
    history: pd.DataFrame
    """Training and validation scores of the network; of several folds with a column ``fold``."""

    @property
    def methods(self) -> pd.DataFrame:
        """A row a method, with scores on the test pairs and their intervals."""
        return self.evaluation.methods


@typed
def finetune_response(
    checkpoint: Checkpoint | None,
    samples: TokenizedDataset | AnnData | pd.DataFrame | str | Path,
    responses: Responses | pd.DataFrame | str | Path,
    drugs: Drugs | pd.DataFrame | str | Path | None,
    config: ResponseConfig,
    *,
    out: str | Path,
    expression: AnnData | pd.DataFrame | str | Path | None = None,
    aliases: Aliases | pd.DataFrame | str | Path | None = None,
    vectors: pd.DataFrame | str | Path | None = None,
    overwrite: bool = False,
) -> FinetunedResponse:
    """Learn how samples respond to drugs; beside it stand means of drugs and samples, ridge, forest and more.

    Parameters
    ----------
    checkpoint
        What to begin with: a network that learned other responses, or an encoder for ``network.model="encoder"``. None
        for random weights.
    samples
        A matrix of samples × genes (AnnData, ``.h5ad``, a table as `read_samples` takes it), whose values
        ``config.values`` names; a data frame, taken as it is, also of vectors; or tokens.
    responses
        As `read_responses` returns them; or its table, whose values ``config.measure`` names. Samples and drugs are
        joined by who they are: "42-MG-BA" is "42MGBA", a salt is its drug. What has no sample or drug is left out and
        counted in the log.
    drugs
        As `Drugs` has them, or a table of names and SMILES. None where there are names alone: for
        ``network.drug_input`` "one_hot", "vectors" or "none".
    config
        What the network is, and how pairs are split.
    out
        Folder for the network, ``report.html``, tables and pictures. A run that was cut off goes on with the same call.
    expression
        Beside tokens, the matrix of the same samples: for simple methods and ``network.expression_path``.
    aliases
        A table in which a row is a sample, and columns are what studies and registers call it.
    vectors
        A row a drug, numbers of your own, for ``network.drug_input="vectors"``.
    overwrite
        Replace a result that `out` holds; drop an unfinished run with other settings (the same run goes on).

    Returns
    -------
    The network and the tables, all methods on the same test pairs.

    Raises
    ------
    InputError
        Nothing can be joined; a drug has no structure, and the network reads structures; a sample or drug of the test
        part was learned by `checkpoint` (``split.allow_seen`` lets it pass); or as `read_responses`, `read_samples`.
    DataFormatError
        The matrix does not hold what ``config.values`` says.
    FileExistsError
        `out` exists, or an unfinished run with other settings.

    See Also
    --------
    ResponseConfig : How.
    predict_response : What the network says of other pairs.
    transfer_study : From one screen to another, with few responses and many.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> rng = np.random.default_rng(0)
    >>> lines = pd.DataFrame(rng.normal(size=(12, 20)), index=[f"line{i}" for i in range(12)])
    >>> lines.columns = [f"gene{i}" for i in range(20)]
    >>> table = pd.DataFrame(rng.normal(size=(12, 4)), index=lines.index, columns=["A", "B", "C", "D"])
    >>> config = gf.ResponseConfig(
    ...     measure="LN_IC50",
    ...     network={"model": "tdnn", "drug_input": "one_hot"},
    ...     split={"folds": 3, "validation": 0.2},
    ...     training={"epochs": 1, "batch_size": 16},
    ... )
    >>> table = table.rename_axis("sample").reset_index()
    >>> result = gf.finetune_response(None, lines, table, None, config, out="runs/response")
    >>> result.methods.index[0], "drug mean" in result.methods.index
    ('tDNN', True)
    """
    processes.join()
    given = ResponseData.read(
        samples, responses, drugs, measure=config.measure, expression=expression, aliases=aliases, vectors=vectors
    )
    problem = given.problem(config)
    experiment = _prepared(problem, checkpoint, config, given.aliases)
    inputs = {
        "pairs": problem.digest(),
        "split": experiment.digest_of_splits(),
        "start": None if checkpoint is None else checkpoint.fingerprint,
    }
    plan = {"step": "finetune_response", "version": VERSION, "config": planned(config), **inputs}
    if checkpoint is not None and isinstance(checkpoint.model, PairNetwork) and processes.is_first():
        replaces = problem.replaces_head(checkpoint.model, config)
        logger.info(
            "Goes on from a network of %s; its output layer %s.",
            checkpoint.model.target.measure, "begins anew" if replaces else "stays",
        )  # fmt: skip
    with working_on(out, plan, what="run", marker="provenance.json", overwrite=overwrite) as work:
        features = problem.features(checkpoint, config, None) if config.compare.baselines else None
        findings = experiment.run(features, work.folder)
        log_verdicts(findings.evaluations.values())
        (evaluation,) = findings.evaluations.values()
        record = provenance("finetune_response", config=resolved(config), inputs=inputs) | {
            "result": evaluation.methods.loc[evaluation.ours].dropna().round(6).to_dict(),
            "intervals": experiment.intervals,
        }
        learned = problem.checkpoint(findings.network, record, like=checkpoint)
        result = FinetunedResponse(learned, evaluation, experiment.split_table(), findings.history)
        if processes.is_first():
            with work.result() as folder:
                folder.mkdir()
                _write_into(folder, result, experiment, work.folder)
    return result


def _prepared(
    problem: PairProblem, start: Checkpoint | None, config: ResponseConfig, aliases: Aliases | None
) -> Experiment:
    """Split, and refuse what must not be, before any work."""
    problem.require_readable(start, config)
    splits = make_pair_splits(problem.names, problem.strata, problem.identities, config.split, seed=config.seed)
    experiment = Experiment(problem, start, splits, config, tuple(_networks(problem, start, config)))
    experiment.require_labels()
    if start is not None and isinstance(start.model, PairNetwork) and not config.split.allow_seen:
        refuse_learned(start, problem, np.unique(experiment.tested), aliases)
    return experiment


def _networks(problem: PairProblem, start: Checkpoint | None, config: ResponseConfig) -> list[NetworkMethod]:
    """Return the network that is wanted, the same without its start, and without what it reads."""
    name = FINE_TUNED if start is not None else MODELS[config.network.model]
    networks = [NetworkMethod(name, "fine-tuned", pretrained=start is not None)]
    if start is not None and config.compare.baselines:
        networks.append(NetworkMethod(RANDOM, "random", pretrained=False, step=", random weights"))
    if config.compare.ablations:
        networks += [
            dataclasses.replace(
                networks[0],
                name=f"{name}, permuted {what}",
                folder=f"permuted-{what}",
                step=f", permuted {what}",
                problem=problem.permuted(what, seed=config.seed),
            )
            for what in ("expression", "drugs")
        ]
    return networks


def refuse_learned(start: Checkpoint, problem: PairProblem, tested: np.ndarray, aliases: Aliases | None) -> None:
    """Raise if a sample, or drug, that should be new in the test was learned by the network that is begun with."""
    learned = start.pair_network.learned
    by, who = problem.split_by.by, problem.identities
    again: dict[str, list[str]] = {}
    if by in ("sample", "both", "tissue"):
        same = same_samples(np.unique(who.samples[tested]), learned["samples"], aliases)
        again["samples"] = same["a"].unique().tolist()
    if by in ("drug", "both"):
        is_again = np.isin(np.array(problem.drugs.keys), learned["drugs"])
        again["drugs"] = [problem.drugs.names[i] for i in np.unique(problem.pairs[tested, 1]) if is_again[i]]
    for what, names in again.items():
        if names:
            raise InputError(
                f"{len(names)} {what} that are reported as new ({examples(names)}) are among those that {start.name} "
                f"learned from. Pretrain without them, report others (split.split_file), or accept it: "
                "split.allow_seen=true."
            )


def _write_into(folder: Path, result: FinetunedResponse, experiment: Experiment, work: Path) -> None:
    """Write network, tables, pictures and page into the new folder."""
    result.checkpoint.write_into(folder)
    config, problem = experiment.config, experiment.problem
    assert isinstance(problem, PairProblem)
    facts: dict[str, Any] = {
        "network": result.checkpoint.pair_network.shape.model,
        "measure": problem.measure,
        "new in the test": config.split.by,
        "samples": len(np.unique(problem.pairs[:, 0])),
        "drugs": len(np.unique(problem.pairs[:, 1])),
        "pairs": len(problem.pairs),
        "epochs": config.training.epochs,
        "learning_rate": config.training.learning_rate,
        "seed": config.seed,
    }
    tables = {"split": result.split, "history": result.history}
    evaluations = {result.evaluation.target.name: result.evaluation}
    write_findings(folder, experiment, evaluations, tables, work=work, facts=facts)
