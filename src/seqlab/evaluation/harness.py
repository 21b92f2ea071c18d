"""Tasks of lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness) for models of ours.

The library is an extra, ``pip install 'seqlab[evaluate]'``: this module imports it, and is imported once it is needed.
It makes the requests, splits them into tokens of context and continuation, and computes the metrics. Figures are those
that its own adapter for ``transformers`` gives for the same weights and tokenizer.

Symbols: N tokens of a text.
"""

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn
from typing_extensions import override

from seqlab.errors import UserError, nearest
from seqlab.evaluation.scoring import Answer, answers
from seqlab.evaluation.texts import Texts
from seqlab.inference.generate import generate_tokens
from seqlab.inference.sampling import Sampling

NEW_TOKENS = 256
"""Tokens that the library generates where a task does not say how many."""

Progress = Callable[[str, int, int], None]
"""Told what is computed, how many of it are done, and of how many."""


class Settings(NamedTuple):
    """How requests are computed: tokens that a model reads at most, sequences at a time, the seed of what is drawn."""

    length: int
    batch_size: int
    seed: int


class Adapter(TemplateLM):
    """A ``SequenceModel`` over tokens as the library's ``LM``.

    Args:
        model: in evaluation mode.
        texts: makes its tokens.
        settings: how requests are computed.
        show: told of the progress.

    Raises:
        UserError: no token can stand before a text that has nothing before it.
    """

    def __init__(self, model: nn.Module, texts: Texts, settings: Settings, show: Progress = lambda *of: None):
        super().__init__()
        if texts.start is None:
            rule = "its vocabulary has no token that could stand before a text, such as the end of a line"
            raise UserError("tasks", "any", rule, "Name a run of other data, or another tokenizer")
        self.model, self.texts, self.settings, self.show = model, texts, settings, show
        self.cut = 0
        """Requests whose context was longer than the model reads, so that its beginning was left out."""

    @property
    @override
    def eot_token_id(self) -> int:
        return self.texts.start if self.texts.end is None else self.texts.end

    @property
    @override
    def prefix_token_id(self) -> int:
        return self.texts.start

    @override
    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        start = self.texts.decode([self.texts.start], special=True)
        begun = bool(start) and string.startswith(start)
        special = not begun if add_special_tokens is None else add_special_tokens
        return self.texts.encode(string, special=special).tolist()

    @override
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    @override
    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._answers([(context, continuation) for _, context, continuation in requests])
        for (strings, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", strings, tuple(answer))
        return [tuple(answer) for answer in found]

    def _answers(self, pairs: list[tuple[list[int], list[int]]], what: str = "continuations") -> list[Answer]:
        length, batch_size, _ = self.settings
        self.cut += sum(len(context) + len(continuation) > length + 1 for context, continuation in pairs)
        done = 0

        def on_answers(count: int) -> None:
            nonlocal done
            done += count
            self.show(what, done, len(pairs))

        return answers(self.model, pairs, length=length, batch_size=batch_size, on_answers=on_answers)

    @override
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        pairs, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            of_text = get_rolling_token_windows(tokens, self.prefix_token_id, self.settings.length, context_len=1)
            for context, continuation in map(make_disjoint_window, of_text):
                pairs.append((context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, answer in zip(owners, self._answers(pairs, "windows"), strict=True):
            totals[number] += answer.log_likelihood
        return totals

    @override
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        alike = defaultdict(list)  # prompts of one length go together, since none can be padded on the left
        for number, request in enumerate(requests):
            prompt, settings = request.args
            tokens = self._prompt(prompt, _new_tokens(settings))
            alike[len(tokens), repr(settings)].append((number, tokens, settings))
        found: dict[int, str] = {}
        for group in alike.values():
            for first in range(0, len(group), self.settings.batch_size):
                numbers, prompts, settings = zip(*group[first : first + self.settings.batch_size], strict=True)
                texts = self._generated(torch.tensor(prompts), settings[0])
                found |= dict(zip(numbers, texts, strict=True))
                self.show("texts", len(found), len(requests))
        return [found[number] for number in range(len(requests))]

    def _prompt(self, prompt: str, count: int) -> list[int]:
        """A prompt's tokens, of which the last are taken if it leaves no room for ``count`` more.

        Raises:
            UserError: there is no room for any.
        """
        room = self.settings.length - count
        if room < 1:
            rule = f"the task generates {count} tokens, which leave no room for what is before them"
            raise UserError("length", self.settings.length, rule, f"Set length={2 * count} or more")
        tokens = self.tok_encode(prompt) or [self.prefix_token_id]
        self.cut += len(tokens) > room
        return tokens[-room:]

    def _generated(self, prompts: torch.Tensor, given: dict[str, Any]) -> list[str]:
        """The texts that follow prompts (B, L), each up to the first of its stops."""
        settings = normalize_gen_kwargs(given, NEW_TOKENS)
        end = None if self.texts.end is None else self.texts.decode([self.texts.end], special=True) or None
        stops = handle_stop_sequences(settings.get("until"), eos=end)
        sampling = Sampling(settings["temperature"], settings.get("top_k") or None, settings.get("top_p"))
        drawn: list[list[int]] = [[] for _ in prompts]
        texts, going = [""] * len(prompts), set(range(len(prompts)))
        steps = generate_tokens(
            self.model, prompts, sampling, max_new_tokens=settings["max_gen_toks"], seed=self.settings.seed
        )
        for tokens in steps:
            for row in list(going):
                drawn[row].append(int(tokens[row]))
                texts[row] = self.texts.decode(drawn[row])
                if drawn[row][-1] == self.texts.end or any(stop and stop in texts[row] for stop in stops):
                    going.remove(row)
            if not going:
                break
        return [postprocess_generated_text(text, stops, None) for text in texts]


def _new_tokens(settings: dict[str, Any]) -> int:
    return normalize_gen_kwargs(settings, NEW_TOKENS)["max_gen_toks"]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the library prints among the results, and without processes of its own for the resampling."""
    before = {name: logging.getLogger(name).level for name in ("lm_eval", "huggingface_hub")}
    alone = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        os.environ["DISABLE_MULTIPROC"] = alone or ""


def find_tasks(names: Sequence[str], folder: str | None) -> dict[str, list[Any]]:
    """The library's tasks and groups, with their data, by their names.

    Args:
        names: of tasks, groups or tags, patterns with ``*``, or YAML files of the user's own.
        folder: of more such files; ``None`` for none. Where all names are in it, the library's own, some 14,000, are
            not read.

    Raises:
        UserError: there is no such task, or its data cannot be had.
    """
    files = [name for name in names if name.endswith((".yaml", ".yml")) and Path(name).is_file()]
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not all(name in files or matching(manager.all_tasks, name) for name in names):
        manager = TaskManager(include_path=folder)
    found: dict[str, list[Any]] = {}
    for name in names:
        meant = [name] if name in files else matching(manager.all_tasks, name)
        if not meant:
            raise UserError("tasks", name, "there is no such task", nearest(name, manager.all_tasks))
        found |= {one: _loaded(manager, one) for one in meant}
    return found


def _loaded(manager: TaskManager, name: str) -> list[Any]:
    """The task, group or tasks of a tag of that name.

    Raises:
        UserError: its data cannot be had, or it is no task.
    """
    try:
        with quiet():
            loaded = manager.load([name])
    except Exception as error:  # the library's, and those of what it fetches with
        reason = " ".join(str(error).split())[:200]
        rule = f"the task or its data cannot be had ({type(error).__name__}: {reason})"
        remedy = "Connect to the network, where its data are on the hub, or name a task with files of its own"
        raise UserError("tasks", name, rule, remedy) from error
    for flag, rule in (("UNSAFE_CODE", "runs code that a model writes"), ("MULTIMODAL", "is about more than text")):
        for task, one in loaded["tasks"].items():
            if getattr(one, flag, False):
                raise UserError("tasks", task, rule, "Leave it out")
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def run_tasks(lm: TemplateLM, tasks: Sequence[Any], *, fewshot: int | None, limit: float | None, bootstrap: int) -> Any:
    """The library's results for tasks.

    Args:
        lm: the adapter; its seed draws the examples of few-shot prompts.
        tasks: what ``find_tasks`` found.
        fewshot: examples before each request; ``None`` for as many as the task says.
        limit: requests of each task, or the share of them if below 1; ``None`` for all.
        bootstrap: resamplings for the standard errors of metrics that are no means; 0 for none.
    """
    loaded = TaskManager(include_defaults=False).load(list(tasks))
    for task in loaded["tasks"].values():
        usual = task.get_config("num_fewshot")
        if task.get_config("output_type") == "loglikelihood_rolling":
            task.set_config(key="num_fewshot", value=0)  # of whole texts
        elif usual is None or (fewshot is not None and usual != 0):  # a task that is defined without any keeps to it
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=lm.settings.seed)
    with quiet():
        return evaluator.evaluate(lm, loaded, limit=limit, bootstrap_iters=bootstrap, log_samples=False)
