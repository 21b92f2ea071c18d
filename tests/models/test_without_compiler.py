"""Counting gives the same without torch's compiler, imports nothing of it, and leaves torch as it was."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import forks
from seqlab.models.counting import state_bytes, training_flops
from seqlab.models.without_compiler import without_compiler
from support import Echo, built_model


def said_by(task: Callable[..., None], tmp_path: Path) -> str:
    """What a process says that has not imported the compiler, as these tests' own may have."""
    status, said = forks.finish(tmp_path / "screen", task)
    assert status == 0, said
    return said


def counts() -> dict[str, tuple]:
    found = {}
    for name in ("mamba", "mamba2", "transformer", "lstm", "min_gru", "mamba_moe"):
        model = built_model(f"model={name}", "size.d_model=16", "size.n_layers=2")
        found[name] = training_flops(model, Echo()), state_bytes(model, 8)
    return found


def count_and_compile() -> None:
    print(counts())
    assert "torch._dynamo" not in sys.modules and not hasattr(vars(torch).get("_dynamo"), "disable")
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.ones(2).sin() + 1)
    x = torch.ones(2, 3, device="meta")
    assert torch.compile(lambda x: (x + x).pow(2).mean(), backend="eager")(x).shape == ()
    torch.optim.AdamW([nn.Parameter(torch.ones(2))]).step()


def test_the_counts_are_the_same_and_the_compiler_works_afterwards(tmp_path):
    import torch._dynamo

    assert hasattr(vars(torch)["_dynamo"], "disable")
    assert said_by(count_and_compile, tmp_path) == f"{counts()}\n"


def ask_another_question() -> None:
    with without_compiler():
        import torch._dynamo as standing_in

        assert standing_in.disable(without_compiler, recursive=True) is without_compiler
        assert torch._dynamo.is_compiling() is False
        assert sys.modules["torch._dynamo"] is torch._dynamo is not standing_in
    assert sys.modules["torch._dynamo"] is torch._dynamo is not standing_in
    assert "disable" in vars(torch._dynamo)


def test_another_question_imports_the_compiler(tmp_path):
    said_by(ask_another_question, tmp_path)


class Compiled(nn.Identity):
    def forward(self, x):
        import torch._dynamo.config  # as torch.compile does

        return torch.compile(lambda x: x + 1, backend="eager")(x)


def compile_while_counting() -> None:
    model = built_model("model=mamba", "size.d_model=16", "size.n_layers=1")
    before = model.layers[0].mixer.norm
    model.layers[0].mixer.norm = Compiled()
    found = [(training_flops(model, Echo()), state_bytes(model, 8))]
    model.layers[0].mixer.norm = before
    found.append((training_flops(model, Echo()), state_bytes(model, 8)))
    assert found[0] == found[1]


def test_a_part_of_somebody_else_may_compile(tmp_path):
    said_by(compile_while_counting, tmp_path)


def train_with_each_optimizer() -> None:
    import tempfile

    sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
    from fits import build, run

    from seqlab.training.optim import adam, adamw, muon, sgd

    for optimizer in adamw, adam, sgd, muon:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build(Path(folder), optimizer=optimizer)
            run(trainer)
            trainer.restore()
        assert "torch._dynamo" not in sys.modules, optimizer


def test_a_run_does_without(tmp_path):
    said_by(train_with_each_optimizer, tmp_path)
