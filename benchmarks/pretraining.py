"""Pretraining: the published recipe on stock Trainer, `BertForMaskedLM` and padded batches, beside ours.

python benchmarks/pretraining.py CELLS...                # tokens/s, memory, share of peak; two CPU cores: 15 minutes
python benchmarks/pretraining.py CELLS... --processes    # two processes on two cores beside one on one; the data path

CELLS are Parquet files of V1 token lists (`input_ids`, such as the 500 cells of Genecorpus-30M that NVIDIA's BioNeMo
ships, all but three of 2,048 tokens), or folders written by `tokenize`.
Each run is a process of its own, ours and stock in turn, on the same cells with the same genes masked. Rates are those
of the steps after the first. Stock gets cells in the order of our batches, so that both see like lengths together, of
all lengths in a few steps (its `group_by_length` begins with the longest). On a machine with a GPU the same command
runs on it.
"""

import argparse
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _side_by_side import add_json_option, chosen_cells, keep, machine

import geneformer_repro as gf
from geneformer_repro.batching import StepBatches, pack
from geneformer_repro.model import bert_config, flops
from geneformer_repro.pretraining.masking import cell_rng, mask_genes
from geneformer_repro.pretraining.pretrain import _masked_cell
from geneformer_repro.pretraining.settings import PretrainConfig
from geneformer_repro.training.log import peak_flops

N_CELLS = 240


def train_ours(cells: gf.TokenizedDataset, options: argparse.Namespace, out: Path) -> None:
    """Run a few steps of `pretrain`; print seconds and tokens of each."""
    trainer = {"max_steps": options.steps, "logging_steps": 1, "eval_strategy": "no", "eval_on_start": False}
    trainer |= {"save_strategy": "no", "bf16": options.bf16}
    config = PretrainConfig(
        size=options.size,
        held_out=1 / len(cells),
        training={"batch_size": options.batch, "warmup_steps": 0, "trainer": trainer},
    )
    gf.pretrain(cells, config, out=out)
    if int(os.environ.get("RANK", "0")) == 0:
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "tokens_per_second" in line]
        print(json.dumps({"rates": [line["tokens_per_second"] for line in steps], "loss": steps[-1]["loss"]}))


def train_stock(cells: gf.TokenizedDataset, options: argparse.Namespace, out: Path) -> None:
    """Run a few steps of stock Trainer with what the published recipe gives it."""
    from transformers import BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        masked = [
            mask_genes(cells[row["row"]], cells.vocabulary, probability=0.15, rng=cell_rng(0, 0, row["row"]))
            for row in rows
        ]
        padded = [
            torch.nn.utils.rnn.pad_sequence(map(torch.from_numpy, part), True, value)
            for part, value in zip(zip(*masked, strict=True), (cells.vocabulary.pad_token, -100), strict=True)
        ]
        return {"input_ids": padded[0], "labels": padded[1], "attention_mask": (padded[0] != 0).long()}

    seen: list[tuple[float, int]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            seen.append((time.perf_counter(), tokens[0]))

    tokens = [0]

    def count(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        tokens[0] += int(given["attention_mask"].sum())

    import datasets

    table = datasets.Dataset.from_dict(
        {"row": [row for rows in StepBatches(cells.lengths, batch_size=options.batch) for row, _ in rows]}
    )
    arguments = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=options.batch, max_steps=options.steps, learning_rate=1e-3,
        weight_decay=0.001, save_strategy="no", report_to="none", bf16=options.bf16, logging_steps=1,
        train_sampling_strategy="sequential", remove_unused_columns=False, disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config(options.size, cells.vocabulary))
    model.register_forward_pre_hook(count, with_kwargs=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=table, data_collator=collate, callbacks=[Watch()])
    trainer.train()
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(seen)]
    print(json.dumps({"rates": rates, "loss": trainer.state.log_history[-2]["loss"]}))


def in_its_own_process(kind: str, path: str, options: argparse.Namespace, *, batch: int, processes: int = 1) -> dict:
    """Run `kind` in fresh processes; return mean rate, peak memory of a process, and the last loss."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as port:
        port.bind(("", 0))
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port"]
        given = {"size": options.size, "batch": batch, "steps": options.steps}
        given_options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, *([*launcher, str(port.getsockname()[1] + 1)] if processes > 1 else []), __file__]
        command += [path, "--kind", kind, *given_options, "--out", folder]
        command += ["--bf16"] if options.bf16 else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r'^{"rates".*}$', done.stdout, re.MULTILINE)
    memory = re.findall(r"^peak memory ([\d.]+)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        return {"failed": f"exit status {done.returncode}", "said": done.stderr[-300:]}
    result = json.loads(found[0])
    return {
        "rate": statistics.harmonic_mean(result["rates"][1:]),
        "memory": max(map(float, memory)),
        "loss": result["loss"],
    }


def side_by_side(options: argparse.Namespace) -> None:
    """Compare both on full-length cells and on real lengths, then ours with twelve cells."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = peak_flops(device, torch.bfloat16 if options.bf16 else torch.float32)
    dtype = "bfloat16" if options.bf16 else "float32"
    print(f"{machine()}, {device.type}; matrix product {peak / 1e9:,.0f} GFLOP/s ({dtype})")
    for path in options.paths:
        cells = chosen_cells(path, N_CELLS)
        config = bert_config(options.size, cells.vocabulary)
        lengths, batch = cells.lengths, options.batch
        work = 3 * flops(config, lengths, read=0.15, n_outputs=config.vocab_size) / lengths.sum()
        print(
            f"\n{options.size}, {dtype}, cells of {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.0f} on "
            f"average, batches of {batch}"
        )
        pairs = []
        for _ in range(options.runs):
            ours, stock = (in_its_own_process(kind, path, options, batch=batch) for kind in ("ours", "stock"))
            print(f"  ours {ours}\n  stock {stock}", flush=True)
            if "rate" in ours and "rate" in stock:
                pairs.append((ours, stock))
        if pairs:
            ratios = sorted(ours["rate"] / stock["rate"] for ours, stock in pairs)
            memory = max(ours["memory"] for ours, _ in pairs) / min(stock["memory"] for _, stock in pairs)
            rate = statistics.median(ours["rate"] for ours, _ in pairs)
            print(
                f"  ratio {ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f} × (min, median, max); "
                f"memory {memory:.2f} of stock; ours {rate:,.0f} tokens/s, {rate * work / peak:.0%} of peak"
            )
        if ours_alone := [ours for ours, _ in pairs] or [ours for ours in (ours,) if "rate" in ours]:
            keep(
                options.json,
                f"pretraining, {options.size}, {dtype}, {lengths.min()} to {lengths.max()} tokens",
                unit="tokens/s",
                ours=[one["rate"] for one in ours_alone],
                stock=[stock["rate"] for _, stock in pairs],
                share_of_peak=statistics.median(one["rate"] for one in ours_alone) * work / peak,
                memory_gb=max(one["memory"] for one in ours_alone),
                stock_memory_gb=max((stock["memory"] for _, stock in pairs), default=None),
            )
    if options.only_beside:
        return
    print(f"\nours, batches of 12 of the first: {in_its_own_process('ours', options.paths[0], options, batch=12)}")


def several_processes(options: argparse.Namespace) -> None:
    """Two processes on two cores beside one on one core, in turn; and the data path without a model."""
    path = options.paths[0]
    shares = []
    for _ in range(options.runs):
        os.environ["OMP_NUM_THREADS"] = "1"
        one = in_its_own_process("ours", path, options, batch=options.batch)
        two = in_its_own_process("ours", path, options, batch=options.batch, processes=2)
        print(f"  one process {one}\n  two processes {two}", flush=True)
        shares.append(two["rate"] / (2 * one["rate"]))
    print(f"  two processes are {statistics.median(shares):.0%} of twice one (of {sorted(shares)})")
    cells = chosen_cells(path, N_CELLS)
    config = PretrainConfig()
    batches = list(StepBatches(cells.lengths, batch_size=options.batch))
    rates = []
    for _ in range(options.runs):
        began = time.perf_counter()
        n = sum(len(pack([_masked_cell(cells, row, epoch, config) for row, epoch in one])["labels"]) for one in batches)
        rates.append(n / (time.perf_counter() - began))
    print(f"  data path alone, one process: {statistics.median(rates):,.0f} tokens/s")


def main() -> None:
    """Compare, or be one of the processes that are compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="CELLS")
    parser.add_argument("--size", default="V1-10M")
    parser.add_argument("--batch", type=int, default=4, help="stock needs 9 GB for four cells, and is killed at twelve")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--only-beside", action="store_true", help="leave out ours with twelve cells a batch")
    add_json_option(parser)
    parser.add_argument("--kind", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        cells = chosen_cells(options.paths[0], N_CELLS)
        (train_ours if options.kind == "ours" else train_stock)(cells, options, options.out / "run")
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else used:.2f}")
    elif options.processes:
        several_processes(options)
    else:
        side_by_side(options)


if __name__ == "__main__":
    main()
