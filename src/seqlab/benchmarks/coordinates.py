"""The coordinate check of a parametrisation: how far activations move in a few steps, against the width.

Where one learning rate suits all widths, every part's activations move equally far at each of them (Yang et al. 2022,
arXiv:2203.03466, appendix D.1). Symbols: B sequences, L positions.
"""

from argparse import Namespace
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqlab import console
from seqlab.benchmarks import report
from seqlab.benchmarks.exponents import FEWEST, fit
from seqlab.config.overrides import compose
from seqlab.errors import UserError
from seqlab.models import SequenceModel
from seqlab.runs.build import build_model, built, with_base_model
from seqlab.runs.load import TokenWidths

VOCABULARY, BATCH, LENGTH, HEADS = 64, 8, 32, 4

Moves = dict[str, float]
"""By part, the mean over sequences, positions and channels of how far an activation moved."""


def moves(args: Namespace, rule: str, width: int, seed: int) -> Moves:
    """How far each part of a new model moves in ``args.steps`` steps on one batch of random tokens."""
    torch.manual_seed(seed)
    cfg = compose(*overrides(args, rule, width))
    widths = TokenWidths(VOCABULARY, VOCABULARY, LENGTH)
    model = build_model(with_base_model(cfg), widths, torch.device("cpu"))
    optimizers = built(cfg, "optimizer")(model)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]  # (B, L) each
    before = activations(model, inputs)
    for _ in range(args.steps):
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    after = activations(model, inputs)
    return {part: (after[part] - before[part]).abs().mean().item() for part in before}


def overrides(args: Namespace, rule: str, width: int) -> list[str]:
    """The command line of a model of a width; the base has the least one."""
    sizes = {"d_model": width, "n_heads": HEADS, "d_ff": 4 * width, "n_layers": args.layers}
    first, base = args.widths[0], []
    if rule != "standard":
        base = [f"parametrisation.base={{d_model:{first},n_heads:{HEADS},d_ff:{4 * first},n_layers:{args.layers}}}"]
    chosen = [
        f"model={args.model}",
        f"optimizer={args.optimizer}",
        f"optimizer.lr={args.lr}",
        f"parametrisation={rule}",
    ]
    return [*chosen, *base, *(f"size.{name}={size}" for name, size in sizes.items())]


@torch.no_grad()
def activations(model: SequenceModel, inputs: Tensor) -> dict[str, Tensor]:
    """What each part gives out, (B, L, its width), of tokens (B, L)."""
    parts: dict[str, nn.Module] = {"embedding": model.embed}
    for number, layer in enumerate(model.layers, start=1):
        parts[f"mixer {number}"] = layer.mixer.inner
        if layer.feedforward is not None:
            parts[f"feed-forward {number}"] = layer.feedforward.inner
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, given, output, part=part: found.update({part: output}))
        for part, module in parts.items()
    ]
    found["logits"] = model(inputs)
    for hook in hooks:
        hook.remove()
    return {part: found[part] for part in (*parts, "logits")}


def run(args: Namespace) -> int:
    """Measure, show, write and draw. Returns the exit status."""
    args.layers = depth(args.model, args.layers)
    report.make_folder(args.out)
    results: dict[str, list[Moves]] = {}
    for rule in args.rules:
        results[rule] = []
        for width in args.widths:
            console.say(f"{rule}, width {width}")
            seeds = [moves(args, rule, width, seed) for seed in range(args.seeds)]
            results[rule].append({part: fmean(one[part] for one in seeds) for part in seeds[0]})
    title = f"{args.model}: change of activations in {args.steps} steps of {args.optimizer} at {args.lr:g}"
    panels = [report.Panel(rule, "mean |change|", lines_of(args.widths, found)) for rule, found in results.items()]
    drawn = report.write_picture(args.out / "coordinate_check.png", title, panels, "width", columns=len(panels))
    content = {"settings": {key: str(value) for key, value in vars(args).items()}, "widths": args.widths}
    caption = f"the power of the width with which it grows; - if it does not move, or with fewer than {FEWEST} widths"
    table = report.table(title, rows_of(args.widths, results), caption=caption)
    report.finish(args.out / "coordinate_check.json", content | {"moves": results}, [table], also=drawn)
    return 0


def depth(model: str, layers: int | None) -> int:
    """``layers``, or if it is None as many as the model's pattern is long, and two at least.

    Raises:
        UserError: the pattern does not fit into them.
    """
    needed = len(compose(f"model={model}").model.pattern)
    if layers is not None and layers < needed:
        raise UserError("--layers", layers, f"is less than the {needed} of model={model}", f"Give it {needed} or more")
    return layers or max(2, needed)


def lines_of(widths: Sequence[int], found: Sequence[Moves]) -> list[report.Line]:
    """A curve for each part."""
    return [
        report.Line(part, [(w, f[part]) for w, f in zip(widths, found, strict=True)], {"marker": "o"})
        for part in found[0]
    ]


def rows_of(widths: Sequence[int], results: dict[str, list[Moves]]) -> list[dict[str, str]]:
    """For each part, its exponent under each rule."""
    parts = next(iter(results.values()))[0]
    fits: dict[tuple[str, str], Any] = {
        (part, rule): fit(widths, [one[part] for one in found]) for part in parts for rule, found in results.items()
    }
    return [{"part": part} | {rule: str(fits[part, rule] or "-") for rule in results} for part in parts]
