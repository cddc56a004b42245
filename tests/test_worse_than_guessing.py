"""A pretrained model that names hidden genes no better than a guess is said to, wherever it is used."""

import dataclasses
import logging

import numpy as np
import pytest

import geneformer_repro as gf
from geneformer_repro.checkpoint import warn_if_guessing
from geneformer_repro.checkpoint_files import worse_than_guessing


def told(model, step="pretrain", **guesses):
    scores = {name: {"loss": 9.0, "hidden_loss": loss} for name, loss in {"model": model, **guesses}.items()}
    return {"step": step, "result": {"scores": scores}}


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        pytest.param(told(8.4, frequency=8.3, rank=8.1), "8.400 nats a hidden gene, and that of rank", id="worse"),
        pytest.param(told(8.2, frequency=8.3, rank=8.1), "8.100", id="worse-than-the-better-guess"),
        pytest.param(told(8.1, rank=8.1), "8.100", id="equal"),
        pytest.param(told(8.0, frequency=8.3, rank=8.1), None, id="better"),
        pytest.param(told(8.4), None, id="no-guess"),
        pytest.param(told(8.4, "finetune", frequency=8.3), None, id="classifier"),
        pytest.param({"step": "pretrain", "result": {"scores": 3}}, None, id="not-ours"),
        pytest.param({}, None, id="unknown"),
    ],
)
def test_a_model_is_compared_with_the_better_guess(provenance, said):
    found = worse_than_guessing(provenance)
    assert (said is None) == (found is None)
    assert said is None or said in found


def test_the_log_of_fine_tuning_and_the_metadata_of_results_say_it(checkpoint, caplog):
    poor = dataclasses.replace(checkpoint, provenance=told(8.4, frequency=8.3))
    with caplog.at_level(logging.WARNING, logger="geneformer_repro"):
        warn_if_guessing(checkpoint)
        assert not caplog.text
        warn_if_guessing(poor)
    assert "is no better than guessing: on held-out cells its loss is 8.400" in caplog.text
    assert "guessing" in poor.whereabouts["checkpoint_warning"]


@pytest.mark.parametrize("step", ["embed", "embed_states", "perturb", "gene_network"])
def test_each_step_says_it_once(checkpoint, cells, caplog, tmp_path, step):
    """A screen towards a goal embeds states and cells on its way."""
    few, goal = cells.select(np.arange(60)), gf.GoalState("cell_type", "CD14+ Monocyte", "CD19+ B")
    steps = {
        "embed": lambda model: gf.embed(model, few),
        "embed_states": lambda model: gf.embed_states(model, few, "cell_type"),
        "perturb": lambda model: gf.perturb(model, few, gf.Deletion(["CD74"]), goal=goal, max_cells=1, shams=1),
        "gene_network": lambda model: gf.gene_network(model, few, sources=["CD74", "CD3D"], out=tmp_path / "net"),
    }
    with caplog.at_level(logging.WARNING, logger="geneformer_repro"):
        steps[step](dataclasses.replace(checkpoint, provenance=told(8.4, frequency=8.3)))
    assert caplog.text.count("is no better than guessing") == 1
