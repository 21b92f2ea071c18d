"""The delta rule: decays of each channel and none, decays of all magnitudes, what it recalls, its FLOPs."""

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_all_close, assert_same_bits, numbered, results, skip_unless_available
from delta_cases import (
    BY_CHANNEL,
    DELTA,
    GATED,
    INTERPRETED_SIZE,
    PACKAGE,
    SIZE,
    afford,
    every_backend,
    every_device,
    every_fast_backend,
    kernel_test,
    make_arguments,
)
from operators import interpreted

from seqlab.ops import backends, delta_rule, delta_rule_flops
from seqlab.ops.delta_rule import chunked, resolve_backend


def size(backend: str, device: str) -> tuple[int, ...]:
    return INTERPRETED_SIZE if interpreted(backend, device) else SIZE


class TestByChannel:
    @every_device
    @every_fast_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("length", [1, 13, 77])
    @kernel_test
    def test_dtypes(self, backend, device, dtype, length):
        afford(backend, device, unless=(length, dtype) != (13, torch.bfloat16))
        BY_CHANNEL.compare(BY_CHANNEL.make(2, length, *SIZE[2:], dtype=dtype, device=device), backend)

    @every_device
    @every_fast_backend
    @kernel_test
    def test_packed(self, backend, device):
        batch, _, *widths = size(backend, device)
        cuts = [{32, 38}, {1, 3, 20}][:batch]
        BY_CHANNEL.compare_packed(BY_CHANNEL.make(batch, 40, *widths, device=device), cuts, backend)

    @every_device
    @every_fast_backend
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing(self, backend, device):
        afford(backend, device, unless=True)
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        BY_CHANNEL.hold_cut(BY_CHANNEL.make(*SIZE, device=device), backend, 39)

    @pytest.mark.parametrize("backend", ["chunked", "reference"])
    def test_steps_follow_the_whole(self, backend):
        BY_CHANNEL.hold_steps(BY_CHANNEL.make(*SIZE), backend)

    def test_gradcheck(self, monkeypatch):
        BY_CHANNEL.shorten_chunks(monkeypatch)
        arguments = BY_CHANNEL.make(1, 6, *BY_CHANNEL.narrow, dtype=torch.float64)
        tensors = [tensor.requires_grad_() for tensor in arguments.values()]

        def function(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return delta_rule(**dict(zip(arguments, given, strict=True)), return_final_state=True)

        assert torch.autograd.gradcheck(function, tensors)

    @pytest.mark.parametrize("name", ["g", "beta"])
    def test_equal_channels_are_one_number(self, name):
        arguments = make_arguments(*SIZE)
        expected = results(delta_rule, arguments)
        wide = {name: arguments[name].unsqueeze(3).expand(*arguments["k"].shape).contiguous()}
        if name == "beta":
            wide["w"] = arguments["beta"].unsqueeze(3).expand(*arguments["v"].shape).contiguous()
        actual = results(delta_rule, arguments | wide)
        gradients = [actual.pop("d" + part).sum(dim=3) for part in wide]
        assert_all_close(actual | {"d" + name: sum(gradients)}, expected, torch.float32)

    def test_a_share_erased_needs_one_written(self):
        arguments = BY_CHANNEL.make(*SIZE)
        del arguments["w"]
        with pytest.raises(ValueError, match=r"^w is None, expected a tensor$"):
            delta_rule(**arguments)


@pytest.mark.parametrize("operator", [DELTA, BY_CHANNEL], ids=["by_head", "by_channel"])
@every_device
@every_fast_backend
@pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
@pytest.mark.parametrize("packed", [False, True])
@kernel_test
def test_decays_of_all_magnitudes(operator, backend, device, steps, packed):
    """Outputs and all gradients but the decays', which are nearly 0 where nothing is left of the state."""
    skip_unless_available(PACKAGE, backend, device, torch.float32)
    afford(backend, device, unless=not packed)
    arguments = operator.make(*size(backend, device), steps=steps, device=device)
    batch, length = arguments["q"].shape[:2]
    settings = {"seq_idx": numbered([{5, 40}, {32}][:batch], length).to(device) if packed else None}
    expected = results(delta_rule, {name: t.double() for name, t in arguments.items()}, backend="reference", **settings)
    actual = results(delta_rule, arguments, backend=backend, **settings)
    largest = max(float(tensor.detach().norm()) for tensor in expected.values())
    assert (actual.pop("dg").double() - expected.pop("dg")).norm() <= 1e-6 * largest
    assert_all_close(actual, expected, torch.float32)


@every_device
@every_fast_backend
@pytest.mark.parametrize("left_out", ["beta", "w"])
@kernel_test
def test_nothing_erased_or_one_share_for_both(backend, device, left_out):
    """What is written has shares of its own without any erased, and with one number erased; decays are by channel."""
    arguments = BY_CHANNEL.make(*size(backend, device), device=device)
    by_head = GATED.make(*size(backend, device), device=device)["beta"]
    del arguments["beta"]
    if left_out == "w":
        arguments["beta"] = by_head
    BY_CHANNEL.compare(arguments, backend)


@every_backend
def test_without_decay_zeros_are_meant(backend):
    skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
    arguments = make_arguments(*size(backend, "cpu"), options=("beta",))
    zeros = torch.zeros_like(arguments["beta"])
    torch.testing.assert_close(
        delta_rule(**arguments, backend=backend), delta_rule(**arguments, g=zeros, backend=backend), rtol=0, atol=0
    )


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_without_beta_it_is_linear_attention(backend):
    """Outputs and gradients: y_i is the sum over j <= i of q_i . k_j times v_j, decayed between them."""

    def attention(*, q, k, v, g, initial_state, return_final_state):
        sums = g.cumsum(dim=1)
        left = (sums[:, :, None] - sums[:, None]).exp().permute(0, 3, 1, 2).tril()  # (Bt, H, L, L)
        y = torch.einsum("bihk,bjhk,bhij,bjhv->bihv", q, k, left, v)
        y = y + torch.einsum("bihk,bih,bhkv->bihv", q, sums.exp(), initial_state)
        state = torch.einsum("bjhk,bhj,bjhv->bhkv", k, left[:, :, -1], v)
        return y, state + sums[:, -1].exp()[..., None, None] * initial_state

    arguments = make_arguments(*SIZE, dtype=torch.float64, options=("g", "initial_state"))
    assert_all_close(results(delta_rule, arguments, backend=backend), results(attention, arguments), torch.float64)


@every_device
@every_fast_backend
@kernel_test
def test_positions_that_correct_nothing_have_gradients(backend, device):
    """Where beta is 0, what depends on it does not show in the corrections."""
    arguments = make_arguments(1, 13, *SIZE[2:], device=device)
    arguments["beta"][:, ::2] = 0
    DELTA.compare(arguments, backend)


@every_backend
def test_it_recalls_the_latest_value_of_a_key(backend):
    """With orthogonal keys and beta = 1 the memory is a table, and writing a key again replaces its value."""
    skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
    keys = torch.tensor([0, 3, 1, 3, 0, 2, 3])
    k = F.one_hot(keys, 4).float()[None, :, None]  # (1, 7, 1, 4)
    v = torch.randn(1, 7, 1, 5, generator=torch.Generator().manual_seed(0))
    _, state = delta_rule(k, k, v, torch.ones(1, 7, 1), return_final_state=True, backend=backend)
    torch.testing.assert_close(state[0, 0], v[0, [4, 2, 5, 6], 0])


@every_backend
def test_beta_of_two_reflects(backend):
    """A key of length 1 with beta = 2 and value 0 changes the sign of what it recalls: parity from one channel."""
    skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
    k, state = torch.ones(1, 5, 1, 1), torch.ones(1, 1, 1, 1)
    bits = torch.tensor([1.0, 0, 1, 1, 0])
    y = delta_rule(k, k, torch.zeros_like(k), 2 * bits.view(1, 5, 1), initial_state=state, backend=backend)
    torch.testing.assert_close(y.flatten(), torch.tensor([-1.0, -1, 1, -1, -1]))


def test_keys_that_do_not_fit_a_program(monkeypatch):
    with pytest.raises(ValueError, match="takes d_key up to 256, not 257"):
        delta_rule(**make_arguments(1, 1, 1, 257, 1), backend="triton")
    monkeypatch.setattr(backends, "resolve", lambda package, order, *_: order[0])
    assert [resolve_backend("auto", "cuda", torch.float32, d_key) for d_key in (256, 257)] == ["triton", "chunked"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", [DELTA, GATED, BY_CHANNEL], ids=["by_head", "gated_by_channel", "by_channel"])
@pytest.mark.parametrize("sizes", [(4, 64, 64), (2, 128, 128), (2, 96, 200), (1, 256, 256), (2, 16, 32)])
@kernel_test
def test_sizes_of_models_on_a_gpu(operator, dtype, sizes):
    """Values and gradients, the same bit by bit from run to run."""
    arguments = operator.make(2, 333, *sizes, dtype=dtype, device="cuda")
    operator.compare(arguments, "triton")
    first, second = (results(delta_rule, arguments, backend="triton") for _ in range(2))
    assert_same_bits(first, second)


def test_second_derivatives_are_of_the_reference():
    arguments = {name: tensor.requires_grad_() for name, tensor in make_arguments(1, 3, 1, 2, 2).items()}
    for backend in ("reference", "chunked"):
        y = delta_rule(**arguments, backend=backend)
        (gradient,) = torch.autograd.grad(y.square().sum(), arguments["k"], create_graph=True)
        if backend == "reference":
            gradient.sum().backward()
            continue
        with pytest.raises(NotImplementedError, match="delta_rule backend='chunked' has no second derivative"):
            gradient.sum().backward()


def test_a_chunk_is_a_power_of_two():
    assert chunked.CHUNK.bit_count() == 1


def test_flops_of_one_position_by_hand():
    """K = 2, V = 3: k S 6 products and 3 sums, 3 differences, 3 products, k u 6, S + 6, q S 9; decay 1 + 6, 2 + 6."""
    assert delta_rule_flops(1, 1, 1, 2, 3) == 9 + 6 + 12 + 9
    assert delta_rule_flops(3, 5, 7, 2, 3, 1) == 3 * 5 * 7 * (36 + 7)
    assert delta_rule_flops(1, 1, 1, 2, 3, 2) == 36 + 8
    assert delta_rule_flops(1, 1, 1, 2, 3, erases="by channel") == 36 + 2  # 2 products for the key that erases
    assert delta_rule_flops(1, 1, 1, 2, 3, erases="nothing") == 12 + 9


def test_without_memory_it_has_shapes_alone():
    """On the meta device, where FLOPs are counted: nothing is computed that a counter could see."""
    from torch.utils.flop_counter import FlopCounterMode

    arguments = {name: tensor.to("meta").requires_grad_() for name, tensor in make_arguments(*SIZE).items()}
    with FlopCounterMode(display=False) as counter:
        y, state = delta_rule(**arguments, return_final_state=True)
        (y.sum() + state.sum()).backward()
    assert counter.get_total_flops() == 0
    assert y.shape == arguments["v"].shape
    assert state.shape == arguments["initial_state"].shape
    assert all(tensor.grad.shape == tensor.shape for tensor in arguments.values())
