"""What a training step costs as work grows: time and peak memory against batch, length, width, depth and vocabulary.

In a clone; ``seqlab benchmark growth`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_growth import main

if __name__ == "__main__":
    sys.exit(main())
