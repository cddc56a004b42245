"""What a network read out of a trained model says of pairs where the truth is known: targets that factors switch on.

Run as ``python benchmarks/planted_regulation.py OUT [--seeds 5] [--epochs 5]``. Simulated cells, a `tiny` model
pretrained on them for a minute or two on one thread, and networks over cells that it has not seen, the mean of those of
each type: by deletion, by attention, by attention and value norm, the same of random weights, by the fall of a hidden
target's log probability when the factor is hidden, too, by what leaving the factor out at its place does to targets
that are seen, and by |Spearman| without a model. Prints the AUROC of targets over decoys of the same detection for each
seed; then the same where targets are switched on as often but not with their factor.
Seeds that are finished in OUT are not done again.
"""

import argparse
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _planted_regulation import TYPES, Planted, simulate

import geneformer_repro as gf
from geneformer_repro.in_silico.networks.deletion_sums import others_at_like_places
from geneformer_repro.in_silico.networks.edge_scores import Pairs, Stratified, auroc, matched_bins, strata_of
from geneformer_repro.in_silico.networks.gene_effects import gene_effects
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.reading import Reader

N_TRAINING, N_READ = 8_000, 600
"""Cells that are learned from, and others for networks."""
TRAINING = {
    "batch_size": 8,
    "learning_rate": 2e-3,
    "warmup_steps": 0.1,
    "trainer": {"adam_beta2": 0.98},
}
NETWORK = {"initializer_range": 0.08}
"""Weights as small as usual leave a plateau, in which hidden genes are guessed by frequency, only after a minute."""
NETWORKS: Mapping[str, Mapping[str, str]] = {
    "deletion": {"method": "deletion"},
    "masked logit": {"method": "masked_logit"},
    "attention": {},
    "value norm": {"weight": "value_norm"},
}
MIN_CELLS = 10


def random_weights(vocabulary: gf.Vocabulary, seed: int) -> gf.Checkpoint:
    """Return a model as one begins with, that has learned nothing."""
    shape = bert_config("tiny", vocabulary)
    shape.update(NETWORK)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return gf.Checkpoint(MaskedGeneModel(shape).eval(), vocabulary, name="random weights")


def by_network(
    checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, planted: Planted, out: Path, **asked: str
) -> pd.Series:
    """Return the weight of each pair in the network of its factor's home."""
    is_source = planted.cells.var["kind"].isin(["factor", "marker"])  # markers are compared with, and not scored
    network = gf.gene_network(
        checkpoint,
        cells,
        sources=[*planted.cells.var_names[is_source]],
        by="type",
        min_cells=MIN_CELLS,
        out=out,
        overwrite=True,
        **asked,
    )
    mean = sum(network.matrix(type_) for type_ in TYPES) / len(TYPES)
    return _of_pairs(mean, planted.pairs)


def by_hiding(checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, planted: Planted) -> dict[str, pd.Series]:
    """Return weights of pairs where sources are left out at their place, so that no other gene moves.

    Read at targets that are seen: how far their last vector moves (1 - cosine), and how far the log probability of
    the target at its own place falls. Less those of other sources of the cell at like places; effects of both genes
    out, type by type.
    """
    ids = pd.Index(checkpoint.vocabulary.gene_ids)
    is_source = planted.cells.var["kind"].reindex(ids).isin(["factor", "marker"]).to_numpy()
    total, n = np.zeros((2, len(TYPES), len(ids), len(ids))), np.zeros((len(TYPES), len(ids), len(ids)))
    reader, types = Reader.of(checkpoint, layer=0, device="cpu"), cells.labels("type").to_numpy()
    for row in range(len(cells)):
        genes = checkpoint.vocabulary.genes_of(cells[row])
        sources = np.flatnonzero((genes >= 0) & is_source[genes])
        if len(sources) < 2:
            continue
        moved_2KQ = _moved(checkpoint, reader, torch.from_numpy(cells[row].astype(np.int64)), sources)
        of_type, there = TYPES.index(types[row]), np.flatnonzero(genes >= 0)
        pairs = np.ix_(genes[sources], genes[there])
        for kind, moved_KQ in enumerate(moved_2KQ):
            beyond = moved_KQ - others_at_like_places(moved_KQ, sources - 1)
            total[kind, of_type][pairs] += np.nan_to_num(beyond[:, there])
        n[of_type][pairs] += genes[sources][:, None] != genes[there]
    found = {}
    for name, sums in zip(("hiding, vectors", "hiding, log probability"), total, strict=True):
        mean = np.divide(sums, n, out=np.full(sums.shape, np.nan), where=n >= MIN_CELLS)[:, is_source]
        left = [gene_effects(mean[i], n[i][is_source]).residual for i in range(len(TYPES))]
        found[name] = _of_pairs(pd.DataFrame(np.mean(left, axis=0), ids[is_source], ids), planted.pairs)
    return found


def _moved(checkpoint: gf.Checkpoint, reader: Reader, tokens_L: torch.Tensor, sources: np.ndarray) -> np.ndarray:
    """Return how far vector and log probability of each seen token fall without each source; NaN of the source."""
    length = len(tokens_L)
    kept = [torch.from_numpy(np.delete(np.arange(length), source)) for source in sources]
    places_T = torch.cat([torch.arange(length), *kept])
    lengths = [length, *([length - 1] * len(kept))]
    whole, *others = reader.hidden(tokens_L[places_T], lengths, positions_T=places_T).split(lengths)
    moved_2KL = np.full((2, len(sources), length), np.nan)
    with torch.inference_mode():
        before_L = checkpoint.model.cls(whole).log_softmax(-1)[torch.arange(length), tokens_L]
        for i, (places, hidden) in enumerate(zip(kept, others, strict=True)):
            after = checkpoint.model.cls(hidden).log_softmax(-1)[torch.arange(length - 1), tokens_L[places]]
            moved_2KL[0, i, places] = 1 - torch.cosine_similarity(hidden, whole[places], dim=-1).numpy()
            moved_2KL[1, i, places] = (before_L[places] - after).numpy()
    return moved_2KL


def _of_pairs(matrix: pd.DataFrame, pairs: pd.DataFrame) -> pd.Series:
    return pd.Series([matrix.at[a, b] for a, b in zip(pairs["source"], pairs["target"], strict=True)])


def by_spearman(planted: Planted) -> pd.Series:
    """Return |Spearman| of shares of counts within the cells of a type, the mean over types."""
    total = 0
    for type_ in TYPES:
        counts = planted.cells[planted.cells.obs["type"] == type_].to_df()
        total += counts.div(counts.sum(axis=1), axis=0).corr("spearman").abs()
    return _of_pairs(total / len(TYPES), planted.pairs)


def scored(planted: Planted, scores: Mapping[str, pd.Series], cells: gf.TokenizedDataset) -> pd.DataFrame:
    """Return of each score the AUROC over all pairs, and among a factor's pairs of like detection and place."""
    is_edge = planted.pairs["is_edge"].to_numpy()
    source, sources = pd.factorize(planted.pairs["source"])
    target, targets = pd.factorize(planted.pairs["target"])
    places = pd.DataFrame(
        [(gene, place) for row in range(len(cells)) for place, gene in enumerate(cells.genes(row))],
        columns=["gene", "place"],
    )
    of_genes = places.groupby("gene")["place"].agg(["size", "mean"]).reindex(targets)
    bins = matched_bins(of_genes["size"].to_numpy() / len(cells), of_genes["mean"].to_numpy(), n_detection=3, n_place=2)
    rows = []
    for name, values in scores.items():
        there = values.notna().to_numpy()
        pairs = Pairs(source[there], target[there], len(sources), len(targets))
        matched = Stratified(values[there].to_numpy(), strata_of(pairs, bins), pairs.source, len(sources))
        edges = is_edge[there]
        rows.append((name, auroc(values[there].to_numpy(), edges), matched.auroc(np.flatnonzero(edges)), there.sum()))
    return pd.DataFrame(rows, columns=["score", "auroc", "matched", "n_pairs"])


def one_seed(out: Path, seed: int, *, regulated: bool, epochs: int) -> pd.DataFrame:
    """Simulate, pretrain, and score every network of a seed."""
    path = out / f"{'planted' if regulated else 'null'}-{seed}"
    if path.with_suffix(".tsv").exists():
        return pd.read_csv(path.with_suffix(".tsv"), sep="\t")
    planted = simulate(N_TRAINING, regulated=regulated, seed=seed)
    read = simulate(N_READ, regulated=regulated, seed=1_000 + seed)
    vocabulary = gf.Vocabulary.fit(planted.cells)
    cells = gf.tokenize(read.cells, vocabulary, obs=["type"])
    started = time.perf_counter()
    config = gf.PretrainConfig(size="tiny", network=NETWORK, training={**TRAINING, "epochs": epochs}, seed=seed)
    base = gf.pretrain(gf.tokenize(planted.cells, vocabulary), config, out=path / "base", overwrite=True)
    seconds = time.perf_counter() - started
    scores = {
        name: by_network(base, cells, read, path / name.replace(" ", "-"), **asked) for name, asked in NETWORKS.items()
    }
    unlearned = random_weights(vocabulary, 1_000 + seed)
    for name in ("deletion", "masked logit", "attention"):
        folder = path / f"random-{name.replace(' ', '-')}"
        scores[f"{name}, random weights"] = by_network(unlearned, cells, read, folder, **NETWORKS[name])
    scores |= by_hiding(base, cells, read)
    scores |= {f"{name}, random weights": values for name, values in by_hiding(unlearned, cells, read).items()}
    scores["|Spearman|"] = by_spearman(read)
    losses = base.provenance["result"]["scores"]
    table = scored(read, scores, cells).assign(
        cells="planted" if regulated else "null",
        seed=seed,
        seconds=seconds,
        hidden_loss=losses["model"]["hidden_loss"],
        hidden_loss_of_frequency=losses["gene frequency"]["hidden_loss"],
    )
    table.to_csv(path.with_suffix(".tsv"), sep="\t", index=False)
    return table


def main() -> None:
    """Carry out all seeds; print a row a score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--null-seeds", type=int, help="default: as many")
    parser.add_argument("--epochs", type=int, default=5, help="passes of pretraining; with others, another OUT")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    n_null = arguments.seeds if arguments.null_seeds is None else arguments.null_seeds
    for regulated, n_seeds in ((True, arguments.seeds), (False, n_null)):
        tables = []
        for seed in range(n_seeds):
            tables.append(one_seed(arguments.out, seed, regulated=regulated, epochs=arguments.epochs))
            print(tables[-1].round(3).to_string(index=False), flush=True)
        if tables:
            table = pd.concat(tables)
            for column in ("auroc", "matched"):
                wide = table.pivot(index="score", columns="seed", values=column)
                print(
                    f"{table['cells'].iat[0]}, {column}",
                    wide.assign(mean=wide.mean(axis=1)).round(3).to_string(),
                    sep="\n",
                )


if __name__ == "__main__":
    main()
