"""Operations on tensors: pure functions, each with one reference and one or more faster backends.

Each operation is a package whose public function has the package's name: ``seqlab.ops.selective_scan`` is the function,
``from seqlab.ops.selective_scan import resolve_backend`` imports from the package.
"""

from seqlab.ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from seqlab.ops.cross_entropy import cross_entropy
from seqlab.ops.delta_rule import delta_rule, delta_rule_flops, delta_rule_update
from seqlab.ops.linear_cross_entropy import linear_cross_entropy
from seqlab.ops.m2rnn import m2rnn, m2rnn_flops, m2rnn_update
from seqlab.ops.rms_norm import add_rms_norm, gated_rms_norm, rms_norm
from seqlab.ops.routed_experts import routed_experts, routed_experts_flops
from seqlab.ops.selective_scan import selective_scan, selective_scan_flops, selective_state_update
from seqlab.ops.selective_scan.official import selective_scan_fn
from seqlab.ops.ssd import ssd, ssd_flops, ssd_update

__all__ = [
    "add_rms_norm",
    "causal_conv1d",
    "causal_conv1d_update",
    "cross_entropy",
    "delta_rule",
    "delta_rule_flops",
    "delta_rule_update",
    "gated_rms_norm",
    "linear_cross_entropy",
    "m2rnn",
    "m2rnn_flops",
    "m2rnn_update",
    "rms_norm",
    "routed_experts",
    "routed_experts_flops",
    "selective_scan",
    "selective_scan_flops",
    "selective_scan_fn",
    "selective_state_update",
    "ssd",
    "ssd_flops",
    "ssd_update",
]
