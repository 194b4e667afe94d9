#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: an adapter with a LoRA for each expert of a Mixtral (experts.3.w1.lora_A, as vLLM reads them) is loaded with the config's own rank and alpha, doubled for
# w1 and w3 together. alpha_pattern does not reach experts, which no warning says; rank_pattern ends in an error of sizes; and with use_rslora the scale of w1 and w3 is 2 alpha / sqrt(2 r), which is
# sqrt(2) times alpha / sqrt(r). mlora writes adapters in such experts without rslora, and with the experts' rank and alpha as the config's own where they have one. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.15.0
cd "$folder"
cat >patterns.py <<'PYTHON'
import json
import math
import warnings

import peft
import torch
import transformers
from safetensors.torch import save_file

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
EXPERTS, WIDE, RANK = 4, 24, 2
sizes = dict(hidden_size=32, intermediate_size=WIDE, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
config = transformers.MixtralConfig(vocab_size=64, num_local_experts=EXPERTS, num_experts_per_tok=2, **sizes)
torch.manual_seed(0)
weights = transformers.MixtralForCausalLM(config).state_dict()
at = "base_model.model.model.layers.0.block_sparse_moe.experts."
factors = {}
for expert in range(EXPERTS):
    for name, wide, out in (("w1", 32, WIDE), ("w3", 32, WIDE), ("w2", WIDE, 32)):
        factors[f"{at}{expert}.{name}.lora_A.weight"] = torch.randn(RANK, wide) / 4
        factors[f"{at}{expert}.{name}.lora_B.weight"] = torch.randn(out, RANK) / 4
save_file(factors, "adapter_model.safetensors")
ids = torch.arange(1, 30)[None]


def model():
    fresh = transformers.MixtralForCausalLM(config)
    fresh.load_state_dict(weights)
    return fresh.eval()


def logits(scales):
    """Of the merged weights, each with its scale."""
    merged = {name: value.clone() for name, value in weights.items()}
    for expert in range(EXPERTS):
        of = lambda name: factors[f"{at}{expert}.{name}.lora_B.weight"] @ factors[f"{at}{expert}.{name}.lora_A.weight"] * scales[name]  # noqa: E731, B023
        merged["model.layers.0.mlp.experts.gate_up_proj"][expert] += torch.cat([of("w1"), of("w3")])
        merged["model.layers.0.mlp.experts.down_proj"][expert] += of("w2")
    whole = model()
    whole.load_state_dict(merged)
    return whole(ids).logits


def loaded(**more):
    written = dict(peft_type="LORA", task_type="CAUSAL_LM", r=RANK, lora_alpha=6, target_modules=["w1", "w3", "w2"], **more)
    with open("adapter_config.json", "w") as file:
        json.dump(written, file)
    return peft.PeftModel.from_pretrained(model(), ".").eval()(ids).logits


@torch.no_grad()
def main():
    near = lambda got, scales: bool((got - logits(scales)).abs().max() < 1e-5)  # noqa: E731
    same = dict(w1=3.0, w3=3.0, w2=3.0)
    print("peft", peft.__version__, "transformers", transformers.__version__)
    print("one rank, one alpha:", near(loaded(), same))
    patterns = loaded(alpha_pattern={"w1": 2, "w2": 1})
    print("alpha_pattern reaches experts:", near(patterns, dict(w1=1.0, w3=3.0, w2=0.5)), "it is passed over:", near(patterns, same))
    rooted = loaded(use_rslora=True)
    scale = 6 / math.sqrt(RANK)
    print("rslora as said:", near(rooted, dict(w1=scale, w3=scale, w2=scale)), "sqrt(2) too much:", near(rooted, dict(w1=scale * 2**0.5, w3=scale * 2**0.5, w2=scale)))
    cut = {name: value if ".w2." not in name else value[:1] if "lora_A" in name else value[:, :1].contiguous() for name, value in factors.items()}
    save_file(cut, "adapter_model.safetensors")
    try:
        loaded(rank_pattern={"w2": 1})
        print("rank_pattern reaches experts")
    except RuntimeError as error:
        print("rank_pattern: an error of sizes:", "size mismatch" in str(error))


main()
PYTHON
HF_HUB_OFFLINE=1 venv/bin/python patterns.py 2>/dev/null | tee got.txt
cat >want.txt <<'W'
peft 0.21.2 transformers 5.24.0
one rank, one alpha: True
alpha_pattern reaches experts: False it is passed over: True
rslora as said: False sqrt(2) too much: True
rank_pattern: an error of sizes: True
W
diff want.txt got.txt
echo "as described"
