#!/usr/bin/env bash
# transformers 5.24.0 gives the rope_theta of an OLMo 3 config.json to its full-attention layers alone: the sliding ones get 500000, whatever the file says, without a word.
# The configuration takes rope_theta out of its arguments for the first kind of layer, and finds none for the second.
#
# Needs python3 with venv. Exits 0 as long as that is as seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 numpy==2.4.6
py/bin/python - 2>/dev/null <<'P' | tee got.txt
from transformers import Olmo3Config

for kind, rope in sorted(Olmo3Config(rope_theta=10000.0).rope_parameters.items()):
    print(kind, rope["rope_theta"])
P
printf "%s\n" "full_attention 10000.0" "sliding_attention 500000.0" | diff - got.txt
echo "as described"
