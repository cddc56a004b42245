"""The launch configurations that ship: accelerate reads them, and what they name exists."""

import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from geneformer_repro.config import load_config
from geneformer_repro.encoder import Block
from geneformer_repro.pretraining.settings import PretrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
LAUNCHES = sorted(CONFIGS.glob("*.yaml"))


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", LAUNCHES, ids=ids)
def test_accelerate_reads_it(path):
    read = load_config_from_file(str(path))
    assert read.num_processes >= 1


@pytest.mark.parametrize("path", LAUNCHES, ids=ids)
def test_its_first_line_says_what_it_is_for(path):
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [path for path in LAUNCHES if "zero" in path.stem], ids=ids)
def test_its_deepspeed_file_is_there_and_of_that_stage(path):
    named = CONFIGS.parent / yaml.safe_load(path.read_text())["deepspeed_config"]["deepspeed_config_file"]
    stage = yaml.safe_load(named.read_text())["zero_optimization"]["stage"]
    assert path.stem == f"zero{stage}"


def test_fsdp_wraps_the_models_own_blocks():
    wrapped = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    assert wrapped["fsdp_transformer_layer_cls_to_wrap"] == Block.__name__


@pytest.mark.parametrize("series", ["V1", "V2"])
def test_a_recipe_is_the_published_one_in_half_precision(series):
    assert load_config(PretrainConfig, CONFIGS / f"{series.lower()}.toml") == PretrainConfig(
        training={"recipe": series, "trainer": {"bf16": True}}
    )


def test_the_slurm_script_is_valid_bash_and_names_files_that_exist():
    script = CONFIGS / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    named = [word for word in script.read_text().split() if word.startswith("configs/")]
    assert named
    assert all((CONFIGS.parent / name).exists() for name in named)
