"""The operators over positions. A new one gets all tests of ``test_every_operator*.py`` by its entry here."""

from importlib import import_module

import pytest
from comparison import DEVICES, backends_in
from conv_cases import CONV
from delta_cases import DELTA
from m2rnn_cases import M2RNN
from scan_cases import SCAN
from ssd_cases import SSD

OPERATORS = [CONV, DELTA, M2RNN, SCAN, SSD]

EVERY = [(operator, backend) for operator in OPERATORS for backend in backends_in(operator.package)]
FUSED = {operator.name: import_module(f"{operator.package}.operator").FUSED for operator in OPERATORS}


def ids(value: object) -> str | None:
    return getattr(value, "name", None)


def over(pairs: list[tuple]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("operator", "backend"), pairs, ids=ids)


every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=ids)
every_triton_operator = pytest.mark.parametrize(
    "operator", [operator for operator, backend in EVERY if backend == "triton"], ids=ids
)
every_backend = over(EVERY)
every_fused_backend = over([(operator, backend) for operator, backend in EVERY if backend in FUSED[operator.name]])
every_drawn_backend = over([(operator, backend) for operator, backend in EVERY if operator.any_sizes is not None])
every_cut = pytest.mark.parametrize(
    ("operator", "backend", "cut"), [(*pair, cut) for pair in EVERY for cut in pair[0].cuts], ids=ids
)
every_refused_shape = pytest.mark.parametrize(
    ("operator", "name", "shape", "expected"),
    [(operator, *refused) for operator in OPERATORS for refused in operator.refused],
    ids=ids,
)
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory", "short_chunks")
