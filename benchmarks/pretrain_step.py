"""Tokens/s of a pretraining step (forward, backward, AdamW): ours, and stock `BertForMaskedLM` on padded batches.

python benchmarks/pretrain_step.py    # V1-10M, real cells, same masks; two CPU cores: about three minutes
"""

import copy

import torch
from _side_by_side import alternate, machine, peak_flops, peak_memory_gb, report
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.batching import collate
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.pretraining.masking import mask_genes

VOCABULARY_SIZE = 25_426
CELLS = 12


def main() -> None:
    """Train both on the same batch in turn."""
    adata = gf.datasets.pbmc700()[:CELLS]
    vocabulary = gf.Vocabulary.fit(gf.datasets.pbmc700(), series="V1")
    cells = gf.tokenize(adata, vocabulary)
    config = bert_config("V1-10M", vocabulary)
    config.vocab_size = VOCABULARY_SIZE  # the published head; the cells use 754 of its genes
    torch.manual_seed(0)
    ours = MaskedGeneModel(config).train()
    stock = BertForMaskedLM(copy.deepcopy(config)).train()
    stock.load_state_dict(ours.state_dict())
    batch = collate(list(cells), vocabulary)
    masked = mask_genes(batch["input_ids"], vocabulary, probability=0.15, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": masked.input_ids, "attention_mask": batch["attention_mask"], "labels": masked.labels}

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4) for model in (ours, stock)]
    n_tokens = int(batch["attention_mask"].sum())
    print(machine())
    peak = peak_flops()
    for dropout in (0.02, 0.0):
        for module in [*ours.modules(), *stock.modules()]:
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        seconds = alternate(lambda: step(ours, optimizers[0]), lambda: step(stock, optimizers[1]))
        report(
            f"V1-10M, float32, {CELLS} cells of {cells.lengths.min()}–{cells.lengths.max()} tokens, dropout {dropout}",
            seconds,
            amount=n_tokens,
            unit="tokens",
        )
        encoder = sum(weight.numel() for name, weight in ours.bert.named_parameters() if "encoder" in name)
        flops = 6 * n_tokens * (encoder + 0.15 * VOCABULARY_SIZE * config.hidden_size)
        print(
            f"  ours needs {flops / 1e9:.0f} GFLOP a step: {flops / min(seconds['ours']) / peak:.0%} of the "
            f"measured matrix-product peak ({peak / 1e9:.0f} GFLOP/s)"
        )
    print(f"  peak memory of both together {peak_memory_gb():.1f} GB")


if __name__ == "__main__":
    main()
