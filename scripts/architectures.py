"""The README's table of architectures, made from conf/model.

    python scripts/architectures.py            # print it
    python scripts/architectures.py --write    # put it into README.md, between its two marks

One row for each model that is more than another one at a size: what its YAML says of it, its parameters at size=small
(or the size that it names itself) with a vocabulary of 256, those that a token uses where they are fewer, and what a
sequence needs to go on after 1,024 and after 65,536 positions.
"""

import argparse
from pathlib import Path

from torch import nn

from seqlab.config import CONFIG_FOLDER
from seqlab.config.options import first_comment
from seqlab.models import state_bytes
from seqlab.models.counting import count_parameters
from seqlab.report.formats import scaled_bytes
from seqlab.runs.load import fresh_model

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- architectures: python scripts/architectures.py --write -->\n", "<!-- end of architectures -->"
NEAR, FAR = 1024, 65536


def architectures() -> list[Path]:
    """Every model's YAML except those of another model at a size."""
    sizes = {path.stem for path in (CONFIG_FOLDER / "size").glob("*.yaml")}
    paths = sorted((CONFIG_FOLDER / "model").glob("*.yaml"))
    return [path for path in paths if path.stem.rpartition("_")[2] not in sizes]


def row(path: Path) -> str:
    """One architecture as a row of a Markdown table."""
    cells = [f"`{path.stem}`", first_comment(path)]
    if path.stem.startswith("fla_"):  # built only where the extra is installed, and the table is the same everywhere
        return f"| {' | '.join([*cells, '', ''])} |"
    model = fresh_model(path.stem, None, vocabulary=256, max_length=NEAR)
    return f"| {' | '.join([*cells, parameters(model), state(model)])} |"


def parameters(model: nn.Module) -> str:
    """A cell: all of a model's parameters, and the active ones where they are fewer."""
    counts = count_parameters(model)
    total, active = counts["parameters"], counts["active_parameters"]
    return f"{total:,}" if active == total else f"{total:,} ({active:,} active)"


def state(model: nn.Module) -> str:
    """A cell: the size of a sequence's state after ``NEAR`` and after ``FAR`` positions, once where both are equal."""
    near, far = (state_bytes(model, length) for length in (NEAR, FAR))
    return scaled_bytes(near) if near == far else f"{scaled_bytes(near)} to {scaled_bytes(far)}"


def table() -> str:
    """The whole table in Markdown."""
    head = f"| `model=` | what it is | parameters | state of a sequence at {NEAR:,} to {FAR:,} positions |"
    return "\n".join([head, "|---|---|---|---|", *map(row, architectures())]) + "\n"


def main() -> None:
    """Print the table, or put it into README.md with ``--write``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    text = table()
    if not parser.parse_args().write:
        print(text, end="")
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(before + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
