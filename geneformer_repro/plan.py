"""What a step costs before it is begun: time, memory, disk, and how it is launched; arithmetic alone.

Operations are counted as the share of the peak is (`sizes.flops`). On two CPU cores they are divided by rates that were
measured, with V1-10M (`MEASURED`). On GPUs nothing was measured: their time is projected, as operations at
`_OF_PEAK` of the data sheet's rate, plus bytes moved between layers at `_OF_BANDWIDTH` of its bandwidth, which is what
holds up networks as narrow as V1-10M, but no batch in less time than its kernels take to be launched, plus what the
backward pass does not hide of summing gradients. A projection may be off by a factor of two or three; it tells hours
from months.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.stats import beta

from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.sizes import SIZES, Size, flops, n_parameters

Task = Literal["tokenize", "pretrain", "finetune", "embed", "perturb", "first-order"]


class Device(NamedTuple):
    """One device, and the part of its machine that goes with it."""

    title: str
    peak: float
    """Operations a second of a large matrix product, in the number format that is used there."""
    bandwidth: float
    """Bytes of memory a second."""
    memory_gb: float
    cores: int
    """Of the CPU, for tokenising: of the machine's, the share of this device."""
    on_gpu: bool = True


class Measured(NamedTuple):
    """A rate that was measured, as a share of the machine's best matrix product."""

    share: float
    on: str


CPU = Device("two CPU cores", 183e9, 0, 24, 2, on_gpu=False)
"""Measured peak, float32: AMD EPYC (Zen 4) with AVX-512, nothing else running."""
DEVICES: Mapping[str, Device] = {
    "cpu": CPU,
    "a100": Device("A100 80 GB", 312e12, 2.0e12, 80, 8),
    "h100": Device("H100 80 GB", 989e12, 3.35e12, 80, 12),
    "h200": Device("H200 141 GB", 989e12, 4.8e12, 141, 12),
}
"""Of GPUs peak (bfloat16, dense), bandwidth and memory are those of NVIDIA's data sheets (SXM)."""
A_NODE = 8
"""GPUs of a machine."""
MEASURED: Mapping[Task, Measured] = {
    "pretrain": Measured(0.71, "2,048 tokens, batches of 4, 2,239 tokens/s"),
    "finetune": Measured(0.60, "458 to 1,652 tokens, batches of 12, 2,977 tokens/s"),
    "embed": Measured(0.84, "2,048 tokens, 4.8 cells/s"),
    "perturb": Measured(0.86, "2,048 genes, 4.9 variants/s"),
    "first-order": Measured(0.82, "400 genes, 17.2 cells/s"),
}
"""Of `CPU`, float32, V1-10M with 25,426 tokens."""
VALUES_A_CORE = 9.1e6
"""Expressed genes ranked and written a second by one core: 12,488 cells/s of 1,463 genes by two workers, measured."""
WORKER_GB = 0.45
"""Memory of a worker that tokenises: 0.76 to 0.97 GB of two, measured."""
PROCESS_GB = 1.0
"""What a process with torch holds beside the network: 0.9 GB on the CPU, measured."""
ROW_BYTES = 33
"""Of a screen's file, a variant and state: measured, zstd."""
START_SECONDS = 8
"""Until the first cell: measured of 10,000 cells that are tokenised in new processes, which is nearly all of that."""
_OF_PEAK, _OF_BANDWIDTH = 0.6, 0.8
_LAUNCH_SECONDS, _LAUNCHES = 10e-6, {True: 60, False: 20}
"""Of a kernel; and kernels of a block in a batch that is learned from, and in one that is read."""
_BATCH_SECONDS = {True: 0.01, False: 0.002}
"""What Python adds to that, learning and reading. Of GPUs all of these are assumed."""
_IN_NODE, _BETWEEN_NODES = 300e9, 25e9
"""Bytes a second and device in which gradients are summed: NVLink, and a port of 200 Gbit/s a GPU."""
_HIDDEN_IN_BACKWARD = 0.5
"""Part of a step during which gradients of later blocks are summed while earlier ones are computed."""
_READ: Mapping[Task, float] = {"embed": 1.0, "perturb": 1.0, "first-order": 3.0}
"""Forward passes that one reading is worth."""
_MASKED = 0.15
_BATCH_CELLS: Mapping[Task, int] = {"pretrain": 12, "finetune": 12}
_TINY_CELLS, _TINY_RATE = 4, "2e-3"
"""Of a tiny network, which learns little of few cells at the published batch and rate."""
_READING_TOKENS, _SCREEN_TOKENS_ON_CPU = 16_384, 4_096
"""Tokens of a batch where nothing is learned, as the functions choose them."""
_SHORT_RUN = 50_000
"""Steps below which the published warm-up of 10,000 steps is too long."""
_FULL = 0.8
"""Share of a device's memory that a batch may fill."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done."""

    task: Task
    cells: int
    """How many."""
    length: float
    """Tokens of a cell, on average."""
    max_length: int
    """Tokens of the longest."""
    size: Size = "V1-10M"
    device: str = "cpu"
    """Of `DEVICES`, with how many before it: ``8xa100``."""
    epochs: float = 3
    n_tokens: int = 25_426
    """Of the vocabulary."""

    def __post_init__(self) -> None:
        _require_one_of(self.task, get_args(Task), "task")
        _require_one_of(self.size, SIZES, "size")
        number, name = parsed(self.device)
        for what, value, least in (("cells", self.cells, 1), ("length", self.length, 1), ("epochs", self.epochs, 0)):
            if not (math.isfinite(value) and value >= least and value):
                raise InputError(f"{what} must be {f'at least {least}' if least else 'above 0'}, found {value}.")
        if self.length > self.max_length:
            raise InputError(f"Cells of {self.length:g} tokens on average cannot be {self.max_length} at most.")
        if name == "cpu" and number > 1:
            raise InputError(f"device {self.device!r}: only one machine of two cores was measured; give 'cpu'.")

    @property
    def devices(self) -> int:
        """How many."""
        return parsed(self.device)[0]

    @property
    def kind(self) -> Device:
        """Of which kind."""
        return DEVICES[parsed(self.device)[1]]

    @property
    def trains(self) -> bool:
        """Whether weights are learned."""
        return self.task in _BATCH_CELLS


class Plan(NamedTuple):
    """What a piece of work comes to."""

    work: Work
    operations: float
    """Floating-point operations of matrix products and attention; 0 where there are none."""
    seconds: float
    is_measured: bool
    """Whether the rate was measured, with this size on this device."""
    memory_gb: float
    """Most of one device, or of all workers on the CPU."""
    fits: bool
    disk_gb: float
    """Of the outputs, with what training keeps to go on from."""
    batch_tokens: int
    """Of one device; 0 where it has no meaning."""
    accumulated: int
    """Batches of a step and device."""
    launch: str
    """The command."""


def parsed(device: str) -> tuple[int, str]:
    """Read ``8xa100`` as 8 and ``a100``; ``h100`` as 1 and ``h100``."""
    number, times, name = device.partition("x")
    if not times:
        number, name = "1", device
    if not number.isdecimal() or not int(number) or name not in DEVICES:
        raise InputError(f"There is no device {device!r}. There are: {', '.join(DEVICES)}; several: 8xa100.")
    return int(number), name


def _require_one_of(value: str, choices: "Mapping[str, object] | tuple[str, ...]", what: str) -> None:
    if value not in choices:
        raise InputError(f"There is no {what} {value!r}. {did_you_mean(value, choices)}")


def planned(work: Work) -> Plan:
    """Work out what a piece of work comes to.

    Raises
    ------
    InputError
        There is no such task, size or device, or a number is out of its range (from `Work`).
    """
    if work.task == "tokenize":
        return _tokenising(work)
    batch, accumulated = _batch(work)
    operations = _operations(work)
    kind = work.kind
    if kind.on_gpu:
        seconds = _projected_seconds(work, operations, batch, accumulated)
    else:
        seconds = operations / (kind.peak * MEASURED[work.task].share)
    memory = _memory_gb(work, batch)
    is_measured = not kind.on_gpu and work.size == "V1-10M"
    launch = _launch(work, batch, accumulated)
    fits = memory <= kind.memory_gb
    return Plan(
        work, operations, START_SECONDS + seconds, is_measured, memory, fits, _disk_gb(work), batch, accumulated, launch
    )


def lengths_of(work: Work, n: int = 256) -> np.ndarray:
    """Tokens of typical cells: as many as asked for, with that mean, spread as counts of real blood cells are.

    A beta distribution between 0 and the longest, with a standard deviation of a third of the mean, or of what lies
    between mean and longest if that is less: all alike where these are one.
    """
    mean = work.length / work.max_length
    width = min(mean, 1 - mean) / 3
    if width < 1e-6:
        return np.full(n, float(work.length))
    concentration = mean * (1 - mean) / width**2 - 1
    drawn = beta.ppf((np.arange(n) + 0.5) / n, mean * concentration, (1 - mean) * concentration) * work.max_length
    return np.asarray(drawn * work.length / drawn.mean())


def _operations(work: Work) -> float:
    """Operations of the whole, over all devices."""
    shape, lengths = SIZES[work.size], lengths_of(work)
    share = work.cells / len(lengths)
    if work.task == "pretrain":
        return 3 * work.epochs * share * flops(shape, lengths, read=_MASKED, n_outputs=work.n_tokens)
    if work.task == "finetune":
        return 3 * work.epochs * share * flops(shape, lengths)
    each = np.array([flops(shape, np.array([length])) for length in lengths])
    each *= (shape.num_hidden_layers - 1) / shape.num_hidden_layers  # the block before the last is read
    return float(share * _READ[work.task] * (each * (lengths if work.task == "perturb" else 1)).sum())


def _n_tokens(work: Work) -> float:
    """Tokens that go through the network, over all devices and passes."""
    if work.trains:
        return work.epochs * work.cells * work.length
    variants = (lengths_of(work) ** 2).mean() if work.task == "perturb" else work.length
    return float(work.cells * variants)


def _kept(work: Work) -> float:
    """Numbers that the blocks make of a token, each once, all of which a backward pass needs."""
    shape = SIZES[work.size]
    return shape.num_hidden_layers * (9.0 * shape.hidden_size + 2 * shape.intermediate_size)


def _projected_seconds(work: Work, operations: float, batch: int, accumulated: int) -> float:
    """Project the time of GPUs."""
    kind, n_parameters_ = work.kind, _n_parameters(work)
    passes = 5 if work.trains else 2 * _READ[work.task]
    moved = passes * 2 * _kept(work)  # bfloat16
    if work.task == "pretrain":
        moved += 24 * _MASKED * work.n_tokens  # logits: written, read, as float32, and their gradients
    if work.trains:
        moved += 28 * n_parameters_ / (batch * accumulated)  # weights, gradients and moments, once a step
    tokens = _n_tokens(work)
    seconds = operations / (_OF_PEAK * kind.peak) + tokens * moved / (_OF_BANDWIDTH * kind.bandwidth)
    n_batches = tokens / batch
    launching = _BATCH_SECONDS[work.trains] + SIZES[work.size].num_hidden_layers * (
        _LAUNCHES[work.trains] * _LAUNCH_SECONDS
    )
    seconds = max(seconds, n_batches * launching) / work.devices
    if not work.trains or work.devices == 1:
        return seconds
    steps = tokens / (batch * accumulated * work.devices)
    summing = 8 * n_parameters_ / (_IN_NODE if work.devices <= A_NODE else _BETWEEN_NODES)
    return seconds + steps * max(0.0, summing - _HIDDEN_IN_BACKWARD * seconds / steps)


def _n_parameters(work: Work) -> int:
    return n_parameters(SIZES[work.size], n_tokens=work.n_tokens, n_positions=work.max_length)


def _batch(work: Work) -> tuple[int, int]:
    """Tokens of a batch of one device, and how many batches make a step there: the recipe's, or as many as fit."""
    if not work.trains:
        on_cpu = not work.kind.on_gpu and work.task == "perturb"
        return max(_SCREEN_TOKENS_ON_CPU if on_cpu else _READING_TOKENS, work.max_length), 1
    cells = 18 if work.task == "pretrain" and work.size.startswith("V2") else _BATCH_CELLS[work.task]
    cells = _TINY_CELLS if work.size == "tiny" else cells
    whole = max(round(cells * work.length), work.max_length)
    accumulated = 1
    while _memory_gb(work, math.ceil(whole / accumulated)) > _FULL * work.kind.memory_gb:
        if whole / (accumulated + 1) < work.max_length:
            break
        accumulated += 1
    return max(math.ceil(whole / accumulated), work.max_length), accumulated


def _memory_gb(work: Work, batch: int) -> float:
    """Most memory of a device: weights, gradients and moments; what blocks make; logits; the process."""
    n_bytes = 2 if work.kind.on_gpu else 4
    weights = (16 if work.trains else 4) * _n_parameters(work)
    if not work.trains:
        # Of first order a batch is a fourth, for a backward pass; else one block is made after the other.
        held = 0.25 if work.task == "first-order" else 2 / SIZES[work.size].num_hidden_layers
        made = batch * n_bytes * _kept(work) * held
    else:
        made = batch * n_bytes * _kept(work)
        if work.task == "pretrain":
            made += batch * _MASKED * work.n_tokens * (10 if work.kind.on_gpu else 4)
    return PROCESS_GB + (weights + made) / 1e9


def _disk_gb(work: Work) -> float:
    """Bytes of what is written."""
    parameters = _n_parameters(work)
    if work.trains:  # the result, and two checkpoints with the optimiser's moments
        n_bytes = 4.0 * parameters + 2 * 12 * parameters
    elif work.task == "embed":
        n_bytes = 4.0 * work.cells * SIZES[work.size].hidden_size
    else:
        n_bytes = ROW_BYTES * work.cells * work.length
    return n_bytes / 1e9


def _tokenising(work: Work) -> Plan:
    """Of the CPU, whatever the devices: rows of int32, and what is known of each cell."""
    workers = work.kind.cores * min(work.devices, A_NODE)
    seconds = START_SECONDS + work.cells * work.length / (VALUES_A_CORE * workers)
    memory = WORKER_GB * workers
    disk = work.cells * (4 * work.length + 100) / 1e9
    launch = f"geneformer-repro tokenize cells.h5ad --vocabulary vocabulary --workers {workers} -o cells.tok"
    return Plan(work, 0.0, seconds, not work.kind.on_gpu, memory, True, disk, 0, 1, launch)


def _launch(work: Work, batch: int, accumulated: int) -> str:
    """Return the command; several processes where there are several devices."""
    n = work.devices
    run = "geneformer-repro"
    if n > 1:
        config = "configs/ddp.yaml" if n <= A_NODE else "configs/several_nodes.yaml"
        machines = f" --num_machines {math.ceil(n / A_NODE)}" if n > A_NODE else ""
        run = f"accelerate launch --config_file {config} --num_processes {n}{machines} -m geneformer_repro"
    if work.trains:
        settings = [f"training.epochs={work.epochs:g}", f"training.max_tokens={batch}"]
        settings += [f"training.learning_rate={_TINY_RATE}"] if work.size == "tiny" else []
        if work.task == "pretrain":
            steps = _n_tokens(work) / (batch * accumulated * n)
            warm_up = ["training.warmup_steps=0.05"] if steps < _SHORT_RUN else []  # of V1 10,000 steps
            recipe = ["training.recipe=V2"] if work.size.startswith("V2") else warm_up
            settings = [f"size={work.size}", *recipe, *settings]
        settings += ["training.trainer.bf16=true"] if work.kind.on_gpu else []
        settings += [f"training.trainer.gradient_accumulation_steps={accumulated}"] if accumulated > 1 else []
        inputs = "cells.tok" if work.task == "pretrain" else "runs/base cells.tok --target cell_type"
        out = "runs/base" if work.task == "pretrain" else "runs/type"
        return f"{run} {work.task} {inputs} --set {' '.join(settings)} -o {out}"
    dtype = " --dtype bfloat16" if work.kind.on_gpu else ""
    if work.task == "embed":
        return f"{run} embed runs/base cells.tok{dtype} -o cells.embedding.h5ad"
    goal = '--state cell_type --start "CD14+ Monocyte" --goal "CD19+ B"'
    way = " --first-order" if work.task == "first-order" else ""
    return f"{run} perturb runs/base cells.tok {goal}{way}{dtype} -o shifts.parquet"


# In words


def in_words(plan: Plan) -> str:
    """Say what a plan comes to, line by line."""
    work = plan.work
    network = "" if work.task == "tokenize" else f"{work.size} ({_n_parameters(work) / 1e6:,.1f} million parameters), "
    passes = f", {work.epochs:g} passes" if work.trains else ""
    where = work.kind.title if work.devices == 1 else f"{work.devices} × {work.kind.title}"
    rate = work.cells * (work.epochs if work.trains else 1) / plan.seconds
    batches = f", batches of {plan.batch_tokens:,} tokens a device" if plan.batch_tokens else ""
    batches += f", {plan.accumulated} a step" if plan.accumulated > 1 else ""
    memory = f"{plan.memory_gb:,.1f} GB{'' if work.task == 'tokenize' else ' a device'}{batches}"
    if not plan.fits:
        memory += f": more than the {work.kind.memory_gb:g} GB there are"
    lines = {
        "task": f"{work.task}, {network}{work.cells:,} cells of {work.length:,.0f} tokens on average, "
        f"{work.max_length:,} at most{passes}, on {where}",
        "operations": f"{plan.operations:.3g}" if plan.operations else "",
        "time": f"{duration(plan.seconds)}, {_digits(rate)} cells/s; {basis(plan)}",
        "memory": memory,
        "disk": f"{_digits(plan.disk_gb)} GB",
        "launch": plan.launch,
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items() if text)


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def basis(plan: Plan) -> str:
    """Say where a time comes from."""
    work = plan.work
    if work.task == "tokenize":
        by = f"{VALUES_A_CORE:.2g} values a second and core"
        return f"measured on two cores: {by}" if plan.is_measured else f"projected from {by}, measured on two cores"
    if not work.kind.on_gpu:
        measured = MEASURED[work.task]
        rate = f"{measured.share:.0%} of {work.kind.peak / 1e9:,.0f} GFLOP/s"
        if plan.is_measured:
            return f"measured: {rate} ({measured.on})"
        return f"projected: {rate}, which V1-10M reached"
    reached = plan.operations / (plan.seconds * work.devices * work.kind.peak)
    return f"projected, measured on no GPU: {reached:.0%} of {work.kind.peak / 1e12:,.0f} TFLOP/s a device"


def duration(seconds: float) -> str:
    """Write a time in the unit that fits, with two digits."""
    units = (("years", 365.25 * 86_400), ("days", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    unit, size = next((one for one in units if seconds >= 2 * one[1]), units[-1])
    return f"{seconds / size:,.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.2g} {unit}"


# The table of docs/scale.md

_COLUMNS = {"cpu": "two cores", "h100": "one H100", "8xa100": "eight A100", "64xa100": "sixty-four A100"}
_TITLES: Mapping[Task, str] = {
    "tokenize": "tokenize",
    "pretrain": "pretrain, three passes",
    "finetune": "finetune, three passes, one network",
    "embed": "embed",
    "perturb": "perturb, every gene of every cell deleted, exactly",
    "first-order": "perturb --first-order, every gene of every cell",
}
_CELLS = (10**4, 10**5, 10**6, 10**7, 10**8)
_LENGTHS: Mapping[Size, tuple[int, int]] = {
    "V1-10M": (1000, 2048),
    "V1-40M": (1000, 2048),
    "V2-104M": (1500, 4096),
    "V2-316M": (1500, 4096),
}
"""Tokens of a cell, on average and at most."""


def scale_tables() -> str:
    """Return the tables of docs/scale.md, as Markdown."""
    tables = [f"### {_TITLES[task]}\n\n{_times(task)}" for task in get_args(Task)]
    return "\n\n".join([*tables, f"### Memory of a device, and disk\n\n{_places()}"])


def _times(task: Task) -> str:
    """Sizes and numbers of cells by devices."""
    rows = []
    for size in _sizes(task):
        rows += [[size, f"{cells:,}", *_row(task, size, cells)] for cells in _CELLS]
    return _markdown([["size", "cells", *_COLUMNS.values()], *rows])


def _sizes(task: Task) -> list[Size]:
    """Return those a step has; tokenising knows none, and has V1's lengths."""
    return ["V1-10M"] if task == "tokenize" else list(_LENGTHS)


def _places() -> str:
    """Memory by devices, and what a million cells leave on the disk."""
    rows = []
    for task in get_args(Task):
        for size in _sizes(task):
            plans = [planned(_work(task, size, 10**6, device)) for device in _COLUMNS]
            memory = [f"{plan.memory_gb:,.1f} GB{'' if plan.fits else ' (too much)'}" for plan in plans]
            rows.append([task, size, *memory, f"{plans[0].disk_gb:,.1f} GB"])
    return _markdown([["step", "size", *_COLUMNS.values(), "disk, a million cells"], *rows])


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def _row(task: Task, size: Size, cells: int) -> Iterator[str]:
    for device in _COLUMNS:
        plan = planned(_work(task, size, cells, device))
        yield f"{'' if plan.is_measured else '~'}{duration(plan.seconds)}"


def _work(task: Task, size: Size, cells: int, device: str) -> Work:
    mean, longest = _LENGTHS[size]
    return Work(task=task, cells=cells, length=mean, max_length=longest, size=size, device=device)
