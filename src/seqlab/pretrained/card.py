"""The model card of an exported run: its own figures, as its ``summary.json`` has them."""

from textwrap import indent
from typing import Any, NamedTuple

from seqlab.formatting import counted

Summary = dict[str, Any]

HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- seqlab
---
"""


class Exported(NamedTuple):
    """What was exported of a run."""

    architecture: str  # the class of ``transformers``
    step: int  # of the weights
    origin: str | None  # the checkpoint that the run started from
    tokenizer: str | None  # the class of ``transformers`` that loads the tokenizer, if there is one
    apart: bool = False  # nothing flowed from one document to the next in training


def card(exported: Exported, summary: Summary) -> str:
    """The text of ``README.md``: Markdown, below fields for the hub."""
    facts = {name: value for name, value in (facts_of(exported, summary) | figures(exported, summary)).items() if value}
    rows = "\n".join(f"| {name} | {in_cell(value)} |" for name, value in facts.items())
    return f"""{HEADER}
# {summary.get("model")} on {summary.get("data")}

Trained with seqlab, and exported for `{exported.architecture}` of `transformers`.

| | |
|---|---|
{rows}

The command that trained it:

{indent(summary.get("command") or "not known", "    ")}

{usage(exported.tokenizer)}"""


def facts_of(exported: Exported, summary: Summary) -> dict[str, Any]:
    """What was trained, on what, and with which budget."""
    get = summary.get
    spent = f"{counted(get('steps', 0), 'step')} of {get('batch_size')} x {get('length')} positions"
    spent += f": {counted(get('tokens', 0), 'token')}, {get('flops', 0):.3g} FLOPs"
    versions = ", ".join(f"{name} {version}" for name, version in (get("versions") or {}).items())
    return {
        "data": f"{get('data_description')} (fingerprint {get('data_fingerprint')})",
        "documents": "apart in training: one at a time, after the token that ends one" if exported.apart else "",
        "started from": exported.origin,
        "parameters": f"{get('parameters', 0):,}",
        "budget": spent,
        "ended early": get("stop_reason"),
        "seed": str(get("seed")),
        "precision": get("precision"),
        "device": get("device_name"),
        "versions": versions,
        "commit of seqlab": get("git_commit"),
    }


def figures(exported: Exported, summary: Summary) -> dict[str, str]:
    """What the exported weights reach: those of other weights are not theirs."""
    step, best = exported.step, summary.get("best_step")
    if step != best:
        other = f"the figures of this run are those of step {best:,}" if best is not None else "nothing was measured"
        return {"weights": f"of step {step:,}; {other}"}
    test, most = summary.get("test"), summary.get("evaluation_batches")
    return {
        "weights": f"of step {step:,}, the best by validation",
        "validation loss": f"{summary['best_validation_loss']:.4f} nats a token",
        **{f"test {name}": f"{value:.4f}" for name, value in (test or {}).items() if value is not None},
        "test": "" if test else f"not measured: the run is {summary.get('status', 'unfinished')}",
        "evaluation": f"on at most {most:,} of the batches of a split" if most else "",
    }


def usage(tokenizer: str | None) -> str:
    """How to load it, in Python."""
    imported = ", ".join(filter(None, ("AutoModelForCausalLM", tokenizer)))
    lines = [f"from transformers import {imported}", "", 'folder = "<this folder>"']
    lines.append("model = AutoModelForCausalLM.from_pretrained(folder)")
    if tokenizer:
        lines.append(f"tokenizer = {tokenizer}.from_pretrained(folder)")
    return "\n".join(["```python", *lines, "```", ""])


def in_cell(text: str) -> str:
    """Text in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
