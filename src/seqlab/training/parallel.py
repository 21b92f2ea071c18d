"""The processes that train one model together, as torchrun starts them.

All of them make the same steps and decisions. Each computes the gradient of its share of a batch's rows, and torch adds
the gradients up: with ``DistributedDataParallel`` every process holds all weights, with ``fully_shard`` a part of each
(FSDP2). The first process alone writes.
"""

import contextlib
import inspect
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Store
from typing_extensions import override

from seqlab.data import Batch
from seqlab.errors import Absent, FailedElsewhere, Foreseen, UserError, is_late, is_out_of_touch
from seqlab.ops.context import ContextGroup
from seqlab.ops.cuda_graph import on_side_stream
from seqlab.training import meeting
from seqlab.training.sharding import shard

Parallel = Literal["auto", "ddp", "fsdp"]
"""How several processes hold the weights: all of them, which is ``auto`` too, or a part each."""

PATIENCE = 30
"""Seconds that the first process has, after an error, to say what it was."""

ROLL_CALL = 10
"""Seconds in which those who are there say so, when some are not."""

Value = TypeVar("Value")


class World:
    """One process, which trains alone: there is nothing to exchange. ``Processes`` are several.

    Every process calls the same methods in the same order, and waits in them for the others.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        restarts: how often torchrun has started them before, on the machine where it did so most often.
    """

    rank, size, restarts = 0, 1, 0

    def take(self, device: torch.device) -> None:
        """Take this process's own of the machine's devices.

        Raises:
            UserError: there is none for it.
        """

    def share(self, batch: Batch, context: int = 1) -> Batch:
        """The rows of a batch that this process computes; all rows are somebody's.

        With ``context`` the rows that so many processes compute, and of these rows this one's slice of the positions.
        """
        return batch

    def context(self, size: int) -> ContextGroup:
        """The ``size`` processes, this one among them, that get the same rows by ``share``."""
        raise NotImplementedError

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the processes' values, which have one shape, on the device."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """The processes' values, in the order of their ranks; tensors have to be on the CPU."""
        return [value]

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        return value

    def the_one_not_finite(self, value: Tensor) -> int | None:
        """The rank of the only process whose value, a scalar, is not finite; None if there is none, or another."""
        found = [rank for rank, finite in enumerate(self.gather(bool(value.isfinite()))) if not finite]
        return found[0] if len(found) == 1 < self.size else None

    def once(self, make: Callable[[], Value]) -> Value:
        """What the first process makes; if it raises an exception, all do."""
        return make()

    def agreed(self) -> AbstractContextManager[None]:
        """Within, no process waits for another; an exception of one is raised in all."""
        return nullcontext()

    def one_goes_ahead(self) -> AbstractContextManager[None]:
        """On each machine one process goes through first, to fetch what the others then find."""
        return nullcontext()

    def wait_at_most(self, seconds: float) -> None:
        """Let no process wait longer for another from here on."""

    def roll_call(self) -> AbstractContextManager[None]:
        """Within, an error for having waited too long for a process names it.

        Raises:
            Absent: for that.
        """
        return nullcontext()

    def shard(self, model: nn.Module, parallel: Parallel, offload: bool = False) -> nn.Module:
        """Leave this process only its part of the weights, if they are to be shared out; ``offload``: on the CPU.

        Returns:
            The model, or else a copy without values as it was.
        """
        return model

    def wrap(self, objective: nn.Module, parallel: Parallel, captured: bool = False) -> nn.Module:
        """The loss (``Objective``) as a module whose backward pass leaves the mean of the processes' gradients.

        With ``captured`` that can be part of a CUDA graph.
        """
        return objective

    def adds_up(self, wrapped: nn.Module, now: bool) -> AbstractContextManager[None]:
        """Within, a forward and backward pass through ``wrap``'s module only add to this process's own gradient, unless
        ``now``: then that of all such passes so far is exchanged."""
        return nullcontext()


class Processes(World):
    """Several processes, which have joined (``joined``)."""

    def __init__(self, rank: int, size: int, store: Store | None = None):
        self.rank, self.size, self.store = rank, size, store
        self.groups: list[ProcessGroup | None] = [None]  # None is that of all
        self.timeout: float = meeting.PATIENCE
        self.place = int(os.environ["LOCAL_RANK"])  # among the processes of this machine

    @override
    def take(self, device: torch.device) -> None:
        if device.type != "cuda":
            return
        if not torch.distributed.is_nccl_available():
            rule = "processes exchange tensors on GPUs through NCCL, which this build of torch does not have"
            raise UserError("device", device.type, rule, "Set device=cpu, or install a torch that has it")
        if self.place >= (found := torch.cuda.device_count()):
            rule = f"each needs a GPU of its own, and torch sees {found} on this machine"
            remedy = f"Start as many (torchrun --nproc-per-node={found}), or set device=cpu"
            raise UserError("torchrun", f"{self.place + 1} processes or more", rule, remedy)
        torch.cuda.set_device(self.place)

    @override
    def share(self, batch: Batch, context: int = 1) -> Batch:
        group, place = divmod(self.rank, context)
        rows = (part.tensor_split(self.size // context)[group] for part in batch)
        return Batch(*(part if context == 1 else part.tensor_split(context, dim=1)[place] for part in rows))

    @override
    def context(self, size: int) -> ContextGroup:
        self.groups.append(torch.distributed.new_subgroups(size)[0])
        return ContextGroup(self.groups[-1])

    @override
    def mean(self, value: Tensor) -> Tensor:
        total = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
        torch.distributed.all_reduce(total)
        return total / self.size

    @override
    def gather(self, value: Value) -> list[Value]:
        found = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    @override
    def largest(self, value: int) -> int:
        found = torch.tensor(value)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    @override
    def once(self, make: Callable[[], Value]) -> Value:
        result, error = None, None
        if self.rank == 0:
            try:
                result = make()
            except Exception as raised:
                error = raised
        told = [(result, portable(error, 0))]
        torch.distributed.broadcast_object_list(told, src=0)
        theirs, refusal = told[0]
        if error or refusal:
            raise error or refusal
        return result if self.rank == 0 else theirs

    @override
    @contextmanager
    def agreed(self) -> Iterator[None]:
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        refusals = [(rank, refusal) for rank, refusal in enumerate(self.gather(portable(error, self.rank))) if refusal]
        if error and self.rank == 0:
            raise error
        if refusals:
            rank, refusal = refusals[0]
            if rank and isinstance(refusal, UserError):  # what is wrong there may be right here
                refusal.rule += f" (in process {rank})"
            raise refusal from error

    @override
    @contextmanager
    def one_goes_ahead(self) -> Iterator[None]:
        if self.place:
            self.gather(None)
        try:
            yield
        finally:
            if not self.place:
                self.gather(None)

    @override
    def wait_at_most(self, seconds: float) -> None:
        self.timeout, later = seconds, seconds + ROLL_CALL + PATIENCE  # gloo is first: NCCL ends the process itself
        for group in self.groups:
            group = group or torch.distributed.group.WORLD
            for kind, limit in (("cuda", later), ("cpu", seconds)):  # where gloo is both, it has the second limit
                if torch.device(kind) in group._device_types:
                    group._get_backend(torch.device(kind))._set_default_timeout(timedelta(seconds=limit))

    @override
    @contextmanager
    def roll_call(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not (is_late(error) or is_out_of_touch(error)):
                raise
            if shared := meeting.outlives_processes():
                self.store.set(f"here/{self.rank}", "")
            if not is_late(error):
                raise
            if not shared:  # the store is a process's own, and that may hang
                raise Absent([], self.timeout, teller=1) from error
            until, absent = time.monotonic() + min(ROLL_CALL, self.timeout), [self.rank]
            while absent and time.monotonic() < until:
                time.sleep(0.1)
                absent = [rank for rank in range(self.size) if not self.store.check([f"here/{rank}"])]
            raise Absent(absent, self.timeout, min({*range(self.size)} - {*absent})) from error

    @override
    def shard(self, model: nn.Module, parallel: Parallel, offload: bool = False) -> nn.Module:
        return shard(model, self.size, offload) if parallel == "fsdp" else model

    @override
    def wrap(self, objective: nn.Module, parallel: Parallel, captured: bool = False) -> nn.Module:
        if parallel == "fsdp":
            return objective
        kind = nn.parallel.DistributedDataParallel
        known = inspect.signature(kind).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before 2.13
        with on_side_stream() if captured else nullcontext():  # where gradients are then added up, in every pass
            return kind(objective, gradient_as_bucket_view=True, **{sync_buffers: False})

    @override
    def adds_up(self, wrapped: nn.Module, now: bool) -> AbstractContextManager[None]:
        return nullcontext() if now or not hasattr(wrapped, "no_sync") else wrapped.no_sync()


ALONE = World()


def portable(error: Exception | None, rank: int) -> Exception | None:
    """An exception as it can be raised in another process."""
    if isinstance(error, Foreseen):
        with contextlib.suppress(pickle.PickleError, TypeError, AttributeError):  # it keeps what cannot be sent
            return pickle.loads(pickle.dumps(error))
    return error and FailedElsewhere(rank, f"{type(error).__name__}: {error}")


@contextmanager
def joined(rank: int, size: int) -> Iterator[World]:
    """The processes that torchrun started, of which this is number ``rank`` of ``size``, until the end of training.

    Raises:
        UserError: they cannot join.
        Foreseen: what the body raises, in the other processes when the first has ended.
    """
    if size == 1:
        yield ALONE
        return
    gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    try:
        store = meeting.meet(rank, size)
        backend, limit = "cpu:gloo,cuda:nccl" if gpus else "gloo", timedelta(seconds=meeting.PATIENCE)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        rule = f"the processes cannot join ({str(error).splitlines()[0]})"
        remedy = "Choose a free port (--master-port), or let torchrun do so (--standalone), and see that hosts reach it"
        place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError("torchrun", place, rule, remedy) from error
    try:
        world = Processes(rank, size, store)
        world.restarts = world.largest(meeting.restarts())
        yield world
    except Foreseen:
        if rank:
            wait_for_first()
        raise
    torch.distributed.destroy_process_group()  # not after an error, when the others may be gone


def wait_for_first() -> None:
    """Wait for the end of the first process: torchrun stops all as soon as one fails, and it has yet to say why."""
    with contextlib.suppress(RuntimeError):  # which its end raises here
        torch.distributed.irecv(torch.empty(1), src=0).wait(timedelta(seconds=PATIENCE))
