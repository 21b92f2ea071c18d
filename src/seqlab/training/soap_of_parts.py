"""SOAP for weights of which each process may hold a part: the bases are of whole gradients, and every process has them.

It imports pytorch-optimizer, an extra.
"""

from typing import Any

from pytorch_optimizer import SOAP
from torch import Tensor
from typing_extensions import override

from seqlab.training.sharding import part_of, whole


class SOAPOfParts(SOAP):
    """``pytorch_optimizer.SOAP``, which of parts keeps both moments in parts.

    Symbols: m, n rows and columns of a weight. ``Q`` and ``GG`` of its state are (m, m) and (n, n) each.
    """

    @override
    def update_pre_conditioner(self, grad: Tensor, state: dict[str, Any], **how: Any) -> None:
        """Move ``GG`` and, when it is time, ``Q`` on by a gradient (m, n)."""
        super().update_pre_conditioner(whole(grad), state, **how)

    @override
    def project(self, grad: Tensor, state: dict[str, Any], **how: Any) -> Tensor:
        """A gradient (m, n) in the bases or, if so asked, back from them: (m, n)."""
        return part_of(super().project(whole(grad), state, **how), grad)

    @override
    def get_orthogonal_matrix_qr(self, state: dict[str, Any], *how: Any) -> list[Tensor]:
        """The next ``Q``, by whose order the second moment in ``state`` is sorted."""
        moment = state["exp_avg_sq"]
        state["exp_avg_sq"] = whole(moment)
        found = super().get_orthogonal_matrix_qr(state, *how)
        state["exp_avg_sq"] = part_of(state["exp_avg_sq"], moment)
        return found
