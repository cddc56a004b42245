"""The public names, each with the module it comes from: what type checkers read, and `__init__` at run time.

This is the only list of them. A name in it is imported when it is first touched.
"""

from geneformer_repro import datasets as datasets
from geneformer_repro.checkpoint import Checkpoint as Checkpoint
from geneformer_repro.drugs import Drugs as Drugs
from geneformer_repro.embedding import embed as embed
from geneformer_repro.embedding import embed_states as embed_states
from geneformer_repro.errors import DataFormatError as DataFormatError
from geneformer_repro.errors import InputError as InputError
from geneformer_repro.errors import VocabularyMismatchError as VocabularyMismatchError
from geneformer_repro.finetuning.cohort_tables import CohortStudy as CohortStudy
from geneformer_repro.finetuning.cross_cohort import cross_cohort as cross_cohort
from geneformer_repro.finetuning.cross_cohort_pages import plot_cross_cohort as plot_cross_cohort
from geneformer_repro.finetuning.cross_cohort_pages import write_cross_cohort_report as write_cross_cohort_report
from geneformer_repro.finetuning.drevalpy import drevalpy_model as drevalpy_model
from geneformer_repro.finetuning.finetune import Finetuned as Finetuned
from geneformer_repro.finetuning.finetune import finetune as finetune
from geneformer_repro.finetuning.genes import FinetunedGenes as FinetunedGenes
from geneformer_repro.finetuning.genes import finetune_genes as finetune_genes
from geneformer_repro.finetuning.patient_predictions import PatientPredictions as PatientPredictions
from geneformer_repro.finetuning.patient_predictions import predict_patients as predict_patients
from geneformer_repro.finetuning.patients import FinetunedPatients as FinetunedPatients
from geneformer_repro.finetuning.patients import finetune_patients as finetune_patients
from geneformer_repro.finetuning.predict import predict as predict
from geneformer_repro.finetuning.response_data import ResponseData as ResponseData
from geneformer_repro.finetuning.response_prediction import predict_response as predict_response
from geneformer_repro.finetuning.response_tables import ResponseStudy as ResponseStudy
from geneformer_repro.finetuning.responses import FinetunedResponse as FinetunedResponse
from geneformer_repro.finetuning.responses import finetune_response as finetune_response
from geneformer_repro.finetuning.settings.cells import FinetuneConfig as FinetuneConfig
from geneformer_repro.finetuning.settings.cells import TransferStudyConfig as TransferStudyConfig
from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig as GeneFinetuneConfig
from geneformer_repro.finetuning.settings.pairs import ResponseConfig as ResponseConfig
from geneformer_repro.finetuning.settings.pairs import ResponseStudyConfig as ResponseStudyConfig
from geneformer_repro.finetuning.settings.patients import PatientConfig as PatientConfig
from geneformer_repro.finetuning.settings.samples import CohortStudyConfig as CohortStudyConfig
from geneformer_repro.finetuning.study import TransferStudy as TransferStudy
from geneformer_repro.finetuning.study import transfer_study as transfer_study
from geneformer_repro.harmonise import Harmoniser as Harmoniser
from geneformer_repro.in_silico.explanations.drivers import DriverGenes as DriverGenes
from geneformer_repro.in_silico.explanations.drivers import driver_genes as driver_genes
from geneformer_repro.in_silico.explanations.enrichment import gene_set_enrichment as gene_set_enrichment
from geneformer_repro.in_silico.explanations.enrichment_comparison import compare_enrichment as compare_enrichment
from geneformer_repro.in_silico.explanations.enrichment_pages import plot_enrichment as plot_enrichment
from geneformer_repro.in_silico.explanations.enrichment_pages import write_enrichment_report as write_enrichment_report
from geneformer_repro.in_silico.explanations.evaluation import ExplanationEvaluation as ExplanationEvaluation
from geneformer_repro.in_silico.explanations.evaluation import evaluate_explanation as evaluate_explanation
from geneformer_repro.in_silico.explanations.explain import explain as explain
from geneformer_repro.in_silico.explanations.explanation import Explanation as Explanation
from geneformer_repro.in_silico.explanations.explanation_pages import plot_explanation as plot_explanation
from geneformer_repro.in_silico.explanations.explanation_pages import (
    write_explanation_report as write_explanation_report,
)
from geneformer_repro.in_silico.goals import GoalState as GoalState
from geneformer_repro.in_silico.networks.evaluation_pictures import plot_network_evaluation as plot_network_evaluation
from geneformer_repro.in_silico.networks.evaluation_pictures import write_network_evaluation as write_network_evaluation
from geneformer_repro.in_silico.networks.gene_network import GeneNetwork as GeneNetwork
from geneformer_repro.in_silico.networks.heads import head_statistics as head_statistics
from geneformer_repro.in_silico.networks.network import gene_network as gene_network
from geneformer_repro.in_silico.networks.network_evaluation import evaluate_network as evaluate_network
from geneformer_repro.in_silico.networks.network_pictures import plot_network as plot_network
from geneformer_repro.in_silico.networks.network_pictures import write_network_report as write_network_report
from geneformer_repro.in_silico.networks.network_statistics import NetworkDifference as NetworkDifference
from geneformer_repro.in_silico.networks.network_statistics import compare_networks as compare_networks
from geneformer_repro.in_silico.perturbation import Activation as Activation
from geneformer_repro.in_silico.perturbation import Deletion as Deletion
from geneformer_repro.in_silico.perturbation import Inhibition as Inhibition
from geneformer_repro.in_silico.perturbation import Overexpression as Overexpression
from geneformer_repro.in_silico.perturbation import RankShift as RankShift
from geneformer_repro.in_silico.pictures import plot_screen as plot_screen
from geneformer_repro.in_silico.pictures import write_screen_report as write_screen_report
from geneformer_repro.in_silico.screen import perturb as perturb
from geneformer_repro.in_silico.shift_table import ShiftTable as ShiftTable
from geneformer_repro.in_silico.statistics import shift_statistics as shift_statistics
from geneformer_repro.mapping import integration_scores as integration_scores
from geneformer_repro.mapping import map_to_reference as map_to_reference
from geneformer_repro.pretraining.pretrain import pretrain as pretrain
from geneformer_repro.pretraining.settings import PretrainConfig as PretrainConfig
from geneformer_repro.responses import read_responses as read_responses
from geneformer_repro.tokenizer.dataset import TokenizedDataset as TokenizedDataset
from geneformer_repro.tokenizer.pseudobulk import pseudobulk as pseudobulk
from geneformer_repro.tokenizer.quality import CellFilter as CellFilter
from geneformer_repro.tokenizer.samples import read_samples as read_samples
from geneformer_repro.tokenizer.tokenize import tokenize as tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary as Vocabulary

__version__: str
