#!/usr/bin/env bash
# transformers 5.24.0 loads a Llama 3.1 or 3.2 from GGUF without its rope scaling, and says nothing.
#
# llama.cpp's converter writes the scaling of a llama3 rope as a tensor, rope_freqs.weight: what each frequency is divided by. transformers reads sizes and
# rope.freq_base from the metadata, knows no such tensor, drops it (of other surplus tensors it also says nothing), and builds the default rope: angles of far
# positions are up to 8 or 32 times those that the model was trained with. rms_norm_eps comes as 9.999999747378752e-06, the f32 that the file holds.
# Needs python3 with venv. Exits 0 as long as that is as seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0 gguf==0.19.0 accelerate==1.15.0 numpy==2.4.6

cat >rope.py <<'P'
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

rope = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=32)
config = LlamaConfig(**sizes, max_position_embeddings=131072, rope_parameters=rope, rms_norm_eps=1e-5)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config).float()
base = 1.0 / 500000.0 ** (torch.arange(0, 32, 2) / 32)
factors = (base / model.model.rotary_emb.inv_freq).float()  # what convert_hf_to_gguf.py computes from the same formula

writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_context_length(131072)
writer.add_embedding_length(64)
writer.add_block_count(1)
writer.add_feed_forward_length(96)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_rope_dimension_count(32)
writer.add_rope_freq_base(500000.0)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(32)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for name, tensor in model.state_dict().items():
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        tensor = tensor.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(64, 64)
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
writer.add_tensor("rope_freqs.weight", factors.numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

loaded = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32)
same = all(torch.equal(model.state_dict()[name], tensor) for name, tensor in loaded.state_dict().items())
ratio = (loaded.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq).max()
print(f"weights the same: {same}; rope {loaded.config.rope_parameters['rope_type']}, frequencies up to {ratio:.1f} times the model's")
P
HF_HUB_OFFLINE=1 py/bin/python rope.py 2>warnings.txt | tee got.txt
echo "weights the same: True; rope default, frequencies up to 8.0 times the model's" | diff - got.txt
if grep -i "rope" warnings.txt; then echo "it says so now"; exit 1; fi
echo "as described"
