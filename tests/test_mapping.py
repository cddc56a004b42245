"""Labels from a reference, scores of integration, and pictures: on real cells, against slow references."""

import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from drawing import EveryFigure, rows, texts
from scipy.sparse import vstack
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

import geneformer_repro as gf
from geneformer_repro import mapping
from geneformer_repro.errors import MissingExtraError
from geneformer_repro.mapping import (
    BATCH_MIXING,
    BIO_CONSERVATION,
    heatmap_figure,
    heatmap_table,
    integration_scores,
    map_to_reference,
    scatter_figure,
)


def pca_of(adata: ad.AnnData, n_dims: int) -> ad.AnnData:
    """Vectors that need no model."""
    cells = ad.AnnData(adata.X.astype(np.float32))
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=n_dims, random_state=0)
    return ad.AnnData(cells.obsm["X_pca"], obs=adata.obs)


@pytest.fixture(scope="module")
def _vectors(_pbmc):
    return pca_of(_pbmc, 20)


@pytest.fixture
def vectors(_vectors):
    """The blood cells, a vector each."""
    return _vectors.copy()


@pytest.fixture
def reference(vectors):
    return vectors[::2].copy()


@pytest.fixture
def query(vectors):
    return vectors[1::2].copy()


class TestMapToReference:
    def test_a_label_is_the_weighted_vote_of_the_nearest_cells(self, query, reference):
        table = map_to_reference(query, reference, "cell_type", n_neighbors=7)
        for i in range(0, len(query), 10):
            distances = np.linalg.norm(reference.X.astype(float) - query.X[i], axis=1)
            nearest = np.argsort(distances)[:7]
            weights = pd.Series(1 / distances[nearest]).groupby(reference.obs["cell_type"].to_numpy()[nearest]).sum()
            ranked = (weights / weights.sum()).sort_values(ascending=False)
            row = table.iloc[i]
            assert row["label"] == ranked.index[0]
            np.testing.assert_allclose(row["confidence"], ranked.iloc[0], rtol=1e-5)
            np.testing.assert_allclose(row["second_confidence"], [*ranked, 0.0][1], rtol=1e-5)
            assert row["second_label"] == ranked.index[1] if len(ranked) > 1 else pd.isna(row["second_label"])
            np.testing.assert_allclose(row["distance"], distances[nearest].mean(), rtol=1e-5)

    def test_it_votes_as_scikit_learn_does(self, query, reference):
        table = map_to_reference(query, reference, "cell_type")
        stock = KNeighborsClassifier(15, weights="distance").fit(reference.X, reference.obs["cell_type"])
        np.testing.assert_array_equal(table["label"], stock.predict(query.X))
        np.testing.assert_allclose(table["confidence"], stock.predict_proba(query.X).max(axis=1), rtol=1e-4)

    def test_a_distance_is_placed_among_those_of_reference_cells_of_the_label(self, query, reference):
        table = map_to_reference(query, reference, "cell_type", n_neighbors=3)
        own = own_distances(reference.X, 3)
        for label, row in zip(table["label"], table.itertuples(), strict=True):
            of_label = own[reference.obs["cell_type"] == label]
            expected = (of_label <= row.distance).mean()
            np.testing.assert_allclose(row.distance_percentile, expected, atol=1e-9)

    def test_of_a_common_label_evenly_spaced_cells_are_compared(self, query, reference, monkeypatch):
        monkeypatch.setattr(mapping, "_COMPARED_CELLS", 10)
        table = map_to_reference(query, reference, "cell_type", n_neighbors=3)
        monocytes = table[table["label"] == "CD14+ Monocyte"]
        own = own_distances(reference.X, 3)[reference.obs["cell_type"] == "CD14+ Monocyte"]
        own = own[np.linspace(0, len(own) - 1, 10).astype(int)]
        expected = [(own <= distance).mean() for distance in monocytes["distance"]]
        np.testing.assert_allclose(monocytes["distance_percentile"], expected, atol=1e-9)

    def test_cells_of_a_type_that_the_reference_lacks_lie_far_away(self, query, reference):
        lacking = reference[reference.obs["cell_type"] != "CD34+"].copy()
        places = map_to_reference(query, lacking, "cell_type")["distance_percentile"]
        strange = (query.obs["cell_type"] == "CD34+").to_numpy()
        assert places[strange].median() > 0.95
        assert places[~strange].median() < 0.8

    def test_cells_keep_their_names_and_order(self, query, reference):
        table = map_to_reference(query, reference, "cell_type")
        turned = map_to_reference(query[::-1].copy(), reference, "cell_type")
        assert table.index.equals(query.obs_names)
        pd.testing.assert_frame_equal(turned[::-1], table)

    def test_a_cell_of_the_reference_finds_itself(self, reference):
        table = map_to_reference(reference, reference, "cell_type")
        np.testing.assert_array_equal(table["label"], reference.obs["cell_type"])
        assert table["confidence"].min() > 0.999

    def test_neighbours_that_agree_name_no_second_label(self, query, reference):
        table = map_to_reference(query, reference, "cell_type", n_neighbors=1)
        assert (table["confidence"] == 1).all()
        assert table["second_label"].isna().all()
        assert (table["second_confidence"] == 0).all()

    def test_cells_unlike_the_reference_are_at_percentile_one(self, query, reference):
        query.X = query.X + 100
        assert (map_to_reference(query, reference, "cell_type")["distance_percentile"] == 1).all()

    @pytest.mark.parametrize("missing", [None, np.nan, "", " ", "nan", "NA"], ids=repr)
    def test_reference_cells_without_a_label_are_left_out(self, query, reference, missing, caplog):
        labels = reference.obs["cell_type"].astype(object)
        labels.iloc[:40] = missing
        reference.obs["type"] = labels
        with caplog.at_level("INFO"):
            table = map_to_reference(query, reference, "type")
        pd.testing.assert_frame_equal(table, map_to_reference(query, reference[40:].copy(), "type"))
        assert "type: 40 of 350 cells have no value; left out." in caplog.text

    def test_words_for_an_unknown_type_are_no_label_unless_kept(self, query, reference, caplog):
        types = reference.obs["cell_type"].astype(str)
        types.iloc[:40], types.iloc[40:50] = "Unlabelled ", "unknown"
        reference.obs["cell_type"] = types
        found = map_to_reference(query, reference, "cell_type")
        pd.testing.assert_frame_equal(found, map_to_reference(query, reference[50:].copy(), "cell_type"))
        assert "50 of 350 reference cells are called 'Unlabelled', 'unknown', which is no label" in caplog.text
        kept = map_to_reference(query, reference, "cell_type", keep_unknown=True)
        assert "Unlabelled" in set(kept["label"])

    @pytest.mark.parametrize("kind", ["category", "string", int])
    def test_labels_may_be_of_any_kind(self, query, reference, kind):
        codes = pd.factorize(reference.obs["cell_type"])[0]
        reference.obs["plain"], reference.obs["kind"] = codes.astype(str), pd.Series(codes).astype(kind).to_numpy()
        table, plain = (map_to_reference(query, reference, column) for column in ("kind", "plain"))
        np.testing.assert_array_equal(table["label"].astype(str), plain["label"])

    def test_embeddings_that_were_written_and_read_are_mapped(self, checkpoint, cells, tmp_path):
        embedding = gf.embed(checkpoint, cells.select(range(60)))
        embedding.write_h5ad(tmp_path / "cells.h5ad")
        table = map_to_reference(embedding, embedding, "cell_type")
        for backed in (None, "r"):
            opened = ad.read_h5ad(tmp_path / "cells.h5ad", backed=backed)
            pd.testing.assert_frame_equal(map_to_reference(opened, opened, "cell_type"), table)

    @pytest.mark.parametrize(
        ("key", "other"),
        [("checkpoint", "other"), ("vocabulary", "9f"), ("level", "gene"), ("layer", 0), ("pooling", "cls")],
    )
    def test_embeddings_that_were_made_differently_are_refused(self, query, reference, key, other):
        made = {"checkpoint": "base", "vocabulary": "3a", "level": "cell", "layer": -1, "pooling": "mean"}
        reference.uns["geneformer_repro"], query.uns["geneformer_repro"] = made, made | {key: other}
        message = f"{key} is {other!r} of the query and {made[key]!r} of the reference"
        with pytest.raises(gf.InputError, match=message):
            map_to_reference(query, reference, "cell_type")

    def test_an_embedding_and_other_vectors_are_refused(self, query, reference):
        reference.uns["geneformer_repro"] = {"checkpoint": "base"}
        with pytest.raises(gf.InputError, match="checkpoint is None of the query and 'base' of the reference"):
            map_to_reference(query, reference, "cell_type")

    def test_vectors_of_different_sizes_are_refused(self, query, reference):
        with pytest.raises(gf.InputError, match="vectors of the same size, found 19 and 20"):
            map_to_reference(query[:, 1:].copy(), reference, "cell_type")

    def test_a_misspelt_column_is_refused_with_the_nearest(self, query, reference):
        with pytest.raises(gf.InputError, match=r"reference has no obs column 'celltype'\. Did you mean 'cell_type'\?"):
            map_to_reference(query, reference, "celltype")

    @pytest.mark.parametrize(("value", "said"), [("B", "the one label 'B' in 350"), ("", "no label in 0")])
    def test_a_reference_without_a_choice_is_refused(self, query, reference, value, said):
        reference.obs["one"] = value
        with pytest.raises(gf.InputError, match=said):
            map_to_reference(query, reference, "one")

    @pytest.mark.parametrize("n_neighbors", [0, 350])
    def test_more_neighbours_than_there_are_cells_are_refused(self, query, reference, n_neighbors):
        with pytest.raises(gf.InputError, match=f"between 1 and 349, .* found {n_neighbors}"):
            map_to_reference(query, reference, "cell_type", n_neighbors=n_neighbors)

    def test_counts_are_refused(self, pbmc):
        with pytest.raises(gf.InputError, match=r"X of the reference holds no vectors: .* found csr_matrix"):
            map_to_reference(pbmc, pbmc, "cell_type")

    def test_no_cells_are_refused(self, query, reference):
        with pytest.raises(gf.InputError, match="X of the query holds no cells"):
            map_to_reference(query[:0].copy(), reference, "cell_type")

    def test_vectors_of_text_are_refused(self, query, reference):
        query = ad.AnnData(query.X.astype(str), obs=query.obs)
        with pytest.raises(gf.InputError, match="X of the query holds no numbers"):
            map_to_reference(query, reference, "cell_type")

    @pytest.mark.parametrize("made_by", ["text", 3, {"layer": np.array([1, 2])}], ids=repr)
    def test_a_note_of_another_form_is_another_way_to_embed(self, query, reference, made_by):
        query.uns["geneformer_repro"] = made_by
        with pytest.raises(gf.InputError, match="Query and reference were embedded differently"):
            map_to_reference(query, reference, "cell_type")

    def test_a_vector_that_is_not_finite_is_refused_with_the_cell(self, query, reference):
        query.X[3, 2] = np.nan
        with pytest.raises(gf.InputError, match=f"query .* not finite in 1 cells .first: '{query.obs_names[3]}'"):
            map_to_reference(query, reference, "cell_type")

    def test_on_cells_of_other_donors_accuracy_rises_with_confidence(self, kang):
        held_out = kang.obs["donor"].isin(["1015", "101"]).to_numpy()
        table = map_to_reference(kang[held_out].copy(), kang[~held_out].copy(), "cell_type")
        correct = table["label"] == kang.obs["cell_type"][held_out]
        accuracy = correct.groupby(pd.cut(table["confidence"], [0, 0.7, 0.9, 1]), observed=True).mean()
        assert accuracy.is_monotonic_increasing
        assert accuracy.iloc[0] < 0.6
        assert accuracy.iloc[-1] > 0.95


def own_distances(vectors, n_neighbors):
    """Mean distance of each vector to the nearest others, the slow way."""
    distances = np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :n_neighbors].mean(axis=1)


@pytest.fixture(scope="session")
def kang(shared):
    adata = ad.read_h5ad(shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad")
    adata.obs = adata.obs.astype({"donor": str, "cell_type": str})
    return pca_of(adata, 50)


@pytest.fixture(scope="module")
def _two_types(_pbmc, _vectors):
    types = ("CD14+ Monocyte", "CD19+ B")
    rows = np.concatenate([np.flatnonzero(_pbmc.obs["cell_type"] == name)[:60] for name in types])
    few, counts = _vectors[rows].copy(), _pbmc.X[rows]
    few.obs["batch"] = np.resize(["a", "b"], len(rows))
    return few, counts


@pytest.fixture
def few(_two_types):
    """60 cells each of two types, in batches that mean nothing."""
    return _two_types[0].copy()


@pytest.fixture
def counts(_two_types):
    return _two_types[1].copy()


class TestIntegrationScores:
    @pytest.fixture(autouse=True)
    def _scib(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("scib_metrics")

    @pytest.mark.slow
    def test_silhouettes_are_scikit_learns(self, few):
        (row,) = integration_scores(few, batch="batch", label="cell_type").itertuples()
        labels = few.obs["cell_type"].to_numpy()
        np.testing.assert_allclose(row.silhouette_label, (silhouette_score(few.X, labels) + 1) / 2, rtol=1e-4)

    def test_types_far_apart_in_mixed_batches_score_high(self, few):
        few.X[:60] += 1000
        scores = integration_scores(few, batch="batch", label="cell_type").loc["embedding"]
        assert (scores[["nmi", "silhouette_label", "clisi"]] > 0.7).all()
        assert scores["silhouette_label"] > 0.99
        assert scores["ilisi"] > 0.7

    def test_batches_far_apart_are_seen(self, few):
        mixed = integration_scores(few, batch="batch", label="cell_type").loc["embedding"]
        few.X[few.obs["batch"] == "a"] += 1000
        apart = integration_scores(few, batch="batch", label="cell_type").loc["embedding"]
        assert apart["silhouette_batch"] < 0.01
        assert (apart[list(BATCH_MIXING)] < mixed[list(BATCH_MIXING)]).all()

    def test_the_embedding_stands_beside_what_needs_no_model(self, few, counts):
        table = integration_scores(few, batch="batch", label="cell_type", counts=counts)
        assert list(table.index) == ["embedding", "PCA of counts", "highly variable genes"]
        assert list(table.columns) == [*BIO_CONSERVATION, *BATCH_MIXING, "bio_conservation", "batch_mixing"]
        assert ((table >= 0) & (table <= 1)).all(axis=None)
        np.testing.assert_allclose(table["bio_conservation"], table[list(BIO_CONSERVATION)].mean(axis=1))
        np.testing.assert_allclose(table["batch_mixing"], table[list(BATCH_MIXING)].mean(axis=1))

    def test_pca_of_counts_is_scored_as_an_embedding_is(self, few, counts):
        pca = pca_of(ad.AnnData(counts, obs=few.obs), 50)
        table = integration_scores(pca, batch="batch", label="cell_type", counts=counts)
        np.testing.assert_allclose(table.loc["embedding"], table.loc["PCA of counts"], rtol=1e-5)

    def test_the_same_seed_gives_the_same_scores(self, few, counts):
        first, second = (integration_scores(few, batch="batch", label="cell_type", counts=counts) for _ in range(2))
        pd.testing.assert_frame_equal(first, second)

    def test_counts_are_not_changed(self, few, counts):
        before = counts.copy()
        integration_scores(few, batch="batch", label="cell_type", counts=counts)
        np.testing.assert_array_equal(counts.toarray(), before.toarray())

    def test_cells_without_batch_or_label_are_left_out(self, few, counts, caplog):
        unlabelled = few[:6].copy()
        unlabelled.obs["batch"] = ["", "", "", "", "a", "b"]
        unlabelled.obs.loc[unlabelled.obs_names[4:], "cell_type"] = None
        both = ad.concat({"without": unlabelled, "with": few}, index_unique="-")
        with caplog.at_level("INFO"):
            table = integration_scores(both, batch="batch", label="cell_type", counts=vstack([counts[:6], counts]))
        expected = integration_scores(few, batch="batch", label="cell_type", counts=counts)
        pd.testing.assert_frame_equal(table, expected)
        assert "batch: 4 of 126 cells" in caplog.text
        assert "cell_type: 2 of 126 cells" in caplog.text

    def test_a_label_of_one_cell_does_no_harm(self, few):
        few.obs["rare"] = ["one", *few.obs["cell_type"][1:]]
        assert np.isfinite(integration_scores(few, batch="batch", label="rare")).all(axis=None)

    def test_it_needs_90_cells(self, few):
        with pytest.raises(gf.InputError, match="the 90 nearest cells of each, found 80 cells that have both"):
            integration_scores(few[20:100].copy(), batch="batch", label="cell_type")

    @pytest.mark.parametrize(("batch", "label"), [("one", "cell_type"), ("batch", "one")])
    def test_one_batch_or_label_is_refused(self, few, batch, label):
        few.obs["one"] = "a"
        with pytest.raises(gf.InputError, match="'one' holds 1 values in 120 cells; at least two"):
            integration_scores(few, batch=batch, label=label)

    def test_a_batch_for_each_label_is_refused(self, few):
        few.obs["site"] = few.obs["cell_type"]
        with pytest.raises(gf.InputError, match="No value of 'cell_type' occurs in several values of 'site'"):
            integration_scores(few, batch="site", label="cell_type")

    def test_a_misspelt_column_is_refused(self, few):
        with pytest.raises(gf.InputError, match=r"The embedding has no obs column 'batsh'\. Did you mean 'batch'"):
            integration_scores(few, batch="batsh", label="cell_type")

    def test_counts_of_other_cells_are_refused(self, few, counts):
        with pytest.raises(gf.InputError, match="a row for each of the 120 cells, in their order, found 119"):
            integration_scores(few, batch="batch", label="cell_type", counts=counts[1:])

    def test_normalised_counts_are_refused(self, few, counts):
        with pytest.raises(gf.InputError, match=r"counts must be raw, found 0\.69"):
            integration_scores(few, batch="batch", label="cell_type", counts=counts.log1p())


def test_without_scib_metrics_the_extra_is_named(few, monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'geneformer-repro\[scib\]'"):
        integration_scores(few, batch="batch", label="cell_type")


class TestUmap:
    def test_neighbours_stay_neighbours(self, few):
        assert trustworthiness(few.X, mapping.umap(few), n_neighbors=10) > 0.9

    def test_the_same_seed_gives_the_same_map(self, few):
        before = few.copy()
        np.testing.assert_array_equal(mapping.umap(few, seed=3), mapping.umap(few, seed=3))
        assert not np.array_equal(mapping.umap(few, seed=3), mapping.umap(few, seed=4))
        np.testing.assert_array_equal(few.X, before.X)
        assert list(few.obsm) == list(few.obsp) == []

    @pytest.mark.parametrize("n_cells", [5, 6, 15, 16])
    def test_few_cells_are_enough(self, few, n_cells):
        points = mapping.umap(few[:n_cells].copy())
        assert points.shape == (n_cells, 2)
        assert np.isfinite(points).all()

    def test_fewer_are_refused(self, few):
        with pytest.raises(gf.InputError, match="at least 5 cells, found 4"):
            mapping.umap(few[:4].copy())


class TestHeatmap:
    def test_it_holds_means_in_standard_deviations_of_all_cells(self, vectors):
        table = heatmap_table(vectors, "cell_type", n_dims=6)
        for label, name in ((label, name) for label in table.index for name in table.columns):
            values = vectors.X[:, vectors.var_names.get_loc(name)].astype(float)
            expected = (values[vectors.obs["cell_type"] == label].mean() - values.mean()) / values.std()
            np.testing.assert_allclose(table.loc[label, name], expected, atol=1e-6)
        assert table.shape == (10, 6)
        assert table.index.name == "cell_type"

    def test_it_takes_the_dimensions_in_which_labels_differ(self, few):
        few.X[:60, [3, 11]] += 50
        assert set(heatmap_table(few, "cell_type", n_dims=2).columns) == {"3", "11"}

    def test_like_stands_beside_like(self, vectors):
        rng = np.random.default_rng(0)
        at = {"a": 0.0, "b": 9.0, "c": 0.5, "d": 9.5, "e": 20.0, "f": 19.5}
        vectors.obs["group"] = rng.choice(list(at), len(vectors))
        vectors.X = vectors.obs["group"].map(at).to_numpy(dtype=float)[:, None] + rng.normal(0, 0.01, vectors.shape)
        order = "".join(heatmap_table(vectors, "group").index)
        assert order in ("acbdfe", "efdbca")

    def test_fewer_dimensions_than_asked_for_are_all_shown(self, vectors):
        assert sorted(heatmap_table(vectors, "cell_type").columns) == sorted(vectors.var_names)

    def test_cells_without_a_label_do_not_count(self, vectors):
        vectors.obs["type"] = vectors.obs["cell_type"].where(np.arange(len(vectors)) >= 50)
        expected = heatmap_table(vectors[50:].copy(), "type")
        pd.testing.assert_frame_equal(heatmap_table(vectors, "type"), expected)

    def test_a_dimension_without_variance_is_shown_as_zero(self, few):
        few.X[:, 4] = 7
        assert (heatmap_table(few, "cell_type")["4"] == 0).all()

    def test_one_label_is_refused(self, vectors):
        vectors.obs["one"] = "B"
        with pytest.raises(gf.InputError, match="'one' holds 1 values"):
            heatmap_table(vectors, "one")

    def test_no_dimensions_are_refused(self, vectors):
        with pytest.raises(gf.InputError, match="n_dims must be at least 1, found 0"):
            heatmap_table(vectors, "cell_type", n_dims=0)


# Pictures


HEAT = pd.DataFrame(
    [[1.0, -2.0, 0.5], [0.0, 1.0, np.nan]],
    index=pd.Index(["B", "T"], name="cell_type"),
    columns=pd.Index([7, 3, 5], name="dimension"),
)
FIGURES = {
    "scatter": lambda: scatter_figure(np.arange(8.0).reshape(4, 2), ["a", "b", "a", "a"]),
    "heatmap": lambda: heatmap_figure(HEAT),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigure(EveryFigure):
    pass


def test_a_scatter_names_labels_with_their_numbers_the_commonest_first(pbmc):
    labels = pbmc.obs["cell_type"]
    figure = scatter_figure(np.random.default_rng(0).normal(size=(700, 2)), labels, axis_name="PCA")
    assert texts(figure)["legend"] == [f"{name} ({n})" for name, n in labels.value_counts().items()]
    assert texts(figure)["axes"] == ["PCA 1", "PCA 2"]


def test_a_scatter_puts_every_cell_under_its_label():
    points = np.arange(8.0).reshape(4, 2)
    drawn = scatter_figure(points, ["b", "a", "b", "b"]).axes[0].collections
    np.testing.assert_array_equal(drawn[0].get_offsets(), points[[0, 2, 3]])
    np.testing.assert_array_equal(drawn[1].get_offsets(), points[[1]])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=str)
def test_a_scatter_shows_cells_without_a_label(missing):
    assert "(none) (1)" in texts(scatter_figure(np.zeros((3, 2)), ["a", missing, "a"]))["legend"]


def test_a_scatter_takes_numbers_and_categories_as_labels():
    for labels in ([2, 1, 2], pd.Series(["2", "1", "2"], dtype="category")):
        assert texts(scatter_figure(np.zeros((3, 2)), labels))["legend"] == ["2 (2)", "1 (1)"]


def test_a_heat_map_has_a_row_a_row_and_0_in_the_middle_of_its_colours():
    figure = heatmap_figure(HEAT, value_name="z")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), HEAT)
    assert axes.images[0].get_clim() == (-2, 2)
    assert rows(axes) == ["B", "T"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7", "3", "5"]
    assert texts(figure)["axes"] == ["dimension", "cell_type"]
    assert figure.axes[1].get_ylabel() == "z"


def test_a_wide_heat_map_names_no_column_and_one_of_zeros_can_be_drawn():
    axes = heatmap_figure(pd.DataFrame(np.zeros((2, 41)))).axes[0]
    assert len(axes.get_xticks()) == 0
    assert axes.images[0].get_clim() == (-1, 1)
