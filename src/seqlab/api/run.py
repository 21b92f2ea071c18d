"""A run as an object: what its folder holds, and its trained model."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from os import path
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from seqlab.cli import result_table
from seqlab.commands import generate
from seqlab.commands.settings import parse_value
from seqlab.data import DataSet
from seqlab.jsonio import load as read_json
from seqlab.runs.build import choose_device
from seqlab.runs.load import Trained, load_run, refuse_no_text
from seqlab.runs.process import process_state_kept, reset_global_state
from seqlab.runs.resume import saved_in


class Run:
    """A run folder; a notebook shows its table of results.

    Args:
        folder: that training left.
        device: of the model: auto, cpu or cuda.
        trust: your own packages whose parts the folder may name (docs/security.md).
        data: settings of the data that differ here, such as ``{"dir": ...}`` where the corpus lies elsewhere.

    Raises:
        UserError: the folder is no run's.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "auto",
        trust: Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
    ):
        saved_in(Path(folder), "run")
        self.folder = Path(folder).absolute()
        self._device, self._trust, self._elsewhere = device, tuple(trust), dict(data or {})

    @property
    def summary(self) -> dict[str, Any]:
        """``summary.json`` as it is now."""
        return read_json(self.folder / "summary.json")

    @property
    def metrics(self) -> pd.DataFrame:
        """``metrics.jsonl`` as it is now: a row for each record, with ``step``, ``split``, ``loss``, ..."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:  # before the first step
            lines = []
        return pd.DataFrame([json.loads(line) for line in lines])

    @property
    def model(self) -> nn.Module:
        """The model with the best weights by validation, in evaluation mode.

        Raises:
            UserError: the folder has no undamaged weights, or names code that is not trusted.
        """
        return self._trained.model

    @property
    def data(self) -> DataSet:
        """The data that it was trained on.

        Raises:
            UserError: as for ``model``, or their files are gone.
        """
        return self._trained.data

    def generate(
        self,
        prompt: str = "",
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int = 200,
        stop: str | None = None,
        seed: int = 0,
    ) -> str:
        """The prompt and a text that follows it; settings and draws are those of ``seqlab generate``.

        Args:
            prompt: what to continue; none is the start of a line.
            temperature: 1 draws as the model says, 0 takes the likeliest token always.
            top_k, top_p: draw from the k likeliest tokens, or from the fewest that hold the share p.
            max_new_tokens: how many to draw.
            stop: text that ends the sample.
            seed: of the draws.

        Raises:
            UserError: the run was not trained on text, the prompt has a symbol that is not in its vocabulary, or a
                setting cannot be used.
        """
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        given |= {"prompt": prompt, "max_new_tokens": max_new_tokens, "stop": stop, "seed": seed}
        settings = {name: parse_value(name, value, generate.SETTINGS[name][0]) for name, value in given.items()}
        with process_state_kept():
            reset_global_state(settings["seed"])
            refuse_no_text(self._trained, self.folder)
            trained = self._trained
            return "".join(generate.sampled(trained.model, trained.data, settings, settings["seed"]))

    @cached_property
    def _trained(self) -> Trained:
        with process_state_kept():
            reset_global_state(0)
            device = choose_device(self._device)
            return load_run(self.folder, device, data=self._elsewhere, trust=self._trust)

    def __repr__(self) -> str:
        summary = self.summary
        loss = (summary.get("test") or {}).get("loss")
        result = "" if loss is None else f", test loss {loss:.4f}"
        name = f"{summary.get('model')} on {summary.get('data')}"
        return f"Run({path.relpath(self.folder)!r}): {name}, {summary.get('status', 'not begun')}{result}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: the table at the end of a completed run."""
        if self.summary.get("status") != "completed":
            return {"text/plain": repr(self)}
        return result_table.table(self.summary)._repr_mimebundle_(include, exclude)


def load(
    folder: str | Path, *, device: str = "auto", trust: Sequence[str] = (), data: Mapping[str, Any] | None = None
) -> Run:
    """The run in a folder that training left; the arguments are those of ``Run``.

    Raises:
        UserError: the folder is no run's.
    """
    return Run(folder, device=device, trust=(trust,) if isinstance(trust, str) else trust, data=data)
