"""What a network says of pairs that nobody has measured, and how far these are from what it learned."""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.drugs import Drugs
from geneformer_repro.files import new_file, refuse_existing, write_table
from geneformer_repro.finetuning.kinds.response_methods import tanimoto
from geneformer_repro.identities import Aliases, same_samples, sample_keys
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.pair_reading import PairSides, all_pairs, read_pairs
from geneformer_repro.responses import sensitive_is_low
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.measures import Values

_FEWEST_FOR_Z = 3
"""Samples of which a spread says something."""
_FAR, _UNLIKE = 2.0, 0.4
"""Spreads from the mean of the training samples, and likeness to the next training drug (Tanimoto), beyond which a
forecast is one of another world; within them nothing is promised either."""


@typed
def predict_response(
    checkpoint: Checkpoint,
    samples: TokenizedDataset | AnnData | pd.DataFrame | str | Path,
    drugs: Drugs | pd.DataFrame | str | Path,
    *,
    values: Values | None = None,
    log2: bool = False,
    expression: AnnData | pd.DataFrame | str | Path | None = None,
    aliases: Aliases | pd.DataFrame | str | Path | None = None,
    vectors: pd.DataFrame | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Predict the response of every sample to every drug, and say how far from training each pair is.

    Parameters
    ----------
    checkpoint
        A network that `finetune_response` made.
    samples, expression, vectors
        As there.
    drugs
        As `Drugs` has them, or a table of names and SMILES.
    values, log2
        What a matrix holds, as in `ResponseConfig`; default what the network learned from.
    aliases
        What else samples are called, to know those that were learned.
    out
        Also write the table here, tab-separated.
    overwrite
        Replace `out`.

    Returns
    -------
    A row a pair, sample by sample, the most sensitive drug first: ``sample``, ``drug``; ``predicted``, in the unit of
    the network's measure; ``z``, by how many spreads over the samples at hand it lies from the drug's mean over them
    (missing where they are fewer than three), by which drugs of different potency compare; ``rank``, the place of the
    drug in the sample by `z`, 1 for the most sensitive (by ``predicted`` where there is no `z`). What tells how far
    the network was from such a pair when it learned: ``sample_distance``, spreads of its genes from the training mean
    (root mean square; about 1 for a training sample), ``sample_learned``, ``drug_similarity`` (Tanimoto of
    fingerprints to the next training drug), ``drug_learned``; and ``note``, what of this to mind.

    Raises
    ------
    InputError
        The checkpoint is no such network, or what it reads is not given.
    FileExistsError
        `out` exists.

    See Also
    --------
    finetune_response : Makes the network.

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
    ...     split={"validation": 0.2},
    ...     training={"epochs": 1, "batch_size": 16},
    ... )
    >>> table = table.rename_axis("sample").reset_index()
    >>> result = gf.finetune_response(None, lines, table, None, config, out="runs/predicted")
    >>> said = gf.predict_response(result.checkpoint, lines[:3], gf.Drugs.of_names(["A", "B"]))
    >>> said.columns[:5].tolist(), len(said), bool(said["drug_learned"].all())
    (['sample', 'drug', 'predicted', 'z', 'rank'], 6, True)
    """
    network = checkpoint.pair_network
    if out is not None:
        refuse_existing(Path(out), overwrite=overwrite)
    names, drugs, sides = read_pairs(
        checkpoint, samples, drugs, values=values, log2=log2, expression=expression, vectors=vectors
    )
    pairs = all_pairs(len(names), len(drugs))
    aliases = aliases if aliases is None or isinstance(aliases, Aliases) else Aliases.of_table(aliases)
    keys = np.array(sample_keys([*names], aliases), dtype=str)
    naive = None if network.effects is None else network.effects.predict(keys[pairs[:, 0]], _of(drugs.keys, pairs))
    outputs = sides.outputs(network, pairs, naive)
    predicted = network.head.meaning(outputs).numpy()[:, 0]
    columns = {"sample": names[pairs[:, 0]], "drug": _of(drugs.names, pairs), "predicted": predicted}
    table = _ranked(pd.DataFrame(columns), low_is_sensitive=sensitive_is_low(network.target.measure))
    table = table.merge(_samples_told(network, names, sides, aliases), on="sample", how="left")
    table = table.merge(_drugs_told(network, drugs), on="drug", how="left")
    table["note"] = _notes(table)
    table = table.iloc[np.lexsort((table["rank"].to_numpy(np.float64), pairs[:, 0]))].reset_index(drop=True)
    if out is not None:
        with new_file(out, overwrite=overwrite) as aside:
            write_table(table, aside)
    return table


def _of(names: tuple[str, ...], pairs: np.ndarray) -> np.ndarray:
    return np.array(names, dtype=str)[pairs[:, 1]]


def _ranked(table: pd.DataFrame, *, low_is_sensitive: bool) -> pd.DataFrame:
    """Add `z` within the drug, and the rank within the sample."""
    by_drug = table.groupby("drug", sort=False)["predicted"]
    spread = by_drug.transform("std", ddof=0).where(by_drug.transform("size") >= _FEWEST_FOR_Z)
    table["z"] = (table["predicted"] - by_drug.transform("mean")) / spread.where(spread > 0)
    merit = table["z"] if table["z"].notna().any() else table["predicted"]
    ranks = merit.groupby(table["sample"], sort=False).rank(ascending=low_is_sensitive, method="min")
    table["rank"] = ranks.astype("Int64")
    return table


def _samples_told(network: PairNetwork, names: np.ndarray, sides: PairSides, aliases: Aliases | None) -> pd.DataFrame:
    distance = np.full(len(names), np.nan)
    if sides.values_SG is not None:
        distance = np.sqrt(np.square(sides.values_SG, dtype=np.float64).mean(axis=1))
    same = same_samples(names, network.learned["samples"], aliases)
    return pd.DataFrame(
        {"sample": names, "sample_distance": distance, "sample_learned": np.isin(names, same["a"].to_numpy(dtype=str))}
    )


def _drugs_told(network: PairNetwork, drugs: Drugs) -> pd.DataFrame:
    """Tell how like each drug is to the next of the training drugs, whose keys are their SMILES."""
    learned = network.learned["drugs"]
    told = pd.DataFrame({"drug": drugs.names, "drug_learned": np.isin(np.array(drugs.keys), learned)})
    told["drug_similarity"] = np.where(told["drug_learned"], 1.0, np.nan)
    have = np.array([smiles is not None for smiles in drugs.smiles])
    if network.drugs.kind in ("smiles", "fingerprint", "descriptors") and have.any():
        of_training = Drugs(tuple(learned), tuple(learned), tuple(learned))  # whose identity is their structure
        alike_DL = tanimoto(drugs.select(np.flatnonzero(have)).fingerprints(), of_training.fingerprints())
        told.loc[have, "drug_similarity"] = alike_DL.max(axis=1)
    return told[["drug", "drug_similarity", "drug_learned"]]


def _notes(table: pd.DataFrame) -> pd.Series:
    said = {
        "sample far from training": table["sample_distance"] > _FAR,
        "drug unlike training": table["drug_similarity"].fillna(0) < _UNLIKE,
        "pair may have been learned": table["sample_learned"] & table["drug_learned"],
    }
    notes = pd.Series("", index=table.index)
    for note, applies in said.items():
        notes = notes.where(~applies, notes + np.where(notes == "", "", "; ") + note)
    return notes
