"""Encoding large text: memory against its size, and speed beside the library tokenizers.

    seqlab benchmark text                                      # 100 MB and 1 GB of words drawn at random
    seqlab benchmark text --sizes 100,10000 --work /scratch    # the temporary files, some 1.4 times the text
    seqlab benchmark text --text my.txt --out text.json        # a text of one's own, again and again

For each size a process trains BPE, encodes the text into a cache and reads from there what training reads. Its largest
resident memory is that of all of it, Python and PyTorch included. Then a smaller text is encoded in turn by the library
alone, in memory, and here, from its file into the cache.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from seqlab.benchmarks import text
from seqlab.commands.options import Parser, command, file_to_write, whole, wholes


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser("benchmark text", __doc__)
    add, plain = parser.option, parser.add_argument
    add("--sizes", wholes, default=[100, 1000], help="MB, separated by commas; default 100,1000")
    plain("--text", type=Path, help="a file to repeat, in place of words drawn at random")
    add("--vocabulary", whole, default=8192, help="of BPE; default 8192")
    add("--sample", whole, default=20, help="MB of the comparison with the library; default 20")
    add("--rounds", partial(whole, least=0), default=5, help="of that comparison; 0 leaves it out; default 5")
    plain("--work", type=Path, help="folder for temporary files; default: the system's")
    add("--out", file_to_write, help="a JSON file for the results; the tables go beside it in Markdown")
    return parser.parse_args(argv)


main = command(parse, text.run)
