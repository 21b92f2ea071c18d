"""How far a model's activations move in a few steps, against its width: flat under muP, growing without.

In a clone; ``seqlab benchmark coordinates`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_coordinates import main

if __name__ == "__main__":
    sys.exit(main())
