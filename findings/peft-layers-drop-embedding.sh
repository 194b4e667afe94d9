#!/usr/bin/env bash
# PEFT 0.21.2: with layers_to_transform a module without a layer is left out of target_modules without a word, unless it is named by its whole path. So
# target_modules ["q_proj", "embed_tokens", "lm_head"] with layers_to_transform [0] trains the head, whose path is its name, and not the embedding, whose path
# is model.embed_tokens; nothing warns of it, and the saved config still names both.
# Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
import warnings

import peft
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)


def adapted(targets, layers):
    """The modules that get factors, and what is warned of them."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), LoraConfig(r=2, target_modules=targets, layers_to_transform=layers))
    names = {name.split(".lora_")[0].removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    return sorted(names), [str(of.message) for of in told if "embed" in str(of.message) or "layers_to" in str(of.message)]


print("peft", peft.__version__)
q = "model.layers.0.self_attn.q_proj"
for targets, layers, want in (
    (["q_proj", "embed_tokens", "lm_head"], None, ["lm_head", "model.embed_tokens", q, q.replace("0", "1")]),
    (["q_proj", "embed_tokens", "lm_head"], [0], ["lm_head", q]),
    (["q_proj", "model.embed_tokens", "lm_head"], [0], ["lm_head", "model.embed_tokens", q]),
):
    found, told = adapted(targets, layers)
    print(f"target_modules {targets}, layers_to_transform {layers}: {found}, warned of: {told}")
    if found != want or told:
        sys.exit("this has changed")
PYTHON
