"""Rows sorted by expert.

Symbols: T tokens, k experts of a token, E experts, M = T k rows. Row number t k + j is token t at its j-th expert.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """Who stands where once the rows are sorted by expert, all on the tokens' device.

    order: (M,) the row that stands at each place.
    inverse: (T, k) the place of each row.
    ends: (E,) int32, the place after each expert's last.
    """

    order: Tensor
    inverse: Tensor
    ends: Tensor

    @property
    def top_k(self) -> int:
        return self.inverse.shape[1]

    @property
    def tokens(self) -> Tensor:
        """(M,) the token of the row at each place."""
        return self.order // self.top_k


def sort_by_expert(experts: Tensor, n_experts: int) -> Groups:
    """The rows of experts (T, k) in a stable order; the host waits for nothing."""
    narrow = torch.uint8 if n_experts < 256 else torch.int64  # a radix sort takes one pass for each byte
    numbers, order = experts.flatten().to(narrow).sort(stable=True)  # (M,)
    following = torch.arange(1, n_experts + 1, device=experts.device, dtype=narrow)
    ends = torch.searchsorted(numbers, following, out_int32=True)  # (E,)
    places = torch.arange(len(order), device=experts.device)
    inverse = torch.empty_like(order).scatter_(0, order, places)
    return Groups(order, inverse.view_as(experts), ends)
