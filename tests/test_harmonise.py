"""Batches on one scale: against scanpy's ComBat and plain definitions, and never by what is tested."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from safetensors.numpy import save_file

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.harmonise import Harmoniser

METHODS = {"standardise": {}, "quantile": {}, "combat": {}, "reference": {"reference": "b"}}
BATCHES = np.repeat(["a", "b", "c"], [12, 25, 8])


def samples(n_genes=60, batches=BATCHES, seed=0):
    """Expression whose genes are shifted and scaled by batch."""
    rng = np.random.default_rng(seed)
    shift = {batch: rng.normal(scale=2, size=n_genes) for batch in np.unique(batches)}
    scale = {batch: rng.uniform(0.5, 2, n_genes) for batch in np.unique(batches)}
    mean, noise = rng.normal(8, 3, n_genes), rng.normal(size=(len(batches), n_genes))
    return np.stack([mean + shift[b] + scale[b] * row for b, row in zip(batches, noise)])


def fitted(method, values=None, batches=BATCHES, **options):
    values = samples() if values is None else values
    return Harmoniser.fit(values, batches, method=method, **METHODS[method], **options)


def scanpy_combat(values, batches):
    adata = ad.AnnData(values.copy())
    adata.obs["batch"] = list(map(str, batches))
    return sc.pp.combat(adata, key="batch", inplace=False)


@pytest.mark.parametrize(
    ("n_genes", "batches"),
    [
        (60, BATCHES),
        (500, np.repeat(["a", "b"], [3, 200])),
        (2, np.repeat(["a", "b"], [5, 5])),
        (300, np.repeat([1, 0, 2, 3], [2, 9, 30, 40])),
    ],
    ids=["three batches", "a small one", "two genes", "four, of two samples and more"],
)
def test_combat_of_the_training_samples_is_scanpy_s(n_genes, batches):
    values = samples(n_genes, batches)
    ours = Harmoniser.fit(values, batches, method="combat").apply(values, batches)
    np.testing.assert_allclose(ours, scanpy_combat(values, batches), rtol=0, atol=1e-8)


def test_combat_of_real_platforms_is_scanpy_s_and_that_of_each_row_is_its_own(shared):
    values, platform = breast(shared)
    harmoniser = Harmoniser.fit(values, platform, method="combat")
    together = harmoniser.apply(values, platform)
    np.testing.assert_allclose(together, scanpy_combat(values, platform), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(harmoniser.apply(values[40:41], platform[40:41]), together[40:41])


def breast(shared):
    arrays = [ad.read_h5ad(shared / "data" / "breast_arrays" / f"{name}.h5ad") for name in ("gse3143", "gse4335")]
    genes = arrays[0].var_names.intersection(arrays[1].var_names)[::4]
    return np.concatenate([a[:, genes].X for a in arrays]).astype(float), np.repeat(
        ["duke", "norway"], [len(a) for a in arrays]
    )


def test_a_gene_without_spread_within_batches_becomes_its_mean_and_changes_no_other():
    values = samples()
    with_constants = np.column_stack([values, np.full(len(values), 3.0), np.where(BATCHES == "a", 1.0, 5.0)])
    ours = fitted("combat", with_constants).apply(with_constants, BATCHES)
    np.testing.assert_array_equal(ours[:, :-2], fitted("combat", values).apply(values, BATCHES))
    np.testing.assert_allclose(ours[:, -2], 3)
    np.testing.assert_allclose(ours[:, -1], np.where(BATCHES == "a", 1.0, 5.0).mean())


def test_standardised_genes_have_mean_0_and_deviation_1_in_every_batch_and_a_constant_one_is_0():
    values = np.column_stack([samples(), np.where(BATCHES == "a", 0.1, np.arange(len(BATCHES)))])
    ours = fitted("standardise", values).apply(values, BATCHES)
    for batch in "abc":
        spreads = np.r_[np.ones(60), batch != "a"]
        np.testing.assert_allclose(ours[batch == BATCHES].mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(ours[batch == BATCHES].std(axis=0), spreads, atol=1e-12)


def test_a_reference_stays_as_it_is_and_the_others_take_its_moments():
    values = samples()
    ours = fitted("reference", values).apply(values, BATCHES)
    reference = values[BATCHES == "b"]
    np.testing.assert_array_equal(ours[BATCHES == "b"], reference)
    for batch in "ac":
        np.testing.assert_allclose(ours[batch == BATCHES].mean(axis=0), reference.mean(axis=0))
        np.testing.assert_allclose(ours[batch == BATCHES].std(axis=0), reference.std(axis=0))


def test_quantiles_are_the_mean_of_the_training_samples_and_equal_values_stay_equal():
    values = np.array([[5.0, 2, 3], [4, 1, 4], [3, 4, 6]])
    ours = Harmoniser.fit(values, ["a", "a", "b"], method="quantile")
    distribution = np.array([2, 11 / 3, 5])
    np.testing.assert_allclose(ours.arrays["distribution"], distribution)
    np.testing.assert_allclose(
        ours.apply(np.array([[9.0, 7, 8], [0, 5, 0], [1, 1, 1]]), ["b", "b", "b"]),
        [[5, 2, 11 / 3], [17 / 6, 5, 17 / 6], [32 / 9, 32 / 9, 32 / 9]],
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_test_sample_changes_nothing_fitted_and_no_other_sample(method):
    values, training = samples(), np.arange(len(BATCHES)) % 3 > 0
    harmoniser = fitted(method, values[training], BATCHES[training])
    before = harmoniser.apply(values, BATCHES)
    changed = np.where(training[:, None], values, values * 100 - 7)
    again = fitted(method, changed[training], BATCHES[training])
    for name, array in harmoniser.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    np.testing.assert_array_equal(again.apply(changed, BATCHES)[training], before[training])
    for i in np.flatnonzero(~training)[:3]:
        np.testing.assert_array_equal(harmoniser.apply(values[i : i + 1], BATCHES[i : i + 1]), before[i : i + 1])


@pytest.mark.parametrize("method", METHODS)
def test_an_unseen_batch_is_refused_or_treated_as_all_training_samples(method):
    values = samples()
    with pytest.raises(
        InputError, match=r"1 batches were not among the training samples \(first: 'd'; they had 'a', 'b', 'c'\)"
    ):
        fitted(method).apply(values, np.where(BATCHES == "c", "d", BATCHES))
    lenient = fitted(method, on_unseen="reference")
    ours = lenient.apply(values, np.repeat("d", len(values)))
    wanted = {
        "standardise": (values - values.mean(axis=0)) / values.std(axis=0),
        "quantile": lenient.apply(values, BATCHES),
    }
    np.testing.assert_allclose(ours, wanted.get(method, values), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_of_no_samples_there_are_none(method):
    assert fitted(method).apply(np.empty((0, 60)), []).shape == (0, 60)


def test_one_batch_alone_is_left_as_it_is_by_combat():
    values = samples(batches=np.repeat("a", 9))
    np.testing.assert_array_equal(fitted("combat", values, ["a"] * 9).apply(values, ["a"] * 9), values)


def test_a_batch_whose_samples_are_all_alike_stays_finite():
    values = samples()
    values[BATCHES == "c"] = values[-1]
    for method in METHODS:
        assert np.isfinite(fitted(method, values).apply(values, BATCHES)).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_is_loaded(method, tmp_path):
    harmoniser, values = fitted(method, on_unseen="reference"), samples(seed=1)
    harmoniser.save(tmp_path / "a.safetensors")
    again = Harmoniser.load(tmp_path / "a.safetensors")
    assert (again.method, again.batches, again.on_unseen) == (method, ("a", "b", "c"), "reference")
    np.testing.assert_array_equal(again.apply(values, BATCHES), harmoniser.apply(values, BATCHES))
    with pytest.raises(FileExistsError):
        harmoniser.save(tmp_path / "a.safetensors")


def test_a_file_that_is_no_harmoniser_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Harmoniser.load(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"{}")
    save_file({"scale": np.ones((3, 4))}, tmp_path / "b.safetensors")
    for name in "ab":
        with pytest.raises(DataFormatError, match="not a harmoniser"):
            Harmoniser.load(tmp_path / f"{name}.safetensors")
    harmoniser = fitted("combat")
    odd = {
        "no shift": {"scale": harmoniser.arrays["scale"]},
        "few": {k: v[:2] for k, v in harmoniser.arrays.items()},
        "nan": {k: v * np.nan for k, v in harmoniser.arrays.items()},
    }
    for name, arrays in odd.items():
        Harmoniser("combat", harmoniser.batches, "refuse", arrays).save(tmp_path / name)
        with pytest.raises(DataFormatError, match="do not fit"):
            Harmoniser.load(tmp_path / name)


WITH_NAN = samples()
WITH_NAN[3, 7] = np.nan
BAD = {
    "NaN": ((WITH_NAN, BATCHES), {}, "Sample 3, gene 7 is nan"),
    "too few batches": ((samples(), BATCHES[:3]), {}, "45 samples and 3 batches"),
    "a batch that is missing": ((samples(), [None, *BATCHES[1:]]), {}, r"1 samples have no batch \(first: sample 0\)"),
    "one sample": (
        (samples(), ["z", *BATCHES[1:]]),
        {"method": "combat"},
        r"one training sample \(first: 'z'\).*'quantile'",
    ),
    "one gene": ((samples(1), BATCHES), {"method": "combat"}, "1 genes spread within batches; 'combat' needs two"),
    "no sample": ((np.empty((0, 3)), []), {}, "No training samples"),
    "text": ((np.array([["a"]]), ["a"]), {}, "Expected numbers, samples × genes"),
    "a reference that is none": (
        (samples(), BATCHES),
        {"method": "reference", "reference": "B"},
        "no batch 'B' to be the reference",
    ),
    "no reference": ((samples(), BATCHES), {"method": "reference"}, "a batch is named for 'reference' alone"),
    "a reference for nothing": ((samples(), BATCHES), {"reference": "a"}, "a batch is named for 'reference' alone"),
    "another method": ((samples(), BATCHES), {"method": "combats"}, "'combats' is not a choice.*combat"),
    "another way": ((samples(), BATCHES), {"on_unseen": "ignore"}, "'ignore' is not a choice"),
}


@pytest.mark.parametrize(("data", "options", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_fitted_is_refused(data, options, said):
    with pytest.raises(InputError, match=said):
        Harmoniser.fit(*data, **options)


def test_other_genes_and_missing_values_are_refused_when_it_is_applied():
    harmoniser = fitted("standardise")
    with pytest.raises(InputError, match="Fitted on 60 genes, found 59"):
        harmoniser.apply(samples()[:, 1:], BATCHES)
    with pytest.raises(InputError, match="gene 7 is nan"):
        harmoniser.apply(WITH_NAN, BATCHES)
