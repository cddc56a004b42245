"""From a large screen to a small one: what it helps to have learned many responses of other samples.

Networks learn a screen of cell lines, then go on with some pairs of the target, as those do that begin with random
weights: for as many steps, each at its own best learning rate, with more and more pairs. Two questions are asked: new
samples (which drug for this patient) and new drugs (whom does it help). Of who is in the target nothing was learned
before, by identity: of new samples none of the target's samples is in the source, of new drugs none of its drugs.

The genes of the target are brought to the scale of the network by all samples of the training part, whose responses
need not be known for that; of scratch networks too, so that with ten pairs no gene's spread is that of three samples.

A network that learned the source is handed on by its folder, and what a training needs of the source by a number for
each pair of the target: workers are sent neither screens of the source nor weights, and hold one network at a time.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import BertConfig, BertModel

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import resolved, with_settings
from geneformer_repro.drugs import same_drugs
from geneformer_repro.errors import InputError, counted
from geneformer_repro.files import provenance
from geneformer_repro.finetuning.evaluation import Evaluation, evaluate_target
from geneformer_repro.finetuning.methods import Comparison, NetworkMethod
from geneformer_repro.finetuning.networks import drop_weights
from geneformer_repro.finetuning.pair_splits import draw_rows, make_pair_splits
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.response_data import ResponseData
from geneformer_repro.finetuning.response_results import write_response_study
from geneformer_repro.finetuning.response_tables import (
    OF_SOURCE,
    PRETRAINED,
    SCRATCH,
    ResponseStudy,
    differences_of,
    table_of,
)
from geneformer_repro.finetuning.responses import MODELS
from geneformer_repro.finetuning.settings.networks import TransferConfig
from geneformer_repro.finetuning.settings.pairs import ResponseStudyConfig
from geneformer_repro.finetuning.settings.splits import NewInTest, PairSplitConfig
from geneformer_repro.finetuning.splits import Split, digest_of
from geneformer_repro.identities import LEAST_GENES, Aliases, near_duplicates, same_samples
from geneformer_repro.mean_effects import MeanEffects
from geneformer_repro.network_settings import PairModel
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.progress import progress
from geneformer_repro.responses import sensitive_is_low
from geneformer_repro.sharing import by_processes, die_with
from geneformer_repro.tokenizer.tables import examples
from geneformer_repro.work import working_on

logger = logging.getLogger(__name__)

VERSION = 3
"""Raised when the same call gives other results."""
_SCORINGS = 15
"""Times that a network is scored on the way, and the best is taken, whatever the number of pairs: an epoch of few is a
single step, and to score and save that often took three times as long as the learning."""


def study_responses(
    start: Checkpoint | None,
    source: ResponseData,
    target: ResponseData,
    config: ResponseStudyConfig,
    *,
    out: str | Path,
    workers: int | None = None,
    overwrite: bool = False,
) -> ResponseStudy:
    """Carry out the study; see `transfer_study`."""
    if processes.count() > 1:
        raise InputError("A study of screens is one process that shares its trainings by workers=; start it by itself.")
    _require_start(start, config)
    both = list(_screens_and_uses(start, source, target, config))
    screens, uses = [screen for screen, _ in both], [use for _, use in both]
    plan: dict[str, Any] = {
        "step": "response_study",
        "version": VERSION,
        "config": resolved(with_settings(config, split_file=None)),
        "source": [screen.problem.digest() for screen in screens],
        "target": uses[0].target.digest(),
        "splits": [digest_of(use.splits, use.target.names) for use in uses],
        **({} if start is None else {"start": start.fingerprint}),
    }
    inputs: dict[str, Any] = {name: plan[name] for name in ("source", "target", "start") if name in plan}
    record = provenance("response_study", config=resolved(config), inputs=inputs)
    with working_on(out, plan, what="study", marker="provenance.json", overwrite=overwrite) as work:
        of_source = [(screen, model) for screen in screens for model in config.networks]
        learned = dict(_done(of_source, partial(_of_source, work.folder, start, record), workers, "source"))
        uses = [replace(use, learned={model: learned[use.name, model] for model in config.networks}) for use in uses]
        of_target = [(use, fold, n) for use in uses for fold in range(len(use.splits)) for n in use.sizes]
        predicted = dict(_done(of_target, partial(_compare, work.folder), workers, "target"))
        study = _joined(uses, predicted)
        with work.result() as folder:
            write_response_study(folder, study, config, record)
    return study


def _require_start(start: Checkpoint | None, config: ResponseStudyConfig) -> None:
    """Raise unless there is an encoder if, and only if, a network has one."""
    if "encoder" in config.networks and start is None:
        raise InputError('networks: "encoder" begins with the checkpoint of an encoder; give it first (--start).')
    if start is not None and "encoder" not in config.networks:
        raise InputError(
            f"{start.name} is what networks=('encoder',) begins with, and networks are {', '.join(config.networks)}. "
            "Name it, or leave the checkpoint out."
        )
    if start is not None and (isinstance(start.model, PairNetwork) or not hasattr(start.model, "bert")):
        raise InputError(f"{start.name}: expected an encoder that has learned no responses, found {start.model!r}.")


def _done(tasks: Sequence[tuple[Any, ...]], work: Any, workers: int | None, step: str) -> list[Any]:
    """Do each task, here or in so many processes; its parts are kept in the work folder. Return what they came to."""
    do, results = partial(_in_one_thread, work, os.getpid()), []
    with progress(step, total=len(tasks), unit="tasks") as bar:
        several = workers is not None and workers > 1
        ended = (result for _, result in by_processes(tasks, do, workers or 1)) if several else map(do, tasks)
        for result in ended:
            results.append(result)
            bar.update()
    return results


def _in_one_thread(work: Any, parent: int, task: tuple[Any, ...]) -> Any:
    if os.getpid() != parent:
        die_with(parent)
    with processes.one_thread():
        return work(task)


@dataclass(frozen=True, eq=False)
class _Screen:
    """What may be learned of the source for one question, and the pairs that choose the epoch."""

    use: NewInTest
    problem: PairProblem
    split: Split
    config: ResponseStudyConfig


@dataclass(frozen=True, eq=False)
class _Use:
    """One question: the target with its splits, and what the source says of it."""

    name: NewInTest
    target: PairProblem
    splits: list[Split]
    config: ResponseStudyConfig
    source_means: np.ndarray
    """What the source's mean effects say of the target's pairs."""
    turned: int
    """-1 where low is sensitive in one of the measures alone."""
    encoder: BertConfig | None
    """The shape of the encoder, of "encoder"."""
    learned: Mapping[PairModel, Path]
    """Folders of the networks that learned the source, once they have."""

    @property
    def sizes(self) -> list[int]:
        """How many pairs are learned, all of them at the end; the same in all folds."""
        smallest = min(len(split.train) + len(split.validation) for split in self.splits)
        return [*sorted(n for n in self.config.sizes if n < smallest), smallest]

    def of(self, model: PairModel) -> ResponseStudyConfig:
        """Return the settings of a network on the target."""
        config = with_settings(self.config, model=model)
        every = max(1, config.steps // _SCORINGS)
        scored = {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
        return with_settings(config, trainer={**scored, **config.training.trainer, "max_steps": config.steps})

    def begun(self, model: PairModel, way: str, rows: np.ndarray) -> PairNetwork:
        """Return the network that training on the target begins with, its genes on the scale of these rows' samples."""
        if way == PRETRAINED:
            return self.target.rescaled(Checkpoint.from_pretrained(self.learned[model]).pair_network, rows)
        return self.target.unlearned(self.of(model), rows, encoder=self.encoder)


@dataclass(frozen=True)
class _StudyNetwork(NetworkMethod):
    """A network of the study, made when its turn has come: one may hold half a gigabyte."""

    of_use: _Use | None = None
    model: PairModel = "conv_nn"
    way: str = PRETRAINED
    rows: np.ndarray | None = None

    def begin(self, start: Any) -> PairNetwork:
        """Return what the network begins with."""
        assert self.of_use is not None
        assert self.rows is not None
        return self.of_use.begun(self.model, self.way, self.rows)


def _screens_and_uses(
    start: Checkpoint | None, source: ResponseData, target: ResponseData, config: ResponseStudyConfig
) -> Iterator[tuple[_Screen, _Use]]:
    """Yield each question with what may be learned; refuse what must not be, before any work."""
    of_source = with_settings(config, tissue=None)
    of_source = replace(of_source, values=config.source.values or config.values, log2=config.source.log2)
    first, second = source.problem(of_source), target.problem(config)
    _require_readable(first, second, start, config)
    alike = _alike(first, second, target.aliases)
    for use in config.uses:
        split_by = replace(config.split, by=use)
        problem = replace(second, split_by=split_by)
        splits = make_pair_splits(problem.names, problem.strata, problem.identities, split_by, seed=config.seed)
        learned = _learned(first, second, alike, use, config)
        within = PairSplitConfig(by=use, validation=config.source.validation, test=config.source.validation / 2)
        of_use = replace(first.select(learned), split_by=within)
        dealt = make_pair_splits(of_use.names, of_use.strata, of_use.identities, within, seed=config.seed)[0]
        parts = Split(np.sort(np.concatenate([dealt.train, dealt.test])), dealt.validation)
        turned = 1 if sensitive_is_low(of_use.measure) == sensitive_is_low(problem.measure) else -1
        encoder = None if start is None else cast(BertModel, start.model.bert).config
        means = turned * _source_means(of_use, problem)
        yield _Screen(use, of_use, parts, config), _Use(use, problem, splits, config, means, turned, encoder, {})


def _require_readable(
    source: PairProblem, target: PairProblem, start: Checkpoint | None, config: ResponseStudyConfig
) -> None:
    """Raise unless each network finds what it reads in both screens, and genes of the one in the other."""
    for model in config.networks:
        settings = with_settings(config, model=model)
        for problem in (source, target):
            problem.require_readable(start if model == "encoder" else None, settings)
        if settings.network.filled().reads_expression:
            source.require_genes_in(target)


def _alike(source: PairProblem, target: PairProblem, aliases: Aliases | None) -> np.ndarray:
    """Return the numbers of the source's samples that are in the target too: by name, alias, or expression."""
    same = set(same_samples(source.sample_names, target.sample_names, aliases)["a"])
    if source.inputs is None or target.inputs is None:
        logger.warning("There are tokens alone; who is in source and target under two names was not looked for.")
        return np.flatnonzero(np.isin(source.sample_names, [*same]))
    tables = source.expression_table(), target.expression_table()
    n_genes = len(tables[0].columns.intersection(tables[1].columns))
    if n_genes < LEAST_GENES:
        logger.warning(
            "Source and target share %d genes by id; who is in both under two names was not looked for.", n_genes
        )
        return np.flatnonzero(np.isin(source.sample_names, [*same]))
    if unnamed := sorted(set(near_duplicates(*tables)["a"]) - same):
        logger.warning(
            "%s of the source with the expression of one of the target under another name (%s); taken for the same.",
            counted(len(unnamed), "sample"), examples(unnamed),
        )  # fmt: skip
    return np.flatnonzero(np.isin(source.sample_names, [*same, *unnamed]))


def _learned(
    source: PairProblem, target: PairProblem, alike: np.ndarray, use: NewInTest, config: ResponseStudyConfig
) -> np.ndarray:
    """Return the pairs of the source that are learned: without the target's samples, or drugs; drawn if too many."""
    drugs = np.array(source.drugs.names)[source.pairs[:, 1]]
    same = same_drugs(source.drugs, target.drugs.select(np.unique(target.pairs[:, 1])))
    is_sample, is_drug = np.isin(source.pairs[:, 0], alike), np.isin(drugs, same["a"].to_numpy(dtype=str))
    is_in_target = {"sample": is_sample, "tissue": is_sample, "drug": is_drug, "pair": is_sample & is_drug}
    rows = np.flatnonzero(~is_in_target.get(use, is_sample | is_drug))
    if not len(rows):
        raise InputError(f"uses={use!r}: all pairs of the source have a {use} of the target; nothing is left to learn.")
    most = config.source.most_pairs
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, most, replace=False))
    logger.info(
        "New %ss: %s of %s pairs of the source are learned; %d of its samples and %d of its drugs are in the target.",
        use, f"{len(rows):,}", f"{len(source.pairs):,}", len(alike), len(np.unique(drugs[is_drug])),
    )  # fmt: skip
    return rows


# One training, wherever it is done


def _of_source(
    work: Path, start: Checkpoint | None, record: Mapping[str, Any], task: tuple[_Screen, PairModel]
) -> tuple[tuple[str, PairModel], Path]:
    """Train a network on the source; return which it is, and its folder."""
    screen, model = task
    folder = work / screen.use / "source" / f"{model}-network"
    if not folder.exists():
        config = with_settings(screen.config, model=model, epochs=screen.config.source.epochs, rates=())
        begun = start if model == "encoder" else None
        step, beside = f"source, {MODELS[model]}", folder.with_name(model)
        network, _ = screen.problem.train(begun, config, screen.split, work=beside, step=step)
        screen.problem.checkpoint(network, record, like=begun).save(folder)
        drop_weights(beside)
    return (screen.use, model), folder


def _compare(work: Path, task: tuple[_Use, int, int]) -> tuple[tuple[str, int, int], Mapping[str, np.ndarray | None]]:
    """Train and ask all methods on some pairs of a fold; return which it is, and predictions of the test pairs."""
    use, fold, n = task
    problem, split = use.target, use.splits[fold]
    pool = np.concatenate([split.train, split.validation])
    if not n:
        as_they_are = {f"{MODELS[model]}, {PRETRAINED}": _zero_shot(use, model, pool, split) for model in use.learned}
        return (use.name, fold, n), {OF_SOURCE: use.source_means[split.test], **as_they_are}
    features = problem.features(None, use.config, None) if use.config.compare.baselines else None
    networks = tuple(_of_target(use, model, way, pool) for model in use.learned for way in (PRETRAINED, SCRATCH))
    compared = Comparison(problem, None, features, networks, {OF_SOURCE: [use.source_means]})
    outcome = compared.run(
        use.config,
        draw_rows(split, n, seed=use.config.seed),
        with_model=False,
        work=work / use.name / f"fold-{fold + 1}" / str(n),
        step=f"{use.name}, fold {fold + 1}, {n} pairs",
    )
    return (use.name, fold, n), outcome.predicted[0]


def _of_target(use: _Use, model: PairModel, way: str, rows: np.ndarray) -> _StudyNetwork:
    """Return a network on the target; all of it learns where it begins with random weights."""
    config, name = use.of(model), f"{MODELS[model]}, {way}"
    if way == SCRATCH:
        config = replace(config, transfer=TransferConfig())
    return _StudyNetwork(
        name, f"{model}-{way}", config=config, step=f", {name}", of_use=use, model=model, way=way, rows=rows
    )


def _source_means(source: PairProblem, target: PairProblem) -> np.ndarray:
    """Return what the source's mean effects say of the target's pairs: of the samples and drugs that it has learned."""
    learned, asked = source.identities, target.identities
    effects = MeanEffects.fit(source.labels[:, 0], learned.samples, learned.drugs)
    return effects.predict(asked.samples, asked.drugs)


def _zero_shot(use: _Use, model: PairModel, pool: np.ndarray, split: Split) -> np.ndarray:
    return use.turned * use.target.ask(use.begun(model, PRETRAINED, pool), split.test)[:, 0]


# What it came to


def _joined(
    uses: Sequence[_Use],
    predicted: Mapping[tuple[str, int, int], Mapping[str, np.ndarray | None]],
) -> ResponseStudy:
    evaluations: dict[tuple[str, int], Evaluation] = {
        (use.name, n): _evaluated(use, [predicted[use.name, fold, n] for fold in range(len(use.splits))])
        for use in uses
        for n in use.sizes
    }
    networks: dict[tuple[str, str], Checkpoint] = {
        (use.name, model): Checkpoint.from_pretrained(folder) for use in uses for model, folder in use.learned.items()
    }
    return ResponseStudy(table_of(evaluations), differences_of(evaluations), evaluations, networks)


def _evaluated(use: _Use, of_folds: Sequence[Mapping[str, np.ndarray | None]]) -> Evaluation:
    """Score all methods on the test pairs of all folds, by what they predicted in each."""
    tested = np.concatenate([split.test for split in use.splits])
    folds = np.repeat(np.arange(len(use.splits)), [len(split.test) for split in use.splits])
    predicted: dict[str, np.ndarray | None] = {}
    for name in of_folds[0]:
        there = [said for of_fold in of_folds if (said := of_fold[name]) is not None]
        predicted[name] = np.concatenate(there) if len(there) == len(of_folds) else None
    names = [f"{MODELS[model]}, {way}" for model in use.config.networks for way in (PRETRAINED, SCRATCH)]
    return evaluate_target(
        use.target.targets[0],
        use.target.names[tested],
        use.target.labels[tested],
        predicted,
        folds=folds,
        groups=use.target.drawn[tested],
        seed=use.config.seed,
        named="pair",
        networks=[name for name in names if name in predicted],
    )
