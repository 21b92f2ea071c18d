"""What models cost in use, against the length of the context: prefill, one token more, state and peak memory.

In a clone; ``seqlab benchmark inference`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_inference import main

if __name__ == "__main__":
    sys.exit(main())
