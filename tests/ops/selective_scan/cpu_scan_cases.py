"""The fused CPU scan without autograd, and what it is held to."""

import pytest
import torch
from comparison import assert_all_close
from torch import Tensor

from seqlab.ops.selective_scan import cpu, reference
from seqlab.ops.selective_scan.interface import Inputs

unavailable = cpu.why_unavailable(torch.device("cpu"), torch.float32)
pytestmark = pytest.mark.skipif(unavailable is not None, reason=str(unavailable))
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
ALONG_TIME = ("u", "delta", "B", "C", "z")
T, W, S = 32, 32, 16  # positions and channels of a tile, states walked together: edges are tested around these


def inputs_of(arguments: dict[str, Tensor], seq_idx: Tensor | None = None, delta_softplus: bool = True) -> Inputs:
    return Inputs(*(arguments.get(name) for name in NAMES), seq_idx, delta_softplus)


def random_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(t.shape, generator=generator).bfloat16().to(t) for t in tensors)


def fused(arguments: dict[str, Tensor], seq_idx: Tensor | None = None) -> dict[str, Tensor]:
    """y, state and all gradients by the fused scan."""
    inputs = inputs_of(arguments, seq_idx)
    y, state, saved = cpu.forward(inputs, arguments.get("initial_state"), keep=True)
    assert saved.shape == cpu.saved_shape(inputs)
    gradients = cpu.backward(inputs, saved, *random_like(y, state), deterministic=True)._asdict()
    results = {"y": y, "state": state} | {"d" + name: gradients[name] for name in arguments}
    for name, leaf in {"y": arguments["u"], **{"d" + name: leaf for name, leaf in arguments.items()}}.items():
        assert results[name].shape == leaf.shape
        assert results[name].dtype == leaf.dtype
        assert results[name].is_contiguous()
    return results


def expected(arguments: dict[str, Tensor], bounds: list[list[int]] | None = None) -> dict[str, Tensor]:
    """The same by the float64 reference, each sequence between two ``bounds`` (of each batch) on its own."""
    leaves = {name: tensor.detach().double().requires_grad_() for name, tensor in arguments.items()}
    batch, length, _ = leaves["u"].shape
    bounds = bounds or [[0, length]] * batch
    ys, states = [], []
    for b in range(batch):
        y_parts = []
        state = leaves["initial_state"][b : b + 1] if "initial_state" in leaves else None
        for start, end in zip(bounds[b][:-1], bounds[b][1:], strict=True):
            part = [
                leaves.get(n) if n not in ALONG_TIME or n not in leaves else leaves[n][b : b + 1, start:end]
                for n in NAMES
            ]
            y, final = reference.scan(*part, True, state if start == 0 else None)
            y_parts.append(y)
        ys.append(torch.cat(y_parts, dim=1))
        states.append(final)
    y, state = torch.cat(ys), torch.cat(states)
    loss = sum((out * weight).sum() for out, weight in zip((y, state), random_like(y, state), strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y, "state": state} | {"d" + n: g for n, g in zip(leaves, gradients, strict=True)}


def compare(arguments: dict[str, Tensor]) -> None:
    assert_all_close(fused(arguments), expected(arguments), arguments["u"].dtype)
