"""Why an expression network says what it says of samples: complete, exact, and by nobody else's samples."""

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro import adaptive_integrals
from geneformer_repro.expression import ExpressionInputs, ExpressionNetwork, InputScale
from geneformer_repro.heads import Head
from geneformer_repro.in_silico.explanations import explained_samples, value_sets
from geneformer_repro.in_silico.explanations.explained_samples import ExplainedSamples
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_table import gene_table
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.targets import Classes, Number, SurvivalTime

GENES = tuple(f"ENSG{number:011d}" for number in range(12))
SURVIVAL = SurvivalTime("PFI", time="PFI.time", times=(1.0, 5.0), horizon=5.0, learned_by="cox")
HEAD = Head((Classes("subtype", ("basal", "her2", "luminal")), Number("grade", mean=2.0, sd=0.5), SURVIVAL))
EVERY = ("integrated_gradients", "gradient_input", "median")


def samples(n=24, seed=0):
    rng = np.random.default_rng(seed)
    columns = {"cohort": np.where(np.arange(n) % 2, "a", "b"), "hospital": "north", "age": rng.normal(60, 9, n)}
    obs = pd.DataFrame(columns, index=[f"patient {i}" for i in range(n)])
    values = rng.normal(0, 1, (n, len(GENES))).astype(np.float32)
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=list(GENES)))


def network_of(head=HEAD, *, covariates=False, **settings):
    values, names = {"expression": samples(60, seed=9).X}, {"expression": GENES}
    if covariates:
        values["covariates"], names["covariates"] = np.random.default_rng(0).normal(60, 9, (60, 1)), ("age",)
    inputs = ExpressionInputs(values, names, measure="zscore")
    config = ExpressionConfig(**{"width": 16, "skip": ("covariates", "expression")[not covariates :]} | settings)
    network = ExpressionNetwork(config, head, InputScale.fit(inputs), seed=3).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path in network.skip.values():
            path.weight.normal_(generator=generator)
    return network


def checkpoint_of(network):
    return gf.Checkpoint(network, network.scale.vocabulary, {"step": "expression"}, name="pan-cancer")


def explained(network, data=None, *, how=(), **asked):
    asked = {"methods": ("integrated_gradients",), "baseline": "mean", **asked}
    request = Request(**asked | {name: tuple(asked[name]) for name in ("methods", "obs") if name in asked})
    return ExplainedSamples.of(request, checkpoint_of(network), samples() if data is None else data, **dict(how))


def table_of(explained, part=None):
    table = explained.table(np.arange(len(explained.costs())) if part is None else np.array(part)).to_pandas()
    metadata = explained.describe() | explained.prepare() | explained.further([])
    return Explanation(table, metadata)


def values_of(why, method, state):
    of = why.table[(why.table["method"] == method) & (why.table["state"] == state)]
    return of.pivot(index="cell", columns="gene", values="value")


def test_a_changed_gene_costs_no_new_first_layer_and_gives_the_same_outputs():
    network = network_of(layers=3, batch_norm=True, covariates=True)
    sample = torch.randn(len(network.scale), generator=torch.Generator().manual_seed(0))
    genes, values = torch.tensor([0, 5, 11]), torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        found = network.outputs_of_changes(sample, genes, values)
        changed = sample.repeat(3, 1)
        changed[torch.arange(3), genes + network.scale.columns("expression").start] = values
        torch.testing.assert_close(found, network(changed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["subtype", "grade", "PFI"])
@pytest.mark.parametrize("baseline", ["mean", "median"])
def test_integrated_gradients_add_up_to_the_difference_from_the_baseline(target, baseline):
    network = network_of(layers=3, activation="relu", batch_norm=True)
    of = explained(network, target=target, methods=["integrated_gradients"], baseline=baseline)
    rows = np.arange(len(of.costs()))
    start = of.samples.scaled_NI.copy()
    start[:, of.function.genes] = of.median_NG if baseline == "median" else 0
    difference_NS = of.function.values(of.samples.scaled_NI) - of.function.values(start)
    found = [each["integrated_gradients"] for each in of.attributions(rows)]
    summed_NS = np.stack([each.value_GS.sum(0) for each in found])
    bound = 1e-3 * np.maximum(np.abs(difference_NS), of.least_S) + 1e-6
    assert (np.abs(summed_NS - difference_NS) <= bound).all()
    assert (np.stack([each.gap_S for each in found]) <= 1e-3).all()


def test_integrated_gradients_equal_captum(monkeypatch):
    captum = pytest.importorskip("captum.attr")
    monkeypatch.setattr(explained_samples, "TOLERANCE", 1e-8)
    monkeypatch.setattr(adaptive_integrals, "_RESOLUTION", 0)  # of double precision
    function = explained(network_of(activation="tanh"), target="subtype", state=["basal", "luminal"]).function
    function.network.double()
    scaled_NI = np.random.default_rng(0).normal(size=(5, len(GENES)))
    found, _ = function.integrated(scaled_NI, np.zeros_like(scaled_NI), np.full(2, 1e-6))
    for state in range(2):
        of_state = captum.IntegratedGradients(lambda x, state=state: function(x)[:, state])
        expected = of_state.attribute(torch.from_numpy(scaled_NI), n_steps=500, method="gausslegendre")
        np.testing.assert_allclose(found[:, :, state], expected.detach().numpy(), atol=1e-5)


def test_of_a_linear_network_every_method_says_weight_times_value():
    network = network_of(Head((SURVIVAL,)), skip=("expression",))
    with torch.no_grad():
        network.classifier.weight.zero_()
    of = explained(network, methods=EVERY, baseline="median")
    weights = network.skip["expression"].weight[0].detach().numpy()
    expected = (of.samples.scaled_NI - of.median_NG) * weights
    why = table_of(of)
    for method in EVERY:
        found = values_of(why, method, "PFI").loc[of.samples.names, list(of.gene_ids)]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_occluded_gene_has_its_cohort_s_median_as_a_slow_loop_says():
    network, data = network_of(), samples()
    data.X[data.obs["cohort"] == "b"] += 2
    of = explained(network, data, target="subtype", methods=["median"], how={"cohort": "cohort"})
    why = table_of(of)
    scaled, genes = of.samples.scaled_NI, of.function.genes
    for sample in (0, 7):
        cohort = (data.obs["cohort"] == data.obs["cohort"].iloc[sample]).to_numpy()
        for gene in (0, 11):
            altered = scaled[[sample]].copy()
            altered[0, genes.start + gene] = np.median(scaled[cohort, genes.start + gene])
            expected = of.function.values(scaled[[sample]]) - of.function.values(altered)
            for i, state in enumerate(of.function.answer.names):
                found = values_of(why, "median", state).loc[of.samples.names[sample], of.gene_ids[gene]]
                np.testing.assert_allclose(found, expected[0, i], atol=1e-5)


def test_a_planted_gene_is_found_and_a_gene_that_is_not_there_has_no_row():
    network = network_of(Head((SURVIVAL,)), skip=())
    column = network.scale.names["expression"].index(GENES[3])
    with torch.no_grad():
        network.layers[0].weight[:, column] *= 10
    why = table_of(explained(network, samples()[:, list(GENES[:-1])].copy(), methods=EVERY))
    table = gene_table(why, absolute=True)
    for method, of_method in table.groupby("method"):
        assert of_method["effect"].idxmax() == GENES[3], method
        assert set(of_method.index) == set(GENES[:-1])


def test_what_is_said_of_a_sample_depends_on_no_order_and_on_no_part():
    of = explained(network_of(), target="subtype", state="her2", contrast="basal", methods=EVERY)
    together = table_of(of).table
    apart = pd.concat([table_of(of, [i]).table for i in range(len(of.costs()))], ignore_index=True)
    pd.testing.assert_frame_equal(together, apart, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(of.costs()))
    shuffled = table_of(of, order).table
    keys = ["cell", "gene", "method", "state"]
    pd.testing.assert_frame_equal(
        together.sort_values(keys, ignore_index=True), shuffled.sort_values(keys, ignore_index=True), atol=1e-6
    )


def test_rows_name_their_sample_its_donor_and_what_else_is_asked_for(tmp_path):
    network = network_of(covariates=True)
    of = explained(network, target="PFI", methods=["integrated_gradients", "median"], donor="cohort", obs=["age"])
    why = table_of(of)
    assert why.measure == "log relative hazard of 'PFI'"
    assert set(why.table["donor"]) == {"a", "b"}
    assert why.table["place"].isna().all()
    assert why.table["gap"].notna().sum() == len(why) / 2
    np.testing.assert_allclose(why.table.groupby("cell")["age"].first()[of.samples.names], of.samples.obs["age"])
    why.save(tmp_path / "why.parquet")
    again = Explanation.open(tmp_path / "why.parquet")
    assert again.methods == ("integrated_gradients", "median")
    pd.testing.assert_frame_equal(again.table, why.form.as_frame(pa.Table.from_pandas(why.table)))
    alone = table_of(explained(network, target="PFI", methods=["median"]))
    assert (alone.table["donor"] == alone.table["cell"]).all()  # each sample is a replicate


def test_medians_are_of_all_samples_where_some_are_explained():
    every = explained(network_of(), target="grade", methods=["median"])
    few = explained(network_of(), target="grade", methods=["median"], max_cells=2)
    expected = values_of(table_of(every), "median", "grade").loc[sorted(few.samples.names)]
    pd.testing.assert_frame_equal(values_of(table_of(few), "median", "grade"), expected)
    assert every.describe()["rows"] != few.describe()["rows"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target": "subtype", "methods": ["hide"]}, "is not explained by 'hide'"),
        ({"target": "subtype", "layer": -1}, "layer= is for models that read tokens"),
        ({"methods": ["median"]}, "has the targets 'subtype', 'grade', 'PFI'; name one"),
        ({"target": "subtpye", "methods": ["median"]}, "has no target 'subtpye'. Did you mean 'subtype'"),
        ({"target": "subtype", "state": "basel", "methods": ["median"]}, "knows no subtype 'basel'"),
        ({"target": "PFI", "state": "basal", "methods": ["median"]}, "name classes"),
        ({"target": "subtype", "state": "basal", "contrast": "basal", "methods": ["median"]}, "different classes"),
        ({"target": "grade", "methods": ["surrogate"], "sets": {"a": ["no gene"]}}, "is read by the network"),
        ({"target": "grade", "methods": ["median"], "donor": "hopsital"}, "no obs column 'hopsital'"),
        ({"target": "grade", "methods": ["median"], "baseline": "mask"}, "must be one of 'mean', 'median'"),
    ],
    ids=lambda asked: str(asked)[:40],
)
def test_what_cannot_be_asked_is_refused(asked, said):
    with pytest.raises(gf.InputError, match=said):
        explained(network_of(), **asked)


def test_tokens_are_no_samples(cells):
    with pytest.raises(gf.InputError, match="These samples are tokenised"):
        explained(network_of(), cells, target="grade", methods=["median"])


def test_sets_are_at_the_median_together_and_a_surrogate_of_a_linear_network_is_exact():
    network = network_of(Head((SURVIVAL,)), skip=("expression",))
    with torch.no_grad():
        network.classifier.weight.zero_()
    sets = {"first": GENES[:3], "others": GENES[5:9], "unknown": ["no gene"]}
    of = explained(network, methods=["median", "surrogate"], sets=sets, masks=200, max_cells=3)
    why = table_of(of)
    by_gene = (of.samples.scaled_NI - of.median_NG) * network.skip["expression"].weight[0].detach().numpy()
    for name in ("first", "others"):
        columns = [of.gene_ids.index(gene) for gene in sets[name]]
        for method, most in (("median", 1e-5), ("surrogate", 1e-2)):
            found = values_of(why, method, "PFI").loc[of.samples.names, name]
            np.testing.assert_allclose(found, by_gene[:, columns].sum(1), atol=most)
    fits = why.table[why.table["method"] == "surrogate"]
    assert (fits["r2"] > 0.99).all()
    assert why.table.loc[why.table["method"] == "median", "r2"].isna().all()


def test_a_surrogate_of_genes_ranks_them_as_the_network_does():
    why = table_of(explained(network_of(layers=1), target="grade", methods=["surrogate", "median"], max_cells=2))
    for _, of_sample in why.table.groupby("cell"):
        both = of_sample.pivot(index="gene", columns="method", values="value")
        assert both.corr("spearman").iloc[0, 1] > 0.8


def test_a_surrogate_of_too_many_genes_is_refused(monkeypatch):
    monkeypatch.setattr(value_sets, "MOST_UNITS", 5)
    with pytest.raises(gf.InputError, match=r"12 genes are read by the network\. Name sets of genes"):
        explained(network_of(), target="grade", methods=["surrogate"])


def test_how_good_the_network_is_is_said_where_samples_have_labels():
    data = samples(60)
    of = explained(network_of(), data, target="grade")
    assert of.prepare()["how_good"] is None
    said = of.function.values(of.samples.scaled_NI)[:, 0]
    data.obs["grade"] = said
    assert explained(network_of(), data, target="grade").prepare()["how_good"]["better_than_guessing"]
    data.obs["grade"] = np.random.default_rng(0).permutation(said)
    assert not explained(network_of(), data, target="grade").prepare()["how_good"]["better_than_guessing"]


def test_samples_that_the_network_was_trained_on_are_refused_unless_that_is_accepted():
    network, data = network_of(), samples()
    of = explained(network, data, target="grade")
    checkpoint = gf.Checkpoint(network, network.scale.vocabulary, {}, np.sort(of.samples.digests_N[:2]), name="one")
    request = Request(target="grade", methods=("median",), baseline="mean")
    with pytest.raises(gf.InputError, match=r"2 of 24 samples to explain \(first: 'patient 0'\)"):
        ExplainedSamples.of(request, checkpoint, data)
    accepted = Request(target="grade", methods=("median",), baseline="mean", allow_seen=True)
    assert len(ExplainedSamples.of(accepted, checkpoint, data).costs()) == 24
