"""Encoding large text: memory against its size, and speed beside the library tokenizers.

In a clone; ``seqlab benchmark text`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_text import main

if __name__ == "__main__":
    sys.exit(main())
