#!/usr/bin/env bash
# transformers 5.24.0 computes other logits for a row of a LongRoPE model (Phi-3.5, Phi-4-mini) when a longer row is in its batch: the short or the long factors are
# chosen once for a batch, by its largest position, for all of its rows. Padding to a longer length is enough.
#
# So the loss of a row depends on what it is batched with, and an adapter trained on short rows next to long ones is served with factors that it never saw.
# Needs python3 with venv. Exits 0 as long as that is as seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0 numpy==2.4.6

cat >batch.py <<'P'
import torch
from transformers import Phi3Config, Phi3ForCausalLM

torch.manual_seed(0)
rope = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 4, long_factor=[4.0] * 4)
config = Phi3Config(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, pad_token_id=0,
    max_position_embeddings=128, original_max_position_embeddings=16, rope_parameters=rope,
)
model = Phi3ForCausalLM(config).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
row = torch.randint(1, 64, (1, 10))


def logits(width):
    """Of the row, padded on the right."""
    ids = torch.cat([row, torch.zeros(1, width - 10, dtype=row.dtype)], 1)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=(torch.arange(width) < 10)[None].long()).logits[0, :10]


alone = logits(10)
for width in (12, 16, 17, 30):
    far = (logits(width) - alone).abs().max().item()
    print(f"10 tokens padded to {width}: {'same' if far < 1e-4 else 'others'}")
P
py/bin/python batch.py 2>/dev/null | tee got.txt
printf '10 tokens padded to %s: %s\n' 12 same 16 same 17 others 30 others | diff - got.txt
echo "as described"
