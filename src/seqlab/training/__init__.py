"""Training: one trainer for every model and task, and its parts."""

from seqlab.training.settings import TrainerConfig

__all__ = ["TrainerConfig"]
