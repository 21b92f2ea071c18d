"""Training: one trainer for every model and task, and what it is made of."""

from seqlab.training.settings import Trainer

__all__ = ["Trainer"]
