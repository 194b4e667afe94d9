#!/usr/bin/env bash
# transformers 5.24.0 refuses a config.json in which a number that it types as float is written without a decimal point: `"final_logit_softcapping": 30` in a Gemma 4 is a
# StrictDataclassFieldValidationError, where 30.0 is read. JSON has one kind of number, and whatever rewrites the file in another language (JSON.stringify, jq, Go) drops the ".0".
#
# Fields that are typed as either (attention_dropout) may be whole, and so may what lies in tables (rope_theta). Needs python3 with venv. Exits 0 as long as that is as seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0

cat >read.py <<'P'
import json
from transformers import AutoConfig
from huggingface_hub.errors import StrictDataclassFieldValidationError

for text in ('"final_logit_softcapping": 30.0', '"final_logit_softcapping": 30', '"rms_norm_eps": 1', '"attention_dropout": 0'):
    open("config.json", "w").write('{"model_type": "gemma4_text", %s}' % text)
    try:
        AutoConfig.from_pretrained(".")
        print(text, "is read")
    except StrictDataclassFieldValidationError:
        print(text, "is refused")
P
HF_HUB_OFFLINE=1 py/bin/python read.py 2>/dev/null | tee got.txt
printf '%s\n' '"final_logit_softcapping": 30.0 is read' '"final_logit_softcapping": 30 is refused' '"rms_norm_eps": 1 is refused' '"attention_dropout": 0 is read' | diff - got.txt
echo "as described"
