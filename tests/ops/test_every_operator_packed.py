"""Packed sequences are, with every backend of every operator, as each would be by itself."""

import pytest
import torch
from comparison import assert_all_close, numbered
from hypothesis import strategies as st
from operator_table import every_backend, every_device, every_drawn_backend, kernel_test
from operators import of_drawn


@every_device
@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@kernel_test
def test_dtypes(operator, backend, device, dtype):
    arguments = operator.sized(backend, dtype, device, 2, 40, *operator.width)
    operator.compare_packed(arguments, [{1, 3, 20}, {38}], backend, **operator.settings)


@every_drawn_backend
@kernel_test
def test_any_packing(operator, backend):
    def hold(data: st.DataObject) -> None:
        batch, length, *_ = sizes = data.draw(operator.any_sizes.filter(lambda sizes: sizes[1] > 1))
        cuts = data.draw(st.lists(st.sets(st.integers(1, length - 1)), min_size=batch, max_size=batch))
        options = data.draw(st.sets(st.sampled_from(operator.options)))
        arguments = operator.make(*sizes, dtype=torch.float32, options=tuple(options))
        operator.compare_packed(arguments, cuts, backend, **operator.settings)

    operator.sized(backend, torch.float32, "cpu", 1, 40, *operator.narrow)  # skips what is too slow
    of_drawn(backend, 25, hold)


@every_backend
def test_the_final_state_continues_the_last_sequence(operator, backend):
    arguments = operator.sized(backend, torch.float32, "cpu", 2, 12, *operator.width)
    settings = {**operator.settings, "return_final_state": True, "backend": backend}
    seq_idx = numbered([{6}, {3, 7}], 12)
    whole, final = operator.function(**arguments, seq_idx=seq_idx, **settings)
    outputs, state = [], arguments.pop("initial_state")
    for span in (slice(0, 8), slice(8, None)):
        part = operator.parts(arguments, slice(None), span)
        y, state = operator.function(**part, initial_state=state, seq_idx=seq_idx[:, span], **settings)
        outputs.append(y)
    actual = {"y": torch.cat(outputs, dim=1), "state": state}
    assert_all_close(actual, {"y": whole, "state": final}, torch.float32)


@every_backend
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integers_serve(operator, backend, dtype):
    arguments = operator.sized(backend, torch.float32, "cpu", 1, 4, *operator.narrow)
    seq_idx = numbered([{1, 3}], 4)
    expected = operator.function(**arguments, seq_idx=seq_idx, backend=backend)
    strided = torch.stack([seq_idx * 100, seq_idx], dim=2).to(dtype)[..., 0]
    assert torch.equal(operator.function(**arguments, seq_idx=strided, backend=backend), expected)
