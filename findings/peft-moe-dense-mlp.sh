#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: on a Qwen3-MoE with a dense layer (mlp_only_layers), target_modules with gate_proj, up_proj and down_proj means the experts alone. The names
# are taken off target_modules and become target_parameters, so that the dense layer's linears of these very names, nn.Linear as ever, get no adapter, and no warning names them; a whole path of
# one of them is taken for experts, too. "all-linear" trains the router as well. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import warnings

import peft
import transformers

MLP = ["gate_proj", "up_proj", "down_proj"]
sizes = dict(hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
config = transformers.Qwen3MoeConfig(vocab_size=64, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1], **sizes)


def adapted(targets):
    """The modules with an adapter, and what was warned of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = peft.get_peft_model(transformers.Qwen3MoeForCausalLM(config), peft.LoraConfig(r=2, target_modules=targets))
    names = {name.split(".lora_A.")[0].removeprefix("base_model.model.") for name, _ in model.named_parameters() if ".lora_A." in name}
    return names, [str(of.message) for of in told]


print("peft", peft.__version__, "transformers", transformers.__version__)
for targets in (["q_proj", *MLP], ["q_proj", *(f"model.layers.1.mlp.{name}" for name in MLP)]):
    names, told = adapted(targets)
    dense = sorted(name for name in names if name.startswith("model.layers.1.mlp"))
    experts = sorted(name for name in names if ".mlp.experts" in name)
    print(targets, "->", f"dense MLP: {dense}, experts: {experts}, warned of: {told}")
    assert dense == [] and experts and not any("layers.1" in text for text in told)
routers = sorted(name for name in adapted("all-linear")[0] if name.endswith("mlp.gate"))
print("all-linear ->", "routers:", routers)
assert routers == ["model.layers.0.mlp.gate"]
PYTHON
