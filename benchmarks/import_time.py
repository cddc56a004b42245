"""How long `import geneformer_repro` takes, beside importing what it uses.

python benchmarks/import_time.py
"""

import argparse
import statistics
import subprocess
import sys
import time

from _side_by_side import add_json_option, keep


def seconds(code: str, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - began)
    return sorted(times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    add_json_option(parser)
    given = parser.parse_args()
    for code in (
        "pass",
        "import geneformer_repro",
        "import geneformer_repro; geneformer_repro.Vocabulary",
        "import torch, transformers",
        "import scanpy",
    ):
        times = seconds(code, given.runs)
        print(f"{code:<65} {times[0]:6.2f} {statistics.median(times):6.2f} {times[-1]:6.2f} s  (min, median, max)")
        keep(given.json, f"start: {code}", unit="s", ours=times)
