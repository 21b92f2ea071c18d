#!/usr/bin/env bash
# transformers 5.24.0: a hybrid model whose layers are all recurrent or convolutional is built without a word; its forward
# pass raises, unless use_cache=False is given. With one layer of attention anywhere it runs.
#
# use_cache is on by default, also in training. The forward pass then makes a cache of the configuration and asks it how
# many positions it holds; only layers of attention count those, and with none of them the cache refuses to answer, before
# anything was computed. Mamba and Mamba2, which have no attention by design, do not ask. An ablation of the attention
# layers, or a small model of one layer in a test, meets it.
#
# Seen on 2026-11-30, Python 3.11 ("refused": ValueError: `get_seq_length` can only be called on Attention layers, ...):
#   Jamba: no attention refused, no attention with use_cache=False runs, one layer of attention runs
#   Bamba: no attention refused, no attention with use_cache=False runs, one layer of attention runs
#   GraniteMoeHybrid: no attention refused, no attention with use_cache=False runs, one layer of attention runs
#   Qwen3Next: no attention refused, no attention with use_cache=False runs, one layer of attention runs
#   Lfm2: no attention refused, no attention with use_cache=False runs, one layer of attention runs
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > hybrids.py <<'PYTHON'
import torch
import transformers

SHARED = {
    **{"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2},
}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4}
JAMBA = {"num_experts": 1, "use_mamba_kernels": False, "attn_layer_period": 4}
QWEN = {
    **{"head_dim": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "mlp_only_layers": [0, 1]},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
GRANITE = {**MAMBA2, "num_local_experts": 0, "shared_intermediate_size": 16}
FAMILIES = {  # what both have, what one without attention has, what one with a layer of it has
    "Jamba": (JAMBA, {"attn_layer_offset": 3}, {"attn_layer_offset": 1}),
    "Bamba": (MAMBA2, {"attn_layer_indices": []}, {"attn_layer_indices": [1]}),
    "GraniteMoeHybrid": (GRANITE, {"layer_types": ["mamba"] * 2}, {"layer_types": ["mamba", "attention"]}),
    "Qwen3Next": (
        QWEN,
        {"layer_types": ["linear_attention"] * 2},
        {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "Lfm2": ({}, {"layer_types": ["conv"] * 2}, {"layer_types": ["conv", "full_attention"]}),
}


def outcome(name: str, settings: dict, **call) -> str:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHARED, **settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    try:
        assert model(input_ids=torch.arange(6)[None], **call).logits.isfinite().all()
    except ValueError as error:
        refused = "`get_seq_length` can only be called on Attention layers"
        return "refused" if str(error).startswith(refused) else str(error)
    return "runs"


for name, (shared, without, with_one) in FAMILIES.items():
    found = {
        "no attention": outcome(name, {**shared, **without}),
        "no attention with use_cache=False": outcome(name, {**shared, **without}, use_cache=False),
        "one layer of attention": outcome(name, {**shared, **with_one}),
    }
    print(f"{name}: {', '.join(f'{what} {how}' for what, how in found.items())}")
PYTHON
sed -n '/^# Seen on/,/^[^#]/s/^#   //p' "$script" > expected
TRANSFORMERS_VERBOSITY=error OMP_NUM_THREADS=1 venv/bin/python -W ignore hybrids.py | tee seen
diff expected seen
