"""``seqlab`` and ``python -m seqlab``: the commands from anywhere, each a line here."""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import seqlab
from seqlab.errors import UserError, nearest
from seqlab.invocation import INSTALLED, config_dirs, remember

COMMANDS = {
    "train": "train a model on a data set, or sweep over several with -m; seqlab train --help lists them",
    "compare": "tables, pictures and a page of the runs in outputs/",
    "generate": "text from a model that a run trained",
    "export": "a trained model as a folder that transformers loads",
    "evaluate": "perplexity of a text, or tasks of lm-evaluation-harness, for a run or a checkpoint",
    "benchmark": "measure; seqlab benchmark lists what",
}
BENCHMARKS = {
    "scan": "the selective scan, every backend over lengths",
    "step_cpu": "a training step on the CPU, beside mamba.py and PyTorch's Transformer",
    "inference": "prefill, time a token and memory against the context",
    "growth": "a training step over batch, length, width, depth and vocabulary",
    "experts": "a mixture of experts, grouped products beside a loop",
    "scaling": "training on 1, 2, 4, ... GPUs, weak and strong, beside plain DDP; on paper to 1,024",
    "against_mamba_ssm": "training, prefill and generation beside mamba_ssm, on a GPU",
    "commands": "seconds and memory of whole commands",
    "text": "encoding large text: memory against its size, and speed",
    "coordinates": "how far activations move at each width, with muP and without",
}
OWN_CODE = ("--config-dir", "-cd", "trust=", "--trust", "hydra.searchpath=")
"""Arguments with which a user says that there is code of their own."""


def listed(beginning: str, commands: dict[str, str]) -> str:
    """The help: each command in a line."""
    width = max(map(len, commands))
    lines = (f"  {beginning} {name:<{width}}  {what}" for name, what in commands.items())
    return "\n".join([f"{beginning} <command>:", "", *lines, "", f"{beginning} <command> --help says more."])


def chosen(beginning: str, commands: dict[str, str], arguments: Sequence[str]) -> str:
    """The first argument, if it is a command; prints the help and exits where there is none, or where it is asked for.

    Raises:
        UserError: there is no such command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listed(beginning, commands))
        sys.exit(0)
    if arguments[0] not in commands:
        setting = "=" in arguments[0] and commands is COMMANDS
        remedy = f"Did you mean seqlab train {arguments[0]}?" if setting else nearest(arguments[0], commands)
        raise UserError("command", arguments[0], f"is no command of {beginning}", remedy)
    return arguments[0]


def command_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The words of the arguments that name the command."""
    name = chosen("seqlab", COMMANDS, arguments)
    return (name, chosen("seqlab benchmark", BENCHMARKS, arguments[1:])) if name == "benchmark" else (name,)


def complete(query: Sequence[str]) -> None:
    """Answer Hydra's completion in a shell: commands, and after ``train`` what Hydra knows of settings.

    Args:
        query: Hydra's arguments; the line as typed so far is the environment's ``COMP_LINE``.
    """
    line = os.environ["COMP_LINE"]
    before = line.split()[1:] if line.endswith(" ") else line.split()[1:-1]
    if before[:1] == ["train"]:
        typed = line.split(maxsplit=2)[2:]
        os.environ["COMP_LINE"] = " ".join(["seqlab", *typed])
        sys.argv[1:] = [*query, *(f"--config-dir={folder}" for folder in config_dirs(before))]
        import_module("seqlab.commands.train").main()
    else:
        names = {(): COMMANDS, ("benchmark",): BENCHMARKS}.get(tuple(before), ())  # none: the shell's, of files
        if not names and "query=fish" in query:  # which is told to offer no files of its own
            names = paths("" if line.endswith(" ") else line.split()[-1])
        print("\n".join(names))


def paths(word: str) -> list[str]:
    """What a word, or what follows its equals sign, may go on as if it begins a path."""
    before, above, name = re.fullmatch(r"(.*=)?(.*/)?(.*)", word).groups(default="")
    found = sorted(Path(above).expanduser().glob("*"))
    shown = [path for path in found if path.name.startswith(name) and (name or not path.name.startswith("."))]
    return [f"{before}{above}{path.name}{'/' if path.is_dir() else ''}" for path in shown]


def own_folders(arguments: Sequence[str]) -> list[str]:
    """Where a user has modules, if the arguments say that there are any: here, and beside their ``--config-dir``."""
    if not any(argument.startswith(OWN_CODE) for argument in arguments):
        return []
    beside = [Path(folder).absolute().parent for folder in config_dirs(arguments)]
    return [str(folder) for folder in dict.fromkeys([Path.cwd(), *beside])]


def main() -> None:
    """Run the command that the process's arguments name; exits with its status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["-sc"] and "COMP_LINE" in os.environ:
        complete(arguments)
        return
    if arguments == ["--version"]:
        print(f"seqlab {seqlab.__version__}")
        sys.exit(0)
    try:
        words = command_of(arguments)
    except UserError as error:
        from seqlab import console

        console.complain(str(error))
        sys.exit(error.exit_status)
    beginning = INSTALLED[Path(sys.argv[0]).name == "__main__.py"]
    remember([*beginning, *arguments])
    sys.argv[1:] = arguments[len(words) :]
    if not sys.flags.safe_path:
        sys.path += own_folders(sys.argv[1:])  # the last places, so that nothing installed is hidden
    command = import_module(f"seqlab.commands.{'_'.join(words)}").main
    if words != ("train",):
        sys.exit(command())
    from seqlab import cli

    cli.run(command, [*beginning, *arguments])


if __name__ == "__main__":
    main()
