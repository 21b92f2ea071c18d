"""A run's checkpoints, written and read by all of its processes; in the background if weights are shared out."""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seqlab.training import checkpoint, sharded_files
from seqlab.training.counters import Counters
from seqlab.training.parallel import World
from seqlab.training.sharding import parts_in, with_parts, without_parts
from seqlab.training.update import Update


class Saving:
    """Writes and reads the checkpoints of a run.

    Whole weights are written at once. Of weights that are shared out the first process writes one file, as of others,
    and each process its own part of the updates' state; all that goes on in the background, and is renamed into
    place when it is complete.

    Args:
        folder: of all checkpoints; of several processes, all see it.
        update: whose state is saved.
        model: with the weights that are saved.
        device: whose random state is saved.
        world: the processes that train together.
    """

    def __init__(self, folder: Path, update: Update, model: nn.Module, device: torch.device, world: World):
        self.folder, self.update, self.model, self.device, self.world = folder, update, model, device, world
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future | None = None

    def save(self, counters: Counters, origin: dict[str, Any]) -> None:
        """Write a checkpoint, or begin to; an earlier one is complete before.

        Raises:
            OSError: this one cannot be written, or an earlier one could not be.
        """
        self.wait()
        step, what = counters.step, {"best_step": counters.best_step, "origin": origin}
        state = {"update": self.update.state_dict(), "counters": dataclasses.asdict(counters)}
        state |= checkpoint.random_states(self.device, self.world)
        if not self.update.shared_out:
            weights = checkpoint.weights_of(self.model)
            self.world.once(lambda: checkpoint.save(self.folder, step, weights, state, **what))
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
            self._group = torch.distributed.new_group(backend="gloo")  # of its own: training uses the other meanwhile
        optimizers = state["update"].pop("optimizers")
        parts = parts_in(optimizers) | parts_in(state["update"])
        state["update"] = without_parts(state["update"] | {"optimizers": optimizers})
        weights = checkpoint.gathered(self.model, keep=self.world.rank == 0)
        temporary = self.world.once(lambda: checkpoint.begun(self.folder, step))
        written = sharded_files.write(parts, temporary / checkpoint.PARTS, self._group)
        if self.world.rank:
            self._pending = self._thread.submit(self._sums_of_parts, written, temporary)
            return
        content = checkpoint.state_bytes(state)  # now, before steps change it
        files = [
            (checkpoint.STATE, lambda: content),
            (checkpoint.WEIGHTS, lambda: checkpoint.weights_bytes(weights)),
        ]
        what["also"] = partial(self._sums_of_parts, written, temporary)
        self._pending = self._thread.submit(checkpoint.complete, self.folder, step, files, **what)

    def _sums_of_parts(self, written: Future, temporary: Path) -> dict[str, str]:
        """Wait for all processes' parts; the SHA-256 sum of each file, of which every process computes some."""
        with sharded_files.said_plainly():
            written.result()
        own, error = {}, None
        try:
            files = sorted((temporary / checkpoint.PARTS).iterdir())[self.world.rank :: self.world.size]
            own = {f"{checkpoint.PARTS}/{file.name}": checkpoint.sum_of(file) for file in files}
        except OSError as raised:
            error = raised
        found = [None] * self.world.size
        torch.distributed.all_gather_object(found, (own, error), group=self._group)
        if errors := [error for _, error in found if error]:
            raise errors[0]
        return {name: value for sums, _ in found for name, value in sums.items()}

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete.

        Raises:
            OSError: it could not be written; those before are as they were.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self.world.agreed():
                pending.result()

    def restore(self) -> tuple[Path, Counters]:
        """Read the newest undamaged checkpoint into update, model and random states; its path and counters.

        Raises:
            UserError: there is none.
        """
        path = self.world.once(lambda: checkpoint.latest(self.folder))
        checkpoint.load_weights(path, self.model, self.world)
        state = self.world.once(lambda: checkpoint.load_state(path))
        saved = state["update"]
        if (path / checkpoint.PARTS).is_dir():
            others = {name: value for name, value in self.update.state_dict().items() if name != "optimizers"}
            parts = sharded_files.read(path / checkpoint.PARTS, self.update.optimizers, parts_in(others))
            optimizers = saved.pop("optimizers")
            saved = with_parts(saved, parts) | {"optimizers": with_parts(optimizers, parts)}
        self.update.load_state_dict(saved)
        checkpoint.set_random_states(state, self.device, self.world)
        return path, Counters(**state["counters"])
