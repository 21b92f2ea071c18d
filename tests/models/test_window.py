"""Sliding-window attention against attention written out with a mask over all positions, in float64."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from seqlab.errors import UserError
from seqlab.models.counting import bytes_of, mixer_state_bytes
from seqlab.models.mixers import Attention
from seqlab.models.mixers.cache import Cache
from seqlab.models.mixers.softmax import attend_after, attend_window

D_MODEL = 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    length, before = q.shape[2], k.shape[2] - q.shape[2]
    distance = torch.arange(before, before + length)[:, None] - torch.arange(before + length)
    scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill((distance < 0) | (distance >= window), -torch.inf)
    return scores.softmax(dim=-1) @ v


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("window", [1, 2, 7, 64, 65, 300])
@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 200])
class TestAgainstAMask:
    def test_values_and_gradients(self, length, window):
        q, k, v = (random(2, 3, length, 8, seed=seed).requires_grad_() for seed in range(3))
        y, expected = attend_window(q, k, v, window), written_out(q, k, v, window)
        close(y, expected)
        dy = random(*y.shape)
        gradients = zip(*(torch.autograd.grad(out, (q, k, v), dy) for out in (y, expected)), strict=True)
        for actual, wanted in gradients:
            close(actual, wanted)

    @pytest.mark.parametrize("before", [1, 3, 70, 400])
    def test_the_last_of_more(self, length, window, before):
        q = random(2, 3, length, 8)
        k, v = (random(2, 3, before + length, 8, seed=seed) for seed in (1, 2))
        close(attend_window(q, k, v, window), written_out(q, k, v, window))


@pytest.mark.parametrize("window, before", [(None, 3), (None, 64), (3, 3), (70, 70), (1, 1)])
@pytest.mark.parametrize("length", [1, 3, 200])
def test_after_positions_of_which_some_are_there(window, before, length):
    """In blocks, one attends to its own and to the one before; of the first positions only to those that are there."""
    q, there = random(3, 2, length, 8), torch.tensor([0, 1, before])
    k, v = (random(3, 2, before + length, 8, seed=seed) for seed in (1, 2))
    key, query = torch.arange(before + length), torch.arange(before, before + length)[:, None]
    seen = (key <= query) & (key // before >= query // before - 1 if window is None else key > query - window)
    seen = seen & (key >= before - there[:, None])[:, None]  # (B, L, S)
    scores = (q @ k.mT / 8**0.5).masked_fill(~seen[:, None], -torch.inf)
    close(attend_after(q, k, v, there, window), scores.softmax(dim=-1) @ v)


def mixer(window: int | None, **settings) -> Attention:
    torch.manual_seed(0)
    return Attention(D_MODEL, n_heads=2, window=window, **settings).double().eval()


@pytest.mark.parametrize("window", [1, 2, 7, 8, 64])
class TestInPieces:
    @pytest.mark.parametrize("n_kv_heads", [None, 1])
    @torch.no_grad()
    def test_give_what_the_whole_gives(self, window, n_kv_heads):
        """Prompts longer and shorter than the window, steps past its end, and a prompt again."""
        attention, x = mixer(window, n_kv_heads=n_kv_heads), random(2, 120, D_MODEL)
        state, outputs, start = attention.initial_state(2), [], 0
        for end in (3, 4, 24, 25):
            y, state = attention.prefill(x[:, start:end], state)
            outputs, start = [*outputs, y], end
        for position in range(25, 100):
            y, state = attention.step(x[:, position], state)
            outputs.append(y[:, None])
        y, state = attention.prefill(x[:, 100:], state)
        close(torch.cat([*outputs, y], dim=1), attention(x))

    @torch.no_grad()
    def test_steps_alone(self, window):
        attention, x = mixer(window), random(2, 70, D_MODEL)
        state, outputs = attention.initial_state(2), []
        for position in x.unbind(dim=1):
            y, state = attention.step(position, state)
            outputs.append(y)
            assert state.k.shape[2] <= window
        close(torch.stack(outputs, dim=1), attention(x))


@pytest.mark.parametrize("window", [None, 5])
def test_shared_heads_are_heads_that_are_alike(window):
    """Two heads of keys and values, each repeated for the three heads of queries that share it."""
    shared = Attention(D_MODEL, n_heads=6, n_kv_heads=2, d_inner=24, window=window).double()
    full = Attention(D_MODEL, n_heads=6, d_inner=24, window=window).double()
    q, k, v = shared.in_proj.weight.split((24, 8, 8))
    k, v = (part.view(2, 1, 4, D_MODEL).expand(2, 3, 4, D_MODEL).reshape(24, D_MODEL) for part in (k, v))
    full.load_state_dict({"in_proj.weight": torch.cat((q, k, v)), "out_proj.weight": shared.out_proj.weight})
    x = random(2, 33, D_MODEL)
    close(shared(x), full(x))
    assert bytes_of(shared.prefill(x, shared.initial_state(2))[1]) * 3 == bytes_of(
        full.prefill(x, full.initial_state(2))[1]
    )
    with pytest.raises(UserError, match=r"n_kv_heads=4: must divide n_heads=6\.\nChoose one of 1, 2, 3, 6\."):
        Attention(D_MODEL, n_heads=6, n_kv_heads=4, d_inner=24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotary_width": 3}, "rotary_width=3: must be an even number up to d_inner / n_heads = 4"),
        ({"rotary_width": 6}, "rotary_width=6: must be an even number up to d_inner / n_heads = 4"),
        ({"rotary_width": 2, "rotary_divisors": [1.0, 2.0]}, "must be as many as the pairs that are rotated, 1"),
    ],
)
def test_what_cannot_be_rotated(settings, message):
    with pytest.raises(UserError, match=message):
        Attention(D_MODEL, n_heads=6, d_inner=24, **settings)


def test_a_window_as_long_as_the_sequence_is_full_attention():
    x = random(2, 33, D_MODEL)
    close(mixer(33)(x), mixer(None)(x))
    assert (mixer(32)(x) - mixer(None)(x)).abs().max() > 1e-4


class TestCost:
    @pytest.mark.parametrize("length", [3, 7, 8, 100, 1000])
    def test_the_cache_ends_at_the_window(self, length):
        attention = mixer(8).float()
        _, state = attention.prefill(torch.randn(1, length, D_MODEL), attention.initial_state(1))
        assert bytes_of(state) == 2 * min(length, 8) * D_MODEL * 4
        assert mixer_state_bytes(attention.to("meta"), D_MODEL, length) == bytes_of(state)

    @torch.no_grad()
    def test_a_step_past_the_window_copies_nothing(self):
        attention = mixer(8)
        _, state = attention.prefill(random(1, 20, D_MODEL), attention.initial_state(1))
        places = set()
        for _ in range(20):
            _, state = attention.step(random(1, D_MODEL), state)
            places.add((state.k.data_ptr(), state.v.data_ptr()))
        assert len(places) == 1
        assert isinstance(state, Cache) and (state.length, state.window) == (40, 8)

    @pytest.mark.parametrize("window", [64, 100])
    def test_grows_with_the_length_alone(self, window):
        """Of queries with keys and of weights with values: 2 W keys for each position behind the first block."""

        def flops(length: int) -> int:
            q = torch.empty(1, 2, length, 8, device="meta")
            with FlopCounterMode(display=False) as counter:
                attend_window(q, q, q, window)
            return counter.get_total_flops()

        first = 2 * 2 * 2 * window * window * 8
        for blocks in (2, 3, 9):
            assert flops(blocks * window) == first + (blocks - 1) * 2 * 2 * 2 * window * (2 * window) * 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "window"), [(1000, 64), (1000, 129), (77, 5)])
def test_on_a_gpu(dtype, length, window):
    q, k, v = (random(2, 3, length, 64, seed=seed) for seed in range(3))
    expected = written_out(q, k, v, window)
    inputs = [part.to("cuda", dtype).requires_grad_() for part in (q, k, v)]
    y = attend_window(*inputs, window)
    close(y.cpu().double(), expected, {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype])
    y.float().square().sum().backward()
    assert all(part.grad.isfinite().all() for part in inputs)
