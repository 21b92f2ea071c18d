"""The fused CPU scan without autograd, and what it is held to."""

import pytest
import torch
from comparison import assert_all_close, doubled, results
from scan_cases import OPERANDS, SCAN
from torch import Tensor

from seqlab.ops.selective_scan import cpu
from seqlab.ops.selective_scan.interface import Inputs

unavailable = cpu.why_unavailable(torch.device("cpu"), torch.float32)
pytestmark = pytest.mark.skipif(unavailable is not None, reason=str(unavailable))
T, W, S = 32, 32, 16  # positions and channels of a tile, states walked together: edges are tested around these


def inputs_of(arguments: dict[str, Tensor], seq_idx: Tensor | None = None, delta_softplus: bool = True) -> Inputs:
    return Inputs(*(arguments.get(name) for name in OPERANDS), seq_idx, delta_softplus)


def random_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(t.shape, generator=generator).bfloat16().to(t) for t in tensors)


def fused(arguments: dict[str, Tensor], seq_idx: Tensor | None = None) -> dict[str, Tensor]:
    """y, state and all gradients by the fused scan."""
    inputs = inputs_of(arguments, seq_idx)
    y, state, saved = cpu.forward(inputs, arguments.get("initial_state"), keep=True)
    assert saved.shape == cpu.saved_shape(inputs)
    gradients = cpu.backward(inputs, saved, *random_like(y, state), deterministic=True)._asdict()
    found = {"y": y, "state": state} | {"d" + name: gradients[name] for name in arguments}
    for name, leaf in {"y": arguments["u"], **{"d" + name: leaf for name, leaf in arguments.items()}}.items():
        assert found[name].shape == leaf.shape
        assert found[name].dtype == leaf.dtype
        assert found[name].is_contiguous()
    return found


def expected(arguments: dict[str, Tensor], cuts: list[set[int]] | None = None) -> dict[str, Tensor]:
    """The same by the float64 reference, each sequence between two ``cuts`` (of each batch) on its own."""
    cuts = cuts or [set()] * len(arguments["u"])
    return results(SCAN.separately, doubled(arguments), cuts=cuts, delta_softplus=True)


def compare(arguments: dict[str, Tensor]) -> None:
    assert_all_close(fused(arguments), expected(arguments), arguments["u"].dtype)
