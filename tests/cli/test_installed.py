"""``seqlab`` from anywhere: the wheel as it is installed, its commands, and code of a user's own beside them."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import seqlab
from seqlab import __main__ as program
from seqlab import invocation
from seqlab.config.options import describe_options
from seqlab.config.suggestions import known_settings, no_option
from support import ROOT, options

GUIDE = (ROOT / "docs" / "own_mixer.md").read_text(encoding="utf-8")


def follow_guide(here: Path) -> None:
    """Write the files that the guide shows into a folder, by the names that it gives them."""
    names = re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```", GUIDE)
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", GUIDE, flags=re.DOTALL)
    for name, block in zip(names, blocks, strict=True):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(block, encoding="utf-8")


@pytest.fixture
def installed(tmp_path) -> Path:
    """A new environment with a wheel of this source as pip installs it, offline; other packages are this one's."""
    source, environment = tmp_path / "source", tmp_path / "environment"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth, of this clone, is not read
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
    command = [environment / "bin" / "python", "-m", "pip", "install", "-q", *offline, "--ignore-installed", source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return environment


def files_in(folder: Path) -> set[Path]:
    """All files, but for those that Python and pip leave beside them."""
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in paths if "__pycache__" not in path.parts and not path.parts[0].endswith(".egg-info")}


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(installed, environment, tmp_path):
    here = tmp_path / "here"
    follow_guide(here)
    environment.pop("PYTHONPATH", None)

    def seqlab(*arguments: str) -> str:
        command = [installed / "bin" / "seqlab", *arguments]
        done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "seqlab compare" in seqlab("--help")
    train, compare = GUIDE.partition("```sh\n")[2].partition("```")[0].splitlines()
    seqlab(*train.split()[1:])
    (folder,) = (here / "outputs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"] == train
    assert summary["git_commit"] is None  # it came from no clone
    assert "running_mean" in seqlab(*compare.split()[1:])

    (packages,) = installed.glob("lib/python*/site-packages")
    ours = {path for path in files_in(packages) if path.parts[0] in ("seqlab", "hydra_plugins")}
    assert ours == files_in(ROOT / "src")  # conf among them, and nothing of tests
    assert {path.parts[0] for path in files_in(packages) - ours} == {
        "others.pth",
        next(packages.glob("*.dist-info")).name,
    }


def test_every_command_has_its_module_and_in_a_clone_its_script():
    commands = {*program.COMMANDS, *(f"benchmark {name}" for name in program.BENCHMARKS)} - {"benchmark"}
    for name in commands:
        assert find_spec(f"seqlab.commands.{name.replace(' ', '_')}")
        assert (ROOT / invocation.program(name).removeprefix("python ")).is_file()
    found = {path.stem for path in (ROOT / "src" / "seqlab" / "commands").glob("[!_]*.py")}
    parts = {"options", "settings", "trained", "job"}  # of several commands; the last is what launchers start
    assert found - parts == {name.replace(" ", "_") for name in commands}


@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        ("", 0, "\n  seqlab compare    "),
        ("--help", 0, "\n  seqlab train      "),
        ("--version", 0, f"seqlab {seqlab.__version__}\n"),
        ("benchmark", 0, "\n  seqlab benchmark scan   "),
        ("benchmark --help", 0, "\n  seqlab benchmark coordinates   "),
        ("trian model=mlp", 2, "command=trian: is no command of seqlab.\nDid you mean 'train'?\n"),
        ("model=mlp seed=1", 2, "command=model=mlp: is no command of seqlab.\nDid you mean seqlab train model=mlp?\n"),
        ("benchmark scam", 2, "command=scam: is no command of seqlab benchmark.\nDid you mean 'scan'?\n"),
    ],
)
def test_help_and_mistakes(monkeypatch, capsys, typed, status, said):
    monkeypatch.setattr(sys, "argv", ["/bin/seqlab", *typed.split()])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == status
    assert said in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("typed", "own"),
    [("compare here", False), ("generate run=here", False), ("generate run=here trust=own_parts", True)],
)
def test_the_current_folder_is_imported_from_only_when_told_so_and_last(monkeypatch, tmp_path, typed, own):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(invocation.TYPED, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["/bin/seqlab", *typed.split()])
    called = []
    monkeypatch.setattr(
        program, "import_module", lambda name: SimpleNamespace(main=lambda: called.append(sys.argv[1:]))
    )
    with pytest.raises(SystemExit):
        program.main()
    assert called == [typed.split()[1:]]
    assert (sys.path[-1] == str(tmp_path)) == own
    assert invocation.program("compare") == "seqlab compare"
    assert invocation.as_typed("See seqlab train --help") == "See seqlab train --help"


def test_the_guides_mixer_steps_as_it_reads_the_whole(monkeypatch, tmp_path):
    follow_guide(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_path(str(tmp_path / "check.py"))


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        ("model=mlp", []),
        ("--trust own", ["here"]),
        ("--config-dir=mine", ["here"]),
        ("-m -cd ../there/mine", ["here", "here/../there"]),
        ("--config-dir=a model=own --config-dir b/c", ["here", "here/b"]),
    ],
)
def test_modules_are_found_here_and_beside_the_configurations(monkeypatch, tmp_path, arguments, folders):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert program.own_folders(arguments.split()) == [str(tmp_path / folder) for folder in folders]


def test_models_of_ones_own_are_listed_suggested_and_completed(monkeypatch, capsys, tmp_path):
    follow_guide(tmp_path)
    own = f"--config-dir={tmp_path / 'mine'}"
    monkeypatch.setenv(invocation.TYPED, f"seqlab train {own}")
    assert "  running_mean         The mean of all positions so far" in describe_options().splitlines()
    assert no_option("model", "runing_mean").remedy == "Did you mean 'running_mean'?"
    assert "model.mixers.running_mean.bias" in known_settings([own, "model=running_mean"])
    monkeypatch.setenv("COMP_LINE", f"seqlab train {own} model=running")
    monkeypatch.setattr(sys, "argv", ["/bin/seqlab", "-sc", "query=fish"])
    program.main()
    assert capsys.readouterr().out.split() == ["model=running_mean"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_completion_in_fish(environment, tmp_path):
    """What its own ``complete -C`` offers after the line that the README has for it."""
    (script := tmp_path / "seqlab").write_text(f"#!{sys.executable}\nfrom seqlab.__main__ import main\nmain()\n")
    script.chmod(0o755)
    (tmp_path / "outputs").mkdir()
    environment |= {"PATH": f"{tmp_path}:{environment['PATH']}"}
    install = re.search(r"in fish `([^`]+)`", (ROOT / "README.md").read_text())[1]
    lines = [
        "seqlab comp",
        "seqlab benchmark sc",
        "seqlab train schedule=co",
        "seqlab compare out",
        "seqlab export to=o",
    ]
    asked = "; ".join([install, *(f"complete -C '{line}'" for line in lines)])
    done = subprocess.run(["fish", "-c", asked], env=environment, cwd=tmp_path, capture_output=True, text=True)
    offered = ["compare", "scaling", "scan", "schedule=constant", "schedule=cosine", "outputs/", "to=outputs/"]
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("seqlab comp", {*program.COMMANDS}),
        ("seqlab benchmark sc", {*program.BENCHMARKS}),
        ("seqlab compare outp", set()),
        ("seqlab train trainer=smoke schedule=", {f"schedule={name}" for name in options("schedule")}),
    ],
)
def test_completion(monkeypatch, capsys, line, offered):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", ["/bin/seqlab", "-sc", "query=bash"])
    program.main()
    assert set(capsys.readouterr().out.split()) == offered
