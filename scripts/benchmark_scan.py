"""Time and peak memory of the selective scan: every backend of ours, other packages', attention, and the roofline.

In a clone; ``seqlab benchmark scan`` from anywhere.
"""

import sys

from seqlab.commands.benchmark_scan import main

if __name__ == "__main__":
    sys.exit(main())
