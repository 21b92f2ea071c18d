"""SIGTERM, Ctrl-C and a closed terminal as a wish that the trainer reads between two steps and pieces of an evaluation.

Python hears a signal between two calls into PyTorch and never within one. So what is long is cut into many calls, where
it could be minutes: long sequences into pieces (``evaluate``), attention on a CPU into blocks (``models.mixers``).
"""

import signal
import threading
from types import FrameType
from typing import Self


class StopRequest:
    """While entered, notes the first signal in ``signal``; a second one acts as it would have before."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            heard = [n for n in self.SIGNALS if n != getattr(signal, "SIGHUP", None) or not ignored(n)]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *exception: object) -> None:
        self._restore()


def ignored(number: int) -> bool:
    """Whether whoever started the process wants a signal ignored, as ``nohup`` does."""
    return signal.getsignal(number) is signal.SIG_IGN
