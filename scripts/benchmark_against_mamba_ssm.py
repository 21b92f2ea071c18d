"""Training, prefill and generation beside mamba_ssm, in one process on one GPU.

In a clone; ``seqlab benchmark against_mamba_ssm`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_against_mamba_ssm import main

if __name__ == "__main__":
    sys.exit(main())
