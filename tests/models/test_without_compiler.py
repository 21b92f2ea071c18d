"""Counting gives the same without torch's compiler, imports nothing of it, and leaves torch as it was."""

import subprocess
import sys

import pytest

COUNT = """
import sys
sys.path.insert(0, "tests")
{first}
import torch
from support import Echo, built_model
from seqlab.models.counting import state_bytes, training_flops
for name in ("mamba", "mamba2", "transformer", "lstm", "min_gru", "mamba_moe"):
    model = built_model("model=" + name, "size.d_model=16", "size.n_layers=2")
    print(name, training_flops(model, Echo()), state_bytes(model, 8))
print("torch._dynamo" in sys.modules, hasattr(vars(torch).get("_dynamo"), "disable"), file=sys.stderr)
compiled = torch.compile(lambda x: x.sin() + 1, backend="eager", fullgraph=True)
assert torch.equal(compiled(torch.ones(2)), torch.ones(2).sin() + 1)
x = torch.ones(2, 3, device="meta")
assert torch.compile(lambda x: (x + x).pow(2).mean(), backend="eager")(x).shape == ()
optimizer = torch.optim.AdamW(model.parameters())
optimizer.step()
"""


def counted(first: str = "") -> tuple[str, str]:
    ended = subprocess.run(
        [sys.executable, "-c", COUNT.format(first=first)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_counts_are_the_same_and_the_compiler_works_afterwards():
    without, imported = counted()
    assert imported == "False False"
    expected, imported = counted("import torch._dynamo")
    assert imported == "True True"
    assert without == expected
    assert len(expected.splitlines()) == 6


ANOTHER = """
import sys, torch
from seqlab.models.without_compiler import without_compiler
with without_compiler():
    import torch._dynamo as standing_in
    assert standing_in.disable(without_compiler, recursive=True) is without_compiler
    assert torch._dynamo.is_compiling() is False
    assert sys.modules["torch._dynamo"] is torch._dynamo is not standing_in
assert sys.modules["torch._dynamo"] is torch._dynamo is not standing_in
assert "disable" in vars(torch._dynamo)
"""


def test_another_question_imports_the_compiler():
    subprocess.run([sys.executable, "-c", ANOTHER], check=True)


USES_IT = """
import sys
sys.path.insert(0, "tests")
import torch
from support import Echo, built_model
from seqlab.models.counting import state_bytes, training_flops
class Compiled(torch.nn.Identity):
    def forward(self, x):
        import torch._dynamo.config  # as torch.compile does
        return torch.compile(lambda x: x + 1, backend="eager")(x)
model = built_model("model=mamba", "size.d_model=16", "size.n_layers=1")
before = model.layers[0].mixer.norm
model.layers[0].mixer.norm = Compiled()
print(training_flops(model, Echo()), state_bytes(model, 8))
model.layers[0].mixer.norm = before
print(training_flops(model, Echo()), state_bytes(model, 8))
"""


def test_a_part_of_somebody_else_may_compile():
    ended = subprocess.run([sys.executable, "-c", USES_IT], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == second


RUN = """
import sys
sys.path.insert(0, "tests"), sys.path.insert(0, "tests/training")
import tempfile
from pathlib import Path
from fits import build, run
from seqlab.training.optim import adam, adamw, muon, sgd
for optimizer in adamw, adam, sgd, muon:
    trainer = build(Path(tempfile.mkdtemp()), optimizer=optimizer)
    run(trainer)
    trainer.restore()
    assert "torch._dynamo" not in sys.modules, optimizer
"""


def test_a_run_does_without():
    subprocess.run([sys.executable, "-c", RUN], check=True)
