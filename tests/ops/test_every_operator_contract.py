"""What every operator refuses, and which backend it chooses."""

import re
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from comparison import backends_in, skip_unless_available
from operator_table import every_backend, every_operator, every_refused_shape, every_triton_operator

import seqlab.ops


def made(operator, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return operator.make(2, 5, *operator.narrow, dtype=dtype)


class TestContract:
    @every_refused_shape
    def test_a_wrong_shape_is_named(self, operator, name, shape, expected):
        message = rf"^{name} has shape {re.escape(str(shape))}, expected {expected}$"
        with pytest.raises(ValueError, match=message):
            operator.function(**made(operator) | {name: torch.zeros(shape)})

    @every_operator
    def test_a_missing_tensor_is_named(self, operator):
        arguments = operator.make(2, 5, *operator.narrow, options=())
        for name in arguments:
            with pytest.raises(ValueError, match=f"^{name} is None, expected a tensor$"):
                operator.function(**arguments | {name: None})

    @every_operator
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_every_tensor_or_none_is_float64(self, operator, dtype):
        other = torch.float32 if dtype == torch.float64 else torch.float64
        arguments = made(operator, dtype)
        first, *others = arguments
        for name in set(others) - {"initial_state"}:
            message = (
                rf"^{name} is {other} but {first} is {dtype}: expected torch.float64 for every tensor or for none$"
            )
            with pytest.raises(ValueError, match=message):
                operator.function(**arguments | {name: arguments[name].to(other)})

    @every_operator
    def test_integers_are_refused(self, operator):
        arguments = made(operator)
        first = next(iter(arguments))
        with pytest.raises(ValueError, match=rf"^{first} is torch.int64, expected one of torch.float64"):
            operator.function(**arguments | {first: arguments[first].long()})

    @every_operator
    def test_another_device_is_refused(self, operator):
        arguments = made(operator)
        first, *others = arguments
        for name in others:
            with pytest.raises(ValueError, match=rf"^{name} is on meta, expected cpu like {first}$"):
                operator.function(**arguments | {name: arguments[name].to("meta")})

    @every_operator
    @pytest.mark.parametrize(
        ("seq_idx", "message"),
        [
            (torch.zeros(2, 4).int(), r"seq_idx has shape \(2, 4\), expected \(batch, length\) = \(2, 5\)"),
            (torch.zeros(2, 5), r"seq_idx is torch.float32, expected one of torch.int8, "),
            (torch.zeros(2, 5).int().to("meta"), r"seq_idx is on meta, expected cpu like [qux]"),
        ],
        ids=["shape", "dtype", "device"],
    )
    def test_a_wrong_seq_idx_is_named(self, operator, seq_idx, message):
        with pytest.raises(ValueError, match=rf"^{message}"):
            operator.function(**made(operator), seq_idx=seq_idx)


class TestBackendChoice:
    @pytest.mark.parametrize("name", [module.name for module in iter_modules(seqlab.ops.__path__) if module.ispkg])
    def test_the_order_lists_every_file(self, name):
        package = f"seqlab.ops.{name}"
        assert sorted(import_module(package).BACKENDS) == sorted(backends_in(package))

    @every_operator
    def test_auto_takes_the_first_that_can_run(self, operator, monkeypatch):
        package = import_module(operator.package)
        single, double = operator.on_cpu
        assert package.resolve_backend("auto", "cpu", torch.float32) == single
        assert package.resolve_backend("auto", "cpu", torch.float64) == double
        assert package.resolve_backend("auto", "meta", torch.float32) == double
        monkeypatch.setattr(getattr(package, double), "why_unavailable", lambda device, dtype: "no day for it")
        assert package.resolve_backend("auto", torch.device("cpu"), torch.float64) == "reference"

    @every_triton_operator
    def test_auto_never_takes_the_interpreter(self, operator, monkeypatch):
        package, (single, _) = import_module(operator.package), operator.on_cpu
        monkeypatch.setattr(package.triton, "why_unavailable", lambda device, dtype: None)
        monkeypatch.setattr(getattr(package, single), "why_unavailable", lambda device, dtype: "not today")
        assert package.resolve_backend("triton", "cpu", torch.float32) == "triton"
        rest = [name for name in package.BACKENDS if name not in ("triton", single)]
        assert package.resolve_backend("auto", "cpu", torch.float32) == rest[0]

    @every_backend
    def test_a_name_means_itself(self, operator, backend):
        skip_unless_available(operator.package, backend, "cpu", torch.float32)
        assert import_module(operator.package).resolve_backend(backend, "cpu", torch.float32) == backend

    @every_operator
    def test_an_unknown_name_lists_the_names(self, operator):
        names = ", ".join(("auto", *import_module(operator.package).BACKENDS))
        with pytest.raises(ValueError, match=f"^{operator.name} has no backend 'fast'; choose one of {names}$"):
            operator.function(**made(operator), backend="fast")
        with pytest.raises(ValueError, match=rf"^{operator.name} has no backend \['auto'\]"):
            operator.function(**made(operator), backend=["auto"])

    @every_operator
    def test_a_backend_that_cannot_run_says_why(self, operator, monkeypatch):
        name = operator.on_cpu[1]
        module = getattr(import_module(operator.package), name)
        monkeypatch.setattr(module, "why_unavailable", lambda device, dtype: f"no {dtype} on {device.type}")
        message = rf"backend='{name}' cannot run on cpu with torch.float64 \({name}: no torch.float64 on cpu\)"
        with pytest.raises(ValueError, match=message):
            operator.function(**made(operator, torch.float64), backend=name)

    @every_operator
    def test_the_function_and_its_package_share_a_name(self, operator):
        assert callable(getattr(import_module("seqlab.ops"), operator.name))
        assert getattr(import_module(operator.package), operator.name) is operator.function
