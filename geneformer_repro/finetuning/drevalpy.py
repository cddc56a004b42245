"""Our networks over pairs in the benchmark of drevalpy, which asks of a model that it trains and predicts.

drevalpy (DrEval, Nat. Commun. 2026, 17, 4238) deals the splits, tunes and scores; a network of ours is one more model
there. It is no dependency: the class is made when it is asked for, of theirs. Rows are the benchmark's own: who a line
or drug is is said by its identifier there, never by a name that is read more loosely.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import resolved, with_settings
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError, MissingExtraError
from geneformer_repro.expression import ExpressionInputs
from geneformer_repro.files import provenance
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.settings.pairs import ResponseConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.targets import Response
from geneformer_repro.tokenizer.tables import examples

_EXPRESSION, _SMILES = "gene_expression", "smiles"
"""Views of lines and of drugs, as drevalpy calls them."""


@typed
def drevalpy_model(
    config: ResponseConfig, *, name: str, hyperparameters: Sequence[Mapping[str, Any]] = ({},)
) -> type[Any]:
    """Return a class by which drevalpy trains and asks a network over pairs of samples and drugs.

    Parameters
    ----------
    config
        What the network is and how it is trained. ``measure`` says what the responses of the data set are;
        ``split.by`` what is new in the test, and so which mean effects are known: "pair" for LPO, "sample" for LCO,
        "tissue" for LTO, "drug" for LDO.
    name
        What the benchmark calls it.
    hyperparameters
        Settings that the benchmark tunes: of each candidate those that differ from `config`, by their names, such as
        ``{"learning_rate": 3e-4, "dropout": 0.3}``.

    Returns
    -------
    A subclass of drevalpy's ``DRPModel``. It reads ``gene_expression.csv`` and, of structures, ``drug_smiles.csv`` of a
    data set; drugs whose SMILES cannot be read are left out, as drevalpy leaves out whoever has no features. Where
    the benchmark looks models up by name, add it first: ``drevalpy.models.MULTI_DRUG_MODEL_FACTORY[name] =
    drevalpy.models.MODEL_FACTORY[name] = Model``.

    Raises
    ------
    MissingExtraError
        drevalpy is not installed.
    InputError
        The network reads tokens or vectors, which the benchmark does not have, or ``config.measure`` is missing.

    See Also
    --------
    finetune_response : The same networks beside our own baselines.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> import geneformer_repro as gf
    >>> config = gf.ResponseConfig(measure="LN_IC50", network={"model": "conv_nn"}, split={"by": "sample"})
    >>> rates = [{"learning_rate": rate} for rate in (3e-4, 1e-3)]
    >>> if find_spec("drevalpy"):  # pip install drevalpy
    ...     Model = gf.drevalpy_model(config, name="OurConvNN", hyperparameters=rates)
    """
    _require_possible(config)
    try:
        from drevalpy.models.drp_model import DRPModel
    except ImportError as error:
        raise MissingExtraError(f"Models of drevalpy need drevalpy: pip install drevalpy ({error}).") from error
    candidates = [dict(candidate) for candidate in hyperparameters]
    for candidate in candidates:
        with_settings(config, **candidate)
    views = (_SMILES,) if config.network.filled().reads_structures else ()
    attributes = {"name": name, "given": config, "candidates": candidates, "drug_views": views}
    return type(name, (_PairModel, DRPModel), attributes)


class _PairModel:
    """What drevalpy asks of a model, but for what its ``DRPModel`` has itself."""

    early_stopping, is_single_drug_model = True, False
    cell_line_views: tuple[str, ...] = (_EXPRESSION,)
    drug_views: tuple[str, ...]
    name: str
    given: ResponseConfig
    candidates: list[dict[str, Any]]
    hyperparameters: dict[str, Any]
    log_hyperparameters: Callable[[dict[str, Any]], None]
    config: ResponseConfig
    network: PairNetwork | None = None

    @classmethod
    def get_model_name(cls) -> str:
        """Return what it is called."""
        return cls.name

    @classmethod
    def get_hyperparameter_set(cls) -> list[dict[str, Any]]:
        """Return the candidates."""
        return [dict(candidate) for candidate in cls.candidates]

    def build_model(self, hyperparameters: dict[str, Any]) -> None:
        """Take settings; the network is made of what it is trained on."""
        self.log_hyperparameters(hyperparameters)
        self.hyperparameters = hyperparameters
        self.config, self.network = with_settings(self.given, **hyperparameters), None

    def load_cell_line_features(self, data_path: str, dataset_name: str) -> Any:
        """Read all genes of the data set; the network finds its own by name."""
        from drevalpy.models.utils import load_and_select_gene_features

        return load_and_select_gene_features(_EXPRESSION, None, data_path, dataset_name)

    def load_drug_features(self, data_path: str, dataset_name: str) -> Any:
        """Read SMILES; None of a network that reads none."""
        from drevalpy.datasets.dataset import FeatureDataset

        if not self.drug_views:
            return None
        table = pd.read_csv(Path(data_path) / dataset_name / "drug_smiles.csv", dtype=str)
        table = table[["pubchem_id", "canonical_smiles"]].dropna().drop_duplicates("pubchem_id")
        drugs = Drugs.of_table(table, name="pubchem_id", smiles="canonical_smiles")
        structures = zip(drugs.names, drugs.smiles, strict=True)
        return FeatureDataset({drug: {_SMILES: np.array([smiles], dtype=object)} for drug, smiles in structures})

    def train(
        self,
        output: Any,
        cell_line_input: Any,
        drug_input: Any = None,
        output_earlystopping: Any = None,
        model_checkpoint_dir: str = "checkpoints",
    ) -> None:
        """Train; pairs of `output_earlystopping` choose the epoch."""
        given = [part for part in (output, output_earlystopping) if part is not None and len(part)]
        lines, drugs = (np.concatenate([getattr(part, ids) for part in given]) for ids in ("cell_line_ids", "drug_ids"))
        values = np.concatenate([np.asarray(part.response, dtype=np.float64) for part in given])
        problem = _problem(self.config, lines, drugs, values, cell_line_input, drug_input)
        rows = np.arange(len(values))
        split = Split(rows[: len(output)], rows[len(output) :])
        _require_new(problem, split)
        Path(model_checkpoint_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=model_checkpoint_dir) as work:  # no other fold's network is there
            self.network, _ = problem.train(None, self.config, split, work=Path(work) / "network", step=self.name)

    def predict(
        self, cell_line_ids: np.ndarray, drug_ids: np.ndarray, cell_line_input: Any, drug_input: Any = None
    ) -> np.ndarray:
        """Return the response of each pair."""
        rows = np.arange(len(cell_line_ids))
        problem = _problem(self.config, cell_line_ids, drug_ids, np.zeros(len(rows)), cell_line_input, drug_input)
        return problem.ask(self._trained, rows)[:, 0]

    @property
    def _trained(self) -> PairNetwork:
        if self.network is None:
            raise InputError(f"{self.name} was not trained yet: call train first, or load one.")
        return self.network

    def save(self, directory: str) -> None:
        """Write the network as a checkpoint of this package."""
        network = self._trained
        assert network.scale is not None
        record = provenance("drevalpy", config=resolved(self.config), inputs={})
        Checkpoint(network, network.scale.vocabulary, record).save(directory, overwrite=True)

    @classmethod
    def load(cls, directory: str) -> "_PairModel":
        """Open what `save` wrote."""
        model = cls()
        model.build_model({})
        model.network = Checkpoint.from_pretrained(directory).pair_network
        return model


def _require_possible(config: ResponseConfig) -> None:
    shape = config.network.filled()
    if shape.reads_tokens or shape.drug_input == "vectors":
        raise InputError(
            f"drevalpy gives expression and SMILES; network.model={shape.model!r} with network.drug_input="
            f'{shape.drug_input!r} reads something else. Give model "conv_nn", "paccmann" or "tdnn", and no vectors.'
        )
    if config.measure is None:
        raise InputError("measure is missing: say what the responses of the data set are, such as LN_IC50 or AUC.")


def _problem(
    config: ResponseConfig,
    lines: np.ndarray,
    drug_ids: np.ndarray,
    values: np.ndarray,
    cell_line_input: Any,
    drug_input: Any,
) -> PairProblem:
    """Return the benchmark's rows as pairs, whose samples and drugs are known by their identifiers there."""
    samples, sample_R = np.unique(np.asarray(lines, dtype=str), return_inverse=True)
    names, drug_R = np.unique(np.asarray(drug_ids, dtype=str), return_inverse=True)
    genes = cell_line_input.meta_info.get(_EXPRESSION)
    if genes is None:
        raise InputError(f"Features of lines have no names of genes (meta_info[{_EXPRESSION!r}]); give them.")
    matrix = np.stack([cell_line_input.features[line][_EXPRESSION] for line in samples]).astype(np.float32)
    smiles: tuple[str | None, ...] = (None,) * len(names)
    if config.network.filled().reads_structures:
        smiles = tuple(str(drug_input.features[drug][_SMILES][0]) for drug in names)
    drugs = Drugs(tuple(names), smiles, tuple(names))
    pairs = np.stack([sample_R, drug_R], axis=1)
    labels = np.column_stack([values, pairs, np.zeros(len(pairs))])
    target = Response("response", str(config.measure), samples=tuple(samples), drugs=drugs.names)
    return PairProblem(
        sample_names=samples,
        sample_keys=samples,
        inputs=ExpressionInputs({"expression": matrix}, {"expression": tuple(map(str, genes))}),
        cells=None,
        tissues=None,
        drugs=drugs,
        vectors=None,
        pairs=pairs,
        targets=(target,),
        labels=labels,
        split_by=config.split,
    )


def _require_new(problem: PairProblem, split: Split) -> None:
    """Raise if the pairs that choose the epoch are not new as the configuration says that those of the test are."""
    by = problem.split_by.by
    columns = {"sample": ("samples",), "tissue": ("samples",), "drug": ("drugs",), "both": ("samples", "drugs")}
    for what in columns.get(by, ()):
        who = getattr(problem.identities, what)
        again = np.intersect1d(who[split.train], who[split.validation])
        if len(again):
            raise InputError(
                f"split.by={by!r}, and {len(again)} {what} that choose the epoch are trained on ({examples(again)}). "
                'Say how the benchmark splits: "pair" for LPO, "sample" for LCO, "tissue" for LTO, "drug" for LDO.'
            )
