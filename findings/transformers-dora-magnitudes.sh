#!/usr/bin/env bash
# transformers 5.24.0 with PEFT 0.21.2: a DoRA adapter that is loaded by transformers itself (AutoModelForCausalLM.from_pretrained of the adapter's folder, or model.load_adapter) has none of its trained magnitudes. PEFT
# writes them as `lora_magnitude_vector`, without ".weight", and PeftModel.from_pretrained gives the ending back; transformers does not, so that A and B are the file's and each magnitude is the norm of the base model's rows,
# as before training. Nothing is raised: the table of loaded keys calls them UNEXPECTED and MISSING, and the model computes another function. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 peft==0.21.2 torch==2.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - 2>warnings.txt <<'PYTHON'
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=48)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("base")
ids = torch.arange(10)[None]


def base():
    return AutoModelForCausalLM.from_pretrained("base")


@torch.no_grad()
def logits(model):
    return model.eval()(ids).logits


def by_load_adapter():
    model = base()
    model.load_adapter(name)
    return model


print("transformers", transformers.__version__, "peft", peft.__version__)
differ = {}
for name, is_dora in (("lora", False), ("dora", True)):
    model = get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], use_dora=is_dora))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.3 * torch.randn_like(parameter)
    want = logits(model)
    model.save_pretrained(name)
    loaded = {"PeftModel": PeftModel.from_pretrained(base(), name), "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained(name), "load_adapter": by_load_adapter()}
    for way, other in loaded.items():
        differ[name, way] = ((logits(other) - want).norm() / want.norm()).item()
        print(f"{name} by {way}: logits differ by {differ[name, way]:.0e} of their norm")
of = "model.layers.0.self_attn.q_proj."
weights = dict(loaded["load_adapter"].named_parameters())
untrained = weights[of + "base_layer.weight"].norm(dim=1)
print("its magnitudes are the base model's:", torch.allclose(weights[of + "lora_magnitude_vector.default.weight"], untrained))
for (name, way), by in differ.items():
    assert by > 0.01 if name == "dora" and way != "PeftModel" else by < 1e-5
assert torch.allclose(weights[of + "lora_magnitude_vector.default.weight"], untrained)
PYTHON
