"""Masks that a language model's training draws beside dropout of single numbers, and losses on its last output.

They are those of AWD-LSTM (Merity et al. 2017, arXiv:1708.02182, section 4) and stochastic depth (Huang et al. 2016,
arXiv:1603.09382), for any layer. What is left of a mask is divided by the share that is left, so that nothing is to be
scaled afterwards; in evaluation mode there are no masks and no losses. All are drawn by the device's own generator, as
PyTorch's dropout is: a CUDA graph draws anew at each replay, and a checkpoint has its state.

Symbols: B batch, L length, D width, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from seqlab.models.mixture_of_experts import HasAuxiliaryLoss


def masked(x: Tensor, p: float, shape: Iterable[int]) -> Tensor:
    """x times one mask of this shape, which x's broadcasts, in x's dtype; what is left is divided by 1 - p."""
    return (x * F.dropout(torch.ones(tuple(shape), device=x.device), p)).to(x.dtype)


class WordDropout(nn.Module):
    """Leaves out whole words: a row of the embedding, wherever the batch has it (Gal and Ghahramani 2016,
    arXiv:1512.05287, section 4.2).

    Args:
        p: the share of the vocabulary that is left out.
        vocabulary: its size, V.
    """

    def __init__(self, p: float, vocabulary: int):
        super().__init__()
        self.p, self.vocabulary = p, vocabulary

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The embedding x (..., D) of tokens (...), in x's dtype."""
        if not self.training:
            return x
        left = F.dropout(torch.ones(self.vocabulary, device=x.device), self.p)  # (V,)
        return (x * left[tokens][..., None]).to(x.dtype)


class Dropouts(nn.Dropout):
    """Dropout of single numbers, then of whole channels of a sequence and of whole sequences.

    Args:
        p: of each number at each position.
        channels: of each channel of each sequence, at all positions alike: variational dropout (Gal and Ghahramani
            2016, arXiv:1512.05287).
        sequences: of all of a sequence, which on a half layer's output is stochastic depth.
    """

    def __init__(self, p: float, *, channels: float = 0.0, sequences: float = 0.0):
        super().__init__(p)
        self.channels, self.sequences = channels, sequences

    @override
    def forward(self, input: Tensor) -> Tensor:
        """(B, L, D), or (B, D) of one position, to the same shape and dtype."""
        x = super().forward(input)
        if not self.training:
            return x
        rows, alike = x.shape[0], [1] * (x.ndim - 2)
        if self.channels:
            x = masked(x, self.channels, (rows, *alike, x.shape[-1]))
        return masked(x, self.sequences, (rows, *alike, 1)) if self.sequences else x


class LastOutput(HasAuxiliaryLoss):
    """What is done in training to the output h of the last layer, behind its norm, before the head reads it.

    Channels of a sequence are dropped, and ``auxiliary_loss`` is, of the means over all numbers,

        ar mean(h'_t^2) + tar mean((h_t - h_(t-1))^2)

    with h' as the head sees it (Merity et al. 2017, arXiv:1708.01009, section 3, as AWD-LSTM has them).
    """

    def __init__(self, channels: float, ar: float, tar: float):
        super().__init__()
        self.dropout, self.ar, self.tar = Dropouts(0.0, channels=channels), ar, tar

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, D) to the same shape."""
        dropped = self.dropout(h)
        if self.training and (self.ar or self.tar):
            sums = torch.promote_types(h.dtype, torch.float32)
            change = h[:, 1:].to(sums) - h[:, :-1].to(sums)
            slow = change.square().sum() / max(1, change.numel())  # a single position has no change
            self.auxiliary_loss = self.ar * dropped.to(sums).square().mean() + self.tar * slow
        return dropped


class WeightDropout(nn.Module):
    """Drops numbers of a part's weights, the same at all positions and in all sequences (DropConnect: Wan et al. 2013;
    on recurrent weights AWD-LSTM).

    Args:
        p: the share of the numbers that are left out.
        names: of the parameters, within the part.
    """

    def __init__(self, p: float, names: list[str]):
        super().__init__()
        self.p, self.names = p, names

    @contextmanager
    def of(self, part: nn.Module) -> Iterator[None]:
        """Within, in training, the part computes with what is left of its weights; the gradient is that of them all.

        The weights are put in the place of the parameters, so that a kernel of a whole layer, which calls none of its
        modules, reads them too.
        """
        places = [(part.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in self.names]
        whole = [owner._parameters[last] for owner, last in places] if self.training else []
        try:
            for (owner, last), weight in zip(places, whole, strict=False):
                owner._parameters[last] = F.dropout(weight, self.p)
            yield
        finally:
            for (owner, last), weight in zip(places, whole, strict=False):
                owner._parameters[last] = weight
