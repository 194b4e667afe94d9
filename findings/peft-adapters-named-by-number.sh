#!/usr/bin/env bash
# PEFT 0.21.2: of several adapters with numbers for names, save_pretrained leaves layers out of each file, and says nothing. To tell an adapter's tensors it drops every key with another adapter's name in it as a part, and the parts of
# a key are also the numbers of layers: next to an adapter "1", the adapter "0" is written without layer 1. Any other name that is a part of a module's path ("mlp", "layers") does the same, where it leaves nothing at all. Whoever
# loads the file is warned of missing keys, and gets untrained factors there. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import re
import warnings

import peft
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, vocab_size=32)


def saved(*names):
    """The layers in each adapter's file, and what is warned of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        config = LoraConfig(r=2, target_modules=["q_proj"])
        model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
        model.save_pretrained("+".join(names))
    layers = {}
    for name in names:
        with safe_open(f"{'+'.join(names)}/{name}/adapter_model.safetensors", "pt") as file:
            layers[name] = sorted({int(re.search(r"layers\.(\d+)\.", key)[1]) for key in file.keys()})
    return layers, [str(of.message) for of in told if not issubclass(of.category, FutureWarning)]


print("peft", peft.__version__)
for names, want in (
    (("zero", "one", "two"), {"zero": [0, 1, 2, 3], "one": [0, 1, 2, 3], "two": [0, 1, 2, 3]}),
    (("0", "1", "2"), {"0": [0, 3], "1": [1, 3], "2": [2, 3]}),
    (("layers", "other"), {"layers": [0, 1, 2, 3], "other": []}),
):
    found, told = saved(*names)
    print(f"adapters {', '.join(names)}: layers {found}, warned of: {told}")
    assert found == want and not told
PYTHON
