"""Run the command as ``python -m sparsebert_kernels.cuda.aot``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
