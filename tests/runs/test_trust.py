"""A run folder from elsewhere: what it may name, and that nothing else it names is imported, called or resolved.

Every probe would touch a file; the file must not be there afterwards.
"""

import logging
import re
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from seqlab import console
from seqlab.data.corpora import Corpus
from seqlab.errors import CONTROLS, UserError
from seqlab.runs.load import load_run
from seqlab.runs.trust import TARGETS, known_targets, packages, refuse_links, refuse_tracker, trusted
from support import CONF, SMALL, compose_config

MODULE = """
from pathlib import Path
HERE = Path(__file__).parent
(HERE / "imported").touch()

def touch(*arguments, **settings):
    (HERE / "called").touch()
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder whose configuration is a run's with changes, beside a module that touches files."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "touching.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield lambda changes: written(tmp_path / "stranger", changes)
    sys.modules.pop("touching", None)


@cache
def settings_of_a_run() -> dict:
    return OmegaConf.to_container(compose_config(*SMALL), resolve=True)


def written(folder: Path, changes: dict) -> Path:
    cfg = deepcopy(settings_of_a_run())
    for key, value in changes.items():
        node, *path = cfg, *key.split(".")
        for name in path[:-1]:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        node[path[-1]] = value
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    return folder


def touched(tmp_path: Path) -> list[str]:
    return sorted({path.name for path in tmp_path.rglob("*")} & {"imported", "called", "touched"})


CALL = {"_target_": "touching.touch"}
PLACES = [
    *("data", "model", "trainer", "logger", "optimizer", "schedule", "match", "target", "unheard_of"),
    *("data.metrics.mine", "data.length", "data.seed", "trainer.optimizer", "trainer.schedule", "trainer.stop_above"),
    *("model.norm", "model.feedforward", "model.mixers.mamba", "model.mixers.unused", "model.d_model", "name", "seed"),
]
NESTED = {
    "in a list": [CALL],
    "in lists": [[1, [CALL]]],
    "deep": {"a": {"b": [{"c": CALL}]}},
    "partial": {**CALL, "_partial_": True},
    "not recursive": {"_target_": "seqlab.training.metrics.Perplexity", "_recursive_": False, "x": CALL},
    "as an argument": {"_target_": "seqlab.training.metrics.Perplexity", "_args_": [CALL]},
    "as an object": {**CALL, "_convert_": "object"},
    "partial by name": {"_target_": "functools.partial", "_args_": [CALL]},
    "found by name": {"_target_": "hydra.utils.get_method", "path": "touching.touch"},
    "imported by name": {"_target_": "importlib.import_module", "name": "touching"},
    "through a part of ours": {"_target_": "seqlab.models.touching.touch"},
    "an alias": {"_target_": "seqlab.training.loggers.importlib.import_module", "name": "touching"},
    "a helper of ours": {"_target_": "seqlab.data.cache.write_whole", "_args_": ["touched", "x"]},
    "by the standard library": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path"}},
    "of another letter case": {"_target_": "Seqlab.training.TrainerConfig"},
    "with a space": {"_target_": " seqlab.training.TrainerConfig"},
    "a list": {"_target_": ["touching", "touch"]},
    "a mapping": {"_target_": CALL},
    "a number": {"_target_": 1},
    "nothing": {"_target_": None},
    "missing": {"_target_": "???"},
    "a reference": {"_target_": "${name}", "also": "${x}"},
    "in two pieces": {"_target_": "${data_name}.touch"},
}


def refused(folder: Path, tmp_path: Path, **trust) -> str:
    """The two lines with which a folder is refused."""
    with pytest.raises(UserError) as error:
        load_run(folder, torch.device("cpu"), **trust)
    assert not touched(tmp_path)
    assert re.fullmatch(r"[^\n]+\n[^\n]+", str(error.value))
    return str(error.value)


@pytest.mark.parametrize("place", PLACES)
def test_other_targets_are_refused_wherever_they_stand(stranger, tmp_path, place):
    message = refused(stranger({place: CALL}), tmp_path)
    assert message.startswith(f"{place}._target_=touching.touch: ")
    assert "trust=touching" in message


@pytest.mark.parametrize("how", NESTED)
def test_other_targets_are_refused_however_they_are_written(stranger, tmp_path, how):
    folder = stranger({"data.metrics.mine": NESTED[how], "name": "touching.touch", "data_name": "touching", "x": CALL})
    assert "data.metrics.mine" in refused(folder, tmp_path)


@pytest.mark.parametrize("place", ["data", "logger", "trainer.optimizer", "data.metrics.mine", "unheard_of"])
def test_resume_refuses_them(train, stranger, tmp_path, capsys, place):
    """Before it imports anything; and what the folder itself says of trust counts for nothing."""
    folder = stranger({place: CALL, "trust": "touching"})
    assert train(f"resume={folder}").status == 2
    assert not touched(tmp_path)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2 and said[0].endswith("this is other code.") and place in said[0]


CALLS = [
    "${oc.env:HOME}",
    "${oc.env:HOME,x}",
    "${oc.decode:'1'}",
    "${oc.create:{a:1}}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${seqlab.describe_options:}",
    "before ${oc.env:HOME} after",
    "${data.${oc.env:HOME}}",
    "${${resolver}:HOME}",
    "${dollar}{oc.env:HOME}",
]


@pytest.mark.parametrize("text", CALLS)
def test_functions_are_not_resolved(stranger, tmp_path, text):
    """Nor one whose name, or whose dollar, is another setting."""
    more = {"resolver": "oc.env", "dollar": "$"}
    assert "this calls a function" in refused(stranger({"data.seed": text, **more}), tmp_path)


def test_references_to_other_settings_stay():
    cfg = OmegaConf.create(
        {
            "size": {"d_model": 8},
            "model": {"d_model": "${size.d_model}", "all": ["${size}"], "a-b": "${.a-c}", "a-c": 1},
        }
    )
    assert trusted(cfg) == {
        "size": {"d_model": 8},
        "model": {"d_model": 8, "all": [{"d_model": 8}], "a-b": 1, "a-c": 1},
    }


@pytest.mark.parametrize("text", ["${nowhere}", "${data.metrics.loop}"])
def test_references_that_lead_nowhere(stranger, tmp_path, text):
    refused(stranger({"data.metrics.loop": text}), tmp_path)


@pytest.mark.parametrize("command", ["generate", "resume"])
@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:pathlib.Path.touch [touched]",
        "model: !!python/name:touching.touch ''\ndata: 1",
        "model: &a {b: *a}\ndata: 1",
        "model: [\n",
        "[model, data]",
        "\x00",
    ],
)
def test_yaml_is_read_as_data(train, stranger, tmp_path, monkeypatch, command, text):
    folder = stranger({})
    monkeypatch.chdir(tmp_path)
    (folder / "config.yaml").write_text(text)
    if command == "generate":
        refused(folder, tmp_path)
    else:
        assert train(f"resume={folder}").status == 2
        assert not touched(tmp_path)


class TestOnesOwnPackage:
    @pytest.fixture(autouse=True)
    def _package(self, stranger, tmp_path):
        self.folder = stranger({"data": {"_target_": "touching.touch", "x": 1}})

    def test_may_be_named(self, tmp_path):
        with pytest.raises(Exception, match="checkpoint"):
            load_run(self.folder, torch.device("cpu"), trust=["other", "touching"])
        assert touched(tmp_path) == ["imported"]

    @pytest.mark.parametrize("name", ["touch", "touchin", "touching.touch", "touching.touc", "touchingx", "Touching"])
    def test_is_matched_by_whole_parts(self, tmp_path, name):
        refused(self.folder, tmp_path, trust=[name])

    @pytest.mark.parametrize(
        "name", ["os", "os.path", "builtins", "pathlib", "hydra", "seqlab", "subprocess", "pickle"]
    )
    def test_is_never_one_that_does_anything_for_anyone(self, tmp_path, name):
        assert refused(self.folder, tmp_path, trust=[name]).startswith(f"trust={name}: ")

    @pytest.mark.parametrize("name", ["", " ", "*", "touching.*", ".touching", "touching.", "a-b", "a/b"])
    def test_is_a_name(self, tmp_path, name):
        assert "is no name of a package" in refused(self.folder, tmp_path, trust=[name])

    def test_opens_no_other_through_it(self, tmp_path):
        place = "{_target_: touching.HERE.joinpath, _args_: [touched]}"
        config = f"model: {{}}\ndata: {{_target_: touching.Path.touch, self: {place}}}"
        self.folder.joinpath("config.yaml").write_text(config)
        with pytest.raises(UserError, match="which is not of touching"):
            load_run(self.folder, torch.device("cpu"), trust=["touching"])
        assert touched(tmp_path) == ["imported"]

    @pytest.mark.parametrize("trust", ["touching", "[other,touching]"])
    def test_on_the_command_line(self, train, tmp_path, trust):
        train(f"resume={self.folder}", f"trust={trust}")
        assert "called" in touched(tmp_path)

    def test_several_in_a_line(self):
        assert packages("a,b.c") == packages("[a, b.c]") == packages(["a", "b.c"]) == ["a", "b.c"]
        assert packages(None) == [] and packages(5) == ["5"]


def targets_of_configurations() -> set[str]:
    """What the files in conf/ name for runs; those of Hydra's own settings are never in a run's configuration."""
    found = set()
    for path in CONF.rglob("*.yaml"):
        if "hydra" not in path.relative_to(CONF).parts:
            node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            node.pop("hydra", None)
            found |= set(re.findall(r"_target_: ([\w.]+)", yaml.safe_dump(node)))
    return found


def test_what_configurations_name_is_known():
    found = targets_of_configurations()
    assert len(found) > 40
    assert known_targets() == found | TARGETS
    assert not found & TARGETS


@pytest.mark.parametrize("target", sorted(known_targets()))
def test_the_list_names_what_there_is(target):
    assert callable(get_object(target))


def test_parts_that_somebody_adds(tmp_path):
    """One file and one YAML, and runs of it may be resumed; what starts Hydra is no part of a run."""
    for name in ("model/mine.yaml", "search/mine.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"# a: _target_\nx: [{{_target_: seqlab.{name.partition('/')[0]}.Mine, y: 1}}]\n")
    assert known_targets(tmp_path) == TARGETS | {"seqlab.model.Mine"}


def test_fresh_configurations_are_free(train, stranger, tmp_path):
    """One's own YAML is one's own code."""
    train("+data.metrics.mine._target_=touching.touch")
    assert "called" in touched(tmp_path)


class TestPlaces:
    """Where a folder may have something written or sent."""

    def test_a_cache_is_taken_where_one_is(self, tmp_path, caplog):
        cfg = OmegaConf.create({"data": {"cache_dir": str(tmp_path)}, "x": [{"cache_dir": str(tmp_path)}]})
        taken = trusted(cfg)
        assert taken.data.cache_dir is None and taken.x[0].cache_dir is None
        assert f"data.cache_dir={tmp_path} holds no cache" in caplog.text
        (tmp_path / "tokens").mkdir()
        (tmp_path / "tokens" / "words-0123.tokens").touch()
        assert trusted(cfg).data.cache_dir == str(tmp_path)
        (tmp_path / "files").symlink_to("/")  # where a download would be written to
        assert trusted(cfg).data.cache_dir is None

    @pytest.mark.parametrize("name", ["../../escaped", "a/../../../escaped", "{tmp_path}/escaped"])
    @pytest.mark.parametrize("key", ["folder", "file", "name"])
    def test_nothing_is_written_outside_the_cache(self, tmp_path, monkeypatch, key, name):
        """By a name that leads out of it; nor is anything fetched for such a name."""
        monkeypatch.setattr("seqlab.data.download.fetch_file", lambda url: b"some words\n" * 30)
        names = {"name": "words", "folder": "texts", "file": "all.txt"} | {key: name.format(tmp_path=tmp_path)}
        given = {"dir": None, "cache_dir": str(tmp_path / "deep" / "cache"), "source": {"url": "https://nowhere"}}
        files = {"all": {"file": names["file"]}}
        corpus = Corpus(names["name"], "word", names["folder"], files, [0.8, 0.1, 0.1], None, **given)
        with pytest.raises(UserError, match="leads out of"):
            corpus.encoded()
        assert not list(tmp_path.rglob("*escaped*"))

    @pytest.mark.parametrize("uri", ["http://elsewhere", "sqlite:///elsewhere.db"])
    def test_a_tracker_is_named_by_its_owner(self, train, stranger, tmp_path, capsys, uri):
        mlflow = {"_target_": "seqlab.training.loggers.MLflow", "tracking_uri": uri}
        folder = stranger({"logger": mlflow})
        assert train(f"resume={folder}").status == 2
        assert f"logger.tracking_uri={uri}: a run folder does not decide" in capsys.readouterr().err
        assert train(f"resume={folder}", "logger=none").status == 0
        assert "it begins at step 0" in capsys.readouterr().err

    def test_the_environments_tracker_is_taken(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ours")
        refuse_tracker(OmegaConf.create({"logger": {"tracking_uri": "http://ours"}}))
        refuse_tracker(OmegaConf.create({"logger": {"tracking_uri": None}}))
        with pytest.raises(UserError):
            refuse_tracker(OmegaConf.create({"logger": {"tracking_uri": "http://theirs"}}))

    @pytest.mark.parametrize("name", ["train.log", "config.yaml.tmp", "summary.json.tmp", ".lock", ".hydra"])
    def test_links_are_not_written_through(self, train, stranger, tmp_path, capsys, name):
        folder, precious = stranger({}), tmp_path / "precious"
        precious.write_text("as it was")
        (folder / name).symlink_to(precious)
        assert train(f"resume={folder}").status == 2
        assert f"what is written there would be written to {precious}" in capsys.readouterr().err
        assert precious.read_text() == "as it was"

    def test_checkpoints_of_another_run(self, stranger, tmp_path):
        folder, other = stranger({}), tmp_path / "other"
        (other / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints").symlink_to(other / "checkpoints")
        refuse_links(folder)  # on another disk, as far as one can see
        (other / "config.yaml").touch()
        with pytest.raises(UserError, match="checkpoints"):
            refuse_links(folder)


ESCAPE = "\x1b]0;mine\x07\x9b2J\r"


def test_messages_write_control_characters_out(stranger, capsys):
    folder = stranger({f"data.a\n{ESCAPE}": {"_target_": f"{ESCAPE}\nx"}})
    with pytest.raises(UserError) as error:
        load_run(folder, torch.device("cpu"))
    console.complain(str(error.value))
    console.ConsoleHandler().emit(logging.makeLogRecord({"msg": ESCAPE, "levelno": logging.INFO}))
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 3  # two of the mistake
    assert not set(said) & set(map(chr, CONTROLS)) - {"\n"}


def test_tables_write_control_characters_out(capsys):
    table = Table(ESCAPE)
    table.add_row(Text(ESCAPE))
    console.output().print(ESCAPE, table, "[bold]plain[/bold]")
    said = capsys.readouterr().out
    assert not set(said) & set(map(chr, CONTROLS)) - {"\n"}
    assert said.count(r"\x1b]0;mine") == 3 and "\nplain\n" in said
