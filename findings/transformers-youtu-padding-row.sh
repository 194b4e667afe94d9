#!/usr/bin/env bash
# transformers 5.24.0 sets the embedding's row of the padding token to 0 when it loads a Youtu-LLM, whatever the files hold. The head is tied to it, so that this token's logit is 0 at every position.
#
# YoutuPreTrainedModel._init_weights zeroes `module.weight.data[padding_idx]`: of a slice the mark of a loaded weight is not seen, which spares it elsewhere. Llama keeps its row. A model whose
# padding is another token's id, such as the end's, loses that token. mlora reads the row of the files.
# Needs python3 with venv, and 7 GB for PyTorch. Fails when that is not as seen on 2026-12-01.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0

cat >padding.py <<'P'
import tempfile

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, YoutuConfig, YoutuForCausalLM

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=16, pad_token_id=1, tie_word_embeddings=True)
LATENTS = dict(q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
NAME = "model.embed_tokens.weight"
for made, config in ((LlamaForCausalLM, LlamaConfig(**SIZES)), (YoutuForCausalLM, YoutuConfig(**SIZES, **LATENTS))):
    model = made(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(0.5)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        stored, loaded = load_file(f"{folder}/model.safetensors")[NAME], made.from_pretrained(folder).state_dict()[NAME]
    print(f"{made.__name__}: stored {stored[:3, 0].tolist()}, loaded {loaded[:3, 0].tolist()}")
P
HF_HUB_OFFLINE=1 py/bin/python padding.py 2>/dev/null | tee got.txt
cat >want.txt <<'W'
LlamaForCausalLM: stored [0.5, 0.5, 0.5], loaded [0.5, 0.5, 0.5]
YoutuForCausalLM: stored [0.5, 0.5, 0.5], loaded [0.5, 0.0, 0.5]
W
diff want.txt got.txt
echo "as described"
