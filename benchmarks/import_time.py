"""How long `import geneformer_repro` takes, beside importing what it uses.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time


def seconds(code: str, runs: int = 7) -> list[float]:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - began)
    return sorted(times)


if __name__ == "__main__":
    for code in (
        "pass",
        "import geneformer_repro",
        "import geneformer_repro; geneformer_repro.Vocabulary",
        "import torch, transformers",
        "import scanpy",
    ):
        times = seconds(code)
        print(f"{code:<65} {times[0]:6.2f} {statistics.median(times):6.2f} {times[-1]:6.2f} s  (min, median, max)")
