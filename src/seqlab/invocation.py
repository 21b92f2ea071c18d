"""The command as it was typed: what a run records of it, and what a message says to type next."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

TYPED = "SEQLAB_COMMAND"
"""Environment variable with the command, for jobs in processes of their own."""

SWEEP = "SEQLAB_SWEEP"
"""Environment variable with the id of the process that a job ends with: the one that shows the sweep, Ray's worker,
or, of a job in several processes, the one that started torchrun."""

MOMENT = 1.0
"""Seconds within which several signals are one: ``timeout`` and others send theirs to the process and to its group."""

INSTALLED = (["seqlab"], ["python", "-m", "seqlab"])
"""How the commands begin from anywhere; in a clone each has a script too."""

SCRIPTS = {"train": "train.py", "benchmark coordinates": "scripts/coordinate_check.py"}
"""Those that are not called as their command is."""


def remember(words: Sequence[str]) -> None:
    """Keep the command, for this process and for those that it starts."""
    os.environ[TYPED] = shlex.join(words)


@contextmanager
def typed_as(beginning: Sequence[str], arguments: Sequence[str]) -> Iterator[None]:
    """Within, the command is this one: of a call from Python, of which nothing was typed.

    Args:
        beginning: the words that name the command.
        arguments: the words after it.
    """
    before, argv = os.environ.get(TYPED), sys.argv
    sys.argv = [beginning[0], *arguments]
    remember([*beginning, *arguments])
    try:
        yield
    finally:
        sys.argv = argv
        del os.environ[TYPED]
        if before is not None:
            os.environ[TYPED] = before


def remembered() -> list[str]:
    """The words of the command, none in another program, whose own arguments say nothing here."""
    return shlex.split(os.environ.get(TYPED, ""))


def typed() -> list[str]:
    """The words of the command; in the process of a sweep's job, those of the sweep's command."""
    return remembered() or ["python", *sys.argv]


def arguments() -> list[str]:
    """The words of the command after those that name it: the ``-m`` of ``python -m seqlab`` is no flag of it."""
    words = typed()
    return next((words[len(begin) :] for begin in INSTALLED if words[: len(begin)] == begin), words)


def config_dirs(words: Sequence[str]) -> list[str]:
    """The values of ``--config-dir`` among words of a command."""
    with_next = [(*word.partition("="), after) for word, after in pairwise([*words, ""])]
    found = [value if equals else after for flag, equals, value, after in with_next if flag in ("--config-dir", "-cd")]
    return [folder for folder in found if folder]


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def processes() -> tuple[int, int]:
    """The number of this process and that of all, under torchrun; 0 and 1 without it."""
    if not under_torchrun():  # WORLD_SIZE alone may be another program's
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def in_worker() -> bool:
    """Whether this process runs a job of a sweep for another process, with which it ends."""
    return os.environ.get(SWEEP, str(os.getpid())) != str(os.getpid())


def program(name: str = "train") -> str:
    """How to call a command in the manner of the present one: ``seqlab train`` or ``python train.py``."""
    words = typed()
    for beginning in INSTALLED:
        if words[: len(beginning)] == beginning:
            return " ".join([*beginning, name])
    return "python " + SCRIPTS.get(name, f"scripts/{name.replace(' ', '_')}.py")


def as_typed(text: str) -> str:
    """A text with each ``seqlab <command>`` in it called in the manner of the present command."""
    commands = r"\bseqlab (train|compare|generate|export|evaluate|benchmark \w+)"
    return re.sub(commands, lambda found: program(found[1]), text)
