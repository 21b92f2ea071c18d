"""Runs side by side, grouped over seeds: tables, pictures and a page, with 95 % intervals.

In a clone; ``seqlab compare`` from anywhere.
"""

import sys

from seqlab.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
