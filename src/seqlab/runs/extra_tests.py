"""Test sets beyond training: longer sequences, more pairs. One that cannot be measured does not stop the others."""

import logging
from typing import Any

import torch

from seqlab.config.exceptions import translate
from seqlab.errors import UserError
from seqlab.training.progress import ProgressBar
from seqlab.training.trainer import Trainer

log = logging.getLogger(__name__)


def measure(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """The metrics of each further test set of the data, or ``error`` and why it could not be measured.

    The model may have too few learned positions, memory may be too small, or a kernel may refuse the size.
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
    """The metrics of one further test set, or ``error``; ``place`` is its number among all, in words."""
    log.info("Further test %s: %s.", place, name)
    try:
        return trainer.evaluate(name, bar).metrics
    except Exception as error:
        foreseen = translate(error)
        if not isinstance(foreseen, UserError) and not isinstance(error, RuntimeError):
            raise
        if trainer.world.size > 1 and not isinstance(error, UserError):
            raise  # the other processes may not have it, and wait
        why = " ".join(str(foreseen or error).splitlines())
    log.warning("Further test %s cannot be measured: %s", name, why)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()  # for the tests after one that was too large
    return {"error": why}
