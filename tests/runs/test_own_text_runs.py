"""A run on one's own text keeps its tokenizer, and goes on and generates with exactly that one."""

import pytest

from seqlab.commands import evaluate, generate
from support import LINES

SMALLEST = ["trainer=smoke", "data=text", "data.length=16", "data.vocab_size=300", "size.d_model=8", "size.n_layers=1"]
SMALLEST += ["data.separate_documents=true"]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "my.txt").write_text(LINES)
    return tmp_path / "my.txt"


def test_a_run_goes_on_with_its_own_tokenizer_wherever_the_text_is(train, text, tmp_path, capsys):
    given = [*SMALLEST, f"data.files={text}"]
    job = train(*given, "trainer.steps=2", small=False)
    assert job.status == 0
    assert "bits_per_byte" in job.summary["test"]
    kept = (job.folder / "tokenizer.json").read_text()

    moved = text.rename(text.with_name("moved.txt"))
    assert generate.main([f"run={job.folder}", "prompt=the cat", "max_new_tokens=9", "untrained=true"]) == 0
    assert "the cat" in capsys.readouterr().out
    assert evaluate.main([f"run={job.folder}", f"text={moved}", "length=16", f"out={tmp_path}"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert train(f"resume={job.folder}", "trainer.steps=4").status == 2
    assert "there is no such file" in capsys.readouterr().err
    assert train(f"resume={job.folder}", "trainer.steps=4", f"+data.files={moved}").status == 0
    assert job.summary["steps"] == 4
    assert (job.folder / "tokenizer.json").read_text() == kept

    moved.write_text(LINES.replace("cat", "dog"))
    capsys.readouterr()
    assert train(f"resume={job.folder}", "trainer.steps=5", f"+data.files={moved}").status == 2
    assert "the data have changed" in capsys.readouterr().err


def test_a_refused_text_leaves_no_run(train, tmp_path, capsys):
    (tmp_path / "my.txt").write_bytes(b"\x89PNG")
    job = train(*SMALLEST, f"data.files={tmp_path / 'my.txt'}", small=False)
    assert job.status == 2 and not job.folder.exists()
    assert capsys.readouterr().err.splitlines()[-2].startswith(f"data.files={tmp_path / 'my.txt'}: is not UTF-8")
