"""Evaluate a language model as others quote it: perplexity of a text, or tasks of lm-evaluation-harness.

    seqlab evaluate run=outputs/<run folder>                                   # the run's own test split
    seqlab evaluate run=outputs/<run folder> text=book.txt window=sliding,carried length=512 stride=256
    seqlab evaluate run=outputs/<run folder> tasks=lambada_openai,hellaswag limit=100
    seqlab evaluate init_from=<folder or name on the hub> tasks=lambada_openai precision=bf16

Results are added to evaluation.json in the run folder, with versions and settings.

    run              the folder that training left; its best weights by validation are used
    init_from        a checkpoint of transformers in its place, with its own tokenizer
    tokenizer        the folder or name on the hub of another tokenizer.json, for a checkpoint that brings none
    tasks            names, groups or patterns, with commas between, or YAML files of your own
                     (needs pip install 'seqlab[evaluate]')
    tasks.dir        a folder with more YAML files of tasks
    fewshot          examples before each request; default: what each task says
    limit            requests of each task, or below 1 the share of them; default: all
    bootstrap        resamplings for the standard errors of metrics that are no means; default 1000
    text             a text file, in UTF-8; without it and without tasks, the run's test split is read
    window           sliding, carried, or both with a comma between; default sliding
    length           tokens of context that the model reads; default: the positions that it has learned or was trained
                     with, or 2048
    stride           how far each sliding window is from the one before; default: half of length
    batch_size       sequences at a time; default 16
    seed             of few-shot examples and of sampled texts; default 1234, as in lm-evaluation-harness
    out              folder for evaluation.json; default: the run folder, or outputs/evaluations/<checkpoint>
    device           auto, cpu or cuda
    precision        float32, bf16 or fp16: of the weights and what is computed with them; default float32
    untrained        true: evaluate even where only the weights from before training are intact; default false
    trust            your own package, if the run has parts of it (several: with commas between); see docs/security.md
    data.dir, data.files, data.cache_dir    where the corpus is, if not where the run found it
"""

import logging
import math
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.table import Table
from torch import Tensor, nn

from seqlab import console, jsonio, pretrained
from seqlab.commands.options import command
from seqlab.commands.settings import Kinds, read_settings
from seqlab.commands.trained import OF_RUN, load_trained
from seqlab.data.encoding import plain
from seqlab.errors import UserError
from seqlab.evaluation.perplexity import TextScore, carried, refuse_carrying, sliding
from seqlab.evaluation.results import WINDOWS, add, check_place, figures_table, tasks_table
from seqlab.evaluation.texts import (
    OfRun,
    OfTokenizer,
    Texts,
    positions_of,
    text_of_documents,
    tokenizer_folder,
    tokens_of_split,
)
from seqlab.formatting import counted
from seqlab.models.counting import count_parameters
from seqlab.runs.build import choose_device
from seqlab.runs.environment import environment, package_version
from seqlab.runs.load import refuse_no_text
from seqlab.runs.process import reset_global_state
from seqlab.runs.trust import refuse_links
from seqlab.training.precision import DTYPES, Precision, check_precision

EVALUATIONS = Path("outputs", "evaluations")
KEPT = {
    "results": "results",
    "group_subtasks": "group_subtasks",
    "task_versions": "versions",
    "few_shot": "n-shot",
    "examples": "n-samples",
    "higher_is_better": "higher_is_better",
}
"""What is kept of the library's results, by our names and its own."""

SETTINGS: Kinds = {
    "run": (str | None, None),
    "init_from": (str | None, None),
    "tokenizer": (str | None, None),
    "tasks": (str | None, None),
    "tasks.dir": (str | None, None),
    "fewshot": (NonNegativeInt | None, None),
    "limit": (PositiveFloat | None, None),
    "bootstrap": (NonNegativeInt, 1000),
    "text": (str | None, None),
    "window": (str, "sliding"),
    "length": (PositiveInt | None, None),
    "stride": (PositiveInt | None, None),
    "batch_size": (PositiveInt, 16),
    "seed": (Annotated[int, Field(ge=0, lt=2**32)], 1234),
    "out": (str | None, None),
    "device": (Literal["auto", "cpu", "cuda"], "auto"),
    "precision": (Precision, "float32"),
    **OF_RUN,
}

OF_TASKS, OF_TEXT = ("tasks.dir", "fewshot", "limit", "bootstrap"), ("window", "stride")


class Subject(NamedTuple):
    """What is evaluated."""

    model: nn.Module
    texts: Texts
    data: Any  # of the run; None for a checkpoint
    length: int  # tokens that the model reads unless ``length`` says so
    folder: Path  # for results
    facts: dict[str, Any]


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The settings, from ``key=value`` arguments; prints the help and exits if that is asked for.

    Raises:
        UserError: an argument is no setting or has a wrong value, or settings do not go together.
    """
    settings = read_settings(argv, SETTINGS, __doc__)
    if (settings["run"] is None) == (settings["init_from"] is None):
        value = "missing" if settings["run"] is None else settings["run"]
        rule = "either run or init_from names the model to evaluate"
        raise UserError("run", value, rule, "Give run=outputs/<run folder> or init_from=<checkpoint>")
    if settings["tasks"] and settings["text"]:
        remedy = "Leave one of them out; results of both go into the same file"
        raise UserError("text", settings["text"], "is read apart from tasks", remedy)
    if settings["init_from"] and not settings["tasks"] and not settings["text"]:
        rule = "a checkpoint brings no test split"
        raise UserError("init_from", settings["init_from"], rule, "Give text=<file> or tasks=<names>")
    others, of = (OF_TEXT, "the perplexity of a text") if settings["tasks"] else (OF_TASKS, "tasks")
    if useless := next((key for key in others if settings[key] != SETTINGS[key][1]), None):
        rule = f"says how {of} would be measured, and that is not asked for"
        raise UserError(useless, settings[useless], rule, "Leave it out")
    if settings["tokenizer"] and settings["run"]:
        rule = "a run has the tokens of its data"
        raise UserError("tokenizer", settings["tokenizer"], rule, "Leave it out, or name a checkpoint with init_from=")
    for window in settings["window"].split(","):
        if window not in WINDOWS:
            raise UserError("window", window, "is none", f"There are {' and '.join(WINDOWS)}")
    if settings["tasks"] and find_spec("lm_eval") is None:
        rule = "lm-evaluation-harness is not installed"
        raise UserError("tasks", settings["tasks"], rule, "pip install 'seqlab[evaluate]'")
    return settings


def of_run(settings: dict[str, Any], device: torch.device) -> Subject:
    """The model of a run folder and its data.

    Raises:
        UserError: the folder is no run's, or the run was not trained on text.
    """
    folder, trained = Path(settings["run"]), load_trained(settings, device)
    refuse_no_text(trained, folder)
    refuse_links(folder)
    described = jsonio.load(folder / "summary.json").get("data_description") or trained.data.description
    facts = {"model": trained.cfg.name, "run": str(folder), "step": trained.step, "data": described}
    return Subject(trained.model, OfRun(trained.data), trained.data, trained.model.max_length, folder, facts)


def of_checkpoint(settings: dict[str, Any], device: torch.device) -> Subject:
    """The model of a checkpoint and its tokenizer.

    Raises:
        UserError: one of them cannot be used.
    """
    name = settings["init_from"]
    model = pretrained.load(name)
    texts = OfTokenizer(tokenizer_folder(settings["tokenizer"] or name), model.embed.num_embeddings)
    positions = positions_of(tokenizer_folder(name))
    out = EVALUATIONS / Path(name).name
    facts = {"model": name, "init_from": name, "tokenizer": settings["tokenizer"] or name}
    return Subject(model.to(device), texts, None, positions, out, facts)


class Read(NamedTuple):
    """What is read."""

    name: str
    tokens: Tensor  # (N,) int64
    text: str
    size: int | None = None  # bytes of what is predicted, if the data know them


def text_of(settings: dict[str, Any], subject: Subject) -> Read:
    """A text file, or the run's test split.

    Raises:
        UserError: the file cannot be read, or is too short to predict anything of.
    """
    if (name := settings["text"]) is None:
        tokens = tokens_of_split(subject.data, "test")
        known = subject.data.text_bytes("test").per_token
        size = round(known * (len(tokens) - 1)) if math.isfinite(known) else None
        return Read(f"test split of {subject.data.name}", tokens, text_of_documents(subject.texts, tokens), size)
    try:
        text = plain(Path(name).expanduser().read_bytes().decode())
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text (byte {error.start:,})"
        raise UserError("text", name, rule, "Convert the file to UTF-8") from error
    except OSError as error:
        raise UserError("text", name, f"cannot be read ({error.strerror})", "Name a text file") from error
    tokens = torch.from_numpy(subject.texts.encode(text, special=True))
    if len(tokens) < 2:
        raise UserError("text", name, "has fewer than two tokens, so that none can be predicted", "Name a longer text")
    return Read(name, tokens, text)


def of_text(settings: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """Perplexity of a text by each of the windows; prints the table and returns what is kept."""
    name, tokens, text, size = text_of(settings, subject)
    length = settings["length"] or subject.length
    stride = settings["stride"] or max(1, length // 2)
    chosen = dict.fromkeys(settings["window"].split(","))
    if "carried" in chosen:
        refuse_carrying(subject.model, tokens)  # before hours of sliding windows
    scores: dict[str, TextScore] = {}
    with console.progress() as progress:
        for window in chosen:
            task = progress.add_task(f"{window} window", total=len(tokens) - 1)
            how = {"length": length, "on_tokens": lambda count, task=task: progress.advance(task, count)}
            if window == "carried":
                scores[window] = carried(subject.model, tokens, **how)
            else:
                how |= {"stride": stride, "batch_size": settings["batch_size"]}
                scores[window] = sliding(subject.model, tokens, **how)
    figures = {window: score.figures(subject.texts, tokens, text, size) for window, score in scores.items()}
    contexts = {window: score.context for window, score in scores.items()}
    title = f"{subject.facts['model']} on {name}"
    show(figures_table(title, figures, contexts))
    results = {window: figures[window] | {"context": contexts[window]} for window in chosen}
    return {"text": name, "length": length, "stride": stride, "results": results}


def of_tasks(settings: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """The figures of tasks; prints the table and returns what is kept."""
    from seqlab.evaluation import harness  # imports the library

    length = settings["length"] or subject.length
    subject.model.check_length(length)
    chosen = harness.Settings(length, settings["batch_size"], settings["seed"])
    with console.progress() as progress:
        bar = progress.add_task("tasks and their data", total=None)

        def shown(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        lm = harness.Adapter(subject.model, subject.texts, chosen, shown)
        names = [name.strip() for name in settings["tasks"].split(",")]
        found = harness.find_tasks(names, settings["tasks.dir"])
        given = {key: settings[key] for key in ("fewshot", "limit", "bootstrap")}
        results = harness.run_tasks(lm, [one for some in found.values() for one in some], **given)
    show(tasks_table(f"{subject.facts['model']}, {length:,} tokens of context", results))
    if lm.cut:
        requests = counted(lm.cut, "request")
        console.say(f"Longer than length={length}, so that the beginning of the context was left out: {requests}.")
    kept = {ours: results.get(theirs, {}) for ours, theirs in KEPT.items()}
    return {"tasks": list(found), "length": length, "shortened_requests": lm.cut, **given} | kept


def show(table: Table) -> None:
    """Print a table; one in a file need not fit a screen."""
    out = console.output()
    if not out.is_terminal:
        out.width = max(out.width, 200)
    out.print(table)


def run(settings: dict[str, Any]) -> int:
    """Load the model, evaluate it, print and keep the results. Returns the exit status."""
    logging.basicConfig(handlers=[console.ConsoleHandler()], level=logging.WARNING, format="%(message)s")
    device = choose_device(settings["device"])
    reset_global_state(settings["seed"])
    subject = (of_checkpoint if settings["run"] is None else of_run)(settings, device)
    check_precision(subject.model, device, settings["precision"])
    subject.model.to(DTYPES[settings["precision"]])
    path = Path(settings["out"] or subject.folder) / "evaluation.json"
    check_place(path)  # before there are results
    found = (of_tasks if settings["tasks"] else of_text)(settings, subject)
    facts = environment(device)
    facts["versions"] |= {name: package_version(name) for name in ("lm_eval", "datasets", "tokenizers")}
    how = {key: settings[key] for key in ("precision", "batch_size", "seed")}
    when = {"date": f"{datetime.now():%Y-%m-%dT%H:%M:%S}"}
    add(path, subject.facts | when | count_parameters(subject.model) | how | found | facts)
    console.output().print(f"Written to {path}", soft_wrap=True, markup=False, highlight=False)
    return 0


main = command(parse, run)
