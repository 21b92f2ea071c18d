"""How training grows with the number of GPUs: tokens/s, time of a step and memory, beside plain DDP.

In a clone; ``seqlab benchmark scaling`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_scaling import main

if __name__ == "__main__":
    sys.exit(main())
