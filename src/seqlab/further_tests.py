"""Test sets beyond training: longer sequences, more pairs. One that cannot be measured costs the others nothing."""

import logging
from typing import Any

import torch

from seqlab.errors import UserError
from seqlab.messages import translate
from seqlab.training.progress import ProgressBar
from seqlab.training.trainer import Fit

log = logging.getLogger(__name__)


def measure(fit: Fit) -> dict[str, dict[str, Any]]:
    """For each further test set of the data its metrics, or ``error`` and why it could not be measured.

    Why may be a model whose learned positions are too few, memory, or a kernel that does not take so much.
    """
    names = getattr(fit.data, "further_tests", ())
    if left_out(fit):
        log.info("Left out (trainer.further_tests=false): further tests %s.", ", ".join(names))
    if not names or left_out(fit):
        return {}
    with fit.progress("testing") as bar:
        return {name: measured(fit, name, bar, f"{i} of {len(names)}") for i, name in enumerate(names, start=1)}


def left_out(fit: Fit) -> list[str]:
    """The further tests that the trainer's settings leave out."""
    return [] if fit.trainer.further_tests else list(getattr(fit.data, "further_tests", ()))


def measured(fit: Fit, name: str, bar: ProgressBar, place: str) -> dict[str, Any]:
    log.info("Further test %s: %s.", place, name)
    try:
        return fit.evaluate(name, bar).metrics
    except Exception as error:
        foreseen = translate(error)
        if not isinstance(foreseen, UserError) and not isinstance(error, RuntimeError):
            raise
        why = " ".join(str(foreseen or error).splitlines())
    log.warning("Further test %s cannot be measured: %s", name, why)
    if fit.device.type == "cuda":
        torch.cuda.empty_cache()  # so that a test after one too large finds what it left
    return {"error": why}
