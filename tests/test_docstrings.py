"""Docstrings say the shapes of tensors. That each public name has one, with the errors it raises, ruff holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
TENSOR = re.compile(r"\b(Tensor|ndarray)\b")
SHAPE = re.compile(r"\([\w .*/+…-]+(, ?[\w .*/+…-]+)*,?\)|\b(scalar|shape|shapes|shaped|vector|one value|flat)\b")
"""Axes in parentheses, ``(B, L, D)`` or ``(n,)``, or a word that says as much."""


def public_functions(body: list[ast.stmt], documented: str = "") -> Iterator[tuple[ast.FunctionDef, str]]:
    """Functions and methods that anybody may call, each with its docstring and its class's."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, ast.get_docstring(node) or "")
        elif isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
            yield node, (ast.get_docstring(node) or "") + documented


def takes_or_gives_tensors(function: ast.FunctionDef) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg]
    annotations = [argument.annotation for argument in every if argument] + [function.returns]
    return any(TENSOR.search(ast.unparse(annotation)) for annotation in annotations if annotation)


def overrides(function: ast.FunctionDef) -> bool:
    """Whether the base class says it."""
    return any(isinstance(decorator, ast.Name) and decorator.id == "override" for decorator in function.decorator_list)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shapes_of_tensors(path: Path):
    without = [
        f"{function.name}, line {function.lineno}"
        for function, said in public_functions(ast.parse(path.read_text()).body)
        if takes_or_gives_tensors(function) and not overrides(function) and not SHAPE.search(said)
    ]
    assert not without, f"say the shapes of tensors in the docstrings of: {'; '.join(without)}"
