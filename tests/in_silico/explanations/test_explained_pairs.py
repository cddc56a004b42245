"""Why a network says that a drug works in a sample: by genes and by characters, each complete on its own way."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_pair_networks import DRUGS, GENES, NETWORKS, made_network

import geneformer_repro as gf
from geneformer_repro.encoder import run_encoder
from geneformer_repro.in_silico.explanations.explained_pairs import ExplainedPairs
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_table import gene_table
from geneformer_repro.in_silico.explanations.pair_occlusions import answers
from geneformer_repro.in_silico.explanations.request import Request

EVERY = ("integrated_gradients", "gradient_input", "median", "mask", "attention")
SMILES = dict(zip(DRUGS.names, DRUGS.smiles, strict=True))  # canonical
LINES = ["line 0", "line 1", "line 2"]


def expression(seed=1):
    return pd.DataFrame(np.random.default_rng(seed).normal(5, 2, (len(LINES), len(GENES))), LINES, list(GENES))


def explained(name="conv_nn", *, cells=None, network=None, **asked):
    network = made_network(NETWORKS[name], None if cells is None else cells.vocabulary) if network is None else network
    vocabulary = network.scale.vocabulary if cells is None else cells.vocabulary
    checkpoint = gf.Checkpoint(network, vocabulary, {"step": "finetune_response"}, name="response")
    samples = expression()
    if cells is not None:
        samples = cells.select(np.arange(len(LINES)))
        asked["expression"] = expression().set_axis(samples.cell_names)
    how = {name: asked.pop(name) for name in ("expression", "responses") if name in asked}
    request = {"methods": ("integrated_gradients",), "baseline": "mean", **asked}
    return ExplainedPairs.of(
        Request(**request | {"methods": tuple(request["methods"])}), checkpoint, samples, DRUGS, **how
    )


def table_of(explained, part=None):
    table = explained.table(np.arange(len(explained.costs())) if part is None else np.array(part)).to_pandas()
    metadata = explained.describe() | explained.further([])
    return Explanation(table, metadata)


def value_of(explained, sample, drug, *, values=None, embedded=None):
    """What is explained of one pair, with other values or vectors in place of its own: written down apart."""
    network, sides = explained.checkpoint.pair_network, explained.asked.sides
    values = torch.from_numpy(sides.values_SG[[sample]] if values is None else values)
    ids = torch.from_numpy(sides.drugs[[drug]])
    with torch.no_grad():
        pairs, naive = torch.zeros(1, 2, dtype=torch.long), torch.full((1,), network.target.mean)
        outputs = network.outputs(network.of_samples(values), network.of_drugs(ids, embedded), pairs, naive)
        value = network.head.meaning(outputs)[0, 0].item()
    return value - network.target.mean if network.shape.residual else value


@pytest.mark.parametrize("name", ["conv_nn", "paccmann", "tdnn", "no drug, as published"])
def test_genes_add_up_to_what_the_baseline_lacks_and_so_do_characters(name):
    of = explained(name, methods=["integrated_gradients"], state=["aspirin", "ethanol"])
    why = table_of(of).table
    assert (why.loc[why["gene"].notna(), "gap"] <= 1e-3).all()
    assert (why["gap"] <= 1e-2).all()
    network, sides = of.checkpoint.pair_network, of.asked.sides
    by_characters = network.drugs.kind == "smiles"
    for sample, drug in ((0, 0), (2, 4)):
        rows = why[(why["cell"] == LINES[sample]) & (why["state"] == DRUGS.names[drug])]
        before = value_of(of, sample, drug)
        np.testing.assert_allclose(rows["before"], before, atol=1e-5)
        start = value_of(of, sample, drug, values=np.zeros_like(sides.values_SG[[0]]))
        found = rows.loc[rows["gene"].notna(), "value"].sum()
        np.testing.assert_allclose(found, before - start, atol=1e-3 * max(abs(before - start), 0.02) + 1e-5)
        assert rows["gene"].isna().any() == by_characters
        if by_characters:
            ids = torch.from_numpy(sides.drugs[[drug]])
            embedded = network.embedded(ids).detach()
            embedded[ids > 0] = torch.from_numpy(of.start_E)
            start = value_of(of, sample, drug, embedded=embedded)
            found = rows.loc[rows["gene"].isna(), "value"].sum()
            np.testing.assert_allclose(found, before - start, atol=1e-2 * max(abs(before - start), 0.02) + 1e-5)


@pytest.mark.parametrize("name", ["conv_nn", "paccmann"])
@pytest.mark.parametrize("baseline", ["mean", "pad"])
def test_an_occluded_gene_has_the_median_and_an_occluded_character_the_baseline_as_a_slow_loop_says(name, baseline):
    of = explained(name, methods=["median", "mask"], baseline=baseline, state="caffeine")
    why, drug = table_of(of).table, DRUGS.names.index("caffeine")
    network, sides = of.checkpoint.pair_network, of.asked.sides
    median = np.median(sides.values_SG, axis=0)
    of_pair = why[why["cell"] == LINES[2]]
    before = value_of(of, 2, drug)
    for gene in (0, 7):
        values = sides.values_SG[[2]].copy()
        values[0, gene] = median[gene]
        expected = before - value_of(of, 2, drug, values=values)
        gene_id = network.scale.names["expression"][gene]
        found = of_pair.loc[(of_pair["gene"] == gene_id), "value"].item()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for place in (0, len(SMILES["caffeine"]) - 1):
        embedded = network.embedded(torch.from_numpy(sides.drugs[[drug]])).detach()
        embedded[0, place] = torch.from_numpy(of.start_E)
        expected = before - value_of(of, 2, drug, embedded=embedded)
        row = of_pair[(of_pair["method"] == "mask") & (of_pair["place"] == place)]
        np.testing.assert_allclose(row["value"].item(), expected, atol=1e-5)
        assert row["character"].item() == SMILES["caffeine"][place]


def test_of_padding_s_vector_convolutions_make_what_they_make_of_no_smiles():
    of = explained("conv_nn", methods=["integrated_gradients"], baseline="pad", state="aspirin")
    network, sides = of.checkpoint.pair_network, of.asked.sides
    nothing = torch.zeros_like(network.embedded(torch.from_numpy(sides.drugs[[0]])))
    why = table_of(of).table
    found = why[why["gene"].isna() & (why["cell"] == LINES[0])]["value"].sum()
    expected = value_of(of, 0, 0) - value_of(of, 0, 0, embedded=nothing)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-5)


def test_of_a_linear_network_every_method_of_genes_says_weight_times_value():
    network = made_network({"model": "conv_nn", "drug_input": "none", "joint_layers": (), "residual": False})
    of = explained(network=network, methods=["integrated_gradients", "gradient_input", "median"], baseline="median")
    weight_G = (network.output.weight @ network.expression_tower[0].weight)[0] * network.target.sd
    expected = (of.asked.sides.values_SG - of.median_G) * weight_G.detach().numpy()
    why = table_of(of).table
    for method in ("integrated_gradients", "gradient_input", "median"):
        of_method = why[(why["method"] == method) & (why["state"] == "aspirin")]
        found = of_method.pivot(index="cell", columns="gene", values="value")
        genes = list(network.scale.names["expression"])
        np.testing.assert_allclose(found.loc[LINES, genes], expected, rtol=1e-4, atol=1e-5)


def test_attention_is_shares_of_characters_and_of_paccmann_s_genes():
    of = explained("paccmann", methods=["attention"])
    why = table_of(of).table
    summed = why.groupby(["cell", "state", why["gene"].isna()])["value"].sum()
    np.testing.assert_allclose(summed, 1, atol=1e-5)
    assert (why["value"] >= 0).all()
    assert not why["exact"].any()
    network, sides = of.checkpoint.pair_network, of.asked.sides
    with torch.no_grad():
        samples = network.of_samples(torch.from_numpy(sides.values_SG[:1]))
        drugs = network.of_drugs(torch.from_numpy(sides.drugs[:1]))
        shares = network.shares_of_characters(samples, drugs, torch.zeros(1, 2, dtype=torch.long))
        n = len(SMILES["aspirin"])
        slow = []
        for attention, asked, keys in zip(network.attentions, samples.keys, drugs.keys, strict=True):
            hidden = torch.tanh(asked[0][None] + keys[0, :n])  # positions × heads × size
            slow.append((hidden * attention.score_HA).sum(-1).softmax(0).mean(1))
    np.testing.assert_allclose(shares[0, :n], torch.stack(slow).mean(0), atol=1e-6)


def test_a_planted_gene_is_found_and_characters_are_no_genes_in_its_table():
    network = made_network({**NETWORKS["conv_nn"], "joint_layers": ()})
    column = network.scale.names["expression"].index(GENES[5])
    with torch.no_grad():
        network.expression_tower[0].weight[:, column] *= 30
    why = table_of(explained(network=network, methods=["integrated_gradients", "gradient_input", "median", "mask"]))
    table = gene_table(why, absolute=True)
    assert set(table.index) == set(GENES)
    for key, of_method in table.groupby(["method", "state"]):
        assert of_method["effect"].idxmax() == GENES[5], key


def test_what_is_said_of_a_pair_depends_on_no_part_and_on_no_other_drug():
    local = ("gradient_input", "median", "mask", "attention")
    together = explained("paccmann", methods=local, state=["erlotinib", "ethanol"])
    apart = pd.concat([table_of(together, [i]).table for i in range(len(together.costs()))], ignore_index=True)
    pd.testing.assert_frame_equal(table_of(together).table, apart, atol=1e-6)
    alone = table_of(explained("paccmann", methods=local, state="ethanol")).table
    of_both = apart[apart["state"] == "ethanol"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, of_both, atol=1e-5, rtol=1e-4)


def test_integrated_gradients_of_a_pair_depend_on_no_other_drug_beyond_how_exact_they_are():
    many = explained("tdnn", methods=["integrated_gradients"])
    one = explained("tdnn", methods=["integrated_gradients"], state="ethanol")
    drug = np.array([DRUGS.names.index("ethanol")])
    found, _ = one.by_genes("integrated_gradients", 0, drug)
    expected, _ = many.by_genes("integrated_gradients", 0, np.arange(len(DRUGS)))
    np.testing.assert_allclose(found[0], expected[drug[0]], atol=1e-3 * np.abs(expected[drug[0]]).sum())


def test_medians_are_of_all_samples_where_some_are_explained():
    every = table_of(explained("tdnn", methods=["median"])).table
    few = table_of(explained("tdnn", methods=["median"], max_cells=1, seed=4)).table
    assert few["cell"].nunique() == 1
    expected = every[every["cell"] == few["cell"].iloc[0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, expected, atol=1e-6)


def test_beside_tokens_expression_is_explained_and_tokens_stay(cells):
    of = explained("encoder with expression", cells=cells, methods=["integrated_gradients", "median"])
    why = table_of(of).table
    assert (why["gap"].dropna() <= 1e-3).all()
    assert set(why["gene"]) == set(GENES)


def test_a_file_of_pairs_opens(tmp_path):
    why = table_of(explained(methods=["integrated_gradients", "mask"]))
    why.save(tmp_path / "why.parquet")
    again = Explanation.open(tmp_path / "why.parquet")
    assert again.measure == "predicted LN_IC50 of the drug in column state, beyond its mean effects"
    assert again.metadata["smiles"]["ethanol"] == "CCO"
    assert again.table["character"].dropna().isin([*"".join(SMILES.values())]).all()


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("conv_nn", {"methods": ["hide"]}, "is not explained by 'hide'"),
        ("conv_nn", {"methods": ["median"], "baseline": "mask"}, "must be one of"),
        (
            "conv_nn",
            {"methods": ["median"], "state": "aspirine"},
            "There is no drug 'aspirine'. Did you mean 'aspirin'",
        ),
        ("conv_nn", {"donor": "patient"}, "donor= is not for drug response"),
        ("conv_nn", {"methods": ["attention"]}, "nothing that 'attention' is of"),
        ("tdnn", {"methods": ["mask"]}, "nothing that 'mask' is of"),
    ],
    ids=["method of cells", "baseline of cells", "drug", "donor", "no attention", "no characters"],
)
def test_what_cannot_be_asked_is_refused(name, asked, said):
    with pytest.raises(gf.InputError, match=said):
        explained(name, **asked)


# Genes that are read as tokens


@pytest.fixture(scope="module")
def short(cells):
    return cells.select(np.argsort(cells.lengths, kind="stable")[40:43])


def response_to(network, drug, ids, positions):
    """What a network of tokens alone says of one sample, beyond mean effects: written down apart."""
    with torch.no_grad():
        tokens = torch.from_numpy(ids.astype(np.int64))
        hidden = run_encoder(network.bert, tokens, [len(ids)], positions_T=torch.from_numpy(positions))
        is_gene = network.vocabulary_of_test.genes_of(ids) >= 0
        samples = network.of_samples(pooled=hidden[torch.from_numpy(is_gene)].mean(0, keepdim=True))
        drugs = network.of_drugs(torch.from_numpy(network.drugs(DRUGS)[[drug]]))
        pairs, naive = torch.zeros(1, 2, dtype=torch.long), torch.full((1,), network.target.mean)
        return network.head.meaning(network.outputs(samples, drugs, pairs, naive))[0, 0].item() - network.target.mean


def of_tokens(short, **asked):
    network = made_network(NETWORKS["encoder"], short.vocabulary)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.bert.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    network.vocabulary_of_test = short.vocabulary
    checkpoint = gf.Checkpoint(network, short.vocabulary, {"step": "finetune_response"}, name="response")
    request = Request(**{"baseline": "mask", **asked, "methods": tuple(asked["methods"])})
    return ExplainedPairs.of(request, checkpoint, short, DRUGS)


@pytest.mark.parametrize(("method", "shift"), [("hide", False), ("delete", True)])
def test_a_gene_that_is_a_token_is_left_out_as_a_slow_loop_says(short, method, shift):
    of = of_tokens(short, methods=[method], state=["caffeine", "ethanol"])
    why = table_of(of)
    network, ids, drug = of.checkpoint.pair_network, short[1], DRUGS.names.index("ethanol")
    of_pair = why.table[(why.table["cell"] == short.cell_names[1]) & (why.table["state"] == "ethanol")]
    assert of_pair["gene"].tolist() == short.genes(1)
    before = response_to(network, drug, ids, np.arange(len(ids)))
    np.testing.assert_allclose(of_pair["before"], before, atol=1e-5)
    first = int(short.vocabulary.has_cls)
    for place in (0, 5):
        kept = np.delete(np.arange(len(ids)), first + place)
        expected = before - response_to(network, drug, ids[kept], np.arange(len(kept)) if shift else kept)
        np.testing.assert_allclose(of_pair["value"].iloc[place], expected, atol=1e-5)


def test_of_tokens_too_integrated_gradients_add_up(short):
    of = of_tokens(short, methods=["integrated_gradients", "gradient_input", "attention_gradient", "first_order"])
    why = table_of(of).table
    complete = why[why["method"] == "integrated_gradients"]
    assert (complete["gap"] <= 0.01).all()
    network, ids = of.checkpoint.pair_network, short[0]
    masked = np.where(short.vocabulary.genes_of(ids) >= 0, short.vocabulary.mask_token, ids)
    hidden = run_encoder(network.bert, torch.from_numpy(masked.astype(np.int64)), [len(ids)])
    is_gene = torch.from_numpy(short.vocabulary.genes_of(ids) >= 0)
    with torch.no_grad():
        samples = network.of_samples(pooled=hidden[is_gene].mean(0, keepdim=True))
        start = answers(network, samples, network.of_drugs(torch.from_numpy(network.drugs(DRUGS)[[1]])),
                        torch.zeros(1, 2, dtype=torch.long)).item()  # fmt: skip
    rows = complete[(complete["cell"] == short.cell_names[0]) & (complete["state"] == DRUGS.names[1])]
    difference = rows["before"].iloc[0] - start
    bound = 0.011 * max(abs(difference), 0.01 * network.target.sd)
    np.testing.assert_allclose(rows["value"].sum(), difference, atol=bound)
    assert np.isfinite(why["value"]).all()


def test_responses_told_from_tokens_are_explained_and_tested_in_one_call_each(short):
    of = of_tokens(short, methods=["hide"])
    why = gf.explain(of.checkpoint, short, drugs=DRUGS, state="aspirin", methods=["hide", "gradient_input"])
    assert why.metadata["genes_by"] == "tokens"
    assert why.metadata["gene_names"][short.genes(0)[0]] != short.genes(0)[0]
    check = gf.evaluate_explanation(why, of.checkpoint, short, drugs=DRUGS, max_cells=1)
    assert set(check.points["operator"]) == {"mask", "hide"}
    start = check.points.query("way == 'removal' and share == 0")["value"]
    np.testing.assert_allclose(start, start.iloc[0], rtol=1e-5)
    own = check.removal[check.removal["own_operator"]]
    assert {("hide", "hide"), ("gradient_input", "mask")} == {
        (order.partition(",")[0], operator) for order, operator in zip(own["order"], own["operator"], strict=True)
    }
    assert check.sanity["model"].unique().tolist() == ["output", "down to layers of both", "random weights"]


def test_values_have_no_place_in_a_network_of_tokens(short):
    with pytest.raises(gf.InputError, match="nothing that 'median' is of"):
        of_tokens(short, methods=["median"])
    with pytest.raises(gf.InputError, match="must be one of 'mean', 'pad', 'mask'"):
        of_tokens(short, methods=["hide"], baseline="median")


def test_pairs_that_the_network_may_have_learned_are_refused():
    network = made_network(NETWORKS["conv_nn"])
    network.learned = {"samples": ["line1"], "drugs": [DRUGS.keys[0]]}
    with pytest.raises(gf.InputError, match=r"learned from 1 of the 15 pairs to explain \(first: 'line 1' with"):
        explained(network=network)
    explained(network=network, state="ethanol")
    explained(network=network, allow_seen=True)


def test_how_good_the_network_is_is_said_within_drugs_where_responses_are_known():
    of = explained("tdnn")
    assert of.prepare()["how_good"] is None
    rows = [
        {"sample": line, "drug": drug, "ln_ic50": value + i}
        for number, line in enumerate(LINES)
        for i, (drug, value) in enumerate(zip(DRUGS.names, of.before(number, np.arange(len(DRUGS))), strict=True))
    ]
    good = explained("tdnn", responses=pd.DataFrame(rows)).prepare()["how_good"]
    assert good["score"] == "Pearson correlation within drugs"
    np.testing.assert_allclose(good["value"], 1)
    flat = pd.DataFrame(rows).assign(ln_ic50=lambda of: np.random.default_rng(0).permutation(of["ln_ic50"]))
    assert explained("tdnn", responses=flat).prepare()["how_good"]["value"] < 0.9
    auc = pd.DataFrame(rows).rename(columns={"ln_ic50": "auc"}).assign(auc=0.5)
    of_another_measure = explained("tdnn", responses=gf.read_responses(auc, measure="AUC"))
    with pytest.raises(gf.InputError, match="The responses are AUC"):
        of_another_measure.prepare()
