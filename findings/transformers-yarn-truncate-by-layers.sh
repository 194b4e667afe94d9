#!/usr/bin/env bash
# transformers 5.24.0 does not read YaRN's truncate of a rope that layers have by kind: it looks for it next to the tables, not within, where all other keys of the rope are,
# and where its validation allows it. A model such as OLMo 3 or Gemma 3 with gpt-oss' `truncate: false` in its full layers' table computes other angles than that says, without a word.
#
# Needs python3 with venv. Exits 0 as long as that is as seen on 2026-11-30.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0 numpy==2.4.6

cat >truncate.py <<'P'
from transformers import Gemma3TextConfig, GptOssConfig, Olmo3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

SIZES = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2, max_position_embeddings=64)
KINDS = dict(layer_types=["sliding_attention", "full_attention"])
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=1.0)


def by_kind(full, **outside):
    return dict(full_attention=full, sliding_attention=dict(rope_type="default", rope_theta=90.0)) | outside


def second(kind, config, rotary):
    """The second frequency, which the two ways give other values."""
    return round(getattr(rotary(config), kind + "inv_freq")[1].item(), 4)


one = [second("", GptOssConfig(**SIZES, head_dim=16, rope_parameters=YARN | dict(truncate=cut)), GptOssRotaryEmbedding) for cut in (True, False)]
print("one table:", *one)
for name, config, rotary in (("OLMo 3", Olmo3Config, Olmo3RotaryEmbedding), ("Gemma 3", lambda **of: Gemma3TextConfig(**of, head_dim=16), Gemma3RotaryEmbedding)):
    ropes = by_kind(dict(YARN)), by_kind(YARN | dict(truncate=False)), by_kind(dict(YARN), truncate=False)
    print(f"{name}, truncated, not within, not outside:", *(second("full_attention_", config(**SIZES, **KINDS, rope_parameters=rope), rotary) for rope in ropes))
P
py/bin/python truncate.py 2>said.txt | tee got.txt
cat >want.txt <<'W'
one table: 0.2874 0.1732
OLMo 3, truncated, not within, not outside: 0.2874 0.2874 0.1732
Gemma 3, truncated, not within, not outside: 0.2874 0.2874 0.1732
W
diff want.txt got.txt
if grep -i "truncate" said.txt | grep -iv "unrecognized"; then echo "it says something of it now"; exit 1; fi
echo "as described"
