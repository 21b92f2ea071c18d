"""A run's kernels, compiled side by side before its first evaluation and step, which need all of them.

A copy of the model goes through a batch of each, and its kernels are compiled and not run (``ops/compiling.py``); its
outputs and gradients are arbitrary numbers and thrown away. The run itself is as without.
"""

import copy
from collections import deque
from concurrent.futures import wait
from contextlib import nullcontext
from itertools import islice

import torch

from seqlab.data import Batch
from seqlab.models.layer import recompute
from seqlab.models.protocols import WaitsForDevice, parts
from seqlab.ops.compiling import only_compiled
from seqlab.ops.cuda_graph import on_side_stream
from seqlab.ops.triton_support import why_unavailable
from seqlab.training.carried import reader
from seqlab.training.evaluate import PIECE, measured, piece_size
from seqlab.training.objective import Objective
from seqlab.training.precision import autocast
from seqlab.training.progress import ProgressBar
from seqlab.training.settings import TrainerConfig
from seqlab.training.update import Update

PATIENCE = 2.0
"""Seconds until the user is told."""


def can_compile(device: torch.device) -> bool:
    """Whether there is a GPU with kernels to compile: not without Triton, or where the GPU is too old for them."""
    return device.type == "cuda" and why_unavailable(device, torch.float32) is None


def compile_ahead(update: Update, batch: Batch, config: TrainerConfig, bar: ProgressBar) -> None:
    """Compile the kernels that steps as this batch's and evaluations launch on a GPU, and show if that takes long."""
    with only_compiled() as kernels:
        rehearse(update, batch, config)
        waiting = wait(kernels, PATIENCE).not_done
        if waiting:
            bar.say(f"compiling {len(waiting)} kernels")
            wait(waiting)


def rehearse(update: Update, batch: Batch, config: TrainerConfig) -> None:
    """Differentiate a copy of the model on a batch and run it on one of validation; nothing of either stays."""
    device, data, on_gpu = update.device, update.data, update.device.type == "cuda"
    with (
        torch.random.fork_rng([device] if on_gpu else [], device_type=device.type),
        torch.autograd.set_multithreading_enabled(False),  # launches of another thread would not be held back
        on_side_stream() if on_gpu else nullcontext(),  # as steps are, which then find the memory there
    ):
        update = copy.copy(update)
        update.model = model = copy.deepcopy(update.model)
        if any(part.why_not_captured(device) for part in parts(model, WaitsForDevice)):
            recompute(model, 0)  # shapes may follow from numbers, which are not the same again
        smoothing = config.regularisation.label_smoothing
        update.objective = Objective(model, data, device, config.precision, smoothing)
        update.differentiate(batch)  # first, since backward kernels take longest to compile
        model.eval()
        with torch.inference_mode():
            read = reader(model, data)
            for batch in islice(data.evaluation_batches("validation", config.evaluated_at_once(data, "validation")), 1):
                mask = data.mask(batch.targets)
                size = piece_size(read, *mask.shape, data.d_output, PIECE)
                how = {"device": device, "autocast": lambda: autocast(device, config.precision)}
                deque(measured(read, data, batch, mask, size, **how), maxlen=0)
