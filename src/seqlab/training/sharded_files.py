"""Tensors of which each process holds a part, in a folder of safetensors files: a file of each process's own parts.

By torch.distributed.checkpoint, whose reader takes from the files what a process needs, whatever number of processes
wrote them. Its other format has a pickle in it, and run folders may be anyone's. Imported where it is needed: a process
that trains alone need not wait for it.
"""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from seqlab.errors import FailedElsewhere
from seqlab.training.sharding import is_part


def write(parts: dict[str, Tensor], folder: Path, group: Any) -> Future:
    """Begin to write all processes' parts, by name and of any shapes, as they are now.

    The future is done when every file is on disk. All processes of ``group`` call this, and use it for nothing else
    until then. If one of them fails, the futures of all raise ``CheckpointException``, which is no ``Exception``
    (``said_plainly``).
    """
    from torch.distributed import checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    return dcp.async_save(parts, storage_writer=writer, process_group=group)


def read(folder: Path, optimizers: Sequence[Optimizer], others: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a folder by name, of whole shape; of states of a parameter in parts, this process's part.

    Names are those of ``sharding.parts_in`` for the optimizers' states and for ``others``, the further parts that this
    process has, of any shapes. Nothing is asked of the optimizers' own states, which are empty before the first step:
    torch's ``get_optimizer_state_dict`` takes a step to fill them.
    """
    from torch.distributed import checkpoint as dcp

    parts = others | {
        f"{i}.state.{number}": p
        for i, optimizer in enumerate(optimizers)
        for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    reader = dcp.HuggingFaceStorageReader(str(folder))
    found = {
        name: _place_for(kept.size, kept.properties.dtype, parts.get(name, parts.get(name.rpartition(".")[0])))
        for name, kept in reader.read_metadata().state_dict_metadata.items()
    }
    with warnings.catch_warnings(), said_plainly():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads by itself
        dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def _place_for(size: torch.Size, dtype: torch.dtype, like: Tensor | None) -> Tensor:
    if like is not None and is_part(like) and like.shape == size:
        return torch.zeros_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype)


@contextmanager
def said_plainly() -> Iterator[None]:
    """Raise instead of a ``CheckpointException`` what failed in the first of the processes that did."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise (
            cause if isinstance(cause, OSError) else FailedElsewhere(rank, f"{type(cause).__name__}: {cause}")
        ) from error
