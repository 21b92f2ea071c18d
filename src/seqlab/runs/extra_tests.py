"""Test sets beyond training: longer sequences, more pairs. One that cannot be measured costs the others nothing."""

import logging
from typing import Any

import torch

from seqlab.config.exceptions import translate
from seqlab.errors import UserError
from seqlab.training.progress import ProgressBar
from seqlab.training.trainer import Trainer

log = logging.getLogger(__name__)


def measure(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """For each further test set of the data its metrics, or ``error`` and why it could not be measured.

    Why may be a model whose learned positions are too few, memory, or a kernel that does not take so much.
    """
    names = trainer.data.further_tests
    if left_out(trainer):
        log.info("Left out (trainer.further_tests=false): further tests %s.", ", ".join(names))
    if not names or left_out(trainer):
        return {}
    with trainer.progress("testing") as bar:
        return {name: measured(trainer, name, bar, f"{i} of {len(names)}") for i, name in enumerate(names, start=1)}


def left_out(trainer: Trainer) -> list[str]:
    """The further tests that the trainer's settings leave out."""
    return [] if trainer.config.further_tests else list(trainer.data.further_tests)


def measured(trainer: Trainer, name: str, bar: ProgressBar, place: str) -> dict[str, Any]:
    log.info("Further test %s: %s.", place, name)
    try:
        return trainer.evaluate(name, bar).metrics
    except Exception as error:
        foreseen = translate(error)
        if not isinstance(foreseen, UserError) and not isinstance(error, RuntimeError):
            raise
        why = " ".join(str(foreseen or error).splitlines())
    log.warning("Further test %s cannot be measured: %s", name, why)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()  # so that a test after one too large finds what it left
    return {"error": why}
