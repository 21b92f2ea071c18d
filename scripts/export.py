"""Write the model of a run as a folder that transformers loads.

In a clone; ``seqlab export`` from anywhere.
"""

import sys

from seqlab.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
