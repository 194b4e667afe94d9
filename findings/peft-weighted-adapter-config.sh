#!/usr/bin/env bash
# PEFT 0.21.2: add_weighted_adapter gives the new adapter the first one's settings, and not what they mean for it. Factors are combined with their scales in them, for a scale of 1 (lora_alpha = r); with use_rslora, which is kept, the
# scale is sqrt(r): a combination of rsLoRA adapters is 4 times too strong at rank 16, by "cat", "svd" and "linear" alike. With init_lora_weights "pissa", kept too, the new adapter's own beginning is taken off the base model's
# weights, which all adapters share: the one that it was made of computes something else from then on. Neither is told. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.15.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)


def combined(way, **settings):
    """An adapter, and its combination with nothing at a weight of 1: how strong it is, what became of the base, what is warned of."""
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj"], **settings), "one")
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn_like(parameter)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    base = layer.base_layer.weight.clone()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.add_weighted_adapter(["one"], [1.0], "two", combination_type=way)
    strength = layer.get_delta_weight("two").norm() / layer.get_delta_weight("one").norm()
    moved = (layer.base_layer.weight - base).norm() / base.norm()
    return strength.item(), moved.item(), [str(of.message) for of in told if "deprecated" not in str(of.message)]


print("peft", peft.__version__)
for way in ("cat", "svd", "linear"):
    for settings, strength_is, moves in (({}, 1, False), (dict(use_rslora=True), 4, False), (dict(init_lora_weights="pissa"), 1, True)):
        strength, moved, told = combined(way, **settings)
        print(f"{way} of {settings or 'a LoRA'}: {strength:.3f} times as strong, the base model moved by {moved:.3f}, warned of: {told}")
        assert abs(strength - strength_is) < 1e-3 and (moved > 0.1) == moves and not told
PYTHON
