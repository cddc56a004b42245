"""What this machine and its packages are to this one: what is there, what hinders, what to do about it.

Every line is found by itself, so that a torch that does not load costs its lines and no others.
"""

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

from geneformer_repro.errors import counted

PACKAGE = "geneformer-repro"
_SHOWN = ("torch", "transformers", "accelerate", "anndata", "datasets", "numba")
_NOT_FOR_USERS = ("test", "dev", "docs")
_LITTLE_DISK, _LITTLE_SHARED = 5e9, 1e9
"""Bytes of a disk, and of the memory that processes share, below which runs are known to fail."""


class Finding(NamedTuple):
    """A line of what was found."""

    name: str
    says: str
    todo: str = ""
    """What to do; empty where nothing is to be done."""
    hinders: bool = False
    """Whether something does not work until it is done."""


def findings() -> list[Finding]:
    """Look at packages, devices, number formats, kernels, memory and disks."""
    looks: Sequence[tuple[str, Callable[[], Finding]]] = (
        ("versions", _versions),
        ("packages", _packages),
        ("extras", _extras),
        ("processor", _processor),
        ("accelerator", _accelerator),
        ("bfloat16", _bfloat16),
        ("attention", _attention),
        ("memory", _memory),
        ("disk", _disk),
        ("hub cache", _cache),
    )
    return [_looked(name, look) for name, look in looks]


def _looked(name: str, look: Callable[[], Finding]) -> Finding:
    """What was found, or why one could not look."""
    try:
        return look()
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        says = f"cannot tell: {type(error).__name__}: {error}".splitlines()[0]
        broken = isinstance(error, (ImportError, AttributeError))
        return Finding(name, says, "Install the package that the message names anew." if broken else "", broken)


def _requirements(extra: str | None = None) -> Iterator[Requirement]:
    """Requirements of this package, or of one of its extras alone."""
    for text in requires(PACKAGE) or []:
        needed = Requirement(text)
        always = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if always if extra is None else not always and needed.marker and needed.marker.evaluate({"extra": extra}):
            yield needed


def _lacking(needed: Requirement) -> str:
    """Say what is wrong with an installed package; empty where it is fine."""
    try:
        found = version(needed.name)
    except PackageNotFoundError:
        return f"{needed.name} is missing"
    if needed.specifier.contains(found, prereleases=True):
        return ""
    return f"{needed.name} is {found}, wanted {needed.specifier}"


def _versions() -> Finding:
    try:
        own = version(PACKAGE)
    except PackageNotFoundError:
        own = "from source"
    return Finding("versions", f"geneformer_repro {own}, Python {platform.python_version()}, {platform.platform()}")


def _packages() -> Finding:
    try:
        lacking = [text for text in map(_lacking, _requirements()) if text]
    except PackageNotFoundError:
        says = "not checked: the package is not installed but found on the path"
        return Finding("packages", says, "pip install . in its folder, to have its requirements checked.")
    shown = ", ".join(f"{name} {version(name)}" for name in _SHOWN if not _lacking(Requirement(name)))
    if lacking:
        return Finding("packages", f"{shown}; {'; '.join(lacking)}", "pip install --upgrade . in its folder.", True)
    return Finding("packages", shown)


def _extras() -> Finding:
    from importlib.metadata import metadata

    try:
        extras = [name for name in metadata(PACKAGE).get_all("Provides-Extra") or [] if name not in _NOT_FOR_USERS]
    except PackageNotFoundError:
        return Finding("extras", "not checked")
    absent = [extra for extra in extras if any(map(_lacking, _requirements(extra)))]
    there = [extra for extra in extras if extra not in absent]
    says = f"there: {', '.join(there) or 'none'}"
    if absent:
        says += f"; not there, and wanted only if you use them: {', '.join(absent)} (pip install '.[{absent[0]}]')"
    return Finding("extras", says)


def _processor() -> Finding:
    import torch

    may_use = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores, threads = len(may_use), torch.get_num_threads()
    says = f"{counted(cores, 'core')} for this process, torch computes with {counted(threads, 'thread')}"
    if threads > cores:
        return Finding(
            "processor", says, f"export OMP_NUM_THREADS={cores}: more threads than cores wait for each other."
        )
    return Finding("processor", says)


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        says = ", ".join(f"{device.name}, {device.total_memory / 1e9:.0f} GB" for device in devices)
        if len(devices) > 1:
            return Finding("accelerator", says, "One process uses one; for all: accelerate launch (docs/scale.md).")
        return Finding("accelerator", says)
    if torch.accelerator.is_available():
        return Finding("accelerator", f"{torch.accelerator.current_accelerator()}")
    if Path("/dev/nvidia0").exists():
        built = torch.version.cuda
        says = (
            f"none that torch can use, though an NVIDIA device is there; torch is built for {built or 'the CPU alone'}"
        )
        todo = "Update the driver." if built else "Install a torch build for CUDA (pytorch.org), then this package."
        return Finding("accelerator", says, todo, hinders=True)
    says = "none: everything runs on the CPU"
    return Finding("accelerator", says, "`geneformer-repro plan` says what that means for your cells.")


def _bfloat16() -> Finding:
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Finding("bfloat16", "the GPU has it: --dtype bfloat16, training.trainer.bf16=true")
        return Finding("bfloat16", "the GPU lacks it", "Leave out --dtype bfloat16 and trainer.bf16; float32 is right.")
    mkldnn: Any = torch.ops.mkldnn
    if torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported():
        return Finding(
            "bfloat16", "the CPU has it: --dtype bfloat16 and trainer.bf16 are faster, with two to three digits"
        )
    return Finding("bfloat16", "emulated by this CPU, far slower than float32", "Leave it out; float32 is the default.")


def _attention() -> Finding:
    import torch

    from geneformer_repro.attention import kernel_on

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return Finding("attention", kernel_on(device or torch.device("cpu")))


def _memory() -> Finding:
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(facts[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    says = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (most := limit.read_text().strip()).isdecimal() and int(most) < total:
        says += f", of which this container may use {int(most) / 1e9:.1f}"
    shared = shutil.disk_usage("/dev/shm").total
    if shared < _LITTLE_SHARED:
        says += f"; {shared / 1e6:.0f} MB that processes can share (/dev/shm)"
        todo = "Give a container more of it (docker run --shm-size=8g), or training on a GPU may stop."
        return Finding("memory", says, todo)
    return Finding("memory", says)


def _disk() -> Finding:
    return _room("disk", Path.cwd(), "outputs are written here")


def _cache() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return _room("hub cache", there, f"{cache} holds {', '.join(models) or 'no model'}", "set HF_HOME to another disk")


def _room(name: str, folder: Path, says: str, otherwise: str = "work elsewhere") -> Finding:
    free = shutil.disk_usage(folder).free
    says = f"{free / 1e9:,.0f} GB free; {says}"
    if not os.access(folder, os.W_OK):
        return Finding(
            name, f"{folder} cannot be written to; {says}", f"Get write access, or {otherwise}.", hinders=True
        )
    if free < _LITTLE_DISK:
        return Finding(name, says, f"Make room, or {otherwise}: `geneformer-repro plan` says what a step writes.", True)
    return Finding(name, says)
