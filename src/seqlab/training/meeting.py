"""Where the processes of a run meet, also when torchrun starts them again (``--max-restarts``).

torchrun itself keeps a store, which outlives the processes. So they find there which folder their run began in. They
would find the addresses of those that have died, too (torch 2.13), and try those: hence ``meet``.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
from torch.distributed import PrefixStore, Store

from seqlab.invocation import typed, under_torchrun

SHARED = "TORCHELASTIC_USE_AGENT_STORE"
INTERVAL = 0.02  # seconds between two looks
PATIENCE = 1800
"""Seconds that processes wait for one another until training begins, while one prepares the data perhaps."""


def store_of_launch(size: int, *, make: bool = False) -> Store:
    """torchrun's store, or one of the first process, which lasts as long as that.

    Args:
        size: the number of processes.
        make: whether this process is to have the store if torchrun has none.

    Raises:
        RuntimeError: it cannot be reached, or its port is taken.
    """
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=PATIENCE)
    return torch.distributed.TCPStore(*place, size, make and not outlives_processes(), limit, multi_tenant=True)


def outlives_processes() -> bool:
    """Whether there is a store that torchrun keeps."""
    return under_torchrun() and os.environ.get(SHARED) == "True"


def meet(rank: int, size: int) -> Store:
    """Part of the store that the processes of this start have for themselves.

    Each leaves a name there that nobody had before, and the first answers to all names until all have heard it.

    Raises:
        RuntimeError: they do not find each other.
    """
    store, own = store_of_launch(size, make=rank == 0), uuid4().hex
    if rank:
        store.set(f"name/{rank}", own)
        start = store.get(f"start/{own}").decode()
        store.add(f"heard/{start}", 1)
        return PrefixStore(start, store)
    until = time.monotonic() + PATIENCE
    while (heard := store.add(f"heard/{own}", 0)) < size - 1:
        if time.monotonic() > until:
            raise RuntimeError(f"{size - 1 - heard} have not come within {PATIENCE} seconds")
        for other in (f"name/{other}" for other in range(1, size)):
            if store.check([other]):
                store.set(f"start/{store.get(other).decode()}", own)
        time.sleep(INTERVAL)
    return PrefixStore(own, store)


def begun_in() -> str | None:
    """The folder in which this launch of torchrun has begun this command's run; None if it has not."""
    if not outlives_processes():
        return None
    store = store_of_launch(1)
    return store.get(key()).decode() if store.check([key()]) else None


def remember(folder: Path) -> None:
    """Note that this launch of torchrun has begun the run in this folder."""
    if outlives_processes():
        store_of_launch(1).set(key(), str(folder))


def may_restart() -> bool:
    """Whether torchrun would start the processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def restarts() -> int:
    """How often torchrun has started processes on this machine before; a machine that came later has fewer."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def key() -> str:
    """Of this command's folder: a script may call several, one after the other."""
    return " ".join(["folder of", *typed()])
