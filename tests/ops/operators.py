"""What is the same for all operators over positions: their arguments by name, and how a backend is held to others."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from comparison import (
    assert_all_close,
    doubled,
    named_gradients,
    numbered,
    results,
    skip_unless_available,
    weighted_sum,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def interpreted(backend: str, device: str) -> bool:
    return backend == "triton" and device == "cpu"


def of_drawn(backend: str, examples: int, hold: Callable[[st.DataObject], None]) -> None:
    """Call ``hold`` with so many examples; on a CPU with half for Triton's kernels, whose interpreter is slow."""
    most = examples // 2 if interpreted(backend, "cpu") else examples
    settings(max_examples=most, deadline=None, database=None, derandomize=True)(given(st.data())(hold))()


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What the tests of all operators need of one.

    function: the operator over a sequence.
    update: the operator at one position: ``update(state, **arguments, **settings) -> (y, state)``.
    make: random arguments of a size, by name, the sequence first; takes ``dtype``, ``options`` and ``device``.
    along_time: the arguments (batch, length, ...).
    options: the optional arguments, ``initial_state`` among them.
    settings: what every call gets besides.
    reproducible: what makes gradients the same from run to run.
    length, width: the usual size is (2, length, *width), ...
    interpreted_size: ... and this in Triton's interpreter, where that is too slow.
    interpreted_positions: how many positions, in all sequences together, the interpreter may take of another size.
    narrow, gpu_width: the width of the smallest cases, and as models have it.
    cut_length, cuts: where a sequence is cut in two, each half not whole chunks or taps.
    any_sizes, any_settings: what hypothesis draws; none for an operator whose gradients cancel in small cases.
    shorten_chunks: makes chunks three positions long, for cases of a few positions.
    operands: of the registered operator, with every option or none: from (arguments, seq_idx, options, backend) to the
        operands of its forward and of its backward pass; none where no backend is registered.
    on_cpu: what "auto" takes on a CPU in float32 and in float64.
    refused: (argument, shape, the expected axes and sizes in words) at the size (2, 5, *narrow).
    """

    function: Callable[..., Any]
    update: Callable[..., tuple[Tensor, Tensor]]
    make: Callable[..., dict[str, Tensor]]
    along_time: tuple[str, ...]
    options: tuple[str, ...]
    settings: dict[str, Any]
    reproducible: dict[str, Any]
    length: int
    width: tuple[int, ...]
    interpreted_size: tuple[int, ...] | None = None
    interpreted_positions: int | None = None
    narrow: tuple[int, ...]
    gpu_width: tuple[int, ...]
    cut_length: int
    cuts: tuple[int, ...]
    any_sizes: st.SearchStrategy | None = None
    any_settings: st.SearchStrategy | None = None
    shorten_chunks: Callable[[pytest.MonkeyPatch], None] = lambda monkeypatch: None
    operands: Callable[..., tuple[tuple, tuple]] | None = None
    on_cpu: tuple[str, str]
    refused: tuple[tuple[str, tuple[int, ...], str], ...]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def package(self) -> str:
        return f"seqlab.ops.{self.name}"

    def usual(self, backend: str, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """Arguments of the usual size; skips where the backend cannot run."""
        skip_unless_available(self.package, backend, device, dtype)
        small = interpreted(backend, device) and self.interpreted_size
        return self.make(*(small or (2, self.length, *self.width)), dtype=dtype, device=device)

    def sized(self, backend: str, dtype: torch.dtype, device: str, *sizes: int) -> dict[str, Tensor]:
        """Arguments of this size; skips where the backend cannot run, or would take too long."""
        skip_unless_available(self.package, backend, device, dtype)
        most = self.interpreted_positions
        if interpreted(backend, device) and most is not None and sizes[0] * sizes[1] > most:
            pytest.skip("too slow in Triton's interpreter")
        return self.make(*sizes, dtype=dtype, device=device)

    def parts(self, values: dict[str, Any], rows: slice, span: slice | int) -> dict[str, Any]:
        """``values``, those along time at some rows and positions alone."""
        return {name: value[rows, span] if name in self.along_time else value for name, value in values.items()}

    def hold(self, arguments: dict[str, Tensor], backend: str, **settings) -> None:
        """Hold a backend to the float64 reference in outputs, final state and every gradient."""
        expected = results(self.function, doubled(arguments), backend="reference", **settings)
        actual = results(self.function, arguments, backend=backend, **settings)
        assert_all_close(actual, expected, next(iter(arguments.values())).dtype)

    def compare(self, arguments: dict[str, Tensor], backend: str, **settings) -> None:
        """``hold`` a backend that can run."""
        first = next(iter(arguments.values()))
        skip_unless_available(self.package, backend, first.device.type, first.dtype)
        self.hold(arguments, backend, **settings)

    def separately(
        self, *, cuts: list[set[int]], initial_state: Tensor | None = None, return_final_state: bool, **arguments
    ) -> tuple[Tensor, Tensor]:
        """What packed sequences are held to: each by itself, the first of a row from the initial state."""
        assert return_final_state
        rows = []
        for b, row in enumerate(cuts):
            before = None if initial_state is None else initial_state[b : b + 1]
            outputs = []
            for start, end in itertools.pairwise([0, *sorted(row), arguments[self.along_time[0]].shape[1]]):
                part = self.parts(arguments, slice(b, b + 1), slice(start, end))
                y, state = self.function(**part, initial_state=before, return_final_state=True, backend="reference")
                outputs.append(y)
                before = None
            rows.append((torch.cat(outputs, dim=1), state))
        ys, states = zip(*rows, strict=True)
        return torch.cat(ys), torch.cat(states)

    def hold_packed(self, arguments: dict[str, Tensor], cuts: list[set[int]], backend: str, **settings) -> None:
        """Hold packed sequences to the same sequences one by one, in outputs, final state and every gradient."""
        first = next(iter(arguments.values()))
        seq_idx = numbered(cuts, first.shape[1]).to(first.device)
        expected = results(self.separately, doubled(arguments), cuts=cuts, **settings)
        actual = results(self.function, arguments, seq_idx=seq_idx, backend=backend, **settings)
        assert_all_close(actual, expected, first.dtype)

    def compare_packed(self, arguments: dict[str, Tensor], cuts: list[set[int]], backend: str, **settings) -> None:
        """``hold_packed`` a backend that can run."""
        first = next(iter(arguments.values()))
        skip_unless_available(self.package, backend, first.device.type, first.dtype)
        self.hold_packed(arguments, cuts, backend, **settings)

    def hold_cut(self, arguments: dict[str, Tensor], backend: str, cut: int) -> None:
        """Hold a sequence cut in two, the state carried over, to the whole."""
        settings = {**self.settings, "backend": backend}
        whole = results(self.function, arguments, **settings)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
        state, outputs = leaves["initial_state"], []
        for span in (slice(0, cut), slice(cut, None)):
            part = self.parts(leaves, slice(None), span) | {"initial_state": state}
            y, state = self.function(**part, return_final_state=True, **settings)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
        halves = {"y": y, "state": state, **named_gradients(leaves, gradients)}
        assert_all_close(halves, whole, next(iter(arguments.values())).dtype)

    def hold_steps(self, arguments: dict[str, Tensor], backend: str, **settings) -> tuple[Tensor, Tensor]:
        """Hold single positions, one after the other, to the whole; returns the final states of both."""
        first = next(iter(arguments.values()))
        y, final = self.function(**arguments, return_final_state=True, backend=backend, **settings)
        rest = {name: tensor for name, tensor in arguments.items() if name != "initial_state"}
        state, outputs = arguments["initial_state"], []
        for t in range(first.shape[1]):
            before = state.clone()
            output, after = self.update(state, **self.parts(rest, slice(None), t), **settings)
            assert torch.equal(state, before)
            assert output.dtype == first.dtype
            assert after.dtype == before.dtype
            outputs.append(output)
            state = after
        actual = {"y": torch.stack(outputs, dim=1), "state": state}
        assert_all_close(actual, {"y": y, "state": final}, first.dtype)
        return state, final
