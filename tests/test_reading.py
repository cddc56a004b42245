import copy

import numpy as np
import pytest
import torch
from forking import forked, several, status_of
from padding import padded
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro import processes
from geneformer_repro.attention import Attention, Cells, attend
from geneformer_repro.encoder import run_encoder, run_gated
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head
from geneformer_repro.reading import (
    Reader,
    batches_of,
    evaluating,
    logits_at_tokens,
    outputs_of,
    sum_over_batches,
)
from geneformer_repro.targets import Classes

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TYPES = Head((Classes("cell_type", ("B", "Monocyte", "T")),))
GENES = Head((Classes("dosage", ("sensitive", "other")),), level="gene")


@pytest.fixture(scope="module")
def few(cells: gf.TokenizedDataset) -> gf.TokenizedDataset:
    """Nine cells, not in the order of their lengths."""
    return cells.select([600, 3, 44, 500, 7, 8, 91, 10, 411])


@pytest.fixture
def reader(checkpoint: gf.Checkpoint) -> Reader:
    return Reader.of(checkpoint, max_tokens=700, device="cpu")


@pytest.fixture
def eager(checkpoint: gf.Checkpoint) -> BertModel:
    """Stock BERT with the same weights, which writes out every attention matrix."""
    config = copy.deepcopy(checkpoint.model.config)
    config._attn_implementation = "eager"
    bert = BertModel(config, add_pooling_layer=False).eval()
    bert.load_state_dict(checkpoint.model.bert.state_dict())
    return bert


def whole(cells: gf.TokenizedDataset) -> tuple[torch.Tensor, list[int]]:
    """Tokens of all cells, end to end, and of each."""
    return torch.from_numpy(np.concatenate([cells[i] for i in range(len(cells))]).astype(np.int64)), [
        len(cells[i]) for i in range(len(cells))
    ]


class TestBatches:
    @pytest.mark.parametrize("max_tokens", [1, 700, 10**6])
    def test_every_cell_is_in_one_and_has_its_tokens(self, few, max_tokens):
        rows = np.array([8, 2, 5, 1])
        seen = []
        for batch in batches_of(few, rows, max_tokens):
            for row, tokens in zip(batch.rows, batch.input_ids_T.split(batch.lengths), strict=True):
                np.testing.assert_array_equal(tokens, few[rows[row]])
            seen += batch.rows.tolist()
        assert sorted(seen) == [0, 1, 2, 3]


class TestHidden:
    @pytest.mark.parametrize("alike", [False, True])
    @pytest.mark.parametrize("first_only", [False, True])
    def test_states_are_those_of_stock_bert(self, reader, eager, few, first_only, alike):
        ids, lengths = whole(few)
        found = reader.hidden(ids, lengths, first_only=first_only, alike=alike)
        inputs = padded([few[i] for i in range(len(few))], few.vocabulary)
        with torch.no_grad():
            expected = eager(**inputs).last_hidden_state
        real = inputs["attention_mask"].bool()
        np.testing.assert_allclose(found, expected[:, 0] if first_only else expected[real], **CLOSE)

    def test_bfloat16_is_asked_for_by_name_and_returned_as_float32(self, checkpoint, few):
        ids, lengths = whole(few)
        exact = Reader.of(checkpoint, device="cpu").hidden(ids, lengths)
        rough = Reader.of(checkpoint, dtype="bfloat16", device="cpu").hidden(ids, lengths)
        assert rough.dtype == torch.float32
        assert 0 < (rough - exact).abs().max() < 0.1

    def test_what_is_no_dtype_is_refused(self, checkpoint):
        with pytest.raises(gf.InputError, match="dtype must be one of 'float32', 'bfloat16', found 'float16'"):
            Reader.of(checkpoint, dtype="float16")


class TestObserver:
    """What networks will be read from: attention without L × L."""

    @pytest.fixture
    def seen(self, reader, few) -> list[Attention]:
        shown = []
        reader.hidden(*whole(few), watch=lambda layer, attention: shown.append((layer, attention)))
        assert [layer for layer, _ in shown] == [0, 1, 2]
        return [attention for _, attention in shown]

    @pytest.fixture
    def matrices(self, eager, few) -> list[list[torch.Tensor]]:
        """By block and cell (heads, L, L), of eager stock attention."""
        with torch.no_grad():
            of_cells = [
                eager(torch.from_numpy(few[i].astype(np.int64))[None], output_attentions=True).attentions
                for i in range(len(few))
            ]
        return [[of_cell[block][0] for of_cell in of_cells] for block in range(3)]

    def test_weights_are_those_of_eager_stock_attention(self, seen, matrices, few):
        for attention, of_cells in zip(seen, matrices, strict=True):
            for cell, expected in enumerate(of_cells):
                for rows, log_weights in attention.log_weights(cell, at_once=50):
                    np.testing.assert_allclose(log_weights.exp(), expected[:, rows], **CLOSE)

    def test_blocks_cover_every_query_once(self, seen, few):
        rows = [rows for rows, _ in seen[0].log_weights(4, at_once=50)]
        assert [row.start for row in rows] == list(range(0, len(few[4]), 50))
        assert rows[-1].stop == len(few[4])

    def test_columns_of_chosen_keys_are_those_of_all(self, seen):
        keys = torch.tensor([3, 0, 17])
        for (_, every), (_, chosen) in zip(seen[1].log_weights(2), seen[1].log_weights(2, keys), strict=True):
            np.testing.assert_allclose(chosen, every[:, :, keys], rtol=1e-6, atol=1e-6)

    def test_sums_are_those_of_the_scores_as_devices_compute_whose_kernel_does_not_tell_them(self, seen):
        first = seen[0]
        sums = [scores.logsumexp(-1).T for cell in range(len(first.cells)) for scores in self.scores_of(first, cell)]
        np.testing.assert_allclose(torch.cat(sums), first.log_sum_TH, **CLOSE)

    @staticmethod
    def scores_of(attention, cell):
        unsummed = attention._replace(log_sum_TH=torch.zeros_like(attention.log_sum_TH))
        return (scores for _, scores in unsummed.log_weights(cell))

    def test_states_are_the_same_with_and_without_one(self, reader, few):
        watched = reader.hidden(*whole(few), watch=lambda *_: None)
        np.testing.assert_allclose(watched, reader.hidden(*whole(few)), **CLOSE)

    def test_where_nothing_else_is_wanted_it_sees_the_same_in_single_precision(self, seen, checkpoint, few):
        again, reader = [], Reader.of(checkpoint, device="cpu", max_tokens=10**6)
        (batch,) = reader.batches(few, np.arange(len(few)))
        reader.watch(
            batch._replace(input_ids_T=whole(few)[0], lengths=tuple(whole(few)[1])), lambda *one: again.append(one)
        )
        assert [layer for layer, _ in again] == [0, 1, 2]
        for (_, one), other in zip(again, seen, strict=True):
            for name in ("query_THE", "key_THE", "value_THE", "log_sum_TH"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        halved, products = Reader.of(checkpoint, device="cpu", dtype="bfloat16"), []
        halved.watch(batch, lambda _, attention: products.append((attention.query_THE.float() @ torch.ones(32)).dtype))
        assert set(products) == {torch.float32}

    def test_context_is_made_of_the_weights_and_values_it_shows(self, seen):
        shown = seen[2]
        context = attend(shown.query_THE, shown.key_THE, shown.value_THE, queries=shown.cells, keys=shown.cells)
        start, stop = shown.cells.starts[5:7]
        for rows, log_weights in shown.log_weights(5):
            of_weights = (log_weights.exp() @ shown.value_THE[start:stop].transpose(0, 1)).transpose(0, 1)
            np.testing.assert_allclose(context[start:stop][rows], of_weights, **CLOSE)

    def test_slopes_by_values_are_the_attention_times_its_slope(self, checkpoint, eager, few):
        """sum_i A_ij dF/dA_ij = v_j . dF/dv_j, head by head: one backward pass in place of a matrix."""
        cell, values = torch.from_numpy(few[1].astype(np.int64)), []
        with torch.enable_grad():
            hidden = run_encoder(
                checkpoint.model.bert, cell, [len(cell)], watch=lambda _, attention: values.append(attention.value_THE)
            )
            slopes = torch.autograd.grad(hidden[0, :9].sum(), values)
            output = eager(cell[None], output_attentions=True)
            by_weights = torch.autograd.grad(output.last_hidden_state[0, 0, :9].sum(), output.attentions)
        for value, slope, weights, by_weight in zip(values, slopes, output.attentions, by_weights, strict=True):
            expected = (weights[0] * by_weight[0]).sum(1).T
            np.testing.assert_allclose((value * slope).sum(-1).detach(), expected.detach(), rtol=1e-4, atol=1e-5)


class TestDerivatives:
    def test_they_are_those_of_the_gated_network(self, reader, checkpoint, few):
        ids, lengths = whole(few.select([0, 1]))

        def score(hidden, presence, cells):
            firsts = hidden[torch.tensor(cells.starts[:-1])]
            return firsts[:, :2] * presence[torch.tensor(cells.starts[1:]) - 1][:, None]

        found = reader.derivatives(ids, lengths, score)
        presence = torch.ones(len(ids), requires_grad=True)
        hidden, embedded = run_gated(checkpoint.model.bert, ids, lengths, presence)
        expected = score(hidden, presence, Cells(lengths))
        for state in range(2):
            slopes = torch.autograd.grad(expected[:, state].sum(), [presence, embedded], retain_graph=True)
            np.testing.assert_allclose(found.by_presence_ST[state], slopes[0], **CLOSE)
            np.testing.assert_allclose(found.by_embedded_STD[state], slopes[1], **CLOSE)

    def test_where_scores_sum_to_one_the_last_follows_from_the_others(self, reader, few):
        ids, lengths = whole(few.select([0, 1]))

        def score(hidden, presence, cells):
            return hidden[torch.tensor(cells.starts[:-1])][:, :3].softmax(-1)

        by_rule = reader.derivatives(ids, lengths, score, sum_to_one=True)
        by_each = reader.derivatives(ids, lengths, score)
        for found, expected in zip(by_rule, by_each, strict=True):
            np.testing.assert_allclose(found, expected, **CLOSE)

    def test_parameters_are_left_without_gradients(self, reader, checkpoint, few):
        reader.derivatives(*whole(few.select([0])), lambda hidden, presence, cells: hidden[:1, :1])
        assert all(parameter.grad is None for parameter in checkpoint.model.parameters())


class TestNetworks:
    @pytest.fixture
    def classifier(self, checkpoint) -> CellClassifier:
        return CellClassifier(checkpoint.model.config, TYPES).train()

    def test_outputs_come_in_the_order_of_the_cells(self, classifier, few):
        found = outputs_of(classifier, few, TYPES, max_tokens=700)
        with evaluating(classifier):
            for i in range(len(few)):
                (batch,) = batches_of(few, np.array([i]), 700)
                np.testing.assert_allclose(found[i], classifier(**batch.inputs).logits[0], **CLOSE)

    def test_a_network_goes_on_as_it_was(self, classifier, few):
        outputs_of(classifier, few, TYPES)
        assert classifier.training
        assert torch.is_grad_enabled()

    def test_after_an_error_too(self, classifier, few):
        def stop(output, batch):
            assert not classifier.training
            raise RuntimeError("stop")

        batches = [batch.inputs for batch in batches_of(few, np.arange(3), 700)]
        with pytest.raises(RuntimeError, match="stop"):
            sum_over_batches(classifier, batches, stop)
        assert classifier.training

    def test_tokens_that_are_not_asked_about_are_left_out(self, checkpoint, few):
        model = GeneClassifier(checkpoint.model.config, GENES)
        number = np.full(few.vocabulary.size, -100)
        number[few[0][1:4]] = [7, 8, 9]
        found = list(logits_at_tokens(model, few, number, max_tokens=700))
        counted = torch.cat([numbers for numbers, _ in found]).bincount(minlength=10)
        every = np.concatenate([few[i] for i in range(len(few))])
        assert counted[7:].tolist() == [int((every == token).sum()) for token in few[0][1:4]]
        assert all(len(numbers) == len(logits) for numbers, logits in found)

    def test_processes_share_what_they_are_asked_together(self, classifier, few, tmp_path):
        """Each computes its own batches, and has the outputs and sums of all."""
        alone = outputs_of(classifier, few, TYPES, max_tokens=600)
        batches = [batch.inputs for batch in batches_of(few, np.arange(len(few)), 600)]
        total = sum_over_batches(classifier, batches, lambda output, _: output.logits.double().sum(0))
        np.testing.assert_allclose(total, alone.double().sum(0), **CLOSE)
        assert len(batches) % 2 == 1, "so that one process has none in the last round"

        def together(rank: int) -> None:
            processes.join()
            calls = []
            classifier.bert.register_forward_pre_hook(lambda *_: calls.append(1))
            classifier.bert.embeddings.register_forward_pre_hook(lambda *_: calls.append(1))
            shared = outputs_of(classifier, few, TYPES, max_tokens=600, shared=True)
            summed = sum_over_batches(classifier, batches, lambda output, _: output.logits.double().sum(0))
            assert len(calls) == 2 * ((len(batches) + 1) // 2)
            torch.save({"shared": shared, "summed": summed}, tmp_path / f"{rank}.pt")

        several(together, tmp_path)
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}.pt")
            np.testing.assert_allclose(found["shared"], alone, **CLOSE)
            np.testing.assert_allclose(found["summed"], total, **CLOSE)


def test_sharded_weights_are_read_and_then_learn(checkpoint, few, tmp_path):
    def work() -> None:
        distributed.init_process_group("gloo", init_method=(tmp_path / "meeting").as_uri(), rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        model = CellClassifier(checkpoint.model.config, TYPES).train()
        expected = outputs_of(model, few, TYPES)
        for block in model.bert.encoder.layer:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        np.testing.assert_allclose(outputs_of(model, few, TYPES), expected, **CLOSE)
        (batch,) = batches_of(few, np.arange(3), 10_000)
        model(**batch.inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
        assert model.classifier.weight.grad.full_tensor().any()
        distributed.destroy_process_group()

    assert status_of(forked(work, tmp_path / "log")) == 0, (tmp_path / "log").read_text()


def test_given_the_rows_of_its_tokens_a_cell_is_read_as_it_is(reader, few):
    input_ids_T, lengths = whole(few)
    rows_TD = reader.token_rows(input_ids_T)
    for first_only in (False, True):
        expected = reader.hidden(input_ids_T, lengths, first_only=first_only)
        found = reader.hidden(input_ids_T, lengths, rows_TD=rows_TD, first_only=first_only)
        np.testing.assert_array_equal(found, expected)


def test_slopes_by_row_are_those_of_finite_differences(reader, few):
    input_ids_T, lengths = whole(few.select([1, 2]))
    rows_TD, direction_TD = reader.token_rows(input_ids_T), torch.randn(len(input_ids_T), 64)

    def answer(hidden_CD):
        return hidden_CD[:, :2].double()

    value_CS, by_row_STD = reader.slopes_by_row(input_ids_T, lengths, answer, first_only=True)
    step = 1e-3
    above, below = (
        answer(reader.hidden(input_ids_T, lengths, rows_TD=rows_TD + sign * step * direction_TD, first_only=True))
        for sign in (1, -1)
    )
    np.testing.assert_allclose(value_CS, answer(reader.hidden(input_ids_T, lengths, first_only=True)), **CLOSE)
    along_S = (by_row_STD * direction_TD).sum((1, 2))
    np.testing.assert_allclose(along_S, ((above - below) / (2 * step)).sum(0), rtol=0.02, atol=0.02)


def test_nobody_else_switches_modes_or_budgets_tokens():
    """One evaluation forward of encoders: its words stand in `reading`, and where networks are made or trained."""
    from pathlib import Path

    package = Path(gf.__file__).parent
    bags = {"bags.py", "finetuning/problems/patients.py"}
    made = {"reading.py", "checkpoint.py", "finetuning/networks.py", "pretraining/pretrain.py"}
    made |= {"expression.py", "finetuning/expression_training.py", *bags}
    made |= {"pair_networks.py", "finetuning/problems/pairs.py"}
    made |= {f"in_silico/explanations/{name}.py" for name in ("sanity", "explained_samples", "pair_tokens")}
    made |= {f"in_silico/explanations/{name}.py" for name in ("again_values", "again_patients")}
    words = {
        "inference_mode": {"reading.py", "block_attention.py", *bags},
        "token_budget_batches(": {"reading.py", "batching.py"},
        ".eval()": made,
    }
    for word, places in words.items():
        found = {str(path.relative_to(package)) for path in package.rglob("*.py") if word in path.read_text()}
        assert found <= places, word
    assert issubclass(CellClassifier, nn.Module)
