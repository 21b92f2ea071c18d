"""Rows sorted by expert.

Symbols: T tokens, k experts of a token, E experts, M = T k rows. Row number t k + j is token t at its j-th expert.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """The order of rows sorted by expert, on the tokens' device. A place is an index into the sorted rows."""

    order: Tensor  # (M,) the row at each place
    inverse: Tensor  # (T, k) the place of each row
    ends: Tensor  # (E,) int32, the place after each expert's last

    @property
    def top_k(self) -> int:
        """k, the experts of a token."""
        return self.inverse.shape[1]

    @property
    def tokens(self) -> Tensor:
        """(M,) the token of the row at each place."""
        return self.order // self.top_k


def sort_by_expert(experts: Tensor, n_experts: int) -> Groups:
    """Sort the rows of experts (T, k) stably; the host does not wait for the device."""
    narrow = torch.uint8 if n_experts < 256 else torch.int64  # a radix sort takes one pass for each byte
    numbers, order = experts.flatten().to(narrow).sort(stable=True)  # (M,)
    following = torch.arange(1, n_experts + 1, device=experts.device, dtype=narrow)
    ends = torch.searchsorted(numbers, following, out_int32=True)  # (E,)
    places = torch.arange(len(order), device=experts.device)
    inverse = torch.empty_like(order).scatter_(0, order, places)
    return Groups(order, inverse.view_as(experts), ends)
