"""What whole commands cost, of this checkout and of another one: processor seconds, wall seconds and peak memory.

In a clone; ``seqlab benchmark commands`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_commands import main

if __name__ == "__main__":
    sys.exit(main())
