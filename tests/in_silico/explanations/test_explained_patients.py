"""Why a network says what it says of a patient: exact over all cells, or along the slope of its output."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro.bags import BagNetwork, Bags, BagShape
from geneformer_repro.cli import main
from geneformer_repro.in_silico.explanations.explained_patients import ExplainedPatients, VectorOfCell
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_table import gene_table
from geneformer_repro.in_silico.explanations.path_integrals import Integration, integrate
from geneformer_repro.in_silico.explanations.patient_ways import PatientWay
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.reading import Reader
from geneformer_repro.targets import Classes, SurvivalTime

TARGETS = (
    Classes("arm", ("even", "odd")),
    SurvivalTime("event", time="time", times=(1.0, 5.0), horizon=5.0, learned_by="cox"),
)


@pytest.fixture(scope="module")
def few(cells):
    """The shortest cells, four of each donor."""
    order = np.argsort(cells.lengths, kind="stable")
    donors = cells.labels("donor").to_numpy()[order]
    chosen = np.concatenate([order[donors == donor][:4] for donor in sorted(set(donors))])
    return cells.select(np.sort(chosen))


def run_of(folder, checkpoint, pooling="attention", *, vectors=None):
    torch.manual_seed(0)
    types = ("B", "T") if pooling == "cell_type" else ()
    width = checkpoint.token_model.config.hidden_size
    shape = BagShape(pooling=pooling, n_inputs=width, hidden=8, attention=4, dropout=0.0, cell_types=types)
    network = BagNetwork(shape, TARGETS)
    with torch.no_grad():
        network.sd_D.fill_(0.1)
    folder.mkdir()
    network.write_into(folder)
    columns = {"patient": "donor", "vectors": vectors, "cell_type": None}
    record = {"config": columns, "inputs": {"checkpoint": checkpoint.fingerprint}}
    (folder / "provenance.json").write_text(json.dumps(record))
    return folder


def explained(run, checkpoint, cells, **asked):
    asked["methods"] = tuple(asked.get("methods", ["hide"]))
    return ExplainedPatients(Request(**{"target": "event", **asked}), checkpoint, cells, run)


def table_of(explained, part=None):
    metadata = explained.describe() | explained.prepare()
    part = np.arange(len(explained.costs())) if part is None else np.array(part)
    table = explained.table(part)
    return Explanation(table.to_pandas(), metadata | explained.further([table]))


def hidden_of(checkpoint, ids, positions):
    """Hidden states of the last block but one, of one cell by itself."""
    reader = Reader.of(checkpoint, layer=-1, device="cpu")
    ids_T, positions_T = (torch.from_numpy(of.astype(np.int64)) for of in (ids, positions))
    return reader.hidden(ids_T, [len(ids)], positions_T=positions_T).clone()


def outputs_without(run, checkpoint, cells, donor, gene, *, shift):
    """What the network says of a patient whose cells lack a gene: vectors of cells written down without it."""
    network, vocabulary = BagNetwork.open(run), cells.vocabulary
    token = vocabulary.tokens[vocabulary.gene_ids.index(gene)] if gene else -1
    rows = np.flatnonzero(cells.labels("donor").to_numpy() == donor)
    vectors = []
    for row in rows:
        ids = cells[int(row)]
        kept = np.flatnonzero(ids != token)
        positions = np.arange(len(kept)) if shift else kept
        hidden = hidden_of(checkpoint, ids[kept], positions)
        vectors.append(hidden[vocabulary.genes_of(ids[kept]) >= 0].mean(0))
    bags = Bags(torch.stack(vectors), np.array([len(rows)]), np.full(len(rows), -1))
    with torch.no_grad():
        return network(bags).outputs_PK[0]


def stock_encoder(checkpoint):
    bert = BertModel(checkpoint.token_model.config, add_pooling_layer=False).eval()
    bert.load_state_dict(checkpoint.token_model.bert.state_dict())
    return bert


@pytest.mark.parametrize(("method", "shift"), [("hide", False), ("delete", True)])
def test_a_gene_is_gone_from_all_cells_of_the_patient_as_a_slow_loop_says(tmp_path, checkpoint, few, method, shift):
    run = run_of(tmp_path / "run", checkpoint)
    why = table_of(explained(run, checkpoint, few, methods=[method])).table
    donor = few.labels("donor").iloc[0]
    of_patient = why[why["cell"] == donor]
    before = outputs_without(run, checkpoint, few, donor, None, shift=shift)[2].item()
    np.testing.assert_allclose(of_patient["before"], before, atol=1e-5)
    for gene in of_patient.sort_values("n_expressing")["gene"].iloc[[0, len(of_patient) // 2, -1]]:
        expected = before - outputs_without(run, checkpoint, few, donor, gene, shift=shift)[2].item()
        found = of_patient.set_index("gene").loc[gene]
        np.testing.assert_allclose(found["value"], expected, atol=1e-5)
        token = few.vocabulary.tokens[few.vocabulary.gene_ids.index(gene)]
        rows = np.flatnonzero(few.labels("donor").to_numpy() == donor)
        assert found["n_expressing"] == sum(token in few[int(row)] for row in rows)
    assert set(why["donor"]) == set(few.labels("donor"))


def test_slopes_are_what_small_changes_of_vectors_make(tmp_path, checkpoint, few):
    of = explained(run_of(tmp_path / "run", checkpoint), checkpoint, few, target="arm", state="odd")
    patient = of.patient(0)
    slope_NDS = of.slopes(patient)
    for cell, number in ((0, 0), (3, 5)):
        values = []
        for sign in (1, -1):
            moved = patient.vector_ND.clone()
            moved[cell, number] += sign * 1e-2
            values.append(of.values(patient, moved[None])[0, 0])
        np.testing.assert_allclose(slope_NDS[cell, number, 0], (values[0] - values[1]) / 2e-2, rtol=0.02, atol=1e-4)


def test_integrated_gradients_of_a_patient_add_up_to_what_all_genes_make(tmp_path, checkpoint, few):
    """With weights of cells that change along the way and a hidden layer, which one step along the slope misses."""
    run = run_of(tmp_path / "run", checkpoint)
    why = table_of(explained(run, checkpoint, few, methods=["integrated_gradients"]), [0])
    assert why.metadata["completeness"]["n_failed"] == 0
    vocabulary, donor = few.vocabulary, few.labels("donor").iloc[0]
    rows = np.flatnonzero(few.labels("donor").to_numpy() == donor)
    vectors = []
    for row in rows:
        is_gene = vocabulary.genes_of(few[int(row)]) >= 0
        masked = np.where(is_gene, vocabulary.mask_token, few[int(row)])
        vectors.append(hidden_of(checkpoint, masked, np.arange(len(masked)))[is_gene].mean(0))
    with torch.no_grad():
        bags = Bags(torch.stack(vectors), np.array([len(rows)]), np.full(len(rows), -1))
        start = BagNetwork.open(run)(bags).outputs_PK[0, 2].item()
    of_patient = why.table[why.table["cell"] == donor]
    np.testing.assert_allclose(of_patient["value"].sum(), of_patient["before"].iloc[0] - start, rtol=0.01)


def test_points_on_the_way_of_a_patient_are_derived_through_bag_and_encoder_at_once(tmp_path, checkpoint, few):
    """One graph from the rows of all cells to the patient's number, at the same four points, says the same."""
    of = explained(run_of(tmp_path / "run", checkpoint, "attention"), checkpoint, few, methods=["integrated_gradients"])
    patient, vocabulary = of.patient(0), few.vocabulary
    way = PatientWay.of(
        Reader.of(checkpoint, layer=-1, device="cpu"), VectorOfCell(patient.vector_ND.shape[1]), patient.tokens,
        vocabulary,
        lambda vector_ND: of.answer(of.network(patient.bags(vector_ND[None])).outputs_PK)[0],
    )  # fmt: skip
    [found] = integrate(way, Integration(first_steps=4, most_steps=4))
    bert = stock_encoder(checkpoint)
    table = bert.get_input_embeddings().weight.detach()
    expected = np.zeros(len(vocabulary.gene_ids))
    for at in (np.arange(4) + 0.5) / 4:
        rows, vectors = [], []
        for ids in patient.tokens:
            gene = torch.from_numpy(vocabulary.genes_of(ids) >= 0)
            end = table[torch.from_numpy(ids.astype(np.int64))]
            start = torch.where(gene[:, None], table[vocabulary.mask_token], end)
            rows.append(torch.lerp(start, end, at).requires_grad_())
            hidden = bert(inputs_embeds=rows[-1][None], output_hidden_states=True).hidden_states[-2][0]
            vectors.append(hidden[gene].mean(0))
        bag = Bags(torch.stack(vectors), np.array([len(vectors)]), patient.types_N)
        slopes = torch.autograd.grad(of.network(bag).outputs_PK[0, 2], rows)
        for ids, slope in zip(patient.tokens, slopes, strict=True):
            genes = vocabulary.genes_of(ids)
            end = table[torch.from_numpy(ids.astype(np.int64))]
            along = ((end - table[vocabulary.mask_token]) * slope).sum(1).numpy() / 4
            np.add.at(expected, genes[genes >= 0], along[genes >= 0])
    np.testing.assert_allclose(found.value_GS[:, 0], expected, atol=1e-5)


def test_first_order_and_weights_of_cells_stand_beside(tmp_path, checkpoint, few):
    run = run_of(tmp_path / "run", checkpoint)
    methods = ["first_order", "gradient_input", "attention_gradient", "attention"]
    why = table_of(explained(run, checkpoint, few, methods=methods))
    weights = why.table[why.table["method"] == "attention"]
    np.testing.assert_allclose(weights.groupby("cell")["value"].sum(), 1, atol=1e-6)
    assert set(weights["of_cell"]) == set(few.cell_names)
    assert weights["gene"].isna().all()
    assert not why.table["exact"].any()
    table = gene_table(why)
    assert set(table["method"]) == {"first_order", "gradient_input", "attention_gradient"}
    assert (table["n_donors"] <= 3).all()


def test_what_is_said_of_a_patient_depends_on_no_other(tmp_path, checkpoint, few):
    run = run_of(tmp_path / "run", checkpoint)
    asked = {"methods": ["hide", "gradient_input"], "target": "arm", "state": "odd", "max_cells": None}
    together = table_of(explained(run, checkpoint, few, **asked)).table
    of = explained(run, checkpoint, few, **asked)
    of.prepare()
    apart = pd.concat([of.table(np.array([i])).to_pandas() for i in range(3)], ignore_index=True)
    pd.testing.assert_frame_equal(together, of.table(np.arange(3)).to_pandas())
    np.testing.assert_allclose(apart["value"], together["value"], atol=1e-5)


def test_sets_of_genes_are_gone_together(tmp_path, checkpoint, few):
    run = run_of(tmp_path / "run", checkpoint)
    sets = {"some": list(few.vocabulary.gene_ids[:100]), "none": ["unknown"]}
    why = table_of(explained(run, checkpoint, few, methods=["hide"], sets=sets)).table
    assert set(why["gene"]) == {"some"}
    assert (why["n_expressing"] > 0).all()


def test_patients_that_the_run_was_trained_on_are_refused(tmp_path, checkpoint, few):
    run = run_of(tmp_path / "run", checkpoint)
    donor = few.labels("donor").iloc[0]
    pd.DataFrame({"patient": [donor]}).to_csv(run / "patients.tsv", sep="\t", index=False)
    with pytest.raises(gf.InputError, match="1 of 3 patients to explain"):
        explained(run, checkpoint, few)
    explained(run, checkpoint, few, allow_seen=True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"methods": ["rollout"]}, "Patients are explained by"),
        ({"baseline": "mean"}, "begin where all genes are <mask>"),
        ({"donor": "donor"}, "each of whom is a replicate"),
        ({"target": "arms"}, "has no target 'arms'"),
    ],
    ids=["method", "baseline", "donor", "target"],
)
def test_what_cannot_be_asked_is_refused(tmp_path, checkpoint, few, asked, said):
    run = run_of(tmp_path / "run", checkpoint)
    with pytest.raises(gf.InputError, match=said):
        explained(run, checkpoint, few, **asked)


def test_a_run_on_vectors_of_others_has_no_genes(tmp_path, checkpoint, few):
    run = run_of(tmp_path / "run", checkpoint, vectors="X_scvi")
    with pytest.raises(gf.InputError, match="which genes made them is not known"):
        explained(run, checkpoint, few)


def test_a_file_of_patients_goes_on_and_opens(tmp_path, checkpoint, few):
    run = run_of(tmp_path / "run", checkpoint)
    asked = {"patients": run, "target": "event", "methods": ["gradient_input", "attention"], "obs": ["phase"]}
    with pytest.raises(gf.InputError, match="donor= is not for patients"):
        gf.explain(checkpoint, few, **asked, donor="donor")
    why = gf.explain(checkpoint, few, **asked, out=tmp_path / "why.parquet")
    again = gf.Explanation.open(tmp_path / "why.parquet")
    assert again.metadata["n_cells"] == 3
    assert again.metadata["how_good"] is None
    pd.testing.assert_frame_equal(again.table, why.table)
    genes = why.genes()
    assert (genes["n_donors"] == genes["n_cells"]).all()  # each patient is a replicate


def test_the_command_explains_patients(tmp_path, checkpoint, few, capsys):
    run = run_of(tmp_path / "run", checkpoint)
    checkpoint.save(tmp_path / "encoder")
    few.save(tmp_path / "few.tok")
    run_again = json.loads((run / "provenance.json").read_text())
    run_again["inputs"]["checkpoint"] = gf.Checkpoint.from_pretrained(tmp_path / "encoder").fingerprint
    (run / "provenance.json").write_text(json.dumps(run_again))
    given = ["explain", tmp_path / "encoder", tmp_path / "few.tok", "--patients", run, "--target", "event"]
    out = tmp_path / "why.parquet"
    assert main([*map(str, given), "--methods", "gradient_input", "-o", str(out)]) == 0
    assert "3 patients" in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.glob("why.*")} == {".parquet", ".png", ".html"}
    page = (tmp_path / "why.html").read_text()
    assert "3 patients, each a replicate, told apart by donor" in page
    assert "differs from 0 over patients" in page
