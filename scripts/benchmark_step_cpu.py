"""Training steps on the CPU: Mamba here, mamba.py's, and PyTorch's Transformer, one after the other in one process.

In a clone; ``seqlab benchmark step_cpu`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_step_cpu import main

if __name__ == "__main__":
    sys.exit(main())
