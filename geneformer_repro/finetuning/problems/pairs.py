"""Rows that are pairs of a sample and a drug: networks that read each sample and drug of a batch once.

What is fitted (scales of genes and of what is read of drugs, characters of SMILES, mean effects, the scale of labels)
is fitted on the samples, drugs and values of training rows. A network that learned another screen goes on with its own
scales, characters and weights; mean effects are those of the rows at hand, and its output layer begins anew where the
measure is another one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import BertConfig

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import ConfigError, with_settings
from geneformer_repro.drug_inputs import DrugScale
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionInputs, InputScale
from geneformer_repro.finetuning import transfer
from geneformer_repro.finetuning.baselines import PairInputs
from geneformer_repro.finetuning.networks import NO_SCORES, SELECTION, best_entry, scores_by_target, trained_once
from geneformer_repro.finetuning.pair_splits import Identities
from geneformer_repro.finetuning.problems.problem import Problem, as_lines
from geneformer_repro.finetuning.settings.networks import TransferConfig
from geneformer_repro.finetuning.settings.pairs import PairConfig
from geneformer_repro.finetuning.settings.splits import NewInTest, PairSplitConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.heads import Head
from geneformer_repro.identities import Aliases, sample_keys
from geneformer_repro.mean_effects import MeanEffects
from geneformer_repro.network_settings import PairShape
from geneformer_repro.pair_networks import PairNetwork, with_arcsinh
from geneformer_repro.pair_reading import PairSides
from geneformer_repro.responses import Responses
from geneformer_repro.targets import Response
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.training.config import CellExamples, ParameterGroup, TrainingRun
from geneformer_repro.training.loop import train


@dataclass(frozen=True, eq=False)
class PairProblem(Problem):
    """Responses of samples to drugs; made by `PairProblem.of`."""

    sample_names: np.ndarray
    """Of each sample."""
    sample_keys: np.ndarray
    """Who each sample is, whatever its name: equal for two names of one."""
    inputs: ExpressionInputs | None
    """Expression of the samples; None where only tokens are read."""
    cells: TokenizedDataset | None
    """Tokens of the samples, in the same order; None where only expression is read."""
    tissues: np.ndarray | None
    """Tissue of each sample; None where none are known."""
    drugs: Drugs
    vectors: pd.DataFrame | None
    """Of "vectors": a row a drug, by name or key."""
    pairs: np.ndarray
    """Numbers of sample and drug of each row, (rows, 2)."""
    targets: tuple[Response]
    labels: np.ndarray
    split_by: PairSplitConfig = dataclasses.field(default_factory=PairSplitConfig)
    """What is new in the test, and so which mean effects are known there."""
    row = "pair"

    @classmethod
    def of(
        cls,
        samples: pd.DataFrame | ExpressionInputs | TokenizedDataset,
        responses: Responses,
        drugs: Drugs,
        *,
        expression: pd.DataFrame | None = None,
        sample_names: Sequence[str] | None = None,
        tissues: pd.Series | None = None,
        aliases: Aliases | None = None,
        vectors: pd.DataFrame | None = None,
        split_by: PairSplitConfig | None = None,
        name: str = "response",
    ) -> PairProblem:
        """Join samples, drugs and responses, by who they are.

        Parameters
        ----------
        samples
            Expression, a row a sample, or vectors of samples; or tokens.
        responses, drugs
            From `read_responses`, and `Drugs.of_table` or `Drugs.of_names`.
        expression
            Beside tokens: expression of the same samples, by name, for ``network.expression_path`` and simple methods.
        sample_names
            Of `ExpressionInputs`, which have none.
        tissues
            Tissue of samples, by name.
        aliases
            What else samples are called.
        vectors
            Of drugs, for ``network.drug_input="vectors"``.
        split_by
            How pairs will be split.
        name
            What is learned, in tables.

        Raises
        ------
        InputError
            No pair has both a sample and a drug.
        """
        cells = samples if isinstance(samples, TokenizedDataset) else None
        if isinstance(samples, pd.DataFrame):
            expression = samples
        if cells is not None:
            names = np.asarray(cells.cell_names, dtype=str)
            expression = None if expression is None else _rows_of(expression, names)
        else:
            names = np.asarray(sample_names if expression is None else expression.index, dtype=str)
        inputs = (
            samples if isinstance(samples, ExpressionInputs) else None if expression is None else _inputs(expression)
        )
        joined = responses.join([*names], drugs, aliases)
        of_samples = None if tissues is None else tissues.reindex(names).astype(object).fillna("").to_numpy(dtype=str)
        numbers = np.zeros(len(names)) if of_samples is None else _numbers(of_samples)
        labels = np.column_stack([joined.values, joined.pairs, numbers[joined.pairs[:, 0]]]).astype(np.float64)
        target = Response(name, responses.measure, samples=tuple(names), drugs=drugs.names)
        keys = np.array(sample_keys([*names], aliases), dtype=str)
        return cls(
            names, keys, inputs, cells, of_samples, drugs, vectors, joined.pairs, (target,), labels,
            split_by or PairSplitConfig(),
        )  # fmt: skip

    @property
    def names(self) -> np.ndarray:
        """Name of each pair: ``SAMPLE/DRUG``."""
        drugs = np.array(self.drugs.names, dtype=str)
        return np.char.add(np.char.add(self.sample_names[self.pairs[:, 0]], "/"), drugs[self.pairs[:, 1]])

    @property
    def identities(self) -> Identities:
        """Who the sample and the drug of each row are."""
        tissues = None if self.tissues is None else self.tissues[self.pairs[:, 0]]
        return Identities(
            self.sample_keys[self.pairs[:, 0]], np.array(self.drugs.keys, dtype=object)[self.pairs[:, 1]], tissues
        )

    @property
    def group(self) -> str:  # type: ignore[override]
        """What is new in the test."""
        return self.split_by.by

    @property
    def groups(self) -> np.ndarray:
        """Sample, drug or tissue of each pair, whatever is new in the test."""
        return self.identities.groups(self.split_by.by)

    @property
    def drawn_by(self) -> NewInTest:
        """What is new in the test; the sample, where pairs are: those of a sample are alike, whichever are new."""
        return "sample" if self.split_by.by == "pair" else self.split_by.by

    @property
    def drawn(self) -> np.ndarray:
        """Sample, drug or tissue of each pair, which intervals resample."""
        return self.identities.groups(self.drawn_by)

    @property
    def measure(self) -> str:
        """What the values are."""
        return self.targets[0].measure

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What the tokens mean; None where none are read."""
        return None if self.cells is None else self.cells.vocabulary

    def select(self, rows: np.ndarray) -> PairProblem:
        """Return the problem of some of the pairs, of the same samples and drugs."""
        return dataclasses.replace(self, pairs=self.pairs[rows], labels=self.labels[rows])

    def content(self) -> Iterator[bytes]:
        """Yield who the samples and drugs are, and what is read of them."""
        yield from map(as_lines, (self.sample_names, self.drugs.keys, [] if self.tissues is None else self.tissues))
        yield b"" if self.cells is None else self.cells.fingerprint.encode()
        if self.inputs is not None:
            yield as_lines(self.inputs.names["expression"])
            yield np.ascontiguousarray(self.inputs.values["expression"], dtype=np.float32).tobytes()
        if self.vectors is not None:
            yield as_lines(map(str, [*self.vectors.index, *self.vectors.columns]))
            yield np.ascontiguousarray(self.vectors, dtype=np.float32).tobytes()

    # Networks

    def train(
        self,
        start: Checkpoint | PairNetwork | None,
        config: PairConfig,
        split: Split,
        *,
        pretrained: bool = True,
        work: Path,
        step: str,
    ) -> tuple[PairNetwork, pd.DataFrame]:
        """Train in batches of pairs; keep the epoch that is best on the validation pairs, or the last.

        `start` is a network over pairs to go on from, an encoder's checkpoint to begin with, or None. Without
        `pretrained` weights are random, scales and the rest fitted anew, and all of it learns.
        """
        if not pretrained:
            config = dataclasses.replace(config, transfer=TransferConfig())
        begun = self.begun(start, config, split.train, pretrained=pretrained)
        rates = config.training.rates if len(split.validation) else ()
        tried = [
            self._trained(
                begun, with_settings(config, learning_rate=rate), split, work=work / f"rate-{rate:g}", step=step
            )
            for rate in rates
        ]
        if not tried:
            return self._trained(begun, config, split, work=work, step=step)
        best = int(np.argmax([best_entry(history)[f"eval_{SELECTION}"] for _, history in tried]))
        network, history = tried[best]
        return trained_once(
            work, lambda: (network, history.assign(rate=rates[best])), like=lambda: copy.deepcopy(begun)
        )

    def _trained(
        self, begun: PairNetwork, config: PairConfig, split: Split, *, work: Path, step: str
    ) -> tuple[PairNetwork, pd.DataFrame]:
        """Train at one rate."""
        if not len(split.validation):
            config = with_settings(config, trainer={**config.training.trainer, **NO_SCORES})

        def train_here() -> tuple[PairNetwork, pd.DataFrame]:
            network, groups = _prepared(copy.deepcopy(begun), config)
            run = self._run(network, config, split, groups, work=work, step=step)
            trained, history = train(network, run)
            return transfer.finished(trained).eval(), history

        return trained_once(work, train_here, like=lambda: copy.deepcopy(begun))

    def begun(
        self, start: Checkpoint | PairNetwork | None, config: PairConfig, rows: np.ndarray, *, pretrained: bool = True
    ) -> PairNetwork:
        """Return the network that training on these rows begins with."""
        source: Any = start.model if isinstance(start, Checkpoint) else start
        goes_on = isinstance(source, PairNetwork)
        if goes_on and pretrained:
            network = self._gone_on(source, config, rows)
        else:
            shape = source.shape if goes_on else config.network.filled()
            encoder = source.bert.config if source is not None and shape.reads_tokens else None
            network = self._new(shape, encoder, config, rows)
        if pretrained and not goes_on and network.shape.reads_tokens:
            own, theirs = network.bert.state_dict(), source.bert.state_dict()
            network.bert.load_state_dict({name: theirs.get(name, weight) for name, weight in own.items()})
        if network.shape.residual:
            same = goes_on and pretrained and source.target.measure == self.measure
            network.effects = self._effects(rows, source.effects if same else None)
        samples, drugs = self.identities.samples[rows], self.identities.drugs[rows]
        for what, names in (("samples", samples), ("drugs", drugs)):
            network.learned[what] = sorted({*network.learned[what], *names.tolist()})
        return network

    def _new(self, shape: PairShape, encoder: BertConfig | None, config: PairConfig, rows: np.ndarray) -> PairNetwork:
        """Return a network with random weights, its scales fitted on the samples and drugs of these rows."""
        if shape.reads_tokens and encoder is None:
            raise InputError('network.model="encoder" needs the checkpoint of an encoder to begin with.')
        samples, drugs = (np.unique(column) for column in self.pairs[rows].T)
        scale = None
        if shape.reads_expression:
            inputs = self._expression().select(samples)
            inputs = with_arcsinh(inputs) if shape.arcsinh else inputs
            scale = InputScale.fit(inputs, n_genes=shape.n_genes, clip=shape.clip)
        of_drugs = DrugScale.fit(
            self.drugs.select(drugs), shape.drug_input, vectors=self.vectors, at_least=shape.fewest_positions
        )
        head = self._head(config, rows, residual=shape.residual)
        return PairNetwork(shape, head, scale, of_drugs, encoder=encoder, seed=config.seed)

    def replaces_head(self, source: PairNetwork, config: PairConfig) -> bool:
        """Whether the output layer of a network that goes on begins anew."""
        return source.target.measure != self.measure if config.replace_head is None else config.replace_head

    def _gone_on(self, source: PairNetwork, config: PairConfig, rows: np.ndarray) -> PairNetwork:
        """Return a copy of a network that learned other pairs, with the head of these rows, and the scale if wished."""
        network = copy.deepcopy(source)
        head = self._head(config, rows, residual=network.shape.residual)
        replaces = self.replaces_head(source, config)
        if replaces:
            network.replace_output(head, seed=config.seed)
        elif source.target.measure == self.measure:  # what the output layer says is in the scale that it learned
            head = dataclasses.replace(head, targets=(dataclasses.replace(source.target, name=self.targets[0].name),))
        network.head = head
        if config.refit_scale:
            network = self.rescaled(network, rows)
        network.begun = {
            "measure": source.target.measure,
            "replaced_head": replaces,
            "refitted_scale": config.refit_scale,
        }
        return network

    def _expression(self) -> ExpressionInputs:
        if self.inputs is None:
            raise InputError(
                "The network reads expression of genes, and of these samples there are tokens alone. Give expression=, "
                'or network.model="encoder" without network.expression_path.'
            )
        return self.inputs

    def _head(self, config: PairConfig, rows: np.ndarray, *, residual: bool) -> Head:
        """Return the head, its labels scaled by these rows: by what is left over mean effects, or as they are."""
        values = self.labels[rows, 0]
        left = values - self._naive(self._effects(rows), rows) if residual else values
        spread = next((float(of.std()) for of in (left, values) if of.std() > 1e-9), 1.0)
        target = dataclasses.replace(self.targets[0], mean=float(values.mean()), sd=spread, samples=(), drugs=())
        return Head((target,), config.pooling)

    def require_readable(self, start: Checkpoint | None, config: PairConfig) -> None:
        """Raise, before any work, unless a network finds what it reads.

        Raises
        ------
        InputError
            It reads tokens without an encoder's checkpoint, expression of which there is none, structures that drugs
            lack, or vectors that are not given.
        """
        source = None if start is None else start.model
        shape = source.shape if isinstance(source, PairNetwork) else config.network.filled()
        if shape.reads_tokens and (start is None or self.cells is None):
            raise InputError(
                'network.model="encoder" reads tokens: give the checkpoint of an encoder, and tokenised samples; or '
                'another network: "conv_nn", "paccmann", "tdnn".'
            )
        if shape.reads_tokens and start is not None and self.cells is not None:
            start.require_matching(self.cells)
        if shape.reads_expression:
            self._expression()
        if shape.reads_structures:
            self.drugs.select(np.unique(self.pairs[:, 1])).structures(f"network.drug_input={shape.drug_input!r}:")
        elif shape.drug_input == "vectors" and self.vectors is None:
            raise InputError('network.drug_input="vectors" needs vectors=, a row a drug.')

    def require_genes_in(self, other: PairProblem) -> None:
        """Raise unless another problem has genes of this one, by id or name; warn of those that it lacks.

        Raises
        ------
        InputError
            It has none.
        """
        InputScale.fit(self._expression()).raw(other._expression().select(np.arange(1)))

    def expression_table(self) -> pd.DataFrame:
        """Return expression, samples × genes, by their names.

        Raises
        ------
        InputError
            There are tokens alone.
        """
        inputs = self._expression()
        return pd.DataFrame(
            inputs.values["expression"], index=self.sample_names, columns=list(inputs.names["expression"])
        )

    def permuted(self, what: Literal["expression", "drugs"], *, seed: int) -> PairProblem:
        """Return the problem with what is read of samples, or of drugs, dealt out anew among them."""
        rng = np.random.default_rng([seed, 0 if what == "expression" else 1])
        if what == "expression":
            order = rng.permutation(len(self.sample_names))
            inputs = None if self.inputs is None else self.inputs.select(order)
            cells = None if self.cells is None else self.cells.select(order)
            return dataclasses.replace(self, inputs=inputs, cells=cells)
        order = rng.permutation(len(self.drugs))
        drugs = dataclasses.replace(self.drugs, smiles=tuple(self.drugs.smiles[i] for i in order))
        vectors = self.vectors
        if vectors is not None:
            vectors = vectors.set_axis(rng.permutation(vectors.index.to_numpy()), axis=0)
        return dataclasses.replace(self, drugs=drugs, vectors=vectors)

    def rescaled(self, network: PairNetwork, rows: np.ndarray) -> PairNetwork:
        """Return a copy of a network that takes each gene's mean and spread from the samples of these pairs."""
        network = copy.deepcopy(network)
        if network.scale is not None:
            inputs = self._expression().select(np.unique(self.pairs[rows, 0]))
            network.scale = network.scale.refitted(with_arcsinh(inputs) if network.shape.arcsinh else inputs)
        return network

    def unlearned(self, config: PairConfig, rows: np.ndarray, *, encoder: BertConfig | None = None) -> PairNetwork:
        """Return a network with random weights, its scales fitted on the samples and drugs of these pairs.

        `encoder` is the shape of the encoder, of a network that reads tokens.
        """
        network = self._new(config.network.filled(), encoder, config, rows)
        network.effects = None
        return network

    def checkpoint(self, network: PairNetwork, record: Mapping[str, Any], *, like: Checkpoint | None) -> Checkpoint:
        """Return a network with what it needs to be asked of other pairs.

        Parameters
        ----------
        network
            What learned.
        record
            How it was made.
        like
            What it began with; its tokens, if it reads such, are the network's.
        """
        if self.cells is not None and network.shape.reads_tokens:
            vocabulary = self.cells.vocabulary
        elif network.scale is not None:
            vocabulary = network.scale.vocabulary
        else:
            raise AssertionError(network)
        seen = None if like is None or not network.shape.reads_tokens else like.seen
        return Checkpoint(network, vocabulary, record, seen, name="checkpoint of responses")

    # Mean effects

    def _effects(self, rows: np.ndarray, prior: MeanEffects | None = None) -> MeanEffects:
        """Return the mean effects of these rows that are known in the test part."""
        who = self.identities
        samples, drugs = who.samples[rows], who.drugs[rows]
        effects = self.split_by.known_effects
        return MeanEffects.fit(self.labels[rows, 0], samples, drugs, effects=effects, prior=prior)

    def _naive(self, effects: MeanEffects, rows: np.ndarray) -> np.ndarray:
        who = self.identities
        return effects.predict(who.samples[rows], who.drugs[rows])

    def naive(self, network: PairNetwork, rows: np.ndarray) -> np.ndarray | None:
        """Return what the mean effects that a network has learned say of pairs; None of one without."""
        return None if network.effects is None else self._naive(network.effects, rows)

    # Training and asking

    def sides(self, network: PairNetwork) -> PairSides:
        """Return all samples and drugs as a network reads them."""
        return PairSides.of(network, self.inputs, self.cells, self.drugs, self.vectors)

    def _run(
        self,
        network: PairNetwork,
        config: PairConfig,
        split: Split,
        groups: Sequence[ParameterGroup],
        *,
        work: Path,
        step: str,
    ) -> TrainingRun:
        """Say what is learned from, and how."""
        sides, rows = self.sides(network), split.train
        if network.shape.reads_tokens and config.transfer.strategy == "probe":
            sides = sides.with_pooled(network)
        drugs_a_step = config.training.drugs_a_step
        examples = CellExamples(
            np.ones(len(rows)),
            lambda i, _: rows[i],
            rows=rows,
            alike=None if drugs_a_step is None else self.pairs[rows, 1],
            alike_a_step=drugs_a_step or 1,
        )
        return TrainingRun(
            examples=examples,
            collate=self._collate(network, sides),
            evaluate=self._scorer(sides, split.validation),
            config=config.training,
            seed=config.seed,
            groups=groups,
            best_by=SELECTION if len(split.validation) else None,
            work=work,
            step=step,
            row=self.row,
        )

    def _collate(self, network: PairNetwork, sides: PairSides) -> Callable[[list[int]], dict[str, Any]]:
        naive = self.naive(network, np.arange(len(self.pairs)))

        def collate(batch: list[int]) -> dict[str, Any]:
            rows = np.array(batch)
            made = sides.batch(self.pairs[rows])
            if naive is not None:
                made["naive"] = torch.from_numpy(naive[rows]).float()
            return made | {"labels": torch.from_numpy(self.labels[rows]).float()}

        return collate

    def _scorer(self, sides: PairSides, rows: np.ndarray) -> Callable[[nn.Module], dict[str, float]]:
        """Return what scores a network on validation pairs; nothing where there are none."""
        labels = self.labels[rows]

        def score(network: Any) -> dict[str, float]:
            if not len(rows):
                return {}
            outputs = sides.outputs(network, self.pairs[rows], self.naive(network, rows))
            loss = network.sum_of_losses(outputs, torch.from_numpy(labels).float()).item() / len(rows)
            return {"loss": loss, **scores_by_target(network.head.targets, labels, network.head.meaning(outputs))}

        return score

    def ask(self, network: PairNetwork, rows: np.ndarray) -> np.ndarray:
        """Return the forecast of each pair in the unit of the network's measure, (rows, 1)."""
        outputs = self.sides(network).outputs(network, self.pairs[rows], self.naive(network, rows))
        return network.head.meaning(outputs).numpy()

    def features(self, start: Any, config: Any, counts: Any) -> PairInputs:
        """Return expression of the samples and fingerprints of the drugs, each once."""
        has_structures = all(smiles is not None for smiles in self.drugs.smiles)
        tissues = np.zeros(len(self.sample_names)) if self.tissues is None else _numbers(self.tissues)
        return PairInputs(
            samples=None if self.inputs is None else self.inputs.values["expression"],
            drugs=self.drugs.fingerprints() if has_structures else None,
            pairs=self.pairs,
            tissues=tissues.astype(np.int64),
        )


def _inputs(expression: pd.DataFrame) -> ExpressionInputs:
    """Return a table, samples × genes, as a network takes it."""
    values = expression.to_numpy(dtype=np.float32)
    return ExpressionInputs({"expression": values}, {"expression": tuple(map(str, expression.columns))})


def _rows_of(expression: pd.DataFrame, names: np.ndarray) -> pd.DataFrame:
    expression = expression.set_axis(expression.index.astype(str), axis=0)
    if lacking := [name for name in names if name not in expression.index]:
        raise InputError(
            f"{len(lacking)} of {len(names)} samples with tokens have no expression (first: {lacking[0]!r}). Give both "
            "of the same samples."
        )
    return expression.loc[names]


def _numbers(tissues: np.ndarray) -> np.ndarray:
    """Number tissues from 1 by their names; 0 where none is known."""
    names = np.unique(tissues[tissues != ""])
    return np.where(tissues == "", 0, np.searchsorted(names, tissues) + 1)


def _prepared(network: PairNetwork, config: PairConfig) -> tuple[PairNetwork, list[ParameterGroup]]:
    """Return a network ready to be trained, and its parameters that learn."""
    strategy = config.transfer.strategy
    if network.shape.reads_tokens:
        return transfer.prepare(network, config.transfer, seed=config.seed)
    if strategy not in ("full", "probe"):
        raise ConfigError(
            f"transfer.strategy={strategy!r} is of encoders, and network.model={network.shape.model!r} has none; "
            'found no blocks. Give "full", or "probe" to train the layers after the junction alone.'
        )
    if strategy == "full":
        return network, [ParameterGroup("network", list(network.parameters()))]
    learning = [*network.joint.parameters(), *network.output.parameters()]
    network.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    return network, [ParameterGroup("after the junction", learning)]
