"""How a run can end early, each with the message and the exit status that its user gets."""

import difflib
import re
import shlex
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqlab.formatting import counted
from seqlab.invocation import program

CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
"""Control characters, which a terminal would obey, each with its escape sequence in Python."""

IN_TEXT = {code: CONTROLS[code] for code in CONTROLS if chr(code) not in "\n\t"}


SETTING = re.compile(r"(?<![\w.\]])([A-Za-z_]\w*)(?:\.\w+|\[\w+\])*")
"""A setting's key, and its first name; the key is absolute unless that is a parameter of the part being built."""


def printable(text: str) -> str:
    """Text whose control characters are escaped, except newlines and tabs: names in it may come from anywhere."""
    return text.translate(IN_TEXT)


def sentence(text: str) -> str:
    """Text with a full stop, unless it ends in punctuation."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def nearest(name: str, names: Iterable[str]) -> str:
    """A remedy that names what was probably meant, or all names if they are few."""
    names = list(names)
    same_end = [other for other in names if other.split(".")[-1] == name.split(".")[-1]]
    close = same_end or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not names:
        return "There is none"
    return f"There are: {', '.join(names)}" if len(names) <= 20 else "There is nothing like it"


def resume_command(folder: Path) -> str:
    """How to continue a run, quoted for the shell and for Hydra (a sweep's folders have = and , in their names)."""
    return f"{program()} {shlex.quote(f'resume={in_quotes(str(folder))}')}"


def in_quotes(text: str) -> str:
    """Text as Hydra reads it again, whatever is in it."""
    escaped = re.sub(r'(\\+)(?="|\Z)', r"\1\1", text).replace('"', r"\"")
    return f'"{escaped}"'


class Foreseen(Exception):
    """An ending that its message tells in full: a notebook shows no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class UserError(Foreseen):
    """A setting, file or folder that cannot be used, said in one or two lines.

    Args:
        key: the setting or the thing that is wrong, as the user would type it (``size.n_heads``).
        value: what it is now.
        rule: what it would have to be, and why.
        remedy: what to type or do instead.
    """

    exit_status = 2

    def __init__(self, key: str, value: Any, rule: str, remedy: str):
        super().__init__(key, value, rule, remedy)
        self.key, self.value, self.rule, self.remedy = key, value, rule, remedy

    def __str__(self) -> str:
        lines = f"{self.key}={self.value}: {sentence(self.rule)}", sentence(self.remedy)
        return "\n".join(line.translate(CONTROLS) for line in lines)


@contextmanager
def under(path: str, names: Container[str]) -> Iterator[None]:
    """Give a ``UserError`` about a part's parameters the keys that its user types.

    A part knows its parameters and not where it stands in the configuration: ``length=0 ... Set length=1 or more``,
    raised within ``under("data", ["length", "seed"])``, becomes ``data.length=0 ... Set data.length=1 or more``.

    Args:
        path: where the part stands.
        names: its parameters; other names in the key, and before an equals sign in the remedy, stay as they are.

    Raises:
        UserError: the one raised within, with full keys.
    """

    def full(match: re.Match[str]) -> str:
        return f"{path}.{match[0]}" if match[1] in names else match[0]

    try:
        yield
    except UserError as error:
        error.key = SETTING.sub(full, error.key)
        error.remedy = re.sub(f"{SETTING.pattern}(?==)", full, error.remedy)
        raise


class Diverged(Foreseen):
    """The loss or gradient was not finite in several steps in a row; the loss of one rank alone, if that is given."""

    exit_status = 1

    def __init__(self, step: int, steps_in_a_row: int, folder: Path, rank: int | None = None):
        super().__init__(step, steps_in_a_row, folder, rank)
        self.step, self.steps_in_a_row, self.folder, self.rank = step, steps_in_a_row, folder, rank

    def __str__(self) -> str:
        alone = "" if self.rank is None else f", on rank {self.rank} alone"
        return (
            f"The loss or its gradient was not finite in {counted(self.steps_in_a_row, 'step')} in a row, "
            f"up to step {self.step}{alone}; "
            f"the last good checkpoint is kept in {self.folder / 'checkpoints'}.\n"
            "Lower optimizer.lr, lengthen schedule.warmup, or use trainer.precision=float32."
        )


class NoResult(Diverged):
    """A run went to its end, and what it reached is no result."""

    def __init__(self, message: str):
        Exception.__init__(self, message)

    def __str__(self) -> str:
        return self.args[0]


class FailedElsewhere(Foreseen):
    """Another process of the run failed, which has written its traceback."""

    exit_status = 1

    def __init__(self, rank: int, message: str):
        super().__init__(rank, message)
        self.rank, self.message = rank, message

    def __str__(self) -> str:
        return f"Rank {self.rank} failed, and with it the run: {self.message}"


class Absent(UserError):
    """Processes that the others waited for in vain.

    Args:
        ranks: theirs; none if they have come too late, or nobody knows.
        seconds: how long the others waited.
        teller: the first rank of those that have come, which says so; the first of all does anyway.
    """

    def __init__(self, ranks: Sequence[int], seconds: float, teller: int):
        who = ", ".join(f"rank {rank}" for rank in ranks) or "a process of this run"
        rule = f"did not come to the others within {seconds:g} seconds, and the run cannot go on without it"
        remedy = "resume=<run folder> goes on from its last checkpoint; trainer.timeout=1800 would wait longer"
        super().__init__("torchrun", who, rule, remedy)
        self.args = ranks, seconds, teller
        self.teller = teller


def is_late(error: BaseException) -> bool:
    """Whether gloo says that another process did not come in time."""
    return isinstance(error, RuntimeError) and "Timed out waiting" in str(error)


def is_out_of_touch(error: BaseException) -> bool:
    """Whether gloo or NCCL says that another process is gone."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    named = type(error).__name__ in ("DistBackendError", "DistNetworkError")
    return named or "timeout caused pair closure" in said or ("gloo" in said and "onnection" in said)


class Interrupted(Foreseen):
    """A signal asked the run to stop; a checkpoint was written first."""

    def __init__(self, signal: int, step: int, folder: Path):
        super().__init__(signal, step, folder)
        self.signal, self.step, self.folder = signal, step, folder
        self.command = resume_command(folder)

    @property
    def exit_status(self) -> int:
        """128 and the signal's number, as a shell reports it."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"Stopped at step {self.step}; the checkpoint is written. Continue with:\n{self.command}"


class Pruned(Exception):
    """A search stopped a trial, because its validation loss is behind that of the others."""

    def __init__(self, step: int, loss: float):
        super().__init__(step, loss)
        self.step, self.loss = step, loss

    def __str__(self) -> str:
        return f"Pruned at step {self.step}: its validation loss of {self.loss:.4f} is behind the other trials'."
