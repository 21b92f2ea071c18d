"""Second derivatives and ``torch.func`` through every operator: the reference's are right, the others name it."""

import ast
import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pkgutil import walk_packages
from typing import NamedTuple

import pytest
import torch
from comparison import backends_in, skip_unless_available
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import seqlab.ops
from seqlab.ops import causal_conv1d, cross_entropy, routed_experts, selective_scan, ssd

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own

DIFFERENTIABLE = {"reference", "torch_conv"}
"""Backends that are PyTorch's own operations; all others have their gradient written out."""


class Case(NamedTuple):
    operation: Callable[[Tensor], Tensor]
    first: Tensor


def case(name: str, backend: str) -> Case:
    """The operator of its first argument in float64 where it can be, and that argument."""
    dtype = torch.float32 if backend in ("cpu", "triton") else torch.float64
    skip_unless_available(f"seqlab.ops.{name}", backend, "cpu", dtype)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    if name == "selective_scan":
        arguments = draw(1, 3, 2), draw(1, 3, 2), -draw(2, 2), draw(1, 3, 2), draw(1, 3, 2)
        operation = partial(selective_scan, backend=backend)
    elif name == "ssd":
        arguments = draw(1, 3, 2, 2), draw(1, 3, 2), -draw(2), draw(1, 3, 1, 2), draw(1, 3, 1, 2)
        operation = partial(ssd, backend=backend)
    elif name == "causal_conv1d":
        arguments = draw(1, 3, 2), draw(2, 3)
        operation = partial(causal_conv1d, activation="silu", backend=backend)
    elif name == "cross_entropy":
        arguments = draw(2, 3), torch.tensor([2, 0])
        operation = partial(cross_entropy, backend=backend)
    else:
        experts = torch.tensor([[0, 1], [1, 0], [1, 2]])
        arguments = draw(3, 2), draw(3, 2, 4), draw(3, 2, 2), experts, draw(3, 2)
        operation = partial(routed_experts, backend=backend)
    first, *rest = arguments
    return Case(lambda x: operation(x, *rest), first)


NAMES = ("selective_scan", "ssd", "causal_conv1d", "routed_experts", "cross_entropy")
EVERY = [(name, backend) for name in NAMES for backend in backends_in(f"seqlab.ops.{name}")]
FUSED = [pair for pair in EVERY if pair[1] not in DIFFERENTIABLE]
OWN = [pair for pair in EVERY if pair[1] in DIFFERENTIABLE]


@pytest.mark.parametrize(("name", "backend"), OWN)
def test_what_pytorch_differentiates_has_every_derivative(name, backend):
    operation, x = case(name, backend)
    assert torch.autograd.gradgradcheck(operation, (x.requires_grad_(),))
    x = x.detach()
    gradient = torch.func.grad(lambda x: operation(x).square().sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(operation(leaf).square().sum(), leaf)[0])
    y, tangent = torch.func.jvp(operation, (x,), (x,))
    step = 1e-6
    torch.testing.assert_close(
        tangent, (operation(x + step * x) - operation(x - step * x)) / (2 * step), rtol=1e-6, atol=1e-8
    )
    several = torch.stack([x, 2 * x])
    expected = torch.stack([operation(x), operation(2 * x)])
    torch.testing.assert_close(torch.func.vmap(operation)(several), expected)
    assert y.equal(operation(x))


@pytest.mark.parametrize(("name", "backend"), FUSED)
class TestFused:
    def test_a_second_derivative_is_refused_when_it_is_asked_for(self, name, backend):
        operation, x = case(name, backend)
        x.requires_grad_()
        (plain,) = torch.autograd.grad(operation(x).sum(), x)
        (gradient,) = torch.autograd.grad(operation(x).sum(), x, create_graph=True)
        assert gradient.equal(plain)
        message = rf"{name} backend='{backend}' has no second derivative: use backend=\"reference\""
        with pytest.raises(NotImplementedError, match=message):
            gradient.square().sum().backward()

    def test_a_checkpoint_computes_it_again(self, name, backend):
        operation, x = case(name, backend)
        x.requires_grad_()
        (plain,) = torch.autograd.grad(operation(x).sum(), x)
        (again,) = torch.autograd.grad(checkpoint(operation, x, use_reentrant=False).sum(), x)
        assert again.equal(plain)

    @pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "hessian"])
    def test_transforms_are_refused(self, name, backend, transform):
        operation, x = case(name, backend)
        message = rf"{name} backend='{backend}' does not go through torch.func: use backend=\"reference\""
        with pytest.raises(NotImplementedError, match=message):
            if transform == "vmap":
                torch.func.vmap(operation)(torch.stack([x, x]))
            elif transform == "jvp":
                torch.func.jvp(operation, (x,), (x,))
            else:
                getattr(torch.func, transform)(lambda x: operation(x).sum())(x)

    def test_forward_mode_is_refused(self, name, backend):
        operation, x = case(name, backend)
        message = rf"{name} backend='{backend}' has no forward-mode derivative: use backend=\"reference\""
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
            operation(forward_ad.make_dual(x, x))


def test_what_was_saved_is_read_once():
    """In a layer that is recomputed, torch's checkpoint refuses a second look at ``ctx.saved_tensors``."""
    modules = [module.name for module in walk_packages(seqlab.ops.__path__, "seqlab.ops.")]
    named = [name for name in modules if name.endswith((".operator", ".sliced"))]
    assert len(named) >= 13
    for name in named:
        for node in ast.walk(ast.parse(inspect.getsource(import_module(name)))):
            if isinstance(node, ast.FunctionDef):
                reads = [part for part in ast.walk(node) if getattr(part, "attr", None) == "saved_tensors"]
                assert len(reads) <= 1, f"{name}.{node.name}"
