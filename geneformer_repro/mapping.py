"""What comes after an embedding: labels from a reference, scores of integration, a map and a heat map.

Takes vectors, not models: any AnnData with a vector a cell in ``X`` will do, so an embedding and PCA are treated
alike, and nothing here needs torch. Neighbours are searched exactly, by Euclidean distance, as scanpy's are: cosine
named as many cells right (57.1 % and 57.7 %, ± 1 %, pbmc700 by a model trained on it for 15 passes).

How far away a cell is, is compared with reference cells of the label it was given, not with all: types differ in how
close their cells lie. With CD14 monocytes, B, NK or activated T cells left out of Kang's blood cells (50 principal
components), 64, 39, 29 and 89 % of those in held-out donors lie beyond the 95th percentile of the label they are
given, against 0, 6, 29 and 83 % beyond that of all reference cells; of cells with their type there, 7–11 % and 3–5 %.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError, MissingExtraError, did_you_mean, listed
from geneformer_repro.into_adata import places_of_cells, put_columns
from geneformer_repro.progress import progress
from geneformer_repro.report import CATEGORIES, MANY_COLUMNS, like_beside_like, new_axes
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.matrices import first_not_a_count
from geneformer_repro.tokenizer.placeholders import are_unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_COMPARED_CELLS = 2_000
"""So many reference cells of a label, evenly spaced, say how far apart its cells lie: all would be n² distances."""
_MADE_BY = ("checkpoint", "vocabulary", "level", "layer", "pooling")
"""What two embeddings must share for a distance between them to mean anything; `embed` writes it."""

_LISI_NEIGHBORS, _GRAPH_NEIGHBORS = 90, 15
"""Cells of a neighbourhood, the cell itself among them: the numbers of scib-metrics' own benchmark."""
_N_VARIABLE_GENES, _N_COMPONENTS = 2_000, 50
BIO_CONSERVATION = ("nmi", "ari", "silhouette_label", "clisi")
BATCH_MIXING = ("silhouette_batch", "ilisi", "graph_connectivity")

_FEWEST_ON_A_MAP = 5


@typed
def map_to_reference(
    query: AnnData,
    reference: AnnData,
    label: str,
    *,
    n_neighbors: int = 15,
    keep_unknown: bool = False,
    into: AnnData | None = None,
) -> pd.DataFrame:
    """Label cells by their nearest neighbours in a labelled reference.

    Neighbours vote with weight 1 / distance. The vote always has a winner, also where the reference holds nothing
    like the cell: read `distance_percentile` beside `confidence`.

    Parameters
    ----------
    query
        Vectors of the cells to be labelled. A cell that is in the reference too finds itself.
    reference
        Vectors of labelled cells, made by the same model, layer and pooling. Cells without a label are left out.
    label
        Column of ``reference.obs``.
    n_neighbors
        How many reference cells vote; fewer than there are.
    keep_unknown
        Take "unknown", "unlabelled", "unassigned" and the like, in any spelling, for a label. By default such cells are
        left out, with a warning that says how many: they would vote that a cell is of no known type.
    into
        The AnnData that the query cells are from: the columns are also written into its ``obs``, by cell name, as
        ``LABEL_mapped`` and ``LABEL_mapped_confidence`` …

    Returns
    -------
    A row a query cell, in their order: ``label``; ``confidence``, its share of the weighted vote (not a
    probability); ``second_label`` (missing where the neighbours agree) and ``second_confidence``; ``distance``,
    the mean over the neighbours; ``distance_percentile``, the share (0–1) of reference cells of that label (at most
    2,000, evenly spaced) whose own neighbours in the reference are no further away, themselves left out. Near 1,
    the cell is unlike what it was named after; a smaller value does not say that the reference has its kind.

    Raises
    ------
    InputError
        The embeddings were not made alike, a vector is not finite, the column is missing or holds fewer than two
        labels, there are not more labelled cells than `n_neighbors`, or `into` has none of the query cells.

    See Also
    --------
    embed : Makes the vectors.
    predict : Labels by a classifier that was fine-tuned.

    Examples
    --------
    >>> import anndata as ad
    >>> import geneformer_repro as gf
    >>> embedding = ad.read_h5ad("cells.embedding.h5ad")
    >>> labelled = gf.map_to_reference(embedding[:200], embedding[200:], "cell_type")
    >>> labelled.columns.tolist()
    ['label', 'confidence', 'second_label', 'second_confidence', 'distance', 'distance_percentile']
    >>> bool(labelled["confidence"].between(0, 1).all()), len(labelled)
    (True, 200)
    """
    _require_made_alike(query, reference)
    places = None if into is None else places_of_cells(into, query.obs_names)
    labelled = _labelled(reference, label, of="reference")
    if not keep_unknown:
        labelled &= ~_are_unknown(reference, label)
    codes, names = pd.factorize(as_labels(reference.obs[label][labelled]).to_numpy(), sort=True)
    _require_a_choice(names, label, n_cells=len(codes), n_neighbors=n_neighbors)
    vectors = _vectors(reference, of="reference")[labelled]
    search = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(vectors)
    distances, neighbors = search.kneighbors(_vectors(query, of="query"))
    votes = _votes(codes[neighbors], distances, len(names))
    table = _winners(votes, names).assign(distance=distances.mean(axis=1))
    winners, place = votes.argmax(axis=1), np.empty(len(table))
    for code in np.unique(winners):
        at, own = winners == code, _distances_within(search, vectors[codes == code])
        place[at] = np.searchsorted(own, table["distance"][at], side="right") / len(own)
    table = table.assign(distance_percentile=place).set_axis(query.obs_names, axis=0)
    if into is not None and places is not None:
        named = {column: f"{label}_mapped" + f"_{column}" * (column != "label") for column in table}
        put_columns(into, "obs", table.rename(columns=named), places)
    return table


def _votes(codes: np.ndarray, distances: np.ndarray, n_labels: int) -> np.ndarray:
    """Return each label's share of the vote of each cell's neighbours; a neighbour at distance 0 outvotes others."""
    weights = 1 / np.maximum(distances, 1e-12)
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    votes = coo_matrix((weights.ravel(), (rows, codes.ravel())), shape=(len(codes), n_labels)).toarray()
    return votes / votes.sum(axis=1, keepdims=True)


def _winners(votes: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    ranked = np.argsort(-votes, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(votes, ranked, axis=1).T
    return pd.DataFrame(
        {
            "label": names[ranked[:, 0]],
            "confidence": first,
            "second_label": pd.Series(names[ranked[:, 1]]).where(second > 0),
            "second_confidence": second,
        }
    )


def _distances_within(search: NearestNeighbors, vectors: np.ndarray) -> np.ndarray:
    """Return mean distances of cells of the reference to their nearest other ones, ascending."""
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), _COMPARED_CELLS)).astype(int)
    distances, _ = search.kneighbors(vectors[rows], search.n_neighbors + 1)
    return np.sort(distances[:, 1:].mean(axis=1))  # the first is the cell itself


@typed
def integration_scores(
    adata: AnnData, *, batch: str, label: str, counts: csr_matrix | None = None, seed: int = 0
) -> pd.DataFrame:
    """Score how far vectors keep labels apart and batches together, beside what needs no model.

    Every score lies between 0 and 1 and more is better, up to chance (``ari`` can fall below 0). Time grows with
    the square of the cells: above some 20,000, give a random sample.

    Parameters
    ----------
    adata
        Vectors of cells. Those without batch or label are left out.
    batch, label
        Columns of ``adata.obs``: what should not be seen in the vectors, and what should.
    counts
        Raw counts of the same cells in the same order, for the other two rows. The scores say little without them.
    seed
        Of PCA and Leiden clustering.

    Returns
    -------
    Rows "embedding" and, with `counts`, "PCA of counts" (50 components of all genes' log1p of counts per 10,000)
    and "highly variable genes" (2,000 by scanpy, over all cells). Columns by scib-metrics:

    ``nmi``, ``ari``
        Agreement of Leiden clusters with labels, at the best of ten resolutions.
    ``silhouette_label``
        (1 + mean silhouette width of labels) / 2: one half where labels overlap.
    ``clisi``
        Purity of labels among the 90 nearest cells.
    ``silhouette_batch``
        1 − mean absolute silhouette width of batches within a label. Also near 1 where distances are all alike, as in
        many dimensions.
    ``ilisi``
        Evenness of batches among the 90 nearest cells.
    ``graph_connectivity``
        Share of a label's cells in its largest part in which each cell is reached from each over steps to one of
        the 15 nearest; cells that are no one's neighbour lower it too.
    ``bio_conservation``, ``batch_mixing``
        Means of the first four and of the other three.

    Raises
    ------
    InputError
        A column is missing or holds fewer than two values, no label occurs in several batches, there are fewer than
        90 cells, or `counts` are of other cells or are not counts.
    MissingExtraError
        scib-metrics is not installed.

    See Also
    --------
    embed : Makes the vectors.
    mapping.umap : Look at them.

    References
    ----------
    Luecken et al., Nature Methods 19, 41 (2022). On silhouettes of batches: Rautenstrauch & Ohler, Nature
    Biotechnology (2025).

    Examples
    --------
    >>> import anndata as ad
    >>> import geneformer_repro as gf
    >>> embedding = ad.read_h5ad("cells.embedding.h5ad")
    >>> two_types = embedding[embedding.obs["cell_type"].isin(["CD19+ B", "CD14+ Monocyte"])].copy()
    >>> scores = gf.integration_scores(two_types, batch="donor", label="cell_type")
    >>> scores.columns.tolist()
    ['nmi', 'ari', 'silhouette_label', 'clisi', 'silhouette_batch', 'ilisi', 'graph_connectivity', 'bio_conservation',
     'batch_mixing']
    """
    scib = _scib_metrics()
    labelled = _labelled(adata, batch) & _labelled(adata, label)
    batches, labels = (_codes(adata, name, labelled) for name in (batch, label))
    _require_scorable(batches, labels, batch, label)
    spaces = {"embedding": _vectors(adata)[labelled]}
    if counts is not None:
        spaces |= _without_model(_raw_counts(counts, adata.n_obs)[labelled], seed)
    found: dict[str, dict[str, float]] = {name: {} for name in spaces}
    n_scores = len(BIO_CONSERVATION) + len(BATCH_MIXING)
    with progress("mixing", total=n_scores * len(spaces), unit="scores") as bar:
        for name, vectors in spaces.items():
            bar.set_postfix_str(name)
            for score, value in _scores(scib, vectors, batches, labels, seed):
                found[name][score] = value
                bar.update()
    table = pd.DataFrame(found, dtype=float).T
    means = {"bio_conservation": BIO_CONSERVATION, "batch_mixing": BATCH_MIXING}
    return table.assign(**{name: table[list(columns)].mean(axis=1) for name, columns in means.items()})


def _scores(
    scib: ModuleType, vectors: np.ndarray, batches: np.ndarray, labels: np.ndarray, seed: int
) -> Iterator[tuple[str, float]]:
    # Leiden, not scib-metrics' k-means: that took 240 s for 2,000 cells × 2,000 genes on two cores, this 0.5 s.
    search = NearestNeighbors(n_neighbors=_LISI_NEIGHBORS, algorithm="brute").fit(vectors)
    distances, indices = search.kneighbors(vectors)
    near = scib.nearest_neighbors.NeighborsResults(indices=indices, distances=distances)
    nearest = near.subset_neighbors(_GRAPH_NEIGHBORS)
    yield from scib.nmi_ari_cluster_labels_leiden(nearest, labels, seed=seed).items()
    yield "silhouette_label", scib.silhouette_label(vectors, labels)
    yield "clisi", scib.clisi_knn(near, labels)
    yield "silhouette_batch", scib.silhouette_batch(vectors, labels, batches)
    yield "ilisi", scib.ilisi_knn(near, batches)
    yield "graph_connectivity", scib.graph_connectivity(nearest, labels)


def _without_model(counts: csr_matrix, seed: int) -> dict[str, np.ndarray]:
    import scanpy

    cells = AnnData(counts.astype(np.float32))
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    scanpy.pp.pca(cells, n_comps=min(_N_COMPONENTS, min(cells.shape) - 1), random_state=seed)
    with warnings.catch_warnings():  # fewer genes are all taken, which scanpy would say
        warnings.filterwarnings("ignore", "`n_top_genes` > number of normalized dispersions", UserWarning)
        scanpy.pp.highly_variable_genes(cells, n_top_genes=_N_VARIABLE_GENES)
    variable = cells.X[:, cells.var["highly_variable"].to_numpy()].toarray()
    return {"PCA of counts": cells.obsm["X_pca"], "highly variable genes": variable}


def umap(adata: AnnData, *, seed: int = 0) -> np.ndarray:
    """Lay cells out in two dimensions by scanpy's UMAP of 15 neighbours (fewer where there are fewer cells).

    Parameters
    ----------
    adata
        Vectors of at least five cells; not changed.
    seed
        Same seed and versions, same picture.

    Returns
    -------
    Coordinates, (n_cells, 2). Neighbours on the map are as a rule neighbours in the embedding; distances between
    groups, their sizes and their shapes mean nothing.

    Raises
    ------
    InputError
        There are fewer than five cells, or a vector is not finite.

    See Also
    --------
    mapping.scatter_figure : Draws it.
    embed : Makes the vectors.

    Examples
    --------
    >>> import anndata as ad
    >>> from geneformer_repro.mapping import umap
    >>> umap(ad.read_h5ad("cells.embedding.h5ad")[:200]).shape
    (200, 2)
    """
    import scanpy

    vectors = _vectors(adata)
    if len(vectors) < _FEWEST_ON_A_MAP:
        raise InputError(f"A UMAP needs at least {_FEWEST_ON_A_MAP} cells, found {len(vectors)}.")
    cells = AnnData(vectors)
    with _umap_without_tensorflow():
        scanpy.pp.neighbors(cells, n_neighbors=min(15, len(vectors) - 1), use_rep="X", random_state=seed)
        scanpy.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"])


def heatmap_table(adata: AnnData, label: str, *, n_dims: int = 50) -> pd.DataFrame:
    """Tabulate the dimensions in which labels differ most, for a heatmap.

    Parameters
    ----------
    adata
        Vectors of cells. Those without a label are left out.
    label
        Column of ``adata.obs``.
    n_dims
        How many dimensions at most: those with the largest share of their variance between the labels' means.

    Returns
    -------
    Labels × dimensions: the mean of a label's cells less that of all, in standard deviations of all cells. Rows
    and columns are ordered by hierarchical clustering, like beside like.

    Raises
    ------
    InputError
        The column is missing or holds fewer than two labels, a vector is not finite, or `n_dims` is below 1.

    See Also
    --------
    mapping.heatmap_figure : Draws it.
    embed_states : The mean vectors themselves.

    Examples
    --------
    >>> import anndata as ad
    >>> from geneformer_repro.mapping import heatmap_table
    >>> table = heatmap_table(ad.read_h5ad("cells.embedding.h5ad"), "cell_type", n_dims=20)
    >>> table.shape
    (10, 20)
    >>> sorted(table.index)[:2]
    ['CD14+ Monocyte', 'CD19+ B']
    """
    if n_dims < 1:
        raise InputError(f"n_dims must be at least 1, found {n_dims}.")
    labelled = _labelled(adata, label)
    _require_several(_codes(adata, label, labelled), label)
    scaled = StandardScaler().fit_transform(_vectors(adata)[labelled].astype(np.float64))
    cells = pd.DataFrame(scaled, columns=adata.var_names)
    labels = as_labels(adata.obs[label][labelled]).to_numpy()
    between = cells.groupby(labels).transform("mean").var()
    means = cells[between.nlargest(n_dims).index].groupby(labels).mean()
    return means.iloc[like_beside_like(means.to_numpy()), like_beside_like(means.to_numpy().T)].rename_axis(label)


# Pictures


def scatter_figure(points: np.ndarray, labels: Sequence[str], *, axis_name: str = "UMAP") -> "Figure":
    """Draw cells in two dimensions, coloured by label.

    Parameters
    ----------
    points
        Coordinates, (n_cells, 2).
    labels
        A label of each cell; the commonest come first in the legend.
    axis_name
        What the coordinates are.

    See Also
    --------
    mapping.umap : Coordinates of cells.

    Examples
    --------
    >>> import numpy as np
    >>> from geneformer_repro.mapping import scatter_figure
    >>> figure = scatter_figure(np.eye(3)[:, :2], ["B", "T", "B"])
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['B (2)', 'T (1)']
    >>> figure.savefig("map.png")
    """
    figure, axes = new_axes(7.2, 4.4)
    names = pd.Series(list(labels), dtype="string").fillna("(none)")
    size = max(3, min(14, 9000 / max(1, len(points))))
    for i, (name, n_cells) in enumerate(names.value_counts().items()):
        x, y = points[(names == name).to_numpy()].T
        colour, label = CATEGORIES[i % len(CATEGORIES)], f"{name} ({n_cells})"
        axes.scatter(x, y, s=size, color=colour, alpha=0.85, linewidths=0, label=label)
    axes.set(xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2", xticks=[], yticks=[])
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6)
    return figure


def heatmap_figure(values: pd.DataFrame, *, value_name: str = "z-score") -> "Figure":
    """Draw a table as colours, blue below 0 and red above.

    Parameters
    ----------
    values
        A row a row, the first on top; the names of the index and of the columns become those of the axes. Columns
        are named one by one where there are at most 40.
    value_name
        What the values are.

    See Also
    --------
    mapping.heatmap_table : The dimensions in which labels differ most.

    Examples
    --------
    >>> import pandas as pd
    >>> from geneformer_repro.mapping import heatmap_figure
    >>> figure = heatmap_figure(pd.DataFrame({"0": [1.0, -1.0], "1": [-0.5, 0.5]}, index=["B", "T"]))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['B', 'T']
    """
    figure, axes = new_axes(7.6, 1.6 + 0.26 * len(values))
    reach = np.nanmax(np.abs(values.to_numpy())) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(values)), values.index, fontsize=8.5)
    named = list(values.columns) if values.shape[1] <= MANY_COLUMNS else []
    axes.set_xticks(range(len(named)), named, fontsize=8, rotation=90)
    axes.set(xlabel=values.columns.name, ylabel=values.index.name)
    figure.colorbar(image, ax=axes, label=value_name)
    return figure


# What is asked of the input


def _vectors(adata: AnnData, *, of: str = "embedding") -> np.ndarray:
    vectors = np.asarray(adata.X)
    if vectors.ndim != 2:
        raise InputError(
            f"X of the {of} holds no vectors: expected a dense array, cells × dimensions, found "
            f"{type(adata.X).__name__}. Counts are made into vectors with embed()."
        )
    if not len(vectors):
        raise InputError(f"X of the {of} holds no cells.")
    if not np.issubdtype(vectors.dtype, np.number):
        raise InputError(f"X of the {of} holds no numbers, but {vectors.dtype}.")
    wrong = ~np.isfinite(vectors).all(axis=1)
    if wrong.any():
        raise InputError(
            f"X of the {of} holds values that are not finite in {wrong.sum()} cells (first: "
            f"{adata.obs_names[wrong][0]!r}). Leave these cells out."
        )
    return vectors


def _labelled(adata: AnnData, name: str, *, of: str = "embedding") -> np.ndarray:
    """Say which cells have a value in an obs column; log how many have none."""
    if name not in adata.obs:
        raise InputError(f"The {of} has no obs column {name!r}. {did_you_mean(name, adata.obs.columns)}")
    labelled = as_labels(adata.obs[name]).notna().to_numpy()
    if not labelled.all():
        logger.info("%s: %d of %d cells have no value; left out.", name, (~labelled).sum(), len(labelled))
    return labelled


def _are_unknown(adata: AnnData, name: str) -> np.ndarray:
    """Say which cells have a word for an unknown label in an obs column; warn of them."""
    labels = as_labels(adata.obs[name])
    unknown = are_unknown(labels).to_numpy()
    if unknown.any():
        logger.warning(
            "%s: %d of %d reference cells are called %s, which is no label; left out. To keep them: keep_unknown=True "
            "(--keep-unknown).",
            name, unknown.sum(), len(unknown), listed(map(repr, sorted(set(labels[unknown])))),
        )  # fmt: skip
    return unknown


def _codes(adata: AnnData, name: str, labelled: np.ndarray) -> np.ndarray:
    return pd.factorize(as_labels(adata.obs[name][labelled]).to_numpy(), sort=True)[0]


def _require_a_choice(names: np.ndarray, label: str, *, n_cells: int, n_neighbors: int) -> None:
    if len(names) < 2:
        held = f"the one label {str(names[0])!r}" if len(names) else "no label"
        raise InputError(
            f"Reference column {label!r} holds {held} in {n_cells} labelled cells: nothing to choose from. "
            f"Give a reference with at least two labels."
        )
    if not 1 <= n_neighbors < n_cells:
        raise InputError(
            f"n_neighbors must lie between 1 and {n_cells - 1}, the labelled reference cells less one, found "
            f"{n_neighbors}."
        )


def _require_several(codes: np.ndarray, name: str) -> None:
    n_values = len(np.unique(codes))
    if n_values < 2:
        raise InputError(f"obs column {name!r} holds {n_values} values in {len(codes)} cells; at least two are needed.")


def _require_scorable(batches: np.ndarray, labels: np.ndarray, batch: str, label: str) -> None:
    _require_several(batches, batch)
    _require_several(labels, label)
    if len(labels) < _LISI_NEIGHBORS:
        raise InputError(
            f"Scores look at the {_LISI_NEIGHBORS} nearest cells of each, found {len(labels)} cells that have both "
            f"{batch!r} and {label!r}."
        )
    table = pd.crosstab(labels, batches)
    n_batches, n_cells = (table > 0).sum(axis=1), table.sum(axis=1)
    if not ((n_batches > 1) & (n_cells > n_batches)).any():
        raise InputError(
            f"No value of {label!r} occurs in several values of {batch!r}, so differences of batch cannot be told from "
            f"differences of label."
        )


def _raw_counts(counts: csr_matrix, n_cells: int) -> csr_matrix:
    if counts.shape[0] != n_cells:
        raise InputError(
            f"counts must have a row for each of the {n_cells} cells, in their order, found {counts.shape[0]}."
        )
    counts = csr_matrix(counts)
    wrong = first_not_a_count(counts.data)
    if wrong >= 0:
        raise InputError(
            f"counts must be raw, found {counts.data[wrong]}, which is negative, fractional or not finite."
        )
    return counts


def _require_made_alike(query: AnnData, reference: AnnData) -> None:
    of_query, of_reference = (adata.uns.get("geneformer_repro", {}) for adata in (query, reference))
    for what in _MADE_BY:
        ours, theirs = (facts.get(what) if isinstance(facts, Mapping) else facts for facts in (of_query, of_reference))
        if str(ours) != str(theirs):
            raise InputError(
                f"Query and reference were embedded differently: {what} is {ours!r} of the query and {theirs!r} of the "
                "reference. Embed both in the same way."
            )
    if query.n_vars != reference.n_vars:
        raise InputError(
            f"Query and reference must have vectors of the same size, found {query.n_vars} and {reference.n_vars}."
        )


# Libraries


def _scib_metrics() -> ModuleType:
    try:
        with _umap_without_tensorflow():
            import scib_metrics
    except ImportError as error:
        raise MissingExtraError(
            "Scores of integration need scib-metrics: pip install 'geneformer-repro[scib]'."
        ) from error
    return scib_metrics


@contextmanager
def _umap_without_tensorflow() -> Iterator[None]:
    """Silence what umap says when it is imported without TensorFlow, which is not used here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        yield
