"""A mixture of experts forward and backward: grouped matrix products beside a loop over the experts.

In a clone; ``seqlab benchmark experts`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_experts import main

if __name__ == "__main__":
    sys.exit(main())
