"""What networks over pairs say of a simulated screen: nothing beyond the mean effects where there is nothing."""

import interaction_gain
import pytest
from _responses import simulate_responses
from interaction_gain import NETWORKS, beyond_mean_effects, compared

from geneformer_repro.finetuning.kinds.response_methods import MEAN_EFFECTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_resamples", "_mean_effects_alone")]
pytest.importorskip("rdkit", reason="needs RDKit: pip install 'geneformer-repro[drug]'")


@pytest.fixture
def _mean_effects_alone(monkeypatch):
    """Fit none of the other simple methods."""
    monkeypatch.setattr(interaction_gain, "SIMPLE", (MEAN_EFFECTS,))


def of_samples(tmp_path, networks, **how):
    """What each method predicts beyond the mean effects within new samples, and in which direction."""
    screen = simulate_responses(60, 16, n_genes=120, **how)
    evaluation = compared(screen, "sample", networks, tmp_path, epochs=8, folds=1)
    return beyond_mean_effects(evaluation, "sample").xs("paired, groups", axis=1, level="test")


def test_without_interaction_no_network_is_above_the_mean_effects(tmp_path):
    table = of_samples(tmp_path, [*NETWORKS], interaction=0.0)
    assert set(table.index) == set(NETWORKS)
    assert "higher" not in set(table["direction"])


def test_with_interaction_an_encoder_is_above_the_mean_effects(tmp_path):
    """From random weights, by the tokens of samples alone."""
    table = of_samples(tmp_path, ["encoder"], interaction=1.0)
    assert table.loc["encoder", "direction"] == "higher"
    assert table.loc["encoder", "difference"] > 0.2
