"""Heads of a model: what genes get is what the matrix of attention says, and tables have nulls and controls."""

import logging
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from forking import forked, several, status_of
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro import processes
from geneformer_repro.attention import Attention
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks import head_sums, heads
from geneformer_repro.in_silico.networks.heads import head_statistics
from geneformer_repro.in_silico.networks.lifts import GeneTokens

TFS = ["SPI1", "IRF8", "ID2", "FOS", "JUNB", "KLF6", "KLF3"]


@pytest.fixture(scope="module")
def some(cells: gf.TokenizedDataset) -> gf.TokenizedDataset:
    return cells.select(range(60))


@pytest.fixture
def table(checkpoint: gf.Checkpoint, some: gf.TokenizedDataset) -> pd.DataFrame:
    return head_statistics(checkpoint, some, TFS, donor="donor", n_permutations=99)


def _log_lifts(checkpoint: gf.Checkpoint, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Genes of a cell, and log lifts of layers × heads × queries × keys among them, from stock eager attention."""
    stock = BertModel(checkpoint.token_model.config, add_pooling_layer=False)
    stock.load_state_dict(checkpoint.token_model.bert.state_dict())
    stock.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = stock.eval()(torch.from_numpy(cell[None].astype(np.int64)), output_attentions=True).attentions
    genes = checkpoint.vocabulary.genes_of(cell)
    among = torch.cat(attentions)[:, :, genes >= 0][..., genes >= 0].double()
    return genes[genes >= 0], torch.log2(among / among.sum(-1, keepdim=True) * among.shape[-1]).numpy()


def test_what_genes_get_is_the_mean_over_queries_of_stock_attention(
    checkpoint: gf.Checkpoint, some: gf.TokenizedDataset
) -> None:
    labels, total, n = some.labels("donor").to_numpy(), {}, {}
    for row in range(20):
        genes, lifts = _log_lifts(checkpoint, some[row])
        off = lifts.sum(2) - np.diagonal(lifts, axis1=2, axis2=3)
        of_cell = off.reshape(6, -1).T / (len(genes) - 1)
        for gene, got in zip(genes, of_cell, strict=True):
            total.setdefault(gene, {}).setdefault(labels[row], []).append(got)
            n[gene] = n.get(gene, 0) + 1
    expected = {
        gene: np.mean([np.mean(of, axis=0) for of in donors.values()], axis=0) for gene, donors in total.items()
    }
    reader, codes = heads.Reader.of(checkpoint), pd.factorize(labels[:20])[0]
    shape = head_sums.HeadShape(codes.max() + 1, len(some.vocabulary), int(some.lengths.max()), 3, 2)
    sums = head_sums.HeadSums(shape, pooled=False)
    found = sums.read(reader, some, np.arange(20), codes, show=lambda _: None).result()
    for gene, got in expected.items():
        np.testing.assert_allclose(found.of_gene[gene], got, atol=2e-5)
        assert found.n_cells[gene] == n[gene]
    assert np.isnan(found.of_gene[found.n_cells == 0]).all()


def test_a_mean_over_queries_is_that_of_the_matrix() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(30, 2, 8), torch.randn(30, 2, 8)
    score_HQK = (query.transpose(0, 1) @ key.permute(1, 2, 0)) / 8**0.5
    attention = Attention(query, key, key, score_HQK.logsumexp(-1).T, None)  # type: ignore[arg-type]
    lifts = head_sums.log_lifts(attention, GeneTokens(torch.arange(1, 29), torch.tensor([0, 29])))
    dense = lifts.dense()
    dense[:, torch.arange(28), torch.arange(28)] = torch.nan
    torch.testing.assert_close(head_sums.mean_over_queries(lifts).T, dense.nanmean(1), rtol=0, atol=1e-5)


def test_a_table_has_a_null_a_control_and_its_donors(table: pd.DataFrame) -> None:
    assert table[["layer", "head"]].to_numpy().tolist() == [[layer, head] for layer in range(3) for head in range(2)]
    assert {"p_value", "fdr", "difference_unmatched", "random_difference", "random_z", "random_fdr"} <= set(table)
    assert set(table["n_donors"]) == {3}
    assert set(table["n_cells"]) == {60}
    assert table["p_value"].between(0.01, 1).all()
    assert {"share", "null_share", "share_p_value", "trend", "trend_p_value", "random_share"} <= set(table.attrs)


def test_the_same_call_gives_the_same_numbers(
    table: pd.DataFrame, checkpoint: gf.Checkpoint, some: gf.TokenizedDataset
) -> None:
    state = torch.random.get_rng_state()
    again = head_statistics(checkpoint, some, TFS, donor="donor", n_permutations=99)
    pd.testing.assert_frame_equal(table, again)
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_weights_are_not_those_that_a_training_of_the_same_seed_begins_with(table: pd.DataFrame) -> None:
    """The checkpoint of these tests has the weights of seed 0."""
    assert not np.isclose(table["difference"], table["random_difference"]).any()


def test_batches_do_not_matter(table: pd.DataFrame, checkpoint: gf.Checkpoint, some: gf.TokenizedDataset) -> None:
    again = head_statistics(checkpoint, some, TFS, donor="donor", n_permutations=99, max_tokens=400)
    np.testing.assert_allclose(table["difference"], again["difference"], atol=1e-5)


def test_the_profile_has_a_number_for_each_bin_of_place(table: pd.DataFrame, some: gf.TokenizedDataset) -> None:
    profile = np.array(table.attrs["place_profile"], dtype=float)
    longest = int(some.lengths.max()) - 2
    assert profile.shape == (6, int(np.sqrt(longest - 1)) + 1)
    assert np.isfinite(profile).all()


def test_the_published_test_stands_with_its_warning(
    checkpoint: gf.Checkpoint, some: gf.TokenizedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table = head_statistics(checkpoint, some, TFS, method="published", min_cells=1)
    assert "takes tokens for independent" in caplog.text
    assert "takes tokens for independent" in table.attrs["warning"]
    assert set(table["n_tokens"]) == {int((some.lengths - 2).sum())}
    assert {"random_difference", "random_fdr", "n_donors"} <= set(table)


def test_too_many_pooled_tokens_are_refused_before_the_work(
    checkpoint: gf.Checkpoint, some: gf.TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MOST_POOLED", 1_000)
    with pytest.raises(InputError, match=r"Read fewer: max_cells=\d+"):
        head_statistics(checkpoint, some, TFS, method="published")


def test_a_file_of_names_with_unknown_ones_is_read_and_says_so(
    checkpoint: gf.Checkpoint, some: gf.TokenizedDataset, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tfs.txt"
    path.write_text("# factors\n" + "\n".join([*TFS, "NOTAGENE"]) + "\n")
    with caplog.at_level(logging.WARNING):
        table = head_statistics(checkpoint, some, path, random_weights=False, n_permutations=19)
    assert "1 of 8 genes are not in the vocabulary" in caplog.text
    assert not [name for name in table if name.startswith("random")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"genes": ["NOTAGENE"]}, "there is none", id="no_known_gene"),
        pytest.param({"min_cells": 61}, "is in 61 cells", id="too_few_cells"),
        pytest.param({"min_cells": 0}, "min_cells must be at least 1, found 0", id="min_cells"),
        pytest.param({"max_cells": 0}, "max_cells must be at least 1, found 0", id="max_cells"),
        pytest.param({"n_permutations": 1}, "n_permutations must be at least 19, found 1", id="permutations"),
        pytest.param({"method": "wilcoxon"}, "method must be one of 'matched', 'published'", id="method"),
        pytest.param({"donor": "patient"}, "patient", id="donor"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict, message: str, checkpoint: gf.Checkpoint, some: gf.TokenizedDataset
) -> None:
    with pytest.raises(InputError, match=message):
        head_statistics(checkpoint, some, **({"genes": TFS} | options))


# Cut off, and shared


@pytest.fixture
def asked(checkpoint: gf.Checkpoint, some: gf.TokenizedDataset, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Ask in parts of twenty cells: three of the model, three of random weights."""
    monkeypatch.setattr(heads, "CELLS_A_PART", 20)
    default = {"donor": "donor", "n_permutations": 99, "device": "cpu"}

    def asking(name: str | None, **options) -> pd.DataFrame:
        out = None if name is None else tmp_path / name
        with processes.one_thread():
            return head_statistics(checkpoint, some, TFS, out=out, **default | options)

    return asking


@pytest.mark.parametrize("method", ["matched", "published"])
def test_a_table_that_was_killed_goes_on_and_ends_with_the_same_bytes(asked, tmp_path, method) -> None:
    expected, read = asked("whole.tsv", method=method), []

    def killed() -> None:
        of_part = heads._Reading._sums

        def watched(self, i, show):
            if len(read) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            read.append(i)
            return of_part(self, i, show)

        heads._Reading._sums = watched
        asked("table.tsv", method=method)

    assert status_of(forked(killed, tmp_path / "log")) == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "table.tsv.partial").glob("part-*.safetensors")]
    assert sorted(left) == [f"part-{i:06d}.safetensors" for i in range(4)]
    again = asked("table.tsv", method=method)
    assert (tmp_path / "table.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert not (tmp_path / "table.tsv.partial").exists()
    for table in (expected, again):
        pd.testing.assert_frame_equal(asked(None, method=method), table)
        assert table.attrs["method"] == method


def test_two_processes_write_what_one_does(asked, tmp_path) -> None:
    several(lambda rank: _require_attrs(asked("two.tsv")), tmp_path)
    asked("one.tsv")
    assert (tmp_path / "two.tsv").read_bytes() == (tmp_path / "one.tsv").read_bytes()


def _require_attrs(table: pd.DataFrame) -> None:
    assert "null_share" in table.attrs


def test_several_processes_need_a_file_to_share(asked, tmp_path) -> None:
    said = several(lambda rank: asked(None), tmp_path, expected=None)
    assert "Several processes share heads through its file; give out= (--out)." in said[0]


def test_other_settings_do_not_go_on_with_unfinished_work(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_beside", _fails)
    with pytest.raises(KeyboardInterrupt):
        asked("table.tsv")
    with pytest.raises(FileExistsError, match="n_permutations"):
        asked("table.tsv", n_permutations=50)


def _fails(*_) -> None:
    raise KeyboardInterrupt


def test_how_long_it_takes_is_said_before(asked, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        asked(None)
    assert "60 cells are read with two networks, the other of random weights; about" in caplog.text
