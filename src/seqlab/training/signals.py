"""SIGTERM, Ctrl-C and a closed terminal as a request to stop, checked between steps and pieces of an evaluation.

So is SIGUSR2 where somebody handles it: submitit does, and SLURM sends it when a job's time is up.

Python handles a signal between two calls into PyTorch and never within one. So computations that could take minutes are
cut into many calls: long sequences into pieces (``evaluate``), attention on a CPU into blocks (``models.mixers``).
"""

import signal
import threading
import time
from types import FrameType
from typing import Self

from seqlab.invocation import MOMENT


class StopRequest:
    """A context manager that stores the number of the first signal in ``signal``.

    A second one, ``MOMENT`` later or more, has its usual effect.

    Args:
        patient: further ones have no effect: on Ctrl-C torchrun repeats to its processes what they have heard,
            and so does a sweep.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

    def __init__(self, *, patient: bool = False) -> None:
        self.signal: int | None = None
        self.patient = patient
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            heard = [n for n in self.SIGNALS if n != getattr(signal, "SIGHUP", None) or not ignored(n)]
            heard += [n for n in (getattr(signal, "SIGUSR2", None),) if n and callable(signal.getsignal(n))]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._noted = number, time.monotonic()
        elif not self.patient and time.monotonic() > self._noted + MOMENT:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if not (self.patient and kind):  # torchrun ends the others as soon as one has failed: they have yet to say why
            self._restore()


def ignored(number: int) -> bool:
    """Whether the process was started with this signal ignored, as by ``nohup``."""
    return signal.getsignal(number) is signal.SIG_IGN
