"""The public names, pinned: a change here is a change for users and belongs in the changelog."""

import ast
import configparser
import dataclasses
import inspect
import random
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import geneformer_repro as gf
from geneformer_repro.config import sections_of

PACKAGE = Path(gf.__file__).parent
NAMES = [
    "Activation",
    "CellFilter",
    "Checkpoint",
    "CohortStudy",
    "CohortStudyConfig",
    "DataFormatError",
    "Deletion",
    "DriverGenes",
    "Drugs",
    "Explanation",
    "ExplanationEvaluation",
    "FinetuneConfig",
    "Finetuned",
    "FinetunedGenes",
    "FinetunedPatients",
    "FinetunedResponse",
    "GeneFinetuneConfig",
    "GeneNetwork",
    "GoalState",
    "Harmoniser",
    "Inhibition",
    "InputError",
    "NetworkDifference",
    "Overexpression",
    "PatientConfig",
    "PatientPredictions",
    "PretrainConfig",
    "RankShift",
    "ResponseConfig",
    "ResponseData",
    "ResponseStudy",
    "ResponseStudyConfig",
    "ShiftTable",
    "TokenizedDataset",
    "TransferStudy",
    "TransferStudyConfig",
    "Vocabulary",
    "VocabularyMismatchError",
    "compare_enrichment",
    "compare_networks",
    "cross_cohort",
    "datasets",
    "drevalpy_model",
    "driver_genes",
    "embed",
    "embed_states",
    "evaluate_explanation",
    "evaluate_network",
    "explain",
    "finetune",
    "finetune_genes",
    "finetune_patients",
    "finetune_response",
    "gene_network",
    "gene_set_enrichment",
    "head_statistics",
    "integration_scores",
    "map_to_reference",
    "perturb",
    "plot_cross_cohort",
    "plot_enrichment",
    "plot_explanation",
    "plot_network",
    "plot_network_evaluation",
    "plot_screen",
    "predict",
    "predict_patients",
    "predict_response",
    "pretrain",
    "pseudobulk",
    "read_responses",
    "read_samples",
    "shift_statistics",
    "tokenize",
    "transfer_study",
    "write_cross_cohort_report",
    "write_enrichment_report",
    "write_explanation_report",
    "write_network_evaluation",
    "write_network_report",
    "write_screen_report",
]
FUNCTIONS = {
    "tokenize": "sources, vocabulary, *, values, log2, order, out, obs, layer, gene_ids, orthologs, "
    "min_known_share, cell_filter, uncropped, workers, ray, overwrite",
    "cross_cohort": "samples, survival, *, cohort, target, donor, checkpoint, values, train, test, harmonise, folds, "
    "max_cells, top, seed",
    "plot_cross_cohort": "table, *, kind",
    "write_cross_cohort_report": "table, path, *, overwrite",
    "pseudobulk": "source, by, *, layer, min_cells",
    "read_responses": "table, *, measure, sample, drug, value, drugs",
    "read_samples": "expression, clinical, *, id, genes_in, one_per_patient",
    "pretrain": "cells, config, *, out, base, overwrite, resume",
    "finetune": "checkpoint, cells, config, *, out, counts, overwrite",
    "finetune_genes": "checkpoint, cells, gene_classes, config, *, out, task, counts, overwrite",
    "finetune_patients": "checkpoint, cells, config, *, out, counts, overwrite",
    "finetune_response": "checkpoint, samples, responses, drugs, config, *, out, expression, aliases, "
    "vectors, overwrite",
    "drevalpy_model": "config, *, name, hyperparameters",
    "predict_response": "checkpoint, samples, drugs, *, values, log2, expression, aliases, vectors, out, overwrite",
    "ResponseData.read": "samples, responses, drugs, *, measure, expression, aliases, vectors",
    "transfer_study": "start, source, target, config, *, cohort, out, counts, workers, ray, overwrite",
    "predict": "checkpoint, data, *, layer, gene_ids, log2, cohort, clinical, genes_in, max_tokens, device, out, "
    "overwrite",
    "predict_patients": "run, cells, *, checkpoint, patient, vectors, cell_type, out, overwrite",
    "embed": "checkpoint, cells, *, level, layer, pooling, dtype, max_tokens, device, into, out, overwrite",
    "embed_states": "checkpoint, cells, obs, *, statistic, layer, pooling, states, max_tokens, device",
    "map_to_reference": "query, reference, label, *, n_neighbors, keep_unknown, into",
    "integration_scores": "adata, *, batch, label, counts, seed",
    "perturb": "checkpoint, cells, perturbation, *, "
    "goal, target, affected, layer, pooling, method, refine, donor, obs, max_cells, seed, passes, minutes, top, "
    "min_cells, shams, out, dtype, max_tokens, device, overwrite",
    "shift_statistics": "shifts, *, method, null, cells, counts, into",
    "explain": "checkpoint, rows, *, drugs, responses, patients, reading, target, state, contrast, goal, gene, layer, "
    "pooling, methods, donor, obs, max_cells, seed, sets, pooled_masks, baseline, steps, rule, operator, masks, out, "
    "dtype, max_tokens, device, allow_seen, overwrite",
    "Explanation.blocks": "self, columns",
    "Explanation.genes": "self, cells, counts, *, absolute",
    "gene_set_enrichment": "table, sets, *, method, score, top, max_fdr, selected, strata, min_cells, min_size, "
    "max_size, donors, n_permutations, seed",
    "compare_enrichment": "first, second, *, names, seeds",
    "driver_genes": "table, drivers, *, score, random_weights, top, strata, min_cells, name, version, licence, seed",
    "evaluate_explanation": "why, checkpoint, cells, *, drugs, responses, patients, reading, counts, drivers, sets, "
    "removal, random_weights, permuted, max_cells, seed",
    "plot_explanation": "why, *, kind, method, state, genes, check",
    "write_explanation_report": "why, path, *, genes, check, overwrite",
    "plot_enrichment": "result",
    "write_enrichment_report": "enrichment, path, *, beside, drivers, overwrite",
    "compare_networks": "network, a, b, *, counts, cells, top",
    "head_statistics": "checkpoint, cells, genes, *, donor, method, random_weights, min_cells, max_cells, "
    "n_permutations, seed, dtype, max_tokens, device, out, overwrite",
    "GeneNetwork.graph": "self, state, *, top, max_fdr",
    "GeneNetwork.to_graphml": "self, path, state, *, top, max_fdr, max_edges, modules, overwrite",
    "GeneNetwork.centrality": "self, state, *, top, betweenness",
    "GeneNetwork.modules": "self, state, *, top, resolution, n_seeds, seed",
    "plot_screen": "shifts, statistics, *, kind",
    "write_screen_report": "shifts, statistics, path, *, overwrite",
    "datasets.pbmc700": "",
    "Vocabulary.from_tokens": "tokens, medians, names, *, max_length, other_ids, values",
    "Vocabulary.fit": "sources, *, series, values, log2, base, layer, gene_ids, max_length, exact, workers, ray, "
    "work, overwrite",
    "Vocabulary.load": "path",
    "Vocabulary.from_pretrained": "path_or_hub_id, *, series, revision",
    "Vocabulary.save": "self, path, *, overwrite",
    "Vocabulary.genes_of": "self, tokens",
    "Vocabulary.tokens_of": "self, genes",
    "Vocabulary.require_same": "self, other, *, this, that, tokens_only",
    "TokenizedDataset.open": "path, vocabulary, *, max_length",
    "TokenizedDataset.save": "self, path, *, overwrite",
    "TokenizedDataset.select": "self, rows",
    "TokenizedDataset.genes": "self, i",
    "TokenizedDataset.digests": "self",
    "TokenizedDataset.require_obs": "self, name",
    "Checkpoint.from_pretrained": "path_or_hub_id, *, subfolder, revision, vocabulary",
    "Checkpoint.save": "self, path, *, overwrite",
    "Checkpoint.require_matching": "self, cells, *, tokens_only",
    "Drugs.of_table": "table, *, name, smiles",
    "Drugs.of_names": "names",
    "Drugs.select": "self, numbers",
    "Drugs.fingerprints": "self, radius, n_bits",
    "Drugs.descriptors": "self, kind",
    "Drugs.vectors": "self, table, *, name",
    "Drugs.structures": "self, needed_by",
    "Harmoniser.fit": "values, batches, *, method, reference, on_unseen",
    "Harmoniser.apply": "self, values, batches",
    "Harmoniser.save": "self, path, *, overwrite",
    "Harmoniser.load": "path",
    "ShiftTable": "source, metadata",
    "ShiftTable.open": "path",
    "ShiftTable.save": "self, path, *, overwrite",
    "ShiftTable.blocks": "self, columns",
}
TRAINING = "epochs, batch_size, max_tokens, learning_rate, decay, warmup_steps, weight_decay, trainer"
TRANSFER = "transfer(strategy, freeze, rate_decay, lora_rank, lora_alpha, lora_dropout, quantize_bits)"
SPLIT = (
    "split(group, folds, repeats, validation, test, test_groups, validation_groups, balance, split_file, allow_seen)"
)
FOLLOW_UP = "follow_up(cohort, horizon, censor_at, unusable, learned_by, intervals)"
FINETUNE = (
    f"seed, pooling, training({TRAINING}, task_weights, class_balance), {TRANSFER}, target, regression, survival, "
    f"{FOLLOW_UP}, min_cells, max_cells_per_class, {SPLIT}, search(trials, space, engine), "
    "compare(baselines, curve, covariates)"
)
NETWORK = "network(layers, width, activation, dropout, batch_norm, n_genes, clip, skip)"
RESPONSE = (
    "seed, network(model, drug_input, n_genes, clip, arcsinh, sample_layers, drug_layers, embedding_size, filters, "
    "kernels, pool, fusion, fusion_size, attention_heads, joint_layers, joint_norm, dropout, expression_path, "
    f"residual), training({TRAINING}, rates, drugs_a_step), {TRANSFER}, pooling, replace_head, refit_scale, measure, "
    f"values, log2, genes, tissue, {SPLIT[:-1]}, by), compare(baselines, ablations)"
)
FIELDS = {
    "CellFilter": "filter_pass, min_counts, max_counts, min_genes, max_genes, max_mito, counts_within_sd, "
    "mito_within_sd",
    "Vocabulary": "gene_ids, tokens, special_tokens, max_length, medians, gene_names, other_ids, values, order",
    "TokenizedDataset": "table, vocabulary, spec",
    "Checkpoint": "model, vocabulary, provenance, seen, name, path",
    "DriverGenes": "table, genes, facts",
    "ExplanationEvaluation": "genes, agreement, points, removal, sanity, drivers, sets, sentences",
    "Drugs": "names, smiles, keys, invalid",
    "Harmoniser": "method, batches, on_unseen, arrays",
    "PretrainConfig": f"seed, size, network, mask_probability, held_out, training({TRAINING}, recipe)",
    "FinetuneConfig": FINETUNE,
    "Finetuned": "checkpoint, evaluations, split, history, curve, trials",
    "TransferStudyConfig": f"{FINETUNE}, source(target, regression, survival, epochs)",
    "TransferStudy": "checkpoint, evaluations, split, history, curve, trials, source",
    "CohortStudyConfig": f"seed, {NETWORK}, "
    "training(optimiser, learning_rate, l1, l2, batch_size, epochs, min_steps, patience, strategy, layer_decay, rates, "
    f"steps), survival, values, log2, {FOLLOW_UP}, cohorts, {SPLIT}, "
    "halving(n_trials, reduction, rungs, first_epochs, first_steps, space), compare(baselines, curve, covariates)",
    "CohortStudy": "cohorts, comparisons, evaluations, trials, cost, left_out, curve",
    "FinetunedGenes": "checkpoint, evaluation, occurrences, split, history",
    "FinetunedPatients": "network, evaluations, split, history, patients, attention, attention_by_type",
    "PatientPredictions": "patients, attention",
    "PatientConfig": f"seed, patient, target, regression, survival, {FOLLOW_UP}, vectors, cell_type, pooling, {SPLIT}, "
    "network(hidden, attention, dropout), training(epochs, batch_size, learning_rate, weight_decay), "
    "compare(baselines)",
    "ResponseConfig": RESPONSE,
    "ResponseStudyConfig": f"{RESPONSE}, source(values, log2, most_pairs, epochs, validation), networks, uses, sizes, "
    "steps",
    "ResponseData": "samples, responses, drugs, expression, aliases, vectors",
    "ResponseStudy": "table, differences, evaluations, networks",
    "FinetunedResponse": "checkpoint, evaluation, split, history",
    "GeneFinetuneConfig": "seed, max_cells, min_cells, split(folds, validation), "
    f"training({TRAINING}, class_balance), {TRANSFER}, compare(baselines)",
    "GeneNetwork": "path, metadata",
    "NetworkDifference": "edges, genes, in_one_state, facts",
    "Deletion": "genes, combine, anchor",
    "Overexpression": "genes, combine, anchor",
    "Inhibition": "genes, combine, anchor, quartiles",
    "Activation": "genes, combine, anchor, quartiles",
    "RankShift": "genes, combine, anchor, to",
    "GoalState": "obs, start, goal, alternatives, embeddings",
}
CONFIGS = (
    "CellFilter",
    "PretrainConfig",
    "FinetuneConfig",
    "GeneFinetuneConfig",
    "PatientConfig",
    "TransferStudyConfig",
    "CohortStudyConfig",
    "ResponseConfig",
    "ResponseStudyConfig",
)
RESULTS = (
    "ExplanationEvaluation",
    "Finetuned",
    "FinetunedGenes",
    "FinetunedPatients",
    "FinetunedResponse",
    "PatientPredictions",
    "TransferStudy",
    "CohortStudy",
    "ResponseStudy",
    "ResponseData",
    "NetworkDifference",
    "DriverGenes",
)


def named(path):
    found = gf
    for part in path.split("."):
        found = getattr(found, part)
    return found


def signature(function):
    """Parameter names, with a star before those that need their name."""
    names, starred = [], False
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if parameter.kind == parameter.KEYWORD_ONLY and not starred:
            names.append("*")
            starred = True
        names.append(parameter.name)
    return ", ".join(names)


def test_the_public_names_are_these():
    assert gf.__all__ == NAMES


def test_type_checkers_see_the_public_names():
    """A name that a stub imports is there for its readers only if it is imported ``as`` itself."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imported = [alias for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(alias.name for alias in imported) == NAMES
    assert [alias.name for alias in imported if alias.asname != alias.name] == []


def test_the_script_that_type_checkers_read_uses_every_public_name():
    script = Path(__file__).with_name("typed_use.py").read_text(encoding="utf-8")
    assert [name for name in NAMES if not re.search(rf"\bgf\.{name}\b", script)] == []


@pytest.mark.parametrize("file", ["__init__.pyi", "py.typed"])
def test_what_type_checkers_read_is_installed(file):
    settings = configparser.ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    patterns = settings["options.package_data"]["geneformer_repro"].split()
    assert (PACKAGE / file).exists()
    assert any(fnmatch(file, pattern) for pattern in patterns)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_had(name):
    assert getattr(gf, name) is not None
    assert name in dir(gf)


def test_a_name_that_is_loaded_leaves_the_random_state_to_its_caller(monkeypatch):
    """A library of scikit-learn's draws from it, once."""

    def draw_and_load(name):
        random.random()
        return import_module(name)

    monkeypatch.setattr(gf, "import_module", draw_and_load)
    state = random.getstate()
    assert gf.__getattr__("InputError") is gf.InputError
    assert random.getstate() == state


def test_a_star_import_brings_the_public_names():
    space = {}
    exec("from geneformer_repro import *", space)
    assert set(NAMES) <= set(space)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'geneformer_repro' has no attribute 'tokenise'"):
        gf.tokenise  # noqa: B018 - the access is what is tested


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert gf.__version__ == version("geneformer-repro")


@pytest.mark.parametrize("path", FUNCTIONS)
def test_parameters_are_named_and_ordered_so(path):
    assert signature(named(path)) == FUNCTIONS[path]


def written(data):
    """Names of the fields of a dataclass, those of its sections in brackets."""
    sections = {name: f"{name}({written(section.config_type)})" for name, section in sections_of(data).items()}
    return ", ".join(sections.get(field.name, field.name) for field in dataclasses.fields(data))


@pytest.mark.parametrize("name", FIELDS)
def test_fields_are_named_and_ordered_so(name):
    assert written(named(name)) == FIELDS[name]
    assert named(name).__dataclass_params__.frozen


def test_every_public_dataclass_is_pinned():
    assert set(FIELDS) == {name for name in NAMES if dataclasses.is_dataclass(named(name))}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_filled_by_keyword_only(name):
    assert all(field.kw_only for field in dataclasses.fields(named(name)))


def test_what_a_user_can_cause_is_a_value_error():
    assert issubclass(gf.InputError, ValueError)
    assert issubclass(gf.DataFormatError, gf.InputError)
    assert issubclass(gf.VocabularyMismatchError, gf.InputError)


# Docstrings


@pytest.mark.parametrize("path", [path for path in FUNCTIONS if "Parameters\n" in inspect.getdoc(named(path))])
def test_a_docstring_speaks_of_every_parameter(path):
    documented = inspect.getdoc(named(path))
    names = [name for name in re.findall(r"\w+", FUNCTIONS[path]) if name != "self"]
    assert [name for name in names if not re.search(rf"(?m)^(\w+, )*{name}(, \w+)*$", documented)] == []


@pytest.mark.parametrize(
    "name",
    [
        "tokenize", "pretrain", "finetune", "finetune_genes", "finetune_patients", "transfer_study", "predict", "embed",
        "embed_states", "predict_patients", "finetune_response", "predict_response",
        "map_to_reference",
        "integration_scores", "perturb", "shift_statistics", "plot_screen",
        "gene_network", "compare_networks", "head_statistics",
        "gene_set_enrichment", "compare_enrichment", "driver_genes", "explain",
        "evaluate_explanation", "plot_explanation",
    ],
)  # fmt: skip
def test_every_step_says_what_it_takes_returns_and_raises(name):
    sections = re.findall(r"(?m)^(\w+)\n-+$", inspect.getdoc(named(name)))
    assert sections[:3] == ["Parameters", "Returns", "Raises"]


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in (*CONFIGS, *RESULTS)])
def test_a_docstring_speaks_of_every_field(name):
    documented = "\n".join(inspect.getdoc(base) or "" for base in named(name).__mro__)
    assert [field for field in FIELDS[name].split(", ") if not re.search(rf"(?m)^{field}$", documented)] == []


def public_definitions():
    """Every public module, class and function of the package, also methods, by where it stands."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        where = path.relative_to(PACKAGE).as_posix()
        yield where, module
        for node in module.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                if "overload" in map(ast.unparse, node.decorator_list):  # whose implementation says what it does
                    continue
                yield f"{where}:{node.name}", node
                for member in getattr(node, "body", []):
                    if isinstance(node, ast.ClassDef) and isinstance(member, ast.FunctionDef) and member.name[0] != "_":
                        yield f"{where}:{node.name}.{member.name}", member


def test_every_public_function_and_class_has_a_docstring():
    assert [where for where, node in public_definitions() if not (ast.get_docstring(node) or "").strip()] == []


@pytest.mark.parametrize("name", [*CONFIGS, *RESULTS])
def test_every_field_has_a_sentence_under_it(name):
    source = Path(inspect.getsourcefile(named(name))).read_text(encoding="utf-8")
    body = next(node for node in ast.parse(source).body if getattr(node, "name", None) == name).body
    inherited = {
        field.name for base in named(name).__mro__[1:-1] for field in dataclasses.fields(base)
    }  # described there
    for node, below in pairwise(body):
        if isinstance(node, ast.AnnAssign) and node.target.id not in inherited:
            assert isinstance(below, ast.Expr), node.target.id


# What an import brings


def imported_by(statement, *modules):
    """Which of the modules a fresh interpreter has loaded after the statement."""
    script = f"import sys\n{statement}\nprint(*(name for name in {modules!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


HEAVY = ("torch", "transformers", "anndata", "pandas", "scanpy", "datasets", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "statement",
    [
        "import geneformer_repro",
        "import geneformer_repro; dir(geneformer_repro); geneformer_repro.InputError",
        "import geneformer_repro.cli",
    ],
)
def test_importing_the_package_loads_nothing_heavy(statement):
    assert imported_by(statement, *HEAVY) == []


def test_the_command_line_says_its_help_without_loading_anything_heavy():
    statement = (
        "from geneformer_repro.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    print('loaded:')"
    )
    assert imported_by(statement, *HEAVY)[-1] == "loaded:"
