#!/usr/bin/env bash
# transformers 5.24.0 takes the original positions of a llama3 rope from outside its table before those within, but only once a model is built;
# and rope_scaling before rope_parameters. Neither is told.
#
# A config.json may say both things twice: transformers 4 wrote rope_scaling, 5 writes rope_parameters, and some models keep
# original_max_position_embeddings beside max_position_embeddings. A config that was read has the number within the table; the rotary embedding of
# a model that is built from it (modeling_rope_utils, _compute_llama3_parameters) standardises the config again, and then the number outside counts
# and the config has changed. So who looks at the config, or reads the table alone, computes other angles than the model.
# Needs python3 with venv (PyTorch is not needed: the config is standardised as a model does it). Fails when that is not as seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0

cat >rope.py <<'P'
import inspect, json, os, tempfile
from transformers import AutoConfig, modeling_rope_utils

assert "config.standardize_rope_params()" in inspect.getsource(modeling_rope_utils._compute_llama3_parameters)
BASE = dict(model_type="llama", max_position_embeddings=4096, rope_theta=500000.0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
ORIGINAL = "original_max_position_embeddings"
CASES = {
    "within alone": {"rope_scaling": LLAMA3 | {ORIGINAL: 1024}},
    "1024 within, 2048 outside": {"rope_scaling": LLAMA3 | {ORIGINAL: 1024}, ORIGINAL: 2048},
    "rope_parameters linear, rope_scaling llama3": {
        "rope_parameters": dict(rope_type="linear", factor=2.0),
        "rope_scaling": LLAMA3 | {ORIGINAL: 1024},
    },
}
for name, keys in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(BASE | keys, file)
        config = AutoConfig.from_pretrained(folder)
    read = dict(config.rope_parameters)
    config.standardize_rope_params()
    built = config.rope_parameters
    print(f"{name}: read as {read['rope_type']} of {read.get(ORIGINAL)}, built as {built['rope_type']} of {built.get(ORIGINAL)}")
P
HF_HUB_OFFLINE=1 py/bin/python rope.py 2>warnings.txt | tee got.txt
cat >want.txt <<'W'
within alone: read as llama3 of 1024, built as llama3 of 1024
1024 within, 2048 outside: read as llama3 of 1024, built as llama3 of 2048
rope_parameters linear, rope_scaling llama3: read as llama3 of 1024, built as llama3 of 1024
W
diff want.txt got.txt
if grep -E "1024|2048|linear" warnings.txt; then echo "it says so now"; exit 1; fi
echo "as described"
