"""The mixture of softmaxes, a head whose logarithms of probabilities have a higher rank than a linear map's.

    log p(x | h) = log(sum over k of pi_k softmax(W z_k + b)_x)      z_k = tanh(V_k h + c_k)      pi = softmax(U h)

(Yang et al. 2018, arXiv:1711.03953, section 2.3.) Symbols: h (..., D_in) what the head reads, K softmaxes, D width of
the latents z_k, V size of the vocabulary; W (V, D), which the embedding may share; V_k (D, D_in), U (K, D_in).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from seqlab.models.linear import Linear
from seqlab.ops.linear_cross_entropy import positions_at_once


class MixtureOfSoftmaxes(Linear):
    """From what the last layer gives to log p, which take the place of logits: their softmax is p.

    Args:
        d_in: D_in.
        d_model: D.
        d_output: V.
        softmaxes: K.
        bias: whether there is b.
    """

    def __init__(self, d_in: int, d_model: int, d_output: int, softmaxes: int, *, bias: bool):
        super().__init__(d_model, d_output, bias=bias)
        self.softmaxes = softmaxes
        self.latent = Linear(d_in, softmaxes * d_model)
        self.prior = Linear(d_in, softmaxes, bias=False)
        self.dropout: nn.Module = nn.Identity()  # on the latents; of ``seqlab.training.regularisation``

    def latents(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (..., D_in) to z (..., K, D) and log pi (..., K), in float32 or float64."""
        z = self.dropout(self.latent(h).tanh()).unflatten(-1, (self.softmaxes, self.in_features))
        logits = self.prior(h)
        return z, logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """h (..., D_in) to log p (..., V), in float32 or float64.

        The K V logits of some positions are held at a time, and computed again in the backward pass.
        """
        z, log_prior = self.latents(x)
        size = positions_at_once(self.out_features, self.in_features, z.dtype, self.softmaxes)
        parts = zip(z.flatten(0, -3).split(size), log_prior.flatten(0, -2).split(size), strict=True)
        if torch.is_grad_enabled() and not x.is_meta:  # there FLOPs are counted, each once
            how = {"use_reentrant": False, "preserve_rng_state": False}
            found = [checkpoint(self._log_p, *some, **how) for some in parts]
        else:
            found = [self._log_p(*some) for some in parts]
        return torch.cat(found).unflatten(0, x.shape[:-1])

    def _log_p(self, z: Tensor, log_prior: Tensor) -> Tensor:
        """z (N, K, D) and log pi (N, K) to log p (N, V)."""
        each = super().forward(z).log_softmax(-1, dtype=log_prior.dtype)  # (N, K, V)
        return (each + log_prior[..., None]).logsumexp(1)
