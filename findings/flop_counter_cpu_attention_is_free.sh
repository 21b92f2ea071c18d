#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts nothing for attention and for an LSTM on the CPU, forward and backward, and all
# of it on the meta device, from the same shapes. Dropout in the attention makes it count on the CPU too.
#
# There the fused kernels of the CPU are called, and the counter has no formula for them; it skips what it does not
# know without a word. With dropout, or in float64 for the LSTM, other kernels run. A transformer's FLOPs, counted on
# the CPU, so grow linearly with the length, and an LSTM's are those of its head alone: count on the meta device.
#
# Seen on 2026-11-30, Python 3.11, and the same with torch 2.14.1 (pytorch issue 195460 has the attention):
#   cpu: attention 0, with dropout 16384, backward 0, LSTM 0, in float64 4096
#   meta: attention 16384, with dropout 16384, backward 32768, LSTM 4096, in float64 4096
#
# seqlab counts on the meta device.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0
cat > count.py <<'PYTHON'
import torch
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.utils.flop_counter import FlopCounterMode


def flops(function, *inputs, **settings) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*inputs, **settings)
    return counter.get_total_flops()


for device in ("cpu", "meta"):
    q = torch.randn(1, 2, 16, 8, device=device, requires_grad=True)  # 4 * 2 heads * 16 * 16 pairs * 8 channels = 16384
    loss = attention(q, q, q).sum()
    x = torch.randn(1, 4, 8, device=device)
    lstm = torch.nn.LSTM(8, 8, device=device)  # 4 steps * 2 products * 2 * 8 * 32 = 4096
    counts = {
        "attention": flops(attention, q, q, q),
        "with dropout": flops(attention, q, q, q, dropout_p=0.1),
        "backward": flops(loss.backward),
        "LSTM": flops(lstm, x),
        "in float64": flops(lstm.double(), x.double()),
    }
    print(f"{device}:", ", ".join(f"{name} {count}" for name, count in counts.items()))
PYTHON
cat > expected <<'TEXT'
cpu: attention 0, with dropout 16384, backward 0, LSTM 0, in float64 4096
meta: attention 16384, with dropout 16384, backward 32768, LSTM 4096, in float64 4096
TEXT
venv/bin/python -W ignore count.py | tee seen
diff expected seen
