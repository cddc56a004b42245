import numpy as np
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.attention import Cells, attend
from geneformer_repro.encoder import run_encoder
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.left_out import Cell
from geneformer_repro.prepared import LeftOut, Prepared, attended, can_be_prepared
from geneformer_repro.reading import Reader
from geneformer_repro.targets import Classes

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def variants_of(tokens: np.ndarray, places: np.ndarray, *, moves_up: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and positions of variants that each lack one token, end to end."""
    kept = [np.delete(np.arange(len(tokens)), place) for place in places]
    positions = [np.arange(len(tokens) - 1) if moves_up else one for one in kept]
    return torch.from_numpy(tokens[np.concatenate(kept)].astype(np.int64)), torch.from_numpy(np.concatenate(positions))


@pytest.mark.parametrize("moves_up", [True, False], ids=["deleted", "hidden"])
@pytest.mark.parametrize("places", [[0], [5, 2, 5, 150, 64, 2], list(range(60, 70)), [149]], ids=str)
def test_cells_without_one_token_have_the_states_of_each_by_itself(checkpoint, cells, places, moves_up):
    """Over stretches of keys, at both ends, in any order, and beside cells of which nothing is known."""
    tokens, other, places = cells[int(np.argmax(cells.lengths))][:151], cells[3], np.array(places)
    bert = checkpoint.model.eval().bert
    ids_T, positions_T = variants_of(tokens, places, moves_up=moves_up)
    beside = torch.from_numpy(other.astype(np.int64)), torch.arange(len(other))
    ids_T, positions_T = torch.cat([beside[0], ids_T, beside[0]]), torch.cat([beside[1], positions_T, beside[1]])
    lengths = [len(other), *[len(tokens) - 1] * len(places), len(other)]
    known = [LeftOut(1, Cell(tokens, moves_up=moves_up), places)]
    with torch.inference_mode():
        prepared = Prepared(bert, 2, torch.float32)
        found = prepared(ids_T, lengths, positions_T=positions_T, alike=True, left_out=known)
        expected = run_encoder(bert, ids_T, lengths, positions_T=positions_T, n_blocks=2)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_key_that_outweighs_all_others_leaves_them_their_weights():
    """Sums of weights are added, never subtracted: e⁻⁶⁰ beside 1 is gone from a difference."""
    rng = np.random.default_rng(0)
    query_RHE, key_RHE, value_RHE = (torch.from_numpy(rng.normal(size=(6, 1, 8)).astype(np.float32)) for _ in range(3))
    query_RHE[..., 0], key_RHE[:, :, 0] = 1, 0
    key_RHE[2, :, 0] = 60
    cell = Cell(np.arange(6), moves_up=False)
    found = cell.contexts(np.array([2]), lambda _: (query_RHE, key_RHE, value_RHE))
    left = [0, 1, 3, 4, 5]
    scores_QK = torch.einsum("qhe,khe->qk", query_RHE[left], key_RHE[left])
    expected = scores_QK.softmax(1) @ value_RHE[left, 0]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_prepared_network_reads_as_the_stock_layers_do(checkpoint, cells, first_only):
    some = cells.select([600, 3, 44])
    ids_T = torch.from_numpy(np.concatenate([some[i] for i in range(3)]).astype(np.int64))
    lengths = some.lengths.tolist()
    reader = Reader.of(checkpoint, layer=0, device="cpu")
    found = reader.hidden(ids_T, lengths, first_only=first_only)
    with torch.inference_mode():
        expected = run_encoder(reader.bert, ids_T, lengths)
    if first_only:
        expected = expected[Cells(lengths).starts[:-1]]
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("lengths", [[7, 7, 7], [5, 9, 9], [2500]], ids=str)
def test_attention_by_products_is_that_of_the_kernel(lengths):
    """In bfloat16, where a few queries of a long cell go at a time; to what rounding leaves."""
    torch.manual_seed(0)
    cells, shape = Cells(lengths), (sum(lengths), 2, 16)
    query_THE, key_THE, value_THE = (torch.randn(shape).bfloat16() for _ in range(3))
    found = attended(query_THE / 4, key_THE, value_THE, cells, cells)
    expected = attend(query_THE.float(), key_THE.float(), value_THE.float(), queries=cells, keys=cells)
    np.testing.assert_allclose(found.float(), expected, atol=0.02)
    first = Cells([1, *[0] * (len(lengths) - 1)])
    one = attended(query_THE[:1] / 4, key_THE, value_THE, first, cells)
    np.testing.assert_allclose(one.float(), expected[:1], atol=0.02)


def test_layers_that_are_not_plain_are_called_as_they_are(checkpoint, cells):
    """An adapter around a layer must be heard."""

    class Adapted(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    torch.manual_seed(0)
    model = CellClassifier(checkpoint.model.config, Head((Classes("kind", ("a", "b")),))).eval()
    assert can_be_prepared(model.bert, CPU, torch.float32)
    plain = Reader.of(gf.Checkpoint(model, cells.vocabulary), device="cpu")
    ids_T, lengths = torch.from_numpy(cells[3].astype(np.int64)), [len(cells[3])]
    without = plain.hidden(ids_T, lengths)
    model.bert.encoder.layer[0].output.dense.__class__ = Adapted
    assert not can_be_prepared(model.bert, CPU, torch.float32)
    adapted = Reader.of(gf.Checkpoint(model, cells.vocabulary), device="cpu").hidden(ids_T, lengths)
    assert (adapted - without).abs().max() > 1e-3
