#!/usr/bin/env bash
# transformers 5.24.0 dequantises FP8 weights with blocks of a size that it guesses from the number of scales, not with weight_block_size of config.json: where the
# last block is not full, it takes other scales, silently, or refuses the weight.
#
# A weight of 192 rows in blocks of 128 has 2 rows of scales, for rows 0 to 127 and 128 to 191; Fp8Dequantize divides 192 by 2 and gives rows 96 to 127 the second.
# It is what loads such a model on a CPU, and on GPUs before Ada (dequantize=True by default there). With 320 rows (3 rows of scales) it raises a ValueError.
# The backward pass of the same file (_dequantize_fp8_weight) has it right. Needs python3 with venv. Exits 0 as long as that is as seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 numpy==2.4.6

cat >fp8.py <<'P'
import json, os
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

torch.manual_seed(0)
for wide in (256, 192, 320):
    sizes = dict(hidden_size=128, intermediate_size=wide, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=32)
    config = LlamaConfig(**sizes, tie_word_embeddings=True)
    tensors, values = {}, {}
    for name, weight in AutoModelForCausalLM.from_config(config).float().state_dict().items():
        if name == "lm_head.weight":
            continue
        tensors[name] = weight.bfloat16()
        if name.endswith("_proj.weight"):
            grid = [-(-size // 128) for size in weight.shape]
            scales = torch.rand(grid) + 0.5
            tensors[name] = weight.to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scales
            values[name] = _dequantize_fp8_weight(tensors[name], scales, [128, 128], torch.float32)
    os.makedirs(f"{wide}")
    save_file(tensors, f"{wide}/model.safetensors", {"format": "pt"})
    keys = config.to_dict() | dict(architectures=["LlamaForCausalLM"], quantization_config=dict(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128]))
    json.dump(keys, open(f"{wide}/config.json", "w"))
    try:
        loaded = AutoModelForCausalLM.from_pretrained(f"{wide}", dtype=torch.float32).state_dict()
        name = "model.layers.0.mlp.up_proj.weight"
        off = [row for row in range(wide) if not torch.equal(loaded[name][row], values[name][row])]
        print(f"{wide} rows: " + ("all right" if not off else f"{len(off)} with other values, from row {off[0]} to {off[-1]}"))
    except Exception as error:
        print(f"{wide} rows: refused")
P
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= py/bin/python fp8.py 2>warnings.txt | tee got.txt
diff - got.txt <<'W'
256 rows: all right
192 rows: 32 with other values, from row 96 to 127
320 rows: refused
W
echo "as described"
