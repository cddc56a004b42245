"""``python -m geneformer_repro``, and so ``accelerate launch -m geneformer_repro pretrain …``."""

import sys

from geneformer_repro.cli import main

if __name__ == "__main__":
    sys.exit(main())
