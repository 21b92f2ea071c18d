"""A sweep as a list of products, as a sweeper of Hydra's, which looks for plugins in this namespace alone."""

from seqlab.sweep.points import PointsSweeper

__all__ = ["PointsSweeper"]
