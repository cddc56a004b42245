"""Fine-tuning: a cell classifier on stock Trainer (`BertForSequenceClassification`, padded batches), beside ours.

python benchmarks/finetuning.py CELLS COLUMN     # a folder written by tokenize, an obs column; two cores: 10 minutes

Both go once over the same cells with random initial weights of the V1-10M shape, ours and stock in turn in one process,
after one uncounted step of each. Stock groups cells by length, as the published package asks of it, the longest first:
rates of a few steps of each would be of unlike cells.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from _side_by_side import add_json_option, keep, machine
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import geneformer_repro as gf
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.finetuning.networks import NO_SCORES
from geneformer_repro.finetuning.problems.cells import CellProblem, labelled_cells
from geneformer_repro.finetuning.settings.networks import NetworkConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.model import MaskedGeneModel, bert_config, flops
from geneformer_repro.processes import device, peak_memory_gb
from geneformer_repro.training.log import peak_flops


def train_ours(task: CellProblem, options: argparse.Namespace, steps: int) -> float:
    """Train; return tokens a second."""
    torch.manual_seed(0)
    start = Checkpoint(MaskedGeneModel(bert_config(options.size, task.cells.vocabulary)), task.cells.vocabulary)
    trainer = {"max_steps": steps, "logging_steps": 1, "save_strategy": "no", **NO_SCORES}
    training = {"epochs": 1, "warmup_steps": 0, "batch_size": options.batch, "trainer": trainer}
    config = NetworkConfig(training=training)
    with tempfile.TemporaryDirectory() as folder:
        rows = np.arange(len(task.cells))
        task.train(start, config, Split(rows), work=Path(folder), step="ours")
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return statistics.harmonic_mean([line["tokens_per_second"] for line in lines if "loss" in line])  # of equal tokens


def train_stock(task: CellProblem, options: argparse.Namespace, steps: int) -> float:
    """Do the same with stock classes."""
    cells, codes = task.cells, task.labels[:, 0].astype(int)
    seen, tokens = [], [0]

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            seen.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            seen.append(time.perf_counter())

    def count(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        tokens[0] += int(given["attention_mask"].sum())

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(cells[row["row"]]) for row in rows], True, cells.vocabulary.pad_token
        )
        return {
            "input_ids": ids,
            "attention_mask": (ids != cells.vocabulary.pad_token).long(),
            "labels": torch.tensor([codes[r["row"]] for r in rows]),
        }

    shape = bert_config(options.size, cells.vocabulary)
    shape.num_labels = len(task.targets[0].classes)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=options.batch, max_steps=steps, learning_rate=5e-5,
            save_strategy="no", report_to="none", logging_steps=1, train_sampling_strategy="group_by_length",
            remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        table = datasets.Dataset.from_dict({"row": range(len(cells)), "length": cells.lengths})
        model = BertForSequenceClassification(shape)
        model.register_forward_pre_hook(count, with_kwargs=True)
        Trainer(model=model, args=arguments, train_dataset=table, data_collator=collate, callbacks=[Watch()]).train()
    return tokens[0] / (seen[-1] - seen[0])


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells")
    parser.add_argument("column")
    parser.add_argument("--size", default="V1-10M")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    add_json_option(parser)
    options = parser.parse_args()
    cells = gf.TokenizedDataset.open(options.cells)
    cells = cells.select(np.random.default_rng(0).permutation(len(cells))[: options.steps * options.batch])
    task = labelled_cells(cells, [options.column], rng=np.random.default_rng(0))
    lengths = task.cells.lengths
    print(machine())
    print(f"{options.size}, {len(lengths)} cells of {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.0f} on "
          f"average, batches of {options.batch}")  # fmt: skip
    ratios, rates = [], []
    for train in (train_ours, train_stock):
        train(task, options, 1)
    for _ in range(options.runs):
        ours, stock = (train(task, options, options.steps) for train in (train_ours, train_stock))
        ratios.append(ours / stock)
        rates.append((ours, stock))
        print(f"  ours {ours:,.0f}, stock {stock:,.0f} tokens/s: {ratios[-1]:.2f} ×", flush=True)
    print(f"  ratio {min(ratios):.2f} {statistics.median(ratios):.2f} {max(ratios):.2f} × (min, median, max); "
          f"peak memory of both {peak_memory_gb():.1f} GB")  # fmt: skip
    work = 3 * flops(bert_config(options.size, cells.vocabulary), lengths) / lengths.sum()
    keep(
        options.json,
        f"fine-tuning, {options.size}, float32, {lengths.min()} to {lengths.max()} tokens",
        unit="tokens/s",
        ours=[ours for ours, _ in rates],
        stock=[stock for _, stock in rates],
        share_of_peak=statistics.median(ours for ours, _ in rates) * work / peak_flops(device(), torch.float32),
        both_memory_gb=peak_memory_gb(),
    )


if __name__ == "__main__":
    main()
