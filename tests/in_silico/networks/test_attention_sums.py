"""Sums of attention over cells: against eager stock attention, the golden accumulation, and a planted edge."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro.attention import Cells
from geneformer_repro.in_silico.networks.attention_sums import (
    HeadWeights,
    PairSums,
    Roles,
    add_attention,
    calibrate,
    gene_tokens,
)
from geneformer_repro.in_silico.networks.gene_effects import gene_effects
from geneformer_repro.in_silico.networks.gene_network import mean_weights
from geneformer_repro.in_silico.networks.lifts import log_lifts
from geneformer_repro.in_silico.networks.places import place_bins
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CPU = torch.device("cpu")


def model_of(vocabulary, weights=0.2):
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = weights
    return gf.Checkpoint(MaskedGeneModel(config).eval(), vocabulary)


@pytest.fixture(scope="module", params=["V1", "V2"])
def read(request, _pbmc):
    """Cells with and without special tokens, and a model of theirs."""
    few = _pbmc[[600, 3, 44, 500, 7]].copy()
    vocabulary = Vocabulary.fit(_pbmc, series=request.param)
    return gf.tokenize(few, vocabulary), model_of(vocabulary)


def with_adapters(checkpoint):
    peft = pytest.importorskip("peft")
    adapted = copy.deepcopy(checkpoint.model)
    settings = peft.LoraConfig(target_modules=["query", "key", "dense"], r=4, init_lora_weights=False)
    torch.manual_seed(1)
    peft.inject_adapter_in_model(settings, adapted)
    for name, weight in adapted.named_parameters():
        if "lora" in name:
            weight.data *= 0.3
    return gf.Checkpoint(adapted.eval(), checkpoint.vocabulary)


def matrices_of(model, cells):
    """Of each block and cell (heads, L, L), by eager stock attention with the same submodules."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    stock = BertModel(config, add_pooling_layer=False).eval()
    stock.embeddings.load_state_dict(model.bert.embeddings.state_dict())
    for ours, theirs in zip(model.bert.encoder.layer, stock.encoder.layer, strict=True):
        for name in ("query", "key", "value"):
            setattr(theirs.attention.self, name, getattr(ours.attention.self, name))
        theirs.attention.output = ours.attention.output
        theirs.intermediate, theirs.output = ours.intermediate, ours.output
    with torch.no_grad():
        of_cells = [
            stock(torch.from_numpy(cells[i])[None], output_attentions=True).attentions for i in range(len(cells))
        ]
    return [[of_cell[block][0].double() for of_cell in of_cells] for block in range(config.num_hidden_layers)]


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "adapters"])
def test_weights_and_log_sums_are_those_of_eager_stock_attention(read, adapters):
    """To 1e-6, in cells of both conventions; weights are such that both ways round off less than that."""
    cells, _ = read
    checkpoint = model_of(cells.vocabulary, weights=0.08)
    checkpoint = with_adapters(checkpoint) if adapters else checkpoint
    expected, reader, seen = matrices_of(checkpoint.model, cells), Reader.of(checkpoint, device="cpu"), []
    (batch,) = reader.batches(cells, np.arange(len(cells)))
    reader.hidden(batch.input_ids_T, batch.lengths, watch=lambda _, attention: seen.append(attention))
    for attention, of_cells in zip(seen, expected, strict=True):
        for number, row in enumerate(batch.rows):
            weights = torch.cat([block.exp() for _, block in attention.log_weights(number)], 1)
            np.testing.assert_allclose(weights, of_cells[row], rtol=0, atol=1e-6)
            start, stop = attention.cells.starts[number : number + 2]
            query, key = (rows[start:stop].double() for rows in (attention.query_THE, attention.key_THE))
            log_sum = (torch.einsum("ihe,jhe->ihj", query, key) / query.shape[-1] ** 0.5).logsumexp(-1)
            np.testing.assert_allclose(attention.log_sum_TH[start:stop], log_sum, rtol=1e-6, atol=1e-6)


# Sums, by definition


def slow_sums(matrices, cells, roles, *, scale, least=50):
    """Everything pair by pair in float64: lifts among genes, means of places, spreads, then sums over cells."""
    vocabulary, lifts = cells.vocabulary, []
    for block in matrices:
        of_block = []
        for i, weight in enumerate(block):
            is_gene = vocabulary.genes_of(cells[i]) >= 0
            among = weight[:, is_gene][..., is_gene] / (1 - weight[:, is_gene][..., ~is_gene].sum(-1, keepdim=True))
            lift = (among * is_gene.sum()).numpy()
            of_block.append(np.log2(lift) if scale == "log" else lift)
        lifts.append(of_block)
    n_blocks, n_heads = len(lifts), lifts[0][0].shape[0]
    total, n = np.zeros(roles.shape), np.zeros(roles.shape, dtype=int)
    bins = [place_bins(of_cell.shape[-1]) for of_cell in lifts[0]]
    for block in lifts:
        for head in range(n_heads):
            means, counts = np.zeros((30, 30)), np.zeros((30, 30))
            for of_cell, bin_of in zip(block, bins, strict=True):
                off = ~np.eye(len(bin_of), dtype=bool)
                at = tuple(np.broadcast_arrays(bin_of[:, None], bin_of[None]))
                np.add.at(means, (at[0][off], at[1][off]), of_cell[head][off])
                np.add.at(counts, (at[0][off], at[1][off]), 1)
            means = pooled(means, counts, least)
            left = [
                of_cell[head] - means[bin_of[:, None], bin_of[None]] if scale == "log"
                else of_cell[head] / means[bin_of[:, None], bin_of[None]]
                for of_cell, bin_of in zip(block, bins, strict=True)
            ]  # fmt: skip
            off = [each[~np.eye(len(each), dtype=bool)] for each in left]
            spread = np.sqrt(np.mean(np.square(np.concatenate(off)))) if scale == "log" else 1.0
            for i, each in enumerate(left):
                tokens = cells[i][vocabulary.genes_of(cells[i]) >= 0]
                for key, source in enumerate(roles.row[tokens]):
                    for query, target in enumerate(roles.column[tokens]):
                        if source >= 0 and target >= 0 and key != query:
                            total[source, target] += each[query, key] / spread / (n_blocks * n_heads)
                            n[source, target] += head == 0 and block is lifts[0]
    return total, n


def pooled(sums, counts, least):
    """Means of bins; where there are few pairs, over the smallest square that has enough."""
    means = np.zeros_like(sums)
    for a, b in np.ndindex(sums.shape):
        for reach in range(len(sums)):
            square = np.s_[max(0, a - reach) : a + reach + 1, max(0, b - reach) : b + reach + 1]
            if counts[square].sum() >= least:
                means[a, b] = sums[square].sum() / counts[square].sum()
                break
    return means


def some_roles(vocabulary):
    """Every twentieth gene is a source, two of three a target: some both, some one of them."""
    row, column = np.full(vocabulary.size, -1), np.full(vocabulary.size, -1)
    sources, targets = vocabulary.tokens[::20], vocabulary.tokens[np.arange(len(vocabulary)) % 3 > 0]
    row[sources], column[targets] = np.arange(len(sources)), np.arange(len(targets))
    return Roles(row, column)


@pytest.mark.parametrize("scale", ["log", "lift"])
def test_sums_are_those_of_eager_attention_pair_by_pair(read, scale):
    cells, checkpoint = read
    cells = cells.select([0, 1])
    roles, chosen, rows = some_roles(cells.vocabulary), np.ones((3, 2), dtype=bool), np.arange(2)
    reader = Reader.of(checkpoint, device="cpu")
    found = calibrate(
        reader, cells, rows, [0, 0], n_states=1, chosen_NH=chosen, gene_of_token=roles.column, n_bins=30, scale=scale
    )
    sums = PairSums(roles, CPU)
    for batch in reader.batches(cells, rows):
        add_attention(reader, batch, roles, HeadWeights(chosen, found.places, scale), sums)
    expected, n = slow_sums(matrices_of(checkpoint.model, cells), cells, roles, scale=scale)
    np.testing.assert_array_equal(sums.sums().n, n)
    np.testing.assert_allclose(sums.sums().total, expected, rtol=0, atol=3e-5)


def test_norms_of_values_multiply_attention(read):
    cells, checkpoint = read
    cells = cells.select([0, 1])
    roles, chosen, rows = some_roles(cells.vocabulary), np.zeros((2, 2), dtype=bool), np.arange(2)
    chosen[1, 1] = True
    reader = Reader.of(checkpoint, layer=-1, device="cpu")
    heads, sums = HeadWeights(chosen, None, weight="value_norm"), PairSums(roles, CPU)
    (batch,) = reader.batches(cells, rows)
    add_attention(reader, batch, roles, heads, sums)
    total, output = np.zeros(roles.shape), checkpoint.model.bert.encoder.layer[1].attention.output.dense
    seen = []
    reader.hidden(batch.input_ids_T, batch.lengths, watch=lambda _, attention: seen.append(attention))
    mixing = output.weight.detach()[:, 32:].double()  # of the second head
    for tokens in gene_tokens(batch, CPU):
        norm = (seen[1].value_THE[tokens.genes_G, 1].double() @ mixing.T).norm(dim=1)
        lift = log_lifts(seen[1], tokens).dense()[1].double() + (norm / norm.mean()).log2()
        ids = batch.input_ids_T[tokens.genes_G]
        source, target = roles.row[ids], roles.column[ids]
        total[np.ix_(source[source >= 0], target[target >= 0])] += lift.numpy()[target >= 0][:, source >= 0].T
    total[roles.own] = 0
    np.testing.assert_allclose(sums.sums().total, total, atol=1e-4)


def test_heads_that_are_not_chosen_do_not_count(read):
    cells, checkpoint = read
    roles, chosen = some_roles(cells.vocabulary), np.zeros((3, 2), dtype=bool)
    chosen[0, 1] = chosen[2, 0] = True
    reader = Reader.of(checkpoint, device="cpu")
    (batch,) = reader.batches(cells.select([0]), np.arange(1))
    each = []
    for mask in (chosen, chosen & [False, True], chosen & [True, False]):
        sums = PairSums(roles, CPU)
        add_attention(reader, batch, roles, HeadWeights(mask, None), sums)
        each.append(sums.sums().total)
    np.testing.assert_allclose(each[0], (each[1] + each[2]) / 2, atol=1e-5)


def test_received_attention_of_a_state_is_the_mean_over_its_cells(read):
    cells, checkpoint = read
    chosen, gene = np.ones((3, 2), dtype=bool), some_roles(cells.vocabulary).column
    reader = Reader.of(checkpoint, device="cpu")
    options = {"n_states": 2, "chosen_NH": chosen, "gene_of_token": gene, "n_bins": 30}
    found = calibrate(reader, cells, np.arange(3), [0, 1, 0], **options)
    mass, n = np.zeros_like(found.mass), np.zeros_like(found.n)
    for i, state in enumerate([0, 1, 0]):
        is_gene = cells.vocabulary.genes_of(cells[i]) >= 0
        received = np.zeros(is_gene.sum())
        for block in matrices_of(checkpoint.model, cells.select([i])):
            among = block[0][:, is_gene][..., is_gene].numpy()
            received += (among / among.sum(-1, keepdims=True)).sum(1).mean(0) / 3
        numbers = gene[cells[i][is_gene]]
        mass[state, numbers[numbers >= 0]] += received[numbers >= 0]
        n[state, numbers[numbers >= 0]] += 1
    np.testing.assert_array_equal(found.n, n)
    np.testing.assert_allclose(found.mass, mass, rtol=1e-4, atol=1e-5)


# An accumulation worked out by hand

CELLS = {
    "ABC": [[0.2, 0.3, 0.5], [0.6, 0.1, 0.3], [0.4, 0.4, 0.2]],
    "BA": [[0.5, 0.5], [0.9, 0.1]],
    "CDA": [[0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.25, 0.5, 0.25]],
}
SUMMED = {
    "A>B": (2.8, 2), "A>C": (3.6, 2), "A>D": (0.9, 1), "B>A": (2.7, 2), "B>C": (1.2, 1), "C>A": (2.25, 2),
    "C>B": (0.9, 1), "C>D": (0.9, 1), "D>A": (1.5, 1), "D>C": (0.3, 1), "B>D": (0, 0), "D>B": (0, 0),
}  # fmt: skip
LEFT = {
    "A>B": -0.056942611999, "A>C": 0.259007051152, "A>D": -0.404128878306, "B>A": -0.159424984120,
    "B>C": 0.318849968240, "C>A": -0.259007051152, "C>B": 0.113885223997, "C>D": 0.404128878306,
    "D>A": 0.836864070543, "D>C": -0.836864070543,
}  # fmt: skip


def test_5_5_accumulation_and_effects_of_genes():
    roles = Roles(np.arange(4), np.arange(4))
    sums = PairSums(roles, CPU)
    for genes, weights in CELLS.items():
        numbers = torch.tensor(["ABCD".index(gene) for gene in genes])
        sums.add(numbers, numbers, (torch.tensor(weights, dtype=torch.float64) * len(genes)).T)
    total, n = sums.sums()
    names = list("ABCD")
    for found, part in ((total, 0), (n, 1)):
        frame = pd.DataFrame(found, index=names, columns=names)
        for pair, expected in SUMMED.items():
            assert frame.loc[pair[0], pair[2]] == pytest.approx(expected[part], abs=1e-12), pair
    np.testing.assert_array_equal(np.diag(n), 0)
    weights = mean_weights(total, n, least=1, scale="lift")
    left = pd.DataFrame(gene_effects(weights, n, masked_refits=0).residual, index=names, columns=names)
    for pair, expected in LEFT.items():
        assert left.loc[pair[0], pair[2]] == pytest.approx(expected, abs=1e-11), pair
    assert np.isnan(left.loc["B", "D"])
    assert np.isnan(left.loc["D", "B"])
    np.testing.assert_allclose(np.nansum(left * n, axis=0), 0, atol=1e-11)
    np.testing.assert_allclose(np.nansum(left * n, axis=1), 0, atol=1e-11)


def test_the_source_is_the_key_and_the_target_the_query(vocabulary, cells):
    """A model in which one gene attends to one other, and to nothing else."""
    config = bert_config("tiny", vocabulary)
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    checkpoint = gf.Checkpoint(MaskedGeneModel(config).eval(), vocabulary)
    few = cells.select(range(40))
    (key_gene, query_gene), _ = most_common_pair(few)
    bert = checkpoint.model.bert
    with torch.no_grad():
        bert.embeddings.word_embeddings.weight[query_gene, 0] = 20.0
        bert.embeddings.word_embeddings.weight[key_gene, 1] = 20.0
        layer = bert.encoder.layer[0].attention.self
        layer.query.weight.zero_(), layer.key.weight.zero_()
        layer.query.weight[0, 0] = layer.key.weight[0, 1] = 1.0
    roles = Roles(*(np.arange(vocabulary.size) - 4 for _ in range(2)))  # four special tokens
    sums, reader = PairSums(roles, CPU), Reader.of(checkpoint, device="cpu")
    for batch in reader.batches(few, np.arange(40)):
        add_attention(reader, batch, roles, HeadWeights(np.array([[True, False]]), None), sums)
    weights = mean_weights(*sums.sums(), least=5, scale="log")
    assert weights[key_gene - 4, query_gene - 4] == np.nanmax(weights)
    assert weights[query_gene - 4, key_gene - 4] < np.nanquantile(weights, 0.99)


def most_common_pair(cells):
    """Tokens of the two genes that most cells have, and how many of them."""
    tokens = np.concatenate([cells[i] for i in range(len(cells))])
    counts = np.bincount(tokens[tokens > 3])
    return np.argsort(-counts, kind="stable")[:2].tolist(), int(np.sort(counts)[-2])


def test_a_cell_without_a_source_adds_nothing(read):
    cells, checkpoint = read
    roles = some_roles(cells.vocabulary)
    roles = Roles(np.full_like(roles.row, -1), roles.column)
    sums, reader = PairSums(roles, CPU), Reader.of(checkpoint, device="cpu")
    (batch,) = reader.batches(cells, np.arange(len(cells)))
    add_attention(reader, batch, roles, HeadWeights(np.ones((3, 2), dtype=bool), None), sums)
    assert sums.sums().n.shape == (0, roles.shape[1])


def test_tokens_of_cells_are_told_apart(read):
    cells, checkpoint = read
    (batch,) = Reader.of(checkpoint, device="cpu").batches(cells, np.arange(len(cells)))
    starts = Cells(batch.lengths).starts
    for number, (tokens, row) in enumerate(zip(gene_tokens(batch, CPU), batch.rows, strict=True)):
        ids = batch.input_ids_T[tokens.genes_G].numpy()
        np.testing.assert_array_equal(ids, cells[row][cells.vocabulary.genes_of(cells[row]) >= 0])
        assert len(tokens.specials) == 2 * cells.vocabulary.has_cls
        assert starts[number] <= int(tokens.genes_G.min()) <= int(tokens.genes_G.max()) < starts[number + 1]
