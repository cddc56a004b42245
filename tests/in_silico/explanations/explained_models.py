"""Untrained models, with weights large enough to make cells differ, for tests of explanations."""

import torch

import geneformer_repro as gf
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.targets import Classes, Number, SurvivalTime

CLASSES = ("CD14+ Monocyte", "CD19+ B", "Dendritic")
HAZARD = SurvivalTime("died", "time", (1.0, 2.0, 5.0), 2.0, "hazard", edges=(0.0, 1.0, 3.0, 6.0))
COX = SurvivalTime("died", "time", (1.0, 2.0, 5.0), 2.0, "cox")
WEIBULL = SurvivalTime("died", "time", (1.0, 2.0, 5.0), 2.0, "weibull", unit=2.0)


def config_of(vocabulary, spread=0.2):
    """A tiny shape with a spread of initial weights."""
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = spread
    return config


def classifier_of(vocabulary, *targets, pooling="mean", name="classifier tiny", spread=0.2):
    """A classifier of cells, by default of three types."""
    head = Head(targets or (Classes("cell_type", CLASSES),), pooling=pooling)
    return gf.Checkpoint(CellClassifier(config_of(vocabulary, spread), head).eval(), vocabulary, name=name)


def gene_classifier_of(vocabulary):
    """A classifier of genes of three classes."""
    head = Head((Classes("role", ("kinase", "receptor", "other")),), level="gene")
    return gf.Checkpoint(GeneClassifier(config_of(vocabulary), head).eval(), vocabulary, name="genes tiny")


def pretrained_of(vocabulary):
    """A pretrained model."""
    return gf.Checkpoint(MaskedGeneModel(config_of(vocabulary)).eval(), vocabulary, name="base tiny")


def number_and_class():
    """Targets of a head that has several."""
    return Number("n_counts", 1000.0, 300.0), Classes("cell_type", CLASSES)
