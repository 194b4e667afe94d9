#!/usr/bin/env bash
# PEFT 0.21.2: a LoRA-GA adapter that is saved as it is does not come back. While it is trained, what it begins with is taken off the base weights, as for PiSSA;
# where the saved adapter is loaded, PiSSA's is computed and taken off again, LoRA-GA's is not (its gradients are gone), and nothing says so. Before
# the first step both add nothing to the base; loaded again, LoRA-GA's outputs are others (only path_initial_model_for_weight_conversion saves them).
# Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import warnings

import peft
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
heads = dict(num_attention_heads=4, num_key_value_heads=4)
LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=99, **heads)).save_pretrained("base")
load = lambda: LlamaForCausalLM.from_pretrained("base").eval()
ids = torch.randint(0, 99, (2, 12))


def farthest(init):
    """How far the outputs of a fresh adapter are from the base's, and those of the saved one from its own; what was warned of on loading it."""
    model = load()
    more = {"lora_ga_config": LoraGAConfig()} if init == "lora_ga" else {}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=init, **more)
    with torch.no_grad():
        base = model(ids).logits
    if init == "lora_ga":
        preprocess_loraga(model, config, lambda: model(ids, labels=ids).loss.backward())
    tuned = get_peft_model(model, config).eval()
    with torch.no_grad():
        own = tuned(ids).logits
    tuned.save_pretrained(init)
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        again = PeftModel.from_pretrained(load(), init).eval()(ids).logits
    return (own - base).abs().max().item(), (again - own).abs().max().item(), [str(of.message) for of in told]


print("peft", peft.__version__)
seen = {init: farthest(init) for init in ("pissa", "lora_ga")}
for init, (fresh, reloaded, told) in seen.items():
    print(f"{init}: {fresh:.1e} from the base, {reloaded:.1e} from itself when it is loaded again, warned of: {told}")
assert all(fresh < 1e-5 for fresh, _, _ in seen.values())
assert seen["pissa"][1] < 1e-5 and seen["lora_ga"][1] > 0.01
assert seen["lora_ga"][2] == seen["pissa"][2], "a warning of its own"
PYTHON
