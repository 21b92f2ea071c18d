"""Decays of either sign through scans whose decays are positive (Grazzi et al. 2024, arXiv:2411.12537).

The decay exp(l), l = dt A below 0, is replaced by a = 2 exp(l) - 1, between -1 and 1. With s_t the sign of a_t, 1 or
-1, and S_t = s_1 ... s_t, so that S_t^2 = 1,

    h_t = a_t h_{t-1} + dt_t x_t        becomes        S_t h_t = |a_t| S_{t-1} h_{t-1} + dt_t (S_t x_t)

A scan with decays exp(-step), step = -log |a|, of inputs multiplied by S therefore gives S h, and S times that is h,
exactly: a product by 1 or -1 does not round. As the scans multiply their input by the step, it is given dt x / step.
"""

import math

import torch
from torch import Tensor

LEAST_STEP = 1e-15
"""Of smaller steps the decay differs from 1 by no more than float64 rounds."""


def signed_decay(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a = 2 exp(log_decay) - 1 is negative, and the step -log |a| > 0, both in log_decay's shape.

    |a| - 1 is 2 expm1(log_decay) or -2 exp(log_decay), neither of which cancels. Where a is 0 but for the rounding of
    the exponential, |a| is taken as that, so that the step is finite.
    """
    negative = log_decay < -math.log(2)
    beyond = torch.where(negative, -2 * torch.exp(log_decay), 2 * torch.expm1(log_decay))  # |a| - 1
    step = -torch.log1p(beyond.clamp(min=torch.finfo(beyond.dtype).eps - 1))
    return negative, step.clamp(min=LEAST_STEP)


def running_sign(negative: Tensor, dtype: torch.dtype) -> Tensor:
    """S in ``dtype``, -1 where an odd number of the positions (B, L, ...) up to each is negative, and 1 elsewhere."""
    odd = negative.cumsum(dim=1, dtype=torch.int8) & 1  # where the count overflows it is right modulo 256
    return 1 - 2 * odd.to(dtype)
