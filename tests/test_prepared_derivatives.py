"""A prepared network backwards against autograd through the stock layers."""

import dataclasses

import numpy as np
import pytest
import torch

import geneformer_repro.prepared_derivatives as module
from geneformer_repro.encoder import run_gated, unpad
from geneformer_repro.prepared import Prepared
from geneformer_repro.prepared_derivatives import Derivable
from geneformer_repro.reading import Reader

LENGTHS = (70, 70, 9, 33)
"""Two cells go together, and of seventy queries more than one block."""


def slopes(way, ids):
    """Hidden states, and how a sum of their squares over a pattern changes."""
    presence = torch.ones(len(ids), requires_grad=True)
    hidden_TD, embedded_TD = way(ids, presence)
    pattern_TD = torch.randn(hidden_TD.shape, generator=torch.Generator().manual_seed(1))
    total = (hidden_TD.float() * pattern_TD).square().sum()
    by_presence, by_embedded_TD = torch.autograd.grad(total, [presence, embedded_TD])
    return hidden_TD.detach().float(), by_presence, by_embedded_TD.float()


@pytest.fixture
def ids(cells):
    return torch.from_numpy(np.random.default_rng(0).choice(cells[0], sum(LENGTHS)).astype(np.int64))


def both(bert, ids, dtype=torch.float32):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = slopes(lambda ids, presence: run_gated(bert, ids, LENGTHS, presence, n_blocks=2), ids)
    with torch.inference_mode():
        derivable = Derivable(Prepared(bert, 2, dtype))
    return slopes(lambda ids, presence: derivable(ids, LENGTHS, presence), ids), expected


@pytest.mark.parametrize(("scores", "kept"), [(2**21, 2**27), (2**12, 2**27), (2**12, 0)], ids=["", "cut", "made anew"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_slopes_are_those_of_autograd(checkpoint, ids, monkeypatch, activation, scores, kept):
    """However many queries go at a time, and whether their weights are kept."""
    monkeypatch.setattr(module, "SCORES", scores)
    monkeypatch.setattr(module, "_KEPT", kept)
    config = checkpoint.model.config
    config.hidden_act = activation
    torch.manual_seed(0)
    bert = type(checkpoint.model)(config).eval().bert
    unpad(bert)
    for found, expected in zip(*both(bert, ids), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_in_bfloat16_they_are_nearly_those_of_float32(checkpoint, ids):
    """Scores are rounded too, which autograd's kernel does not do: where few keys stand out, 3 times as far off."""
    bert = checkpoint.model.eval().bert
    _, exact = both(bert, ids)
    found, stock = both(bert, ids, torch.bfloat16)
    for one, other, exactly in zip(found, stock, exact, strict=True):
        assert (one - exactly).norm() < 4 * (other - exactly).norm() < 0.2 * exactly.norm()


def test_a_network_that_is_not_plain_goes_through_autograd(checkpoint):
    reader = Reader.of(checkpoint, device="cpu")
    assert isinstance(reader._derivable, Derivable)
    checkpoint.model.bert.encoder.layer[0].output.dense.__class__ = type("Adapted", (torch.nn.Linear,), {})
    assert dataclasses.replace(reader)._derivable is None
