"""Variants/s of a deletion screen: ours, and a faithful stock version.

Stock: `Dataset.map` variants, padded `BertForMaskedLM(output_hidden_states=True)`, one cell at a time.

python benchmarks/deletion_screen.py    # V1-10M, real cells of 250 genes; two CPU cores: about three minutes
"""

import contextlib
import io

import datasets
import numpy as np
import torch
from _side_by_side import alternate, machine, peak_memory_gb, report
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.model import MaskedGeneModel, bert_config

VOCABULARY_SIZE = 25_426


def stock(model: BertForMaskedLM, cell: np.ndarray, batch_size: int = 100) -> list[float]:
    """Delete each gene as the published perturber does: a dataset of variants, full model, mean gene similarity."""
    n_genes = len(cell)
    variants = datasets.Dataset.from_dict({"input_ids": [cell.tolist()] * n_genes, "gone": list(range(n_genes))})
    variants = variants.map(
        lambda row: {"input_ids": row["input_ids"][: row["gone"]] + row["input_ids"][row["gone"] + 1 :]}
    )
    layer = model.config.num_hidden_layers - 1
    with torch.no_grad():
        original = model(torch.as_tensor(cell)[None], output_hidden_states=True).hidden_states[layer][0]
        values = []
        for start in range(0, n_genes, batch_size):
            rows = variants[start : start + batch_size]
            ids = torch.as_tensor(rows["input_ids"])
            hidden = model(ids, torch.ones_like(ids), output_hidden_states=True).hidden_states[layer]
            for changed, gone in zip(hidden, rows["gone"], strict=True):
                kept = torch.cat([original[:gone], original[gone + 1 :]])
                values.append(torch.cosine_similarity(changed, kept).mean().item())
    return values


def main() -> None:
    """Screen one cell with both in turn."""
    vocabulary = gf.Vocabulary.fit(gf.datasets.pbmc700(), series="V1")
    cells = gf.tokenize(gf.datasets.pbmc700()[:1], vocabulary)
    config = bert_config("V1-10M", vocabulary)
    config.vocab_size = VOCABULARY_SIZE
    torch.manual_seed(0)
    ours = MaskedGeneModel(config).eval()
    theirs = BertForMaskedLM(config).eval()
    theirs.load_state_dict(ours.state_dict())
    checkpoint = gf.Checkpoint(ours, vocabulary)
    datasets.disable_progress_bars()
    with contextlib.redirect_stderr(io.StringIO()):
        result = gf.perturb(checkpoint, cells, gf.Deletion())
        reference = stock(theirs, cells[0])
        seconds = alternate(
            lambda: gf.perturb(checkpoint, cells, gf.Deletion()), lambda: stock(theirs, cells[0]), runs=3
        )
    print(machine())
    report(
        f"V1-10M, float32, one cell of {len(cells[0])} genes, every gene deleted",
        seconds,
        amount=len(cells[0]),
        unit="variants",
    )
    difference = np.abs(result.table["value"].to_numpy() - reference).max()
    print(f"  largest difference of a value {difference:.1e}; peak memory of both {peak_memory_gb():.1f} GB")


if __name__ == "__main__":
    main()
