"""Checkpoints: ``checkpoints/step-00000100/`` with ``model.safetensors``, ``state.pt`` and ``manifest.json``.

Processes that share out the weights write their parts of the optimizers' state into a folder beside these
(``sharded_files``). A checkpoint is written under a temporary name and renamed when complete, so a folder with a
checkpoint's name is complete unless it was damaged on disk, which the manifest's SHA-256 sums show.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load as tensors_of
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from typing_extensions import Buffer

from seqlab.errors import UserError
from seqlab.training.parallel import ALONE, World
from seqlab.training.sharding import is_part, part_of, whole

log = logging.getLogger(__name__)

WEIGHTS, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"

PARTS = "optimizer"
"""The folder with the optimizers' state of weights that processes shared out (``sharded_files``)."""


PART = re.compile(rf"{PARTS}/[\w-]+\.safetensors")

Files = list[tuple[str, Callable[[], Buffer]]]
"""Files to write: a name and what makes the content."""


def path_of(folder: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint's path."""
    return int(path.name.removeprefix("step-"))


def existing(folder: Path) -> list[Path]:
    """All folders named as checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit())


def write_through(path: Path, content: Buffer) -> None:
    """Write a file and flush it to disk (fsync), so that a full disk raises ``OSError`` here and not later."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def state_bytes(state: dict[str, Any]) -> Buffer:
    """A state as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random number generators, of the CPU and of a GPU, (n,) uint8 each."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state()} | cuda


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what ``random_state`` returned, (n,) each, as far as the device has it: a run may move to another."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def random_states(device: torch.device, world: World) -> dict[str, Any]:
    """The random state of each process, to be saved: ``rng`` of the first, ``rng_of_others`` if there are any."""
    first, *others = world.gather(random_state(device))
    return {"rng": first} | ({"rng_of_others": others} if others else {})


def set_random_states(saved: dict[str, Any], device: torch.device, world: World) -> None:
    """Restore what ``random_states`` returned; processes that are new since keep the state that they have."""
    states = [saved["rng"], *saved.get("rng_of_others", [])]
    if world.rank < len(states):
        set_random_state(states[world.rank], device)


def first_names(model: nn.Module) -> dict[str, str]:
    """For each name in a model's state the first name of the same tensor, which is another where weights are tied."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in model.state_dict(keep_vars=True).items()}


def weights_bytes(weights: dict[str, Tensor]) -> Buffer:
    """Weights as safetensors, of all shapes, each from storage of its own (cuDNN's LSTM weights share one)."""
    return safetensors_bytes({name: value.to("cpu", copy=True).contiguous() for name, value in weights.items()})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state, each tensor once and of its whole shape: all processes that hold parts of it call this."""
    state = model.state_dict()
    return {name: whole(state[name]) for name in dict.fromkeys(first_names(model).values())}


def gathered(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """As ``weights_of``, of the same shapes, one tensor after another into memory of the CPU.

    All processes call this; the dictionary is empty where it is not to ``keep`` them.
    """
    state, found = model.state_dict(), {}
    for name in dict.fromkeys(first_names(model).values()):
        value = whole(state[name])
        if keep:
            found[name] = value.to("cpu", copy=True)
    return found


def save(
    folder: Path,
    step: int,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    *,
    best_step: int | None,
    origin: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically, then delete those that are no longer needed (``prune``).

    On any failure earlier checkpoints are untouched and the partial one is removed.

    Args:
        folder: of all checkpoints.
        step: updates made so far.
        weights: of the model, in its shapes (``weights_of``).
        state: the rest, for ``torch.save``.
        best_step: the step of the best checkpoint by validation, if there is one.
        origin: plain values for the manifest that say what the run was made from.
    """
    begun(folder, step)
    files = [(WEIGHTS, lambda: weights_bytes(weights)), (STATE, lambda: state_bytes(state))]
    complete(folder, step, files, best_step=best_step, origin=origin)


def begun(folder: Path, step: int) -> Path:
    """An empty folder for a checkpoint to be written into."""
    temporary = folder / f".{path_of(folder, step).name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def complete(
    folder: Path,
    step: int,
    files: Files,
    *,
    best_step: int | None,
    origin: dict[str, Any] | None,
    also: Callable[[], dict[str, str]] = dict,
) -> None:
    """Write files into the folder of ``begun`` and rename it; ``also`` waits for others there, and has their sums."""
    target, temporary = path_of(folder, step), folder / f".{path_of(folder, step).name}.tmp"
    try:
        sums = also() | _write_summed(temporary, files)
        manifest = {"step": step, "best_step": best_step, "sha256": sums, "origin": origin or {}}
        write_through(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    prune(folder)


def _write_summed(folder: Path, files: Files) -> dict[str, str]:
    """Write files and return their SHA-256 sums; each waits for none other."""
    with ThreadPoolExecutor() as threads:
        written, sums = [], {}
        for name, make in files:
            content = make()
            sums[name] = threads.submit(lambda content: hashlib.sha256(content).hexdigest(), content)
            written.append(threads.submit(write_through, folder / name, content))
        for one in written:
            one.result()
        return {name: one.result() for name, one in sums.items()}


def prune(folder: Path) -> None:
    """Delete partial checkpoints, and all but the last two and the best one that each of these names.

    So a run can go back to the one before the last, if the last is damaged.
    """
    needed = set()
    for path in existing(folder)[-2:]:
        needed |= {path, path_of(folder, manifest_of(path).get("best_step") or step_of(path))}
    for path in existing(folder):
        if path not in needed:
            shutil.rmtree(path)
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def manifest_of(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, empty if it cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    steps = [manifest.get(name) for name in ("step", "best_step")] if isinstance(manifest, dict) else ["no mapping"]
    return manifest if all(step is None or (type(step) is int and step >= 0) for step in steps) else {}


def origin_of(folder: Path) -> dict[str, Any]:
    """The newest ``origin`` in the checkpoints' manifests; empty if there is none, as in older folders."""
    origins = [manifest_of(path).get("origin") for path in existing(folder)]
    return next((origin for origin in reversed(origins) if origin and isinstance(origin, dict)), {})


def sums_of(path: Path) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint; empty if the manifest cannot be read or lists other files."""
    sums = manifest_of(path).get("sha256")
    if not isinstance(sums, dict):
        return {}
    others = set(sums) - {WEIGHTS, STATE}
    return sums if len(sums) - len(others) == 2 and all(map(PART.fullmatch, others)) else {}


def whole_file(path: Path, name: str) -> bytes:
    """The bytes of one of a checkpoint's files, after their checksum was verified.

    Raises:
        UserError: the file or the manifest is missing or damaged.
    """
    expected = sums_of(path).get(name)
    try:
        content = b"" if expected is None else (path / name).read_bytes()
    except OSError as error:
        problem = str(error)
    else:
        if hashlib.sha256(content).hexdigest() == expected:
            return content
        problem = f"{MANIFEST} is missing or damaged" if expected is None else f"{name} changed after it was written"
    remedy = "Use another checkpoint, or run again without resume"
    raise UserError("checkpoint", path, f"it cannot be used ({problem})", remedy)


def sum_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or ``None``."""
    try:
        for name in sums_of(path) or (WEIGHTS, STATE):
            whole_file(path, name)
    except UserError as error:
        return error.rule
    return None


def latest(folder: Path) -> Path:
    """The newest undamaged checkpoint whose best one is undamaged too; a damaged one is logged and renamed.

    Raises:
        UserError: there is none.
    """
    for path in reversed(existing(folder)):
        best = manifest_of(path).get("best_step")
        problem = damage(path) or (damage(path_of(folder, best)) if best is not None else None)
        if problem is None:
            return path
        log.warning("Checkpoint %s %s; trying the one before it.", path, problem.removeprefix("it "))
        path.rename(path.with_name(f"damaged-{path.name}"))
    raise UserError(
        "resume",
        folder.parent,
        f"no whole checkpoint lies in {folder}",
        "Name a run folder that has one, or start the run again without resume",
    )


def whole_weights(path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights by name, of the model's shapes; other files, if only it was copied, may be missing.

    Raises:
        UserError: the weights or the manifest are missing or damaged.
    """
    return tensors_of(whole_file(path, WEIGHTS))


def put_weights(saved: dict[str, Tensor], model: nn.Module) -> None:
    """Copy a checkpoint's weights into a model of the same shapes, on any device; into its parts, if it has those."""
    _put(saved.__getitem__, model)


def _put(read: Callable[[str], Tensor], model: nn.Module) -> None:
    state = model.state_dict()
    model.load_state_dict({name: part_of(read(first), state[name]) for name, first in first_names(model).items()})


def load_weights(path: Path, model: nn.Module, world: World = ALONE) -> None:
    """Copy the weights of a checkpoint into a model.

    The first of several processes reads it for all. If they have parts of the weights, it checks the file, and each
    reads it, one tensor at a time.

    Raises:
        UserError: the checkpoint is damaged.
    """
    in_parts = any(map(is_part, model.parameters()))

    def read() -> dict[str, Tensor]:
        whole_file(path, STATE)
        weights = whole_weights(path)
        return {} if in_parts else weights

    weights = world.once(read)
    if not in_parts:
        put_weights(weights, model)
        return
    with world.agreed(), safe_open(path / WEIGHTS, framework="pt") as file:
        _put(file.get_tensor, model)


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state apart from the weights, on the CPU.

    Raises:
        UserError: it is damaged.
    """
    return torch.load(io.BytesIO(whole_file(path, STATE)), map_location="cpu", weights_only=True)
