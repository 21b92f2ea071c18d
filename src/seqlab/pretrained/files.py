"""A checkpoint's files: its folder, here or from the hub, its ``config.json``, and its tensors by name."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqlab.errors import UserError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED, GENERATION, TOKENIZER = "pytorch_model.bin", "generation_config.json", "tokenizer.json"
WANTED = (CONFIG, INDEX, "model*.safetensors", GENERATION, TOKENIZER)
"""What is taken from a repository on the hub."""

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""A repository's, with its owner's before it."""

Tensors = Mapping[str, Callable[[], Tensor]]
"""What reads a tensor, by its name."""


def refuse(what: Any, rule: str, remedy: str) -> NoReturn:
    """Refuse a checkpoint.

    Raises:
        UserError: says so.
    """
    raise UserError("init_from", what, rule, remedy)


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a checkpoint's folder, or may be that of a repository on the hub."""
    folder = Path(name).expanduser()
    return (folder / CONFIG).is_file() if folder.exists() else HUB_NAME.fullmatch(name) is not None


def folder_of(name: str) -> Path:
    """The folder of a checkpoint.

    Args:
        name: the folder, or the name of a repository on the Hugging Face hub.

    Raises:
        UserError: there is no such folder, and the hub does not give one.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        refuse(name, "is a file", f"Name the folder that holds it and {CONFIG}")
    if not HUB_NAME.fullmatch(name):
        remedy = f"Name one that holds {CONFIG} and {WEIGHTS}, or <owner>/<name> of the hub"
        refuse(name, "there is no such folder", remedy)
    return downloaded(name)


def downloaded(name: str) -> Path:
    """The folder of a repository on the hub, from the library's own cache if it is there.

    Raises:
        UserError: it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download

        pickled = [PICKLED] if name.startswith("state-spaces/") else []
        return Path(snapshot_download(name, allow_patterns=[*WANTED, *pickled]))
    except Exception as error:  # the library's, and those of what it fetches with
        why = f"there is no such folder, and the hub does not give it ({type(error).__name__})"
        remedy = f"Name a folder that holds {CONFIG} and {WEIGHTS}"
        raise UserError("init_from", name, why, remedy) from error


def ends_in(folder: Path) -> set[int]:
    """The tokens at which a checkpoint ends a text: those for generation, or of its configuration; empty without any.

    Raises:
        UserError: a file cannot be read.
    """
    for path in (folder / GENERATION, folder / CONFIG):
        given = read_json(path).get("eos_token_id") if path.is_file() else None
        if found := {one for one in (given if isinstance(given, list) else [given]) if type(one) is int}:
            return found
    return set()


def read_json(path: Path) -> dict[str, Any]:
    """A mapping in a JSON file; a float that ``transformers`` wrote as a mapping is one again.

    Raises:
        UserError: there is none.
    """

    def number(mapping: dict[str, Any]) -> Any:
        return float(mapping["__float__"]) if mapping.keys() == {"__float__"} else mapping

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=number)
    except FileNotFoundError:
        refuse(path.parent, f"has no {path.name}", "Name a folder that save_pretrained of transformers wrote")
    except (OSError, ValueError, RecursionError, TypeError) as error:
        refuse(path.parent, f"its {path.name} cannot be read ({type(error).__name__})", "Get it again")
    if not isinstance(content, dict):
        refuse(path.parent, f"its {path.name} holds no mapping", "Get it again")
    return content


@contextmanager
def tensors_in(folder: Path, *, pickled: bool = False) -> Iterator[Tensors]:
    """The tensors of a checkpoint's safetensors, one file or several.

    Args:
        folder: the checkpoint's.
        pickled: take ``pytorch_model.bin`` instead if it is there, by torch's reader that runs no code.

    Raises:
        UserError: a file is missing or damaged.
    """
    if pickled and (folder / PICKLED).is_file():
        yield tensors_pickled(folder / PICKLED)
        return
    with ExitStack() as opened:
        tensors: dict[str, Callable[[], Tensor]] = {}
        for path in weight_files(folder):
            try:
                file = opened.enter_context(safe_open(path, "pt"))
            except (SafetensorError, OSError) as error:
                reason = str(error).partition("\n")[0]
                refuse(path, f"is no whole safetensors file ({reason})", "Get it again")
            tensors |= {name: lambda file=file, name=name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        yield tensors


def tensors_pickled(path: Path) -> Tensors:
    """The tensors that ``torch.save`` wrote.

    Raises:
        UserError: the file is damaged, or holds anything else.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        refuse(path, f"holds no tensors that can be read ({type(error).__name__})", "Get it again")
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        refuse(path, "holds something else than tensors by name", "Get it again")
    return {str(name): lambda tensor=tensor: tensor for name, tensor in tensors.items()}


def weight_files(folder: Path) -> list[Path]:
    """The files with a checkpoint's tensors.

    Raises:
        UserError: one is missing, or there are none.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = any(folder.glob("*.bin"))
        rule = "holds its weights as pickles, which run code when they are read" if pickled else "holds no safetensors"
        refuse(folder, rule, f"Name a folder that holds {WEIGHTS}, or {INDEX} and the files that it lists")
    listed = read_json(folder / INDEX).get("weight_map")
    names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name for name in names):
        refuse(folder, f"its {INDEX} does not list the files beside it", "Get it again")
    for name in names:
        if not (folder / name).is_file():
            refuse(folder, f"lacks {name}, which its {INDEX} lists", "Get that file too")
    return [folder / name for name in names]
