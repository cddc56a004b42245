"""Long tables made part by part: what is counted, and whose file it is. Parts themselves are tested with screens."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from geneformer_repro import ShiftTable
from geneformer_repro.in_silico.block_tables import format_of
from geneformer_repro.in_silico.parted import CPU_TOKENS, Counted, batch_tokens, worth
from geneformer_repro.reading import MAX_TOKENS


def test_a_counter_gives_no_more_than_was_announced_and_at_the_end_no_less():
    shown = []
    counted = Counted(shown.append, 10)
    for n in (4, 4, 4):
        counted(n)
    assert shown == [4, 4, 2]
    short = Counted(shown.append, 3)
    short(1)
    short.finish()
    assert shown[3:] == [1, 2]


def test_batches_on_a_cpu_stay_in_its_cache_unless_told_otherwise():
    assert batch_tokens(None, torch.device("cpu")) == CPU_TOKENS
    assert batch_tokens(None, torch.device("cuda")) == MAX_TOKENS
    assert batch_tokens(7, torch.device("cpu")) == 7


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(5, "about 5 s here"), (7200, "about 2 h 0 min here; 12 min for 100 samples (max_cells)")],
)
def test_of_long_work_is_said_what_less_would_take(seconds, expected):
    assert worth(seconds, 1000, "samples") == expected


def test_a_file_says_what_it_is(tmp_path):
    shifts = {"cell": "c", "perturbed": "g", "value": 0.5, "exact": True}
    nothing = dict.fromkeys(["donor", "affected", "state", "dose", "rank", "before"])
    metadata = {"measure": "cosine similarity", "goal": None, "target": None, "perturbation": {}, "gene_names": {}}
    ShiftTable(pd.DataFrame([shifts | nothing]), metadata).save(tmp_path / "shifts.parquet")
    assert format_of(tmp_path / "shifts.parquet") == "geneformer_repro/shifts/2"
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text").write_text("no table")
    assert [format_of(tmp_path / name) for name in ("other.parquet", "text", "nowhere")] == [None] * 3
