"""Launching kernels without Triton's per-call work, which takes longer than a short kernel runs.

At every launch Triton inspects each argument to choose among the kernels it has compiled, and before that Python works
out tiles, grids and the sizes of buffers. All of it depends on the call's *signature* alone: its settings, and each
tensor's dtype, shape, strides and alignment. So a function that only allocates and launches is executed once per
signature, while a ``Call`` records its allocations and launches; after that ``run`` replays the recording with the
addresses of the tensors at hand.

Nothing is recorded where Triton returns no compiled kernel, as in its interpreter, so everything runs as written there,
or where launches are held back (``compiling.py``).
"""

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops import compiling
from seqlab.ops.recent import Recent

ALIGNMENT = 16
"""Bytes: a kernel may be compiled for addresses that are a multiple of this, and no access of ours is wider. What
PyTorch allocates begins at a multiple of it."""

LINE = 256
"""Bytes: scratch tensors that share memory begin at a multiple of this."""


class _Conversion(NamedTuple):
    """A tensor computed from a given one, by its number: another dtype or layout."""

    source: int
    function: Callable[[Tensor], Tensor]


class _Buffer(NamedTuple):
    """An allocated tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    zeros: bool

    @property
    def lines(self) -> int:
        """Its size in units of ``LINE``, rounded up."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // LINE)


def _allocated(buffers: Sequence[_Buffer], device: torch.device) -> list[Tensor]:
    return [
        (torch.zeros if zeros else torch.empty)(*shape, dtype=dtype, device=device) for shape, dtype, zeros in buffers
    ]


class _Part(NamedTuple):
    """A view that begins ``offset`` bytes into the tensor of this number."""

    source: int
    offset: int


class _Number(NamedTuple):
    """Stands for a tensor among the arguments of a launch."""

    index: int


class _Launch(NamedTuple):
    run: Callable[..., None]  # the compiled kernel with its grid
    arguments: list[Any]


class Call:
    """One call of a function that allocates buffers and launches kernels; does both for it and records them.

    The function allocates and launches through these methods alone, and returns buffers it allocated, tensors it was
    given to write, or None. What it does may depend only on its settings and on the dtypes, shapes, strides and
    alignment of ``tensors``.

    Args:
        tensors: the function's inputs and what it writes, of any shapes; some may be None.
    """

    def __init__(self, tensors: Sequence[Tensor | None]):
        # A tensor passed twice becomes two objects: the next call with this signature may pass two tensors.
        self.tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
        self.device = next(tensor.device for tensor in tensors if tensor is not None)
        self.known: list[Tensor | None] = list(self.tensors)
        self.made: dict[int, _Conversion | _Buffer | _Part] = {}  # by number, for those not given
        self.numbers = {id(tensor): n for n, tensor in enumerate(self.known) if tensor is not None}
        self.launches: list[_Launch | None] = []

    def _know(self, tensor: Tensor, how: _Conversion | _Buffer | _Part) -> Tensor:
        number = len(self.known)
        self.known.append(tensor)
        self.made[number] = how
        self.numbers[id(tensor)] = number
        return tensor

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
        """A contiguous tensor of that shape, uninitialised or of zeros."""
        buffer = _Buffer(tuple(shape), dtype, zeros)
        return self._know(*_allocated([buffer], self.device), buffer)

    def empty_like(self, tensor: Tensor | None) -> Tensor | None:
        """A contiguous tensor of the same shape and dtype; None for None."""
        return None if tensor is None else self.empty(*tensor.shape, dtype=tensor.dtype)

    def converted(self, tensor: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor | None:
        """``function`` of one of ``tensors``, which returns a new tensor or the same; None for None."""
        result = None if tensor is None else function(tensor)
        return result if result is tensor else self._know(result, _Conversion(self.numbers[id(tensor)], function))

    def parts(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """A flat tensor (size,) cut into consecutive views of these shapes."""
        source, offset, views = self.numbers[id(tensor)], 0, []
        for part, shape in zip(tensor.split([math.prod(shape) for shape in shapes]), shapes, strict=True):
            views.append(self._know(part.view(shape), _Part(source, offset)))
            offset += part.numel() * part.element_size()
        return views

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
        """Launch a Triton kernel; ``named`` are compile-time parameters and Triton's options."""
        compiled = compiling.launch(kernel, grid, *arguments, **named)
        # None if held back, and from the interpreter. Autotuners have no list of hooks; hooks have to see every launch.
        if compiled is None or getattr(kernel, "pre_run_hooks", True):
            self.launches.append(None)
            return
        self._record(compiled[(*grid, 1, 1)[:3]], kernel.arg_names, arguments, named)

    def _record(
        self, run: Callable[..., None], names: Sequence[str], arguments: Sequence[Any], named: dict[str, Any]
    ) -> None:
        given = dict(zip(names, arguments)) | named  # noqa: B905, the others are named
        values = [given[name] for name in names]
        values = [_Number(self.numbers[id(value)]) if isinstance(value, Tensor) else value for value in values]
        self.launches.append(_Launch(run, values))

    def recording(self, results: Sequence[Tensor | None]) -> "_Recording | None":
        """The recording of a call that returned ``results``; None where it cannot be replayed."""
        if None in self.launches:
            return None
        return _Recording(self, [None if result is None else self.numbers[id(result)] for result in results])


class _Recording:
    """A call's conversions, allocations and launches, without addresses. Holds no tensor.

    Each launch picks its arguments from one list: the addresses of given tensors, conversions and buffers, of one more
    buffer for all scratch, and of views of these; then all other arguments. Scratch is what is not returned.
    """

    def __init__(self, call: Call, results: list[int | None]):
        made, given = call.made, len(call.tensors)
        converted = [n for n, how in made.items() if isinstance(how, _Conversion)]
        buffers = [n for n, how in made.items() if isinstance(how, _Buffer) and (how.zeros or n in results)]
        scratch = [n for n, how in made.items() if isinstance(how, _Buffer) and n not in buffers]
        self.conversions = [made[n] for n in converted]
        self.buffers = [made[n] for n in buffers]
        self.results = [n if n is None or n < given else given + buffers.index(n) for n in results]

        order = [*range(given), *converted, *buffers]
        places = {n: (place, 0) for place, n in enumerate(order)}  # of each tensor: index in that list, bytes to add
        lines = 0
        for n in scratch:
            places[n] = (len(order), lines * LINE)
            lines += made[n].lines
        if scratch:
            self.buffers.append(_Buffer((lines * LINE // 4,), torch.float32, False))
        for n, how in made.items():
            if isinstance(how, _Part):
                place, offset = places[how.source]
                places[n] = (place, offset + how.offset)
        self._pick_from(len(order) + bool(scratch), places, call.launches)

    def _pick_from(self, count: int, places: dict[int, tuple[int, int]], launches: list[_Launch]) -> None:
        self.parts = sorted({place for place in places.values() if place[1] > 0})
        self.constants, self.launches = [], []
        where = {part: count + n for n, part in enumerate(self.parts)}
        for run, arguments in launches:
            picked = []
            for argument in arguments:
                if isinstance(argument, _Number):
                    place = places[argument.index]
                    picked.append(where.get(place, place[0]))
                else:
                    picked.append(count + len(self.parts) + len(self.constants))
                    self.constants.append(argument)
            self.launches.append((run, itemgetter(*picked)))

    def __call__(self, tensors: Sequence[Tensor | None], addresses: list[int]) -> tuple[Tensor | None, ...]:
        device = tensors[0].device
        converted = [function(tensors[source]) for source, function in self.conversions]
        buffers = _allocated(self.buffers, device)
        values = addresses + [tensor.data_ptr() for tensor in converted] + [buffer.data_ptr() for buffer in buffers]
        values += [values[place] + offset for place, offset in self.parts]
        values += self.constants
        for run, pick in self.launches:
            run(*pick(values))
        found = [*tensors, *buffers]
        return tuple([None if n is None else found[n] for n in self.results])


RECORDINGS = Recent(512)
"""Recordings by signature."""


def run(
    function: Callable[..., tuple[Tensor | None, ...]], tensors: Sequence[Tensor | None], *settings: Any
) -> tuple[Tensor | None, ...]:
    """``function(Call(tensors), *settings)``, replayed if a call with this signature has been recorded.

    Args:
        function: as described at ``Call``.
        tensors: its inputs and what it writes, of any shapes, all on the device of the first.
        settings: hashable.
    """
    device = tensors[0].get_device()  # -1 for the interpreter's
    if device >= 0 and device != torch.cuda.current_device():  # Triton launches on the current one
        with torch.cuda.device(device):
            return run(function, tensors, *settings)
    signature, addresses = [function, settings, device], []
    for tensor in tensors:
        if tensor is None:
            signature.append(None)
            addresses.append(0)
        else:
            address = tensor.data_ptr()
            addresses.append(address)
            signature += (tensor.dtype, tensor.shape, tensor.stride(), address % ALIGNMENT)
    key = tuple(signature)
    recording = RECORDINGS.get(key)
    if recording is not None:
        return recording(tensors, addresses)
    call = Call(tensors)
    results = function(call, *settings)
    recording = call.recording(results)
    if recording is not None:
        RECORDINGS.keep(key, recording)
    return results
