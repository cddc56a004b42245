"""A screen made slowly: stock BERT in float64, one cell at a time, every number by its definition."""

import copy
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro.in_silico.perturbation import Edits
from geneformer_repro.model import MaskedGeneModel, bert_config

KEYS = ["cell", "perturbed", "affected", "state", "dose", "rank"]


def cells_of(cells, genes, **obs):
    """Make a dataset of cells with these genes; columns of obs take the place of those of `cells`."""
    wrap = cells.vocabulary.special_tokens
    ends = (wrap["<cls>"], wrap["<eos>"]) if cells.vocabulary.has_cls else ()
    tokens = [[*ends[:1], *cells.vocabulary.tokens_of(one).tolist(), *ends[1:]] for one in genes]
    names = [f"cell{i}" for i in range(len(genes))]
    rows = {"cell": names, "source": "made", "input_ids": tokens, "length": [len(one) for one in tokens], **obs}
    table = type(cells.table).from_pandas(pd.DataFrame(rows), preserve_index=False)
    return gf.TokenizedDataset(table, cells.vocabulary, cells.spec)


def random_model(vocabulary, make=MaskedGeneModel, *given):
    """A tiny model with weights large enough to make cells differ."""
    shape = bert_config("tiny", vocabulary)
    shape.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gf.Checkpoint(make(shape, *given).eval(), vocabulary, name="checkpoint tiny")


class SlowScreen:
    """What a screen should find, of a plain encoder."""

    def __init__(self, checkpoint, *, layer=-1, pooling="mean", max_genes=10_000):
        self.checkpoint, self.layer, self.pooling, self.max_genes = checkpoint, layer, pooling, max_genes
        self.vocabulary = checkpoint.vocabulary
        self._known = {}

    @cached_property
    def bert(self):
        config = copy.deepcopy(self.checkpoint.model.config)
        config._attn_implementation = "eager"
        bert = BertModel(config, add_pooling_layer=False).double().eval()
        bert.load_state_dict(self.checkpoint.model.bert.state_dict())
        return bert

    def at(self, layer, pooling):
        """Return a screen that reads another layer, and shares what is known of cells."""
        other = SlowScreen(self.checkpoint, layer=layer, pooling=pooling, max_genes=self.max_genes)
        other._known, other.bert = self._known, self.bert
        return other

    def wrapped(self, genes):
        special = self.vocabulary.special_tokens
        return (special["<cls>"], *genes, special["<eos>"]) if self.vocabulary.has_cls else tuple(genes)

    def hidden(self, genes):
        """Vector of <cls>, if there is one, and of each gene."""
        tokens = self.wrapped(genes)
        if tokens not in self._known:
            with torch.inference_mode():
                self._known[tokens] = self.bert(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        every = self._known[tokens]
        hidden = every[len(every) - 1 + self.layer][0].numpy()
        return (hidden[0], hidden[1:-1]) if self.vocabulary.has_cls else (None, hidden)

    def vector(self, genes):
        first, of_genes = self.hidden(genes)
        return first if self.pooling == "cls" else of_genes.mean(0)

    def stayed(self, before, after, perturbed):
        """Of each gene that was not perturbed, how similar its vector is in both."""
        was, now = self.hidden(before)[1], self.hidden(after)[1]
        return {
            gene: cosine(was[before.index(gene)], now[after.index(gene)]) for gene in after if gene not in perturbed
        }

    def versions(self, cells, perturbation):
        """Cell name, the cell, the changed cell, what was perturbed, dose and rank; both cut off where too long."""
        edits = Edits(perturbation, self.vocabulary)
        for name, cell in zip(cells.cell_names, cells):
            genes = cell[self.vocabulary.genes_of(cell) >= 0].tolist()
            variants = edits.variants(cell)
            tokens = [*genes, *variants.inserted.tolist()]
            for row, perturbed in enumerate(variants.perturbed):
                after = [tokens[i] for i in variants.order(row, len(genes))]
                pushed_out = after[self.max_genes :]
                before = [gene for gene in genes if gene not in pushed_out]
                dose, rank = variants.dose_N[row], variants.rank_N[row]
                about = {"dose": dose, "rank": rank if rank >= 0 else None, "perturbed": self.names(perturbed)}
                yield {"cell": name, **about}, before, after[: self.max_genes], perturbed

    def names(self, tokens):
        return "+".join(self.vocabulary.gene_ids[i] for i in self.vocabulary.genes_of(np.array(tokens)))

    def rows(self, cells, perturbation, *, states=None, affected=None, score=None):
        """Every row: of the similarity, of the shift to each state's vector, or of the change of a score by state."""
        if states is not None:
            score = lambda genes: {s: cosine(self.vector(genes), vector) for s, vector in states.items()}  # noqa: E731
        for about, before, after, perturbed in self.versions(cells, perturbation):
            if score is not None:
                was, now = score(before), score(after)
                for state in was:
                    yield {**about, "state": state, "value": now[state] - was[state], "before": was[state]}
                continue
            stayed = self.stayed(before, after, perturbed)
            on_cls = self.pooling == "cls"
            whole = cosine(self.vector(before), self.vector(after)) if on_cls else np.mean(list(stayed.values()))
            yield {**about, "value": whole}
            for gene, value in stayed.items() if affected else ():
                if affected == "each" or self.names([gene]) in affected:
                    yield {**about, "affected": self.names([gene]), "value": value}

    def table(self, *given, **options):
        rows = pd.DataFrame(list(self.rows(*given, **options)))
        return rows.reindex(columns=[*KEYS, "value", "before"])


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def assert_same_rows(found, expected, atol=1e-6):
    """The same rows in the same order, values within rounding."""
    about = [name for name in KEYS if name in expected]
    assert found[about].astype(object).where(found[about].notna(), None).to_numpy().tolist() == (
        expected[about].astype(object).where(expected[about].notna(), None).to_numpy().tolist()
    )
    for number in ("value", "before"):
        np.testing.assert_allclose(
            found[number].to_numpy(float), expected[number].to_numpy(float), atol=atol, rtol=0, err_msg=number
        )
