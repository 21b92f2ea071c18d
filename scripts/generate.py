"""Sample text from a model that a run trained.

In a clone; ``seqlab generate`` from anywhere.
"""

import sys

from seqlab.commands.generate import main

if __name__ == "__main__":
    sys.exit(main())
