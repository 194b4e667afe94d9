#!/usr/bin/env bash
# transformers 5.24.0 passes over a rope_scaling of type "linear" of Gemma 3 and OLMo 3 where the type is called `type`, as older files have it.
#
# For most models `type` is taken where there is no rope_type. These two put rope_scaling over a table of the full layers that has a rope_type of "default" already, so that the model has no
# scaling at all: its positions are those of the unscaled rope, and nothing is said. With `rope_type` it is as it looks. mlora refuses the config and names the key.
# Needs python3 with venv (PyTorch is not needed). Fails when that is not as seen on 2026-12-01.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0

cat >type.py <<'P'
import json
import os
import tempfile

from transformers import AutoConfig

for model in ("llama", "gemma3_text", "olmo3"):
    for key in ("type", "rope_type"):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "config.json"), "w") as file:
                json.dump({"model_type": model, "rope_theta": 1e6, "rope_scaling": {key: "linear", "factor": 8.0}}, file)
            ropes = AutoConfig.from_pretrained(folder).rope_parameters
        rope = ropes.get("full_attention", ropes)
        print(f"{model}: {key} linear is read as {rope['rope_type']}")
P
HF_HUB_OFFLINE=1 py/bin/python type.py 2>warnings.txt | tee got.txt
cat >want.txt <<'W'
llama: type linear is read as linear
llama: rope_type linear is read as linear
gemma3_text: type linear is read as default
gemma3_text: rope_type linear is read as linear
olmo3: type linear is read as default
olmo3: rope_type linear is read as linear
W
diff want.txt got.txt
if grep -E "linear|passed over" warnings.txt; then echo "it says so now"; exit 1; fi
echo "as described"
