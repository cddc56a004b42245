"""The masked-logit network: what it adds up is what single forwards say, whichever targets are hidden together."""

import logging
import re

import numpy as np
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico.networks import masked_logits as module
from geneformer_repro.targets import Classes

SOURCES = ["CD74", "LYZ", "SPI1", "IRF8"]
TARGETS = ["CD74", "TYROBP", "FTL", "HLA-DRA", "LYZ", "S100A9", "CST3"]


@pytest.fixture(scope="module")
def few(cells):
    """Eight cells that have several of the sources."""
    sources = cells.vocabulary.tokens[[cells.vocabulary.by_name[name] for name in SOURCES]]
    rows = [row for row in range(len(cells)) if np.isin(sources, cells[row]).sum() >= 2]
    return cells.select(rows[:8])


@pytest.fixture
def make(checkpoint, few, tmp_path):
    def made(name="net", cells=few, model=checkpoint, **options):
        default = {"sources": SOURCES, "targets": TARGETS, "min_cells": 1, "method": "masked_logit", "device": "cpu"}
        return gf.gene_network(model, cells, out=tmp_path / name, **default | options)

    return made


def log_probability(checkpoint, tokens, hidden, place):
    """Of the token at a place where some places are hidden: one cell, stock logits of every place."""
    shown = torch.from_numpy(tokens.astype(np.int64))
    shown[list(hidden)] = checkpoint.vocabulary.mask_token
    with torch.inference_mode():
        logits = checkpoint.model(shown, lengths=(len(shown),)).logits
    return float(logits[place].double().log_softmax(-1)[int(tokens[place])])


def slow_sums(checkpoint, cells, network, groups_of):
    """One forward a pair: the target and its group hidden, with and without the source."""
    total = np.zeros((len(network.sources), len(network.targets)))
    for row in range(len(cells)):
        tokens, vocabulary = cells[row], cells.vocabulary
        place = {gene: i for i, gene in enumerate(tokens.tolist())}
        sources = [place.get(int(token), -1) for token in vocabulary.tokens_of(network.sources)]
        targets = [place.get(int(token), -1) for token in vocabulary.tokens_of(network.targets)]
        for group in groups_of(row, [target for target in targets if target >= 0]):
            for i, source in enumerate(sources):
                for target in group if source >= 0 else ():
                    if source != target:
                        with_source, without = set(group) - {source}, set(group) | {source}
                        fall = log_probability(checkpoint, tokens, with_source, target)
                        fall -= log_probability(checkpoint, tokens, without, target)
                        total[i, targets.index(target)] += fall
    return total


def test_a_target_that_is_hidden_alone_has_the_fall_of_single_forwards(make, few, checkpoint, monkeypatch):
    monkeypatch.setattr(module, "HIDDEN_SHARE", 0.0)  # one target a group
    network = make()
    expected = slow_sums(checkpoint, few, network, lambda row, targets: [[target] for target in targets])
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(network.sums("all")[0], expected, atol=1e-5)


def test_targets_that_are_hidden_together_are_asked_with_the_others_hidden(make, few, checkpoint, monkeypatch):
    monkeypatch.setattr(module, "HIDDEN_SHARE", 0.015)
    groups, deal = {}, module.MaskedLogitSums._groups

    def watched(self, row, tokens, targets):
        return groups.setdefault(row, deal(self, row, tokens, targets))

    monkeypatch.setattr(module.MaskedLogitSums, "_groups", watched)
    network = make()
    assert any(len(of_cell) > 1 and len(of_cell[0]) > 1 for of_cell in groups.values())
    of_lists = {row: [group.tolist() for group in of_cell] for row, of_cell in groups.items()}
    expected = slow_sums(checkpoint, few, network, lambda row, targets: of_lists[row])
    np.testing.assert_allclose(network.sums("all")[0], expected, atol=1e-5)


def test_every_pair_of_a_cell_is_asked_once(make, few):
    network = make(sources=few.genes(0)[::40], targets=None, cells=few.select([0]))
    n_genes = len(few.genes(0))
    n = network.counts("all").to_numpy()
    assert n.shape == (len(few.genes(0)[::40]), n_genes)
    assert n.sum() == n.shape[0] * (n_genes - 1)
    assert n.max() == 1


def test_which_targets_are_hidden_together_does_not_depend_on_other_cells(make, few, monkeypatch):
    monkeypatch.setattr(module, "HIDDEN_SHARE", 0.015)
    first, last = make("first", cells=few.select([2, 5])), make("last", cells=few.select([5, 2]))
    np.testing.assert_allclose(first.sums("all")[0], last.sums("all")[0], atol=1e-6)
    other = make("other", cells=few.select([2, 5]), seed=1)
    assert not np.allclose(first.sums("all")[0], other.sums("all")[0], atol=1e-4)


def test_a_classifier_has_no_masked_logits(make, checkpoint):
    model = CellClassifier(checkpoint.model.config, Head((Classes("cell_type", ("B", "T")),)))
    with pytest.raises(InputError, match=r"masked_logit.*is a classifier.*pretrained model"):
        make(model=gf.Checkpoint(model.eval(), checkpoint.vocabulary, name="classifier"))
    with pytest.raises(InputError, match="layers= and heads= choose attention; with method='masked_logit'"):
        make(layers=[0])


@pytest.mark.parametrize("method", ["masked_logit", "deletion"])
def test_how_long_it_takes_is_said_before_the_work(make, caplog, method):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        network = make(method=method)
    assert re.search(r"about \d+ s here", caplog.text)
    assert network.metadata.get("hidden_at_once") == {"masked_logit": 0.15}.get(method)
