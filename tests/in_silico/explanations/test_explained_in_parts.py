"""Samples, pairs and patients are explained part by part: killed or shared, the file has the same bytes."""

import os
import signal

import pytest
from forking import forked, several, status_of
from test_explained_pairs import DRUGS, expression
from test_explained_patients import few, run_of  # noqa: F401  # a fixture
from test_explained_samples import checkpoint_of, network_of, samples
from test_pair_networks import NETWORKS, made_network

import geneformer_repro as gf
import geneformer_repro.in_silico.explanations.explain as module


@pytest.fixture(params=["samples", "pairs", "patients"])
def asked(request, checkpoint, few, tmp_path, monkeypatch):  # noqa: F811
    """What is explained of each family, as arguments of `explain`, in parts of one or two rows."""
    monkeypatch.setattr(module, "ROWS_A_PART", 1 if request.param == "patients" else 2)
    if request.param == "samples":
        return (checkpoint_of(network_of()), samples(7)), {"target": "PFI", "methods": ["integrated_gradients"]}
    if request.param == "pairs":
        network = made_network(NETWORKS["conv_nn"])
        response = gf.Checkpoint(network, network.scale.vocabulary, {"step": "finetune_response"})
        return (response, expression()), {"drugs": DRUGS, "state": ["aspirin"], "methods": ["gradient_input", "mask"]}
    run = run_of(tmp_path / "run", checkpoint)
    return (checkpoint, few), {"patients": run, "target": "event", "methods": ["gradient_input"]}


def test_killed_it_goes_on_and_ends_with_the_same_bytes(asked, tmp_path):
    given, options = asked
    table, n_parts = module._Explaining.table_of, []

    def killed():
        def until_the_second(self, part, show):
            n_parts.append(part)
            return os.kill(os.getpid(), signal.SIGKILL) if len(n_parts) == 2 else table(self, part, show)

        module._Explaining.table_of = until_the_second
        gf.explain(*given, **options, out=tmp_path / "cut.parquet")

    assert status_of(forked(killed, tmp_path / "log")) == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "cut.parquet.partial").glob("part*.parquet")]
    assert left == ["part-000000.parquet"]
    for name in ("cut", "whole"):
        gf.explain(*given, **options, out=tmp_path / f"{name}.parquet")
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_two_processes_write_what_one_does(asked, tmp_path):
    given, options = asked
    several(lambda rank: gf.explain(*given, **options, device="cpu", out=tmp_path / "two.parquet"), tmp_path)
    gf.explain(*given, **options, out=tmp_path / "one.parquet")
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
