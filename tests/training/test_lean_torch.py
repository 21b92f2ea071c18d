"""What stands in for torch's compiler before anything is compiled, in processes that have not imported it yet."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hydra.utils import instantiate

from seqlab.models import state_bytes
from seqlab.training.flops import training_flops
from seqlab.training.lean_torch import OF_PLAIN_NUMBERS
from support import Echo, compose_config, depth, models

TESTS = Path(__file__).parents[1]


def in_a_new_process(source: str, environment: dict[str, str]) -> str:
    told = environment | {"PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}:{TESTS / 'training'}"}
    ended = subprocess.run([sys.executable, "-c", source], env=told, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def counts() -> dict[str, tuple[int, int]]:
    """FLOPs and bytes of state of every model."""
    found, data = {}, Echo()
    for name in models():
        cfg = compose_config(f"model={name}", "size=tiny", f"size.n_layers={depth(name)}").model
        model = instantiate(cfg, tokens=True, d_input=7, d_output=7, max_length=8, _convert_="all")
        found[name] = training_flops(model, data), state_bytes(model, 8)
    return found


COUNTING = """
import json, sys
from seqlab.training.lean_torch import compiler_if_needed
from test_lean_torch import counts
with compiler_if_needed():
    stand_ins = [sys.modules[name] for name in ("torch._dynamo", "sympy")]
    print(json.dumps(counts()))
    assert stand_ins == [sys.modules[name] for name in ("torch._dynamo", "sympy")], "counting needs the compiler"
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""


def test_every_model_is_counted_without_the_compiler_as_with_it(environment):
    found = json.loads(in_a_new_process(COUNTING, environment))
    assert {name: tuple(numbers) for name, numbers in found.items()} == counts()


COMPILING = """
import sys
import torch
from seqlab.training.lean_torch import compiler_if_needed

def update():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

kept = vars(torch.optim.Optimizer.zero_grad.__wrapped__)
with compiler_if_needed():
    update()
    assert kept and not hasattr(torch._dynamo, "__file__")
assert not kept
with compiler_if_needed():
    update()
    {use}
    assert sys.modules["torch._dynamo"].__file__ and not kept
    update()
assert torch._dynamo is sys.modules["torch._dynamo"] and sys.modules["sympy"].__file__
parts = (torch._dynamo.utils, torch._dynamo.config, sys.modules["sympy"].core)
assert all(part is sys.modules[part.__name__] and part.__spec__.origin for part in parts)
seen = []
compiled = torch.compile(lambda x: x.sin() + 1, backend=lambda graph, _: seen.append(graph) or graph.forward)
assert compiled(torch.zeros(1)) == 1 and seen
with compiler_if_needed():
    assert hasattr(torch._dynamo, "__file__")
"""


USES = {
    "compiles": "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2",
    "imports parts": "import torch._dynamo.utils, sympy.core.basic; torch._dynamo.utils.counters",
    "imports all": "from sympy import *; assert Symbol('x') - Symbol('x') == 0; torch.compiler.disable(update)",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_needs_the_compiler_has_it(use, environment):
    in_a_new_process(COMPILING.replace("{use}", use), environment)


def test_plain_numbers_are_answered_as_torch_does():
    from torch.fx.experimental import symbolic_shapes as real

    answers = OF_PLAIN_NUMBERS[real.__name__]
    conditions, sizes, shapes = (True, False), (0, 1, 3), ((), (2,), (2, 3), (3, 2), [2, 3])
    for name in ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true"):
        assert [answers[name](one) for one in conditions] == [getattr(real, name)(one) for one in conditions]
    for name in ("sym_and", "sym_or"):
        for some in (*product(conditions), *product(conditions, repeat=2), *product(conditions, repeat=3)):
            assert answers[name](*some) is getattr(real, name)(*some)
    for name in ("guarding_hint_or_throw", "has_guarding_hint", "is_nested_int"):
        assert [answers[name](one) for one in sizes] == [getattr(real, name)(one) for one in sizes]
    for some in (*product(sizes, repeat=2), *product(shapes, repeat=2)):
        assert answers["sym_eq"](*some) is real.sym_eq(*some)
    assert answers["free_unbacked_symbols"](sizes) == real.free_unbacked_symbols(sizes)
