"""One job of a sweep in a process of its own, for launchers and torchrun; nobody types this."""

import os
import sys
from pathlib import Path

from seqlab.commands.train import main
from seqlab.sweep.launchers.packed import run

if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"
    run(Path(sys.argv[1]).read_bytes() if sys.argv[1:] else sys.stdin.buffer.read(), main.__wrapped__)
