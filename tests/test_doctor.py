"""What the doctor says of machines and packages that are not in order, and that it survives them."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch

from geneformer_repro import doctor
from geneformer_repro.cli import main
from geneformer_repro.doctor import Finding, findings

NAMES = ["versions", "packages", "extras", "processor", "accelerator", "bfloat16", "attention", "memory", "disk"]
Usage = namedtuple("Usage", "total used free")


def found(name):
    (one,) = (finding for finding in findings() if finding.name == name)
    return one


@pytest.fixture
def wanted(monkeypatch):
    """Sets what the package requires."""
    return lambda *texts: monkeypatch.setattr(doctor, "requires", lambda _: list(texts))


def test_it_says_ten_things_and_what_to_do_about_them(capsys):
    status = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13].strip() for line in lines[:10]] == [*NAMES, "hub cache"]
    assert all(line.startswith(("- ", "! ")) for line in lines[10:])
    assert status == any(line.startswith("! ") for line in lines[10:])


def test_what_hinders_is_marked_and_ends_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr("geneformer_repro.doctor.findings", lambda: [Finding("disk", "full", "Make room.", True)])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == "disk         full\n! disk: Make room.\n"


def test_a_package_that_is_missing_or_too_old_is_named(wanted):
    wanted("torch>=99", "no-such-package>=1", "numpy>=1", 'tabulate>=99; extra == "lora"')
    packages = found("packages")
    assert f"torch is {torch.__version__}, wanted >=99" in packages.says
    assert "no-such-package is missing" in packages.says
    assert "numpy is" not in packages.says
    assert "tabulate" not in packages.says
    assert packages.hinders


def test_extras_are_there_when_all_of_their_packages_are(wanted):
    wanted('numpy>=1; extra == "lora"', 'no-such-package; extra == "optuna"')
    absent = found("extras").says.partition("not there")[2]
    assert "optuna" in absent
    assert "lora" not in absent


def test_a_library_that_does_not_load_costs_its_lines_alone(monkeypatch):
    def broken():
        raise ImportError("libcudart.so.13: cannot open shared object file\nand more")

    monkeypatch.setattr(doctor, "_attention", broken)
    one = found("attention")
    assert one.says == "cannot tell: ImportError: libcudart.so.13: cannot open shared object file"
    assert one.hinders
    assert not found("memory").says.startswith("cannot tell")


def test_more_threads_than_cores_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert "export OMP_NUM_THREADS=" in found("processor").todo


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("built", "todo"), [(None, "Install a torch build for CUDA"), ("13.0", "Update the driver")])
def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch, built, todo):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0" or exists(path))
    monkeypatch.setattr(torch.version, "cuda", built)
    accelerator = found("accelerator")
    assert accelerator.todo.startswith(todo)
    assert accelerator.hinders


def test_several_gpus_are_named_with_how_to_use_all(monkeypatch):
    device = namedtuple("Device", "name total_memory")("A100", 80e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    accelerator = doctor._accelerator()
    assert accelerator.says == "A100, 80 GB, A100, 80 GB"
    assert "accelerate launch" in accelerator.todo


@pytest.mark.parametrize("has_it", [True, False])
def test_bfloat16_is_recommended_only_where_the_processor_has_it(monkeypatch, has_it):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_it, raising=False)
    one = found("bfloat16")
    assert one.says.startswith("the CPU has it" if has_it else "emulated")
    assert bool(one.todo) != has_it


def test_little_room_is_told(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(64e6, 0, 1e6))
    assert found("disk").hinders
    assert "--shm-size" in found("memory").todo


def test_a_folder_that_cannot_be_written_to_is_told(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "cannot be written to" in found("disk").says
    assert found("disk").hinders


def test_models_in_the_cache_are_listed(monkeypatch, tmp_path):
    (tmp_path / "models--ctheodoris--Geneformer").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "ctheodoris/Geneformer" in found("hub cache").says
