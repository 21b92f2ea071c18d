"""Perplexity of a text, and tasks of lm-evaluation-harness, for a run or a checkpoint.

In a clone; ``seqlab evaluate`` from anywhere.
"""

import sys

from seqlab.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
