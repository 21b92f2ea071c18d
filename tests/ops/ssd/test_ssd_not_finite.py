"""What is not finite stays in its sequence."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from comparison import POISONS, assert_all_close, hold_apart, named_gradients, numbered, skip_unless_available
from ssd_cases import ALONG_TIME, PACKAGE, afford, every_backend, every_device, kernel_test, make_arguments, size
from torch import Tensor

from seqlab.ops import ssd

PAIRED = [(("x",), math.inf), (("dt",), math.nan), (("B",), 3e38), (("C",), math.inf), (("x", "B"), 1e30)]
"""Each argument with one of the poisons, for the interpreter, which takes seconds for one."""


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
    afford(backend, device, unless=(names, poison) not in PAIRED)
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
