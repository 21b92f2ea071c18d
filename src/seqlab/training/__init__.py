"""Training: one trainer for every model and task, and what it is made of."""

from seqlab.training.settings import TrainerConfig

__all__ = ["TrainerConfig"]
