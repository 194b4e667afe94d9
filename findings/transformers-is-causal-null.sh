#!/usr/bin/env bash
# transformers 5.24.0 makes an encoder of any causal language model whose config.json has is_causal false, without a word: tokens see those after them. With null it does so by "eager" attention alone.
#
# masking_utils asks for the key of whatever config it is given, and null counts as false; attention by PyTorch's sdpa then takes the layer's own is_causal for null. A loss of such a model falls to nothing in training, since each token's target is among what it sees.
# mlora refuses both. Needs python3 with venv, and 7 GB for PyTorch. Fails when that is not as seen on 2026-12-01.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0

cat >causal.py <<'P'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=16)
CASES = [({}, "sdpa"), ({"is_causal": False}, "sdpa"), ({"is_causal": False}, "eager"), ({"is_causal": None}, "sdpa"), ({"is_causal": None}, "eager")]
for keys, attention in CASES:
    torch.manual_seed(1)
    model = LlamaForCausalLM._from_config(LlamaConfig(**SIZES, **keys), attn_implementation=attention).eval()
    with torch.no_grad():
        first, other = (model(input_ids=torch.tensor([[3, 4, last]])).logits[0, 0] for last in (5, 6))
    print(keys, attention, "sees the last token from the first:", not torch.equal(first, other))
P
HF_HUB_OFFLINE=1 py/bin/python causal.py 2>warnings.txt | tee got.txt
cat >want.txt <<'W'
{} sdpa sees the last token from the first: False
{'is_causal': False} sdpa sees the last token from the first: True
{'is_causal': False} eager sees the last token from the first: True
{'is_causal': None} sdpa sees the last token from the first: False
{'is_causal': None} eager sees the last token from the first: True
W
diff want.txt got.txt
if grep -i causal warnings.txt; then echo "it says so now"; exit 1; fi
echo "as described"
