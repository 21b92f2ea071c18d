#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0: LoRA on dt_proj of Mamba, FalconMamba and Jamba is accepted and does nothing: it gets
# no gradient and leaves the output as it is. merge_and_unload() then puts it in, and the output changes.
#
# peft's layer answers .weight with the weight of the layer it wraps, and these models multiply by dt_proj.weight instead of
# calling dt_proj. peft refuses out_proj and conv1d of some of these families, for the sake of the fused kernels; dt_proj is
# not among the refused. With other targets beside it, or "all-linear", nothing is said; as the only target, backward
# finds nothing that needs a gradient. An adapter that was trained otherwise, or not initialised to nothing, is one model
# before and another after merging.
#
# Seen on 2026-11-30, Python 3.11, without fused kernels, float64, adapters of random numbers:
#   Mamba, gradients: in_proj yes, x_proj yes, dt_proj no, out_proj refused
#   Mamba, dt_proj alone: adapter changes the output no, merging changes it yes
#   Mamba, x_proj alone: adapter changes the output yes, merging changes it no
#   FalconMamba, gradients: in_proj yes, x_proj yes, dt_proj no, out_proj refused
#   FalconMamba, dt_proj alone: adapter changes the output no, merging changes it yes
#   FalconMamba, x_proj alone: adapter changes the output yes, merging changes it no
#   Jamba, gradients: in_proj yes, x_proj yes, dt_proj no, out_proj yes
#   Jamba, dt_proj alone: adapter changes the output no, merging changes it yes
#   Jamba, x_proj alone: adapter changes the output yes, merging changes it no
#
# peft's issues 1612 and 2274 and pull request 2562 are on the kernels; here plain torch leaves it out.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
cat > adapt.py <<'PYTHON'
import torch
import transformers
from peft import LoraConfig, get_peft_model

LAYERS = ("in_proj", "x_proj", "dt_proj", "out_proj")
SHARED = {"vocab_size": 16, "hidden_size": 16}
MAMBA = {"num_hidden_layers": 1, "state_size": 4, "time_step_rank": 2}
JAMBA = {
    **{"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "intermediate_size": 16},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 1, "use_mamba_kernels": False},
    **{"mamba_dt_rank": 2, "mamba_d_state": 4},
}
FAMILIES = {"Mamba": MAMBA, "FalconMamba": MAMBA, "Jamba": JAMBA}
ids = torch.arange(8)[None]


def adapted(family: str, layers: list[str]):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHARED, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).double()
    lora = LoraConfig(r=2, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, lora).double()


def refused(family: str, layer: str) -> bool:
    try:
        adapted(family, [layer])
    except ValueError as error:
        assert f"Module '{layer}' is incompatible" in str(error)
        return True
    return False


def yes(answer: bool) -> str:
    return "yes" if answer else "no"


for family in FAMILIES:
    taken = [layer for layer in LAYERS if not refused(family, layer)]
    model = adapted(family, taken).train()
    model(input_ids=ids, labels=ids).loss.backward()
    answers = dict.fromkeys(LAYERS, "refused")
    for layer in taken:
        own = [p.grad is not None for name, p in model.named_parameters() if f".{layer}.lora_" in name]
        assert len(own) == 2 and len(set(own)) == 1
        answers[layer] = yes(own[0])
    print(f"{family}, gradients: {', '.join(f'{layer} {answer}' for layer, answer in answers.items())}")
    for layer in ("dt_proj", "x_proj"):
        model = adapted(family, [layer]).eval()
        with torch.no_grad():
            on = model(input_ids=ids).logits
            with model.disable_adapter():
                off = model(input_ids=ids).logits
            merged = model.merge_and_unload()(input_ids=ids).logits
        changes, differs = (not torch.allclose(other, on, rtol=0, atol=1e-12) for other in (off, merged))
        print(f"{family}, {layer} alone: adapter changes the output {yes(changes)}, merging changes it {yes(differs)}")
PYTHON
sed -n '/^# Seen on/,/^#$/s/^#   //p' "$script" > expected
TRANSFORMERS_VERBOSITY=error OMP_NUM_THREADS=1 venv/bin/python -W ignore adapt.py | tee seen
diff expected seen
