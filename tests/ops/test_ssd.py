"""State-space duality: the reference against closed forms, every backend against the reference."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from comparison import (
    DEVICES,
    POISONS,
    assert_all_close,
    assert_replays,
    backends_in,
    doubled,
    hold_apart,
    named_gradients,
    numbered,
    results,
    skip_unless_available,
    step_sizes,
    weighted_sum,
)
from torch import Tensor

from seqlab.ops import selective_scan, ssd, ssd_flops, ssd_update
from seqlab.ops.ssd import BACKENDS, parallel, resolve_backend, triton
from seqlab.ops.ssd.operator import FUSED

PACKAGE = "seqlab.ops.ssd"
OPTIONS = ("D", "dt_bias", "initial_state")
ALONG_TIME = ("x", "dt", "B", "C")
HALF = (torch.bfloat16, torch.float16)
SIZE = (2, 77, 4, 5, 2, 7)
"""Batch, length, heads, channels of a head, groups, states: some chunks, the last not whole, and tiles not filled."""
INTERPRETED_SIZE = (1, 70, 2, 5, 1, 37)
"""The same for Triton's interpreter, which takes about 50 ms for each head and chunk."""


def make_arguments(
    batch: int,
    length: int,
    n_heads: int,
    d_head: int,
    n_groups: int,
    d_state: int,
    *,
    dtype: torch.dtype = torch.float32,
    steps: str = "ordinary",
    options: tuple[str, ...] = OPTIONS,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments, every optional one of ``options`` among them; parameters and state at least float32."""
    torch.manual_seed(0)
    wide = torch.float32 if dtype in HALF else dtype
    arguments = {
        "x": torch.randn(batch, length, n_heads, d_head).to(dtype),
        "dt": step_sizes(steps, batch, length, n_heads).to(dtype),
        "A": (-torch.rand(n_heads) * 4 - 0.5).to(wide),
        "B": torch.randn(batch, length, n_groups, d_state).to(dtype),
        "C": torch.randn(batch, length, n_groups, d_state).to(dtype),
        "D": torch.randn(n_heads).to(wide),
        "dt_bias": torch.rand(n_heads).to(wide),
        "initial_state": torch.randn(batch, n_heads, d_head, d_state).to(wide),
    }
    return {name: tensor.to(device) for name, tensor in arguments.items() if name not in OPTIONS or name in options}


def interpreted(backend: str, device: str) -> bool:
    return backend == "triton" and device == "cpu"


def size(backend: str, device: str) -> tuple[int, ...]:
    return INTERPRETED_SIZE if interpreted(backend, device) else SIZE


def afford(backend: str, device: str, *, unless: bool) -> None:
    if interpreted(backend, device) and unless:
        pytest.skip("too slow in Triton's interpreter")


def compare(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    """Hold a backend to the float64 reference in outputs, final state and every gradient."""
    x = arguments["x"]
    skip_unless_available(PACKAGE, backend, x.device.type, x.dtype)
    expected = results(ssd, doubled(arguments), backend="reference", **settings)
    assert_all_close(results(ssd, arguments, backend=backend, **settings), expected, x.dtype)


def ssd_separately(*, cuts: list[set[int]], initial_state: Tensor, return_final_state: bool, **arguments):
    """What packed sequences are held to: each by itself, the first of a row from the initial state."""
    assert return_final_state
    rows = []
    for b, row in enumerate(cuts):
        before, outputs = initial_state[b : b + 1], []
        for start, end in itertools.pairwise([0, *sorted(row), arguments["x"].shape[1]]):
            part = {
                name: value[b : b + 1, start:end] if name in ALONG_TIME else value for name, value in arguments.items()
            }
            y, state = ssd(**part, initial_state=before, return_final_state=True, backend="reference")
            outputs.append(y)
            before = None
        rows.append((torch.cat(outputs, dim=1), state))
    ys, states = zip(*rows, strict=True)
    return torch.cat(ys), torch.cat(states)


every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory")


class TestReference:
    def test_equals_the_dense_matrix(self):
        """The paper's dual form: y = (C B^T * decays) dt x, decays from differences of sums (equation 6)."""
        a = {name: tensor.numpy() for name, tensor in make_arguments(2, 23, 4, 3, 2, 5, dtype=torch.float64).items()}
        dt = np.log1p(np.exp(a["dt"] + a["dt_bias"]))
        B, C = (a[name].repeat(2, axis=2) for name in ("B", "C"))  # (Bt, L, H, N)
        s = np.cumsum(dt * a["A"], axis=1)  # (Bt, L, H)
        decay = np.exp(np.minimum(s[:, :, None] - s[:, None], 0)) * np.tril(np.ones((23, 23)))[:, :, None]
        u = dt[..., None] * a["x"]  # (Bt, L, H, P)
        expected = np.einsum("btsh,bthn,bshn,bshp->bthp", decay, C, B, u)
        expected += np.einsum("bth,bthn,bhpn->bthp", np.exp(s), C, a["initial_state"]) + a["D"][:, None] * a["x"]
        final = np.einsum("bsh,bshn,bshp->bhpn", decay[:, -1], B, u)
        final += np.exp(s[:, -1])[..., None, None] * a["initial_state"]

        tensors = {name: torch.from_numpy(value) for name, value in a.items()}
        y, state = ssd(**tensors, dt_softplus=True, return_final_state=True, backend="reference")
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10)
        np.testing.assert_allclose(state.numpy(), final, rtol=1e-10)

    @pytest.mark.parametrize("backend", ["reference", "parallel"])
    def test_is_the_selective_scan_with_one_decay_a_head(self, backend):
        """Mamba-1's operator with A, dt and D the same for all channels and states of a head."""
        a = make_arguments(2, 70, 3, 4, 1, 5, dtype=torch.float64)
        scanned = {
            "u": a["x"].flatten(2),
            "delta": a["dt"].repeat_interleave(4, dim=2),
            "A": a["A"].repeat_interleave(4)[:, None].expand(12, 5),
            "B": a["B"].squeeze(2),
            "C": a["C"].squeeze(2),
            "D": a["D"].repeat_interleave(4),
            "delta_bias": a["dt_bias"].repeat_interleave(4),
            "initial_state": a["initial_state"].flatten(1, 2),
        }
        y, state = selective_scan(**scanned, delta_softplus=True, return_final_state=True, backend="reference")
        actual_y, actual_state = ssd(**a, dt_softplus=True, return_final_state=True, backend=backend)
        assert_all_close(
            {"y": actual_y.flatten(2), "state": actual_state.flatten(1, 2)}, {"y": y, "state": state}, torch.float64
        )


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

    @every_device
    @every_backend
    @pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65, 131])
    @kernel_test
    def test_lengths(self, backend, device, length):
        """Eight heads: with three, one draw's dA cancels to a thousandth of its size, less than float32 products in
        three parts resolve."""
        afford(backend, device, unless=length not in (1, 65))
        compare(make_arguments(1, length, 8, 5, 1, 4, device=device), backend, dt_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (6, 3, 2, 16), (4, 33, 4, 20), (1, 64, 1, 64), (2, 70, 2, 130)])
    @kernel_test
    def test_sizes(self, backend, device, sizes):
        """Heads, channels, groups and states: one each, powers of two and none, more than one tile."""
        afford(backend, device, unless=sizes == (6, 3, 2, 16))
        compare(make_arguments(1, 20, *sizes, device=device), backend, dt_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dt_softplus", [False, True])
    @pytest.mark.parametrize(
        "options", [chosen for n in range(4) for chosen in itertools.combinations(OPTIONS, n)], ids="+".join
    )
    @kernel_test
    def test_options(self, backend, device, options, dt_softplus):
        afford(backend, device, unless=len(options) > 0)
        compare(make_arguments(1, 33, 1, 3, 1, 4, options=options, device=device), backend, dt_softplus=dt_softplus)

    @every_device
    @every_backend
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @kernel_test
    def test_adversarial_steps(self, backend, device, steps, dtype, packed):
        afford(backend, device, unless=packed or dtype == torch.bfloat16)
        arguments = make_arguments(*size(backend, device), dtype=dtype, steps=steps, device=device)
        arguments["dt_bias"].zero_()
        batch, length = arguments["x"].shape[:2]
        seq_idx = numbered([{20, 21, 64}, {32}][:batch], length).to(device) if packed else None
        compare(arguments, backend, seq_idx=seq_idx)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @kernel_test
    def test_dtypes(self, backend, device, dtype):
        compare(make_arguments(*size(backend, device), dtype=dtype, device=device), backend, dt_softplus=True)

    @every_device
    @every_backend
    @kernel_test
    def test_mixed_dtypes_and_layouts(self, backend, device):
        """As under autocast, and parts of one projection that are not side by side in memory."""
        arguments = make_arguments(*size(backend, device), dtype=torch.bfloat16, device=device)
        arguments["dt"] = arguments["dt"].float().transpose(1, 2).contiguous().transpose(1, 2)
        arguments["B"] = arguments["B"].transpose(1, 3).contiguous().transpose(1, 3)
        x = arguments["x"]
        arguments["x"] = torch.cat([x.flatten(2)] * 2, dim=2)[..., : x[0, 0].numel()].unflatten(2, x.shape[2:])
        compare(arguments, backend, dt_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("cut", [1, 32, 39])
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing(self, backend, device, cut):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        afford(backend, device, unless=cut != 32)
        arguments = make_arguments(*size(backend, device), device=device)
        settings = {"dt_softplus": True, "backend": backend}
        whole = results(ssd, arguments, **settings)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
        state, outputs = leaves["initial_state"], []
        for span in (slice(0, cut), slice(cut, None)):
            part = {name: leaf[:, span] if name in ALONG_TIME else leaf for name, leaf in leaves.items()}
            part["initial_state"] = state
            y, state = ssd(**part, return_final_state=True, **settings)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
        halves = {"y": y, "state": state, **named_gradients(leaves, gradients)}
        assert_all_close(halves, whole, torch.float32)

    @every_device
    @every_backend
    @kernel_test
    def test_packed_sequences_are_those_one_by_one(self, backend, device):
        """Among them sequences that begin where a chunk does, on either side of it, and right after one another."""
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(*size(backend, device), device=device)
        batch, length = arguments["x"].shape[:2]
        cuts = [{cut for cut in row if cut < length} for row in ({1, 2, 3, 32, 35, 64}, {31, 33, 65, 70})][:batch]
        expected = results(ssd_separately, doubled(arguments), cuts=cuts, dt_softplus=True)
        seq_idx = numbered(cuts, length).to(device)
        actual = results(ssd, arguments, seq_idx=seq_idx, backend=backend, dt_softplus=True)
        assert_all_close(actual, expected, torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
    @kernel_test
    def test_gradient_of_one_output_alone(self, backend, device, output):
        skip_unless_available(PACKAGE, backend, device, torch.float32)

        def gradients(arguments, backend):
            leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
            out = ssd(**leaves, return_final_state=True, backend=backend)[output]
            found = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
            return {
                name: torch.zeros_like(leaf) if gradient is None else gradient
                for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
            }

        arguments = make_arguments(1, 33, 1, 3, 1, 4, device=device)
        expected = gradients(doubled(arguments), "reference")
        assert_all_close(gradients(arguments, backend), expected, torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @kernel_test
    def test_steps_follow_the_whole(self, backend, device, dtype):
        skip_unless_available(PACKAGE, backend, device, dtype)
        arguments = make_arguments(*size(backend, device), dtype=dtype, device=device)
        expected_y, expected_state = ssd(**arguments, dt_softplus=True, return_final_state=True, backend=backend)
        state, outputs = arguments.pop("initial_state"), []
        for t in range(arguments["x"].shape[1]):
            part = {name: value[:, t] if name in ALONG_TIME else value for name, value in arguments.items()}
            before = state.clone()
            y, after = ssd_update(state, **part, dt_softplus=True)
            assert torch.equal(state, before)
            assert y.dtype == dtype
            outputs.append(y)
            state = after
        actual = {"y": torch.stack(outputs, dim=1), "state": state}
        assert_all_close(actual, {"y": expected_y, "state": expected_state}, dtype)

    @every_device
    @every_fused_backend
    @kernel_test
    def test_the_same_bit_by_bit_from_run_to_run(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(*size(backend, device), device=device)
        first, second = (results(ssd, arguments, backend=backend) for _ in range(2))
        for name in first:
            assert torch.equal(first[name], second[name]), name

    @every_backend
    def test_autocast_changes_nothing(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(1, 9, 2, 3, 1, 4)
        expected = results(ssd, arguments, backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = results(ssd, arguments, backend=backend)
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name


@every_backend
@every_device
@pytest.mark.parametrize(
    ("names", "poison"),
    [*itertools.product([("x",), ("dt",), ("B",), ("C",)], POISONS), (("x", "B"), 1e30)],
)
@kernel_test
def test_what_is_not_finite_stays_in_its_sequence(backend, device, names, poison):
    """Sequences within a chunk, across chunks, over whole ones, and of one position; 1e30 overflows in a product."""
    skip_unless_available(PACKAGE, backend, device, torch.float32)
    arguments = make_arguments(*size(backend, device), device=device)
    operation = partial(ssd, dt_softplus=True, backend=backend)
    hold_apart(operation, arguments, names, poison, {5, 6, 20, 68})


@every_backend
@every_device
@pytest.mark.parametrize("poisoned", ["initial_state", "dy", "d_state"])
@kernel_test
def test_states_and_gradients_that_are_not_finite_stay_in_their_sequence(backend, device, poisoned):
    """An initial state is of the first sequence, a gradient by the final state of the last."""
    skip_unless_available(PACKAGE, backend, device, torch.float32)
    arguments = make_arguments(*size(backend, device), device=device)
    length = arguments["x"].shape[1]
    seq_idx = numbered([{20, 68}] * len(arguments["x"]), length).to(device)
    given = {"dy": torch.ones_like(arguments["x"]), "d_state": torch.ones_like(arguments["initial_state"])}

    def outcome(arguments: dict[str, Tensor], dy: Tensor, d_state: Tensor) -> dict[str, Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
        outputs = ssd(**leaves, seq_idx=seq_idx, dt_softplus=True, return_final_state=True, backend=backend)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), (dy, d_state))
        return {"y": outputs[0], "state": outputs[1], **named_gradients(leaves, gradients)}

    expected = outcome(arguments, **given)
    changed = {name: tensor.clone() for name, tensor in {**arguments, **given}.items()}
    bad, part = {
        "initial_state": (slice(0, 20), ...),
        "dy": (slice(20, 68), np.s_[:, 40]),
        "d_state": (slice(68, length), ...),
    }[poisoned]
    changed[poisoned][part] = np.inf
    with np.errstate(all="ignore"):  # of Triton's interpreter, within the poisoned sequence
        actual = outcome({name: changed[name] for name in arguments}, **{name: changed[name] for name in given})
    assert not all(tensor.isfinite().all() for tensor in actual.values())
    along_time = ["y", *("d" + name for name in ALONG_TIME)]
    apart = {"initial_state": ["state"], "dy": ["state", "dinitial_state"], "d_state": ["dinitial_state"]}[poisoned]
    for found in (actual, expected):
        for name in along_time:
            found[name] = torch.cat([found[name][:, : bad.start], found[name][:, bad.stop :]], dim=1)
    assert_all_close(
        *({name: found[name] for name in (*along_time, *apart)} for found in (actual, expected)), torch.float32
    )


class TestParallel:
    @pytest.mark.parametrize("packed", [False, True])
    def test_gradcheck(self, packed, monkeypatch):
        monkeypatch.setattr(parallel, "CHUNK", 3)
        arguments = make_arguments(2, 7, 2, 2, 1, 2, dtype=torch.float64)
        arguments = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
        settings = {"dt_softplus": True, "return_final_state": True, "backend": "parallel"}
        settings["seq_idx"] = numbered([{2, 3}, {6}], 7) if packed else None

        def operation(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return ssd(**dict(zip(arguments, tensors, strict=True)), **settings)

        assert torch.autograd.gradcheck(operation, tuple(arguments.values()))

    @pytest.mark.parametrize("most", [2, 5, 64])
    @pytest.mark.parametrize("packed", [False, True])
    def test_chunks_in_groups(self, most, packed, monkeypatch):
        """Chunks of four positions, walked in groups of groups."""
        monkeypatch.setattr(parallel, "CHUNK", 4)
        monkeypatch.setattr(parallel, "MOST_STEPS", most)
        seq_idx = numbered([{20, 21, 64}, {63}], SIZE[1]) if packed else None
        compare(make_arguments(*SIZE), "parallel", dt_softplus=True, seq_idx=seq_idx)

    @pytest.mark.parametrize("most", [2, 64])
    @pytest.mark.parametrize("poison", POISONS)
    def test_what_is_not_finite_stays_apart_across_groups(self, most, poison, monkeypatch):
        monkeypatch.setattr(parallel, "CHUNK", 4)
        monkeypatch.setattr(parallel, "MOST_STEPS", most)
        operation = partial(ssd, dt_softplus=True, backend="parallel")
        hold_apart(operation, make_arguments(*SIZE), ("x", "B"), poison, {2, 20, 21, 64})


class TestOperator:
    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("options", [False, True])
    def test_opcheck(self, backend, device, options):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        afford(backend, device, unless=not options)
        arguments = make_arguments(1, 6, 1, 3, 1, 2, options=OPTIONS if options else (), device=device)
        seq_idx = numbered([{1}], 6).to(device) if options else None
        operands = [arguments.get(name) for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")] + [seq_idx]
        state = arguments.get("initial_state")
        y, final = torch.ops.seqlab.ssd(*operands, options, state, backend)
        dy, d_final = (torch.randn_like(y), None) if options else (None, torch.randn_like(final))
        given = (dy, d_final, *operands, state, options, backend)
        torch.library.opcheck(torch.ops.seqlab.ssd_backward.default, given)
        for tensor in arguments.values():
            tensor.requires_grad_()
        torch.library.opcheck(torch.ops.seqlab.ssd.default, (*operands, options, state, backend))

    @every_device
    @every_fused_backend
    def test_compiles_without_a_graph_break(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        torch.compiler.reset()  # it compiles one function only so many times
        compiled = torch.compile(ssd, backend="aot_eager", fullgraph=True, dynamic=True)
        for length in (2, 3):
            arguments = make_arguments(1, length, 1, 3, 1, 2, device=device)
            settings = {"seq_idx": numbered([{1}], length).to(device), "backend": backend}
            expected = results(ssd, arguments, **settings)
            assert_all_close(results(compiled, arguments, **settings), expected, torch.float32)

    @every_fused_backend
    def test_second_derivatives_are_refused(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        leaves = {name: tensor.requires_grad_() for name, tensor in make_arguments(1, 3, 2, 2, 1, 2).items()}
        (dx,) = torch.autograd.grad(ssd(**leaves, backend=backend).sum(), leaves["x"], create_graph=True)
        with pytest.raises(NotImplementedError, match="has no second derivative: use backend="):
            dx.sum().backward()

    def test_keeps_its_arguments_alone(self):
        """What is held for the backward pass are the arguments themselves."""
        leaves = {name: tensor.requires_grad_() for name, tensor in make_arguments(*SIZE).items()}
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
            ssd(**leaves, backend="parallel")
        assert {tensor.data_ptr() for tensor in kept} == {leaf.data_ptr() for leaf in leaves.values()}

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    def test_cuda_graph_capture(self):
        arguments = make_arguments(2, 200, 4, 64, 1, 64, dtype=torch.bfloat16, device="cuda")
        settings = {"dt_softplus": True, "seq_idx": numbered([{4}, {2, 150}], 200).cuda(), "backend": "triton"}
        static = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}

        def step() -> list[Tensor]:
            y, state = ssd(**static, return_final_state=True, **settings)
            return [y, state, *torch.autograd.grad((y, state), list(static.values()), (y.detach(), state.detach()))]

        assert_replays(step, static.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGPU:
    """The sizes that models have."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        "sizes", [(8, 64, 1, 64), (4, 128, 2, 128), (2, 96, 1, 256), (3, 200, 1, 16), (4, 16, 1, 64), (4, 32, 1, 128)]
    )
    @kernel_test
    def test_sizes_of_models(self, dtype, sizes):
        compare(make_arguments(2, 333, *sizes, dtype=dtype, device="cuda"), "triton", dt_softplus=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("poison", [np.inf, 3.4e38])
    @pytest.mark.parametrize("name", ALONG_TIME)
    @kernel_test
    def test_what_is_not_finite_stays_in_its_sequence(self, name, poison, dtype):
        """In one element of heads and states of more than one tile; tensor cores round 3.4e38 up to infinity."""
        arguments = make_arguments(1, 333, 4, 128, 2, 256, dtype=dtype, device="cuda")
        operation = partial(ssd, dt_softplus=True, backend="triton")
        hold_apart(operation, arguments, (name,), poison, {5, 100, 128, 300})

    @kernel_test
    def test_more_than_two_to_the_31_bytes_away(self):
        """Offsets past 32 bits: the last row of a tensor that large is what it is by itself."""
        arguments = make_arguments(1, 65_536, 48, 64, 1, 64, dtype=torch.bfloat16, options=(), device="cuda")
        for name in ALONG_TIME:
            arguments[name] = arguments[name].repeat(12, *[1] * (arguments[name].dim() - 1))
        arguments["x"] *= torch.arange(1, 13, device="cuda").view(12, 1, 1, 1)  # no row is like another
        with torch.no_grad():
            whole = ssd(**arguments, backend="triton")
            last = {name: value[-1:] if name in ALONG_TIME else value for name, value in arguments.items()}
            assert torch.equal(whole[-1:], ssd(**last, backend="triton"))


class TestContract:
    def test_auto_on_a_cpu_is_parallel(self):
        assert resolve_backend("auto", "cpu", torch.float32) == "parallel"
        assert resolve_backend("auto", "cpu", torch.float64) == "parallel"

    def test_a_backend_asked_for_by_name_is_not_replaced(self):
        with pytest.raises(ValueError, match="sums in float32, not enough for torch"):
            ssd(**make_arguments(1, 2, 2, 2, 1, 2, dtype=torch.float64), backend="triton")
        with pytest.raises(ValueError, match="no backend 'fused'; choose one of auto, triton, parallel, reference"):
            ssd(**make_arguments(1, 2, 2, 2, 1, 2), backend="fused")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            (
                "dt",
                lambda t: t[:, :, :1],
                r"dt has shape \(1, 4, 1\), expected \(batch, length, n_heads\) = \(1, 4, 3\)",
            ),
            ("C", lambda t: t[..., :1], r"C has shape \(1, 4, 1, 1\), expected .* = \(1, 4, 1, 2\)"),
            ("B", lambda t: t.expand(1, 4, 2, 2), r"C has shape"),
            ("A", lambda t: t.double(), "A is torch.float64 but x is torch.float32"),
            ("initial_state", lambda t: t.bfloat16(), "initial_state is torch.bfloat16, expected torch.float32"),
        ],
    )
    def test_what_does_not_fit_is_named(self, name, change, message):
        arguments = make_arguments(1, 4, 3, 2, 1, 2)
        arguments[name] = change(arguments[name])
        with pytest.raises(ValueError, match=message):
            ssd(**arguments)

    def test_groups_have_to_divide_the_heads(self):
        message = "B has 2 groups, expected a divisor of x's 3 heads"
        arguments = make_arguments(1, 4, 3, 2, 1, 2)
        arguments["B"], arguments["C"] = (arguments[name].expand(1, 4, 2, 2) for name in ("B", "C"))
        with pytest.raises(ValueError, match=message):
            ssd(**arguments)

    def test_states_that_do_not_fit_a_program(self):
        skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)
        with pytest.raises(ValueError, match="takes d_state up to 256, not 257"):
            ssd(**make_arguments(1, 1, 1, 1, 1, triton.MOST_STATES + 1), backend="triton")

    @pytest.mark.parametrize("narrow", [False, True])
    @pytest.mark.parametrize("kernel", ["states", "outputs", "inputs", "projections"])
    def test_a_tile_is_one_that_the_kernels_can_run(self, kernel, narrow, monkeypatch):
        """tile_of holds its tiles to what the kernels assume: for heads of all sizes, and whatever the table says."""
        for d_head, d_state in itertools.product((1, 5, 16, 17, 32, 64, 200), (1, 16, 17, 64, 128, triton.MOST_STATES)):
            tile = triton.tile_of(kernel, narrow, d_head, d_state)
            assert max(d_head, 4 * tile.warps) > tile.P // 2  # no more is padded than has to be
        for wrong in (triton.Tile(16, 256, 8, 1), triton.Tile(48, 256, 4, 1), triton.Tile(64, 24, 4, 1)):
            monkeypatch.setitem(triton.NARROW if narrow else triton.WIDE, kernel, wrong)
            with pytest.raises(AssertionError, match=kernel):
                triton.tile_of(kernel, narrow, 64, 64)

    def test_flops_of_one_position_by_hand(self):
        """P = 2, N = 3: exp(dt A) 2, dt x 2, times B 6, a h + x 12, C h 6 products and 4 sums."""
        assert ssd_flops(1, 1, 1, 2, 3) == 2 + 2 + 6 + 12 + 10
        assert ssd_flops(3, 5, 7, 2, 3) == 3 * 5 * 7 * 32

    def test_without_memory_it_has_shapes_alone(self):
        """On the meta device, where FLOPs are counted: nothing is computed that a counter could see."""
        from torch.utils.flop_counter import FlopCounterMode

        arguments = {name: tensor.to("meta").requires_grad_() for name, tensor in make_arguments(*SIZE).items()}
        with FlopCounterMode(display=False) as counter:
            y, state = ssd(**arguments, return_final_state=True)
            (y.sum() + state.sum()).backward()
        assert counter.get_total_flops() == 0
        assert y.shape == arguments["x"].shape
        assert all(tensor.grad.shape == tensor.shape for tensor in arguments.values())
