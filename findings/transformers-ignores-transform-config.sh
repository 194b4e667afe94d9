#!/usr/bin/env bash
# transformers 5.24.0 with compressed-tensors 0.20.1: a quantised model with a transform_config (llm-compressor's QuIP and SpinQuant write one) is loaded without its transforms. Weights are stored rotated, and what they are multiplied
# with is to be rotated as it comes; transformers gives the key on to a configuration that has no such field, and compressed-tensors asks for it in a place where transformers never puts it. The model computes another function, with
# dequantize=True as well; all that is said is that a tensor of the file is UNEXPECTED and "can be ignored". Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 compressed-tensors==0.20.1 torch==2.15.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - 2>said.txt <<'PYTHON'
import json
from pathlib import Path

import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, QuantizationStatus, apply_quantization_config
from compressed_tensors.transform import TransformArgs, TransformConfig, TransformScheme, apply_transform_config
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
ids = torch.arange(12)[None]


@torch.no_grad()
def logits(model):
    return model.eval()(ids).logits


def write(folder, is_rotated):
    """A model of FP8 weights in the library's own way of writing one; what it computes before it is written."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    plain = logits(model)
    if is_rotated:
        down = dict(targets=["re:.*down_proj$"])
        pair = [TransformArgs(location="input", **down), TransformArgs(location="weight_input", inverse=True, **down)]
        apply_transform_config(model, TransformConfig(config_groups={"R4": TransformScheme(type="hadamard", apply=pair)}))
    assert torch.allclose(logits(model), plain, atol=1e-5)
    weights = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.abs().amax(1, keepdim=True) / 448
            module.quantization_status = QuantizationStatus.FROZEN
    want = logits(model)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return want


print("transformers", transformers.__version__, "compressed-tensors", compressed_tensors.__version__)
for folder, is_rotated in (("plain", False), ("rotated", True)):
    want = write(folder, is_rotated)
    config = json.loads(Path(folder, "config.json").read_text())["quantization_config"]
    print(f"{folder}: transform_config has {list(config['transform_config'].get('config_groups', {}))}")
    for how in ({}, {"quantization_config": CompressedTensorsConfig(dequantize=True)}):
        got = logits(AutoModelForCausalLM.from_pretrained(folder, **how))
        apart = ((got - want).norm() / want.norm()).item()
        print(f"  loaded{' and dequantised' if how else ''}: logits differ by {apart:.2f} of their norm")
        assert apart > 0.1 if is_rotated else apart < 1e-3
PYTHON
grep -o "R4_input.weight | UNEXPECTED" said.txt | sort -u
if grep -i "transform_config\|hadamard" said.txt; then echo "it says so now"; exit 1; fi
