"""How long `import geneformer_repro` takes, beside importing what it uses; and how long the command line takes.

python benchmarks/import_time.py
python benchmarks/import_time.py vocabulary cells.tok runs/base shifts.parquet     # also `info` of each of these
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from _side_by_side import add_json_option, keep

PROGRAMS = (
    "pass",
    "import geneformer_repro",
    "import geneformer_repro; geneformer_repro.Vocabulary",
    "import torch, transformers",
    "import scanpy",
)


def seconds(arguments: Sequence[str], runs: int) -> list[float]:
    """Return how long a new Python takes, sorted, after one that is not counted."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", help="of which info is asked")
    parser.add_argument("--runs", type=int, default=7)
    add_json_option(parser)
    given = parser.parse_args()
    works = {code: ["-c", code] for code in PROGRAMS}
    works |= {
        " ".join(command): ["-m", "geneformer_repro", *command]
        for command in (["--help"], *(["info", path] for path in given.paths))
    }
    for name, arguments in works.items():
        times = seconds(arguments, given.runs)
        print(f"{name:<65} {times[0]:6.2f} {statistics.median(times):6.2f} {times[-1]:6.2f} s  (min, median, max)")
        keep(given.json, f"start: {name}", unit="s", ours=times)
