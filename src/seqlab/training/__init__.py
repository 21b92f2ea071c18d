"""Training: one trainer for every model and task, and what it is made of."""

from seqlab.training.trainer import Trainer

__all__ = ["Trainer"]
