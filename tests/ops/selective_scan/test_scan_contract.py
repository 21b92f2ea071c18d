"""What the selective scan refuses, and which backend it chooses."""

import pytest
import torch
from scan_cases import make_arguments

from seqlab.ops import selective_scan, selective_state_update


class TestContract:
    def test_the_state_has_the_accumulation_dtype(self):
        arguments = make_arguments(2, 5, 3, 4, dtype=torch.bfloat16)
        half = {"initial_state": arguments["initial_state"].bfloat16()}
        with pytest.raises(ValueError, match=r"^initial_state is torch.bfloat16, expected torch.float32$"):
            selective_scan(**arguments | half)

    def test_a_step_holds_the_same_contract(self):
        x, state = torch.zeros(2, 3), torch.zeros(2, 3, 4)
        A, B = torch.zeros(3, 4), torch.zeros(2, 4)
        with pytest.raises(ValueError, match=r"^C has shape \(2, 5\), expected \(batch, d_state\) = \(2, 4\)$"):
            selective_state_update(state, x, x, A, B, torch.zeros(2, 5))
        with pytest.raises(ValueError, match=r"^state has shape \(2, 3, 5\), expected .* = \(2, 3, 4\)$"):
            selective_state_update(torch.zeros(2, 3, 5), x, x, A, B, B)
        with pytest.raises(ValueError, match=r"^state is torch.float16, expected torch.float32$"):
            selective_state_update(state.half(), x.half(), x.half(), A, B, B)
