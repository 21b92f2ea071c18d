"""What is measured beside ``mamba_ssm``: the same models trained, read and continued by both, and a layer of Mamba-3.

Symbols: B sequences of L tokens, V words in the vocabulary, model width D; of Mamba-2 and Mamba-3 the inner width E, H
heads, N states, G groups.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from seqlab.benchmarks.training_step import training_step
from seqlab.config.overrides import compose
from seqlab.inference.generate import generate_tokens
from seqlab.inference.prompt import prefill
from seqlab.inference.sampling import Sampling
from seqlab.models.mixers.mamba3 import Mamba3
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths

CUDA = torch.device("cuda")
SIZES = ("small", "medium", "large", "wide", "deep")
"""Of the models that are trained, in conf/size."""

SHAPES = ((32, 256), (8, 2048))
"""B and L of a training step; the second is also that of Mamba-2 and of Mamba-3's layer."""

TOKENS = 16_384
"""B x L of the training steps over length."""

LENGTHS = tuple(2**power for power in range(8, 15))
"""L of these, 256 to 16,384."""

LENGTHENED = "small"
"""Their size."""

TRAINING_VOCABULARY, VOCABULARY = 10_000, 50_277
USED = ("model=mamba", "size.d_model=768", "size.n_layers=24")
"""The model that generates: 130 million parameters."""

MAMBA3 = {"d_state": 128, "expand": 2}
HEAD = 64  # E / H: sizes of the paper, arXiv:2603.15569

PROMPT = 128
CLIP_NORM = 1.0

Prepare = Callable[[], Callable[[], Any]]
"""Makes the function to time."""


class Task(NamedTuple):
    """One line of the table.

    Args:
        name: in the table; each task has its own.
        what: ``training step``, ``layer``, ``prefill`` or ``generation``.
        model: in conf/model.
        size: in conf/size; that of the model that generates is no name there, but its width and layers.
        batch, length: B and L of a call.
        tokens: that a call reads or writes.
        ours, theirs: make the function to time.
    """

    name: str
    what: str
    model: str
    size: str
    batch: int
    length: int
    tokens: int
    ours: Prepare
    theirs: Prepare

    @property
    def labels(self) -> dict[str, Any]:
        """All but the functions."""
        return {"task": self.name} | {key: getattr(self, key) for key in self._fields[1:-2]}


def ours(overrides: Sequence[str], vocabulary: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model that ``python train.py`` builds with these overrides, on the GPU."""
    return build_model(compose(*overrides), TokenWidths(vocabulary, vocabulary, 2048), CUDA).to(dtype)


def theirs(overrides: Sequence[str], vocabulary: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """``mamba_ssm``'s language model of the same sizes, its fused paths on, on the GPU."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    size, layer = compose(*overrides).size, their_layer(overrides)
    config = MambaConfig(d_model=size.d_model, n_layer=size.n_layers, vocab_size=vocabulary, ssm_cfg=layer)
    return MambaLMHeadModel(config, device=CUDA, dtype=dtype)


def their_layer(overrides: Sequence[str]) -> dict[str, Any]:
    """The ``ssm_cfg`` with which ``mamba_ssm`` builds the layer that a model of conf/model has.

    Matched are the state N, the convolution's width and E / D; of Mamba-2 also G and, by the width E / H of a head,
    the number of heads, so that every matrix product, scan and norm has the same sizes and the parameters are as many.
    (Its own Mamba-2 would have N = 128 and heads of 64.) Both norms come after the gate. The rest is its own: chunks of
    256 positions, one fused function of convolution, scan, norm and projection, which recomputes in the backward pass.
    Its convolution takes E + 2 G N channels, in rows of a tensor at a multiple of 8 numbers. The channels are such a
    multiple at all five sizes; the rows that the projection writes, 2 E + 2 G N + H numbers, are none at small and
    large, and there it copies its input first, which is part of its time.
    """
    cfg = compose(*overrides)
    ((name, mixer),) = cfg.model.mixers.items()
    layer = {"d_state": mixer.d_state, "d_conv": mixer.d_conv, "expand": mixer.expand}
    if name == "mamba":
        return {"layer": "Mamba1"} | layer
    headdim = mixer.expand * cfg.size.d_model // mixer.n_heads
    return {"layer": "Mamba2", "headdim": headdim, "ngroups": mixer.n_groups} | layer


def our_step(overrides: Sequence[str], batch: int, length: int) -> Callable[[], Any]:
    """An update as ``train.py`` makes it, in bf16."""
    model = ours(overrides, TRAINING_VOCABULARY).train()
    return training_step(model, TRAINING_VOCABULARY, batch, length, precision="bf16", device=CUDA)


def their_step(overrides: Sequence[str], batch: int, length: int) -> Callable[[], Any]:
    """An update of their model by the same recipe: autocast, loss in float32, clipping, fused AdamW."""
    model = theirs(overrides, TRAINING_VOCABULARY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(TRAINING_VOCABULARY, (2, batch, length), device=CUDA)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens).logits[..., :TRAINING_VOCABULARY]  # theirs are padded
        F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return step


def our_mamba3(width: int) -> nn.Module:
    """A layer of Mamba-3, SISO, with the activation that theirs has."""
    return Mamba3(width, n_heads=2 * width // HEAD, act="softplus", **MAMBA3).to(CUDA)


def their_mamba3(width: int) -> nn.Module:
    """Theirs of the same sizes: its Triton kernels, in chunks of 64 positions, as its authors have it."""
    from mamba_ssm.modules.mamba3 import Mamba3 as Theirs

    return Theirs(width, headdim=HEAD, ngroups=1, chunk_size=64, device=CUDA, **MAMBA3)


def with_their_weights(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """Our layer of Mamba-3 with the weights of theirs."""
    with torch.no_grad():
        for part in ("in_proj", "out_proj"):
            getattr(ours, part).weight.copy_(getattr(theirs, part).weight)
        for name in ("dt_bias", "D"):
            getattr(ours, name).copy_(getattr(theirs, name))
        ours.map_bias.copy_(torch.stack((theirs.B_bias[:, 0], theirs.C_bias[:, 0])))
        ours.norm_weight.copy_(torch.stack((theirs.B_norm.weight, theirs.C_norm.weight)))
    return ours


def both_passes(layer: Callable[[int], nn.Module], width: int) -> Callable[[], Any]:
    """Forward and backward pass of a layer in bf16, to the gradients of its input and of its weights."""
    layer = layer(width)
    x, dy = torch.randn(2, *SHAPES[1], width, device=CUDA, dtype=torch.bfloat16)  # (B, L, D)
    x.requires_grad_()

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        with torch.autocast(CUDA.type, torch.bfloat16):
            y = layer(x)
        y.backward(dy.to(y.dtype))

    return step


def our_generation(batch: int, new: int) -> Callable[[], Any]:
    """Greedy tokens after a prompt, by what ``scripts/generate.py`` uses, in bf16."""
    model = ours(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (batch, PROMPT))
    return lambda: list(generate_tokens(model, prompt, Sampling(0), max_new_tokens=new, seed=0))


def their_generation(batch: int, new: int) -> Callable[[], Any]:
    """The same by their ``generate`` with its captured graph."""
    model = theirs(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (batch, PROMPT), device=CUDA)
    return lambda: model.generate(input_ids=prompt, max_length=PROMPT + new, cg=True, top_k=1)


def our_prefill(length: int) -> Callable[[], Any]:
    """A prompt of one sequence read, up to the logits of its last position, by what ``scripts/generate.py`` uses."""
    model = ours(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (1, length), device=CUDA)
    return lambda: prefill(model, prompt)


def their_prefill(length: int) -> Callable[[], Any]:
    """The same by their forward pass, which keeps no state."""
    model = theirs(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (1, length), device=CUDA)
    return torch.no_grad()(lambda: model(prompt, num_last_tokens=1))


def training(model: str, size: str, batch: int, length: int) -> Task:
    """A training step of a model in conf/model at a size in conf/size."""
    each = (f"model={model}", f"size={size}"), batch, length
    of = "" if model == "mamba" else f" of {model}"
    name = f"training step{of}, {size}, {batch} x {length:,}"
    made = partial(our_step, *each), partial(their_step, *each)
    return Task(name, "training step", model, size, batch, length, batch * length, *made)


def layer(width: int) -> Task:
    """Both passes of a layer of Mamba-3, a kernel at a time."""
    (batch, length), size = SHAPES[1], f"{width} x 1"
    made = partial(both_passes, our_mamba3, width), partial(both_passes, their_mamba3, width)
    name = f"layer of mamba3, width {width:,}, {batch} x {length:,}"
    return Task(name, "layer", "mamba3", size, batch, length, batch * length, *made)


def reading(length: int) -> Task:
    """A prompt read by the model that generates."""
    made = partial(our_prefill, length), partial(their_prefill, length)
    return Task(f"prefill of {length:,}", "prefill", "mamba", "768 x 24", 1, length, length, *made)


def writing(batch: int, new: int) -> Task:
    """Tokens after a prompt by the model that generates; their number counts, the prompt's does not."""
    made = partial(our_generation, batch, new), partial(their_generation, batch, new)
    name = f"{new} tokens after {PROMPT}, batch {batch}"
    return Task(name, "generation", "mamba", "768 x 24", batch, PROMPT + new, batch * new, *made)


def tasks(args: argparse.Namespace) -> list[Task]:
    """What the options of scripts/benchmark_against_mamba_ssm.py ask for, each once.

    Mamba-2 and Mamba-3 come last: their kernels in ``mamba_ssm`` are tuned at the first call, which takes longest.
    """
    found = [training("mamba", size, *shape) for shape in SHAPES for size in args.sizes]
    found += [training("mamba", LENGTHENED, TOKENS // length, length) for length in args.lengths]
    found += [reading(length) for length in args.prompts]
    found += [writing(batch, args.new) for batch in args.batch]
    found += [training("mamba2", size, *SHAPES[1]) for size in args.mamba2]
    found += [layer(width) for width in args.mamba3]
    return list({task.name: task for task in found}.values())
