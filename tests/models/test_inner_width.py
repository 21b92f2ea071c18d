"""Mixers as wide inside as they are told: the same mathematics, other widths of the projections."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from seqlab.models.layer import prefill_mixer
from seqlab.models.mixers import Attention, Mamba, Mamba2, Mamba3, MinGRU

D, E, H, LENGTH = 10, 24, 4, 7
MIXERS: dict[str, Callable[..., nn.Module]] = {
    "attention": lambda **width: Attention(D, n_heads=H, **width),
    "window": lambda **width: Attention(D, n_heads=H, window=3, **width),
    "mamba": lambda **width: Mamba(D, d_state=3, **width),
    "mamba2": lambda **width: Mamba2(D, n_heads=H, d_state=5, **width),
    "mamba3": lambda **width: Mamba3(D, n_heads=H, d_state=5, **width),
    "mamba3_mimo": lambda **width: Mamba3(D, n_heads=H, d_state=5, mimo_rank=3, **width),
    "min_gru": lambda **width: MinGRU(D, **width),
}
PARAMETERS = {  # by the papers' equations: projections, convolutions, what the scan has of its own
    "attention": 4 * D * E,
    "window": 4 * D * E,
    "mamba": 3 * D * E + 5 * E + E * (1 + 2 * 3) + (1 * E + E) + 3 * E + E,
    "mamba2": D * (2 * E + 2 * 5 + H) + 5 * (E + 2 * 5) + 3 * H + E + E * D,
    "mamba3": D * (2 * E + 2 * 5 + 3 * H + 1) + 2 * H + 2 * 5 + 2 * H * 5 + E * D,
    "mamba3_mimo": D * (2 * E + 3 * 2 * 5 + 3 * H + 1) + 2 * H + 2 * 5 + 3 * 2 * H * 5 + 3 * 3 * E + E * D,
    "min_gru": (D + 1) * 2 * E + E * D,
}


@pytest.mark.parametrize("name", MIXERS)
class TestEveryMixer:
    def test_has_the_parameters_of_that_width(self, name):
        assert sum(p.numel() for p in MIXERS[name](d_inner=E).parameters()) == PARAMETERS[name]

    def test_steps_and_pieces_give_what_the_whole_gives(self, name):
        torch.manual_seed(0)
        mixer, x = MIXERS[name](d_inner=E), torch.randn(2, LENGTH, D)
        with torch.no_grad():
            whole, state, steps = mixer(x), mixer.initial_state(2), []
            for position in x[:, :4].unbind(dim=1):
                y, state = mixer.step(position, state)
                steps.append(y)
            rest, _ = prefill_mixer(mixer, x[:, 4:], state)
        assert whole.shape == x.shape
        torch.testing.assert_close(torch.cat((torch.stack(steps, dim=1), rest), dim=1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mamba", "min_gru"])
def test_what_it_is_by_default_is_what_it_is_by_name(name):
    torch.manual_seed(0)
    default = MIXERS[name]().state_dict()
    torch.manual_seed(0)
    torch.testing.assert_close(MIXERS[name](d_inner=2 * D).state_dict(), default, rtol=0, atol=0)
