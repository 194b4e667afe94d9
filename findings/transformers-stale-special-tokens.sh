#!/usr/bin/env bash
# transformers 5.24.0: a tokenizer that is saved where transformers 4 has saved it before does not come back with its new end mark. Version 5 no longer writes special_tokens_map.json and leaves the old one where it lies; it no longer
# writes added_tokens_decoder into tokenizer_config.json either, and where that is missing it takes the special tokens from special_tokens_map.json, over those of tokenizer_config.json. So who loads a model's folder, sets eos_token or
# pad_token and saves to the same folder has the old ones again at the next load; nothing is said. Saved to an empty folder they come back. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 4.57.6 5.24.0; do
  python3 -m venv "$version"
  "$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
export HF_HUB_OFFLINE=1
4.57.6/bin/python - 2>said4.txt <<'PYTHON'
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

letters = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
tokenizer.save_pretrained("model")
PYTHON
5.24.0/bin/python - 2>said5.txt <<'PYTHON'
import json
import os

import transformers
from transformers import AutoTokenizer

print("transformers", transformers.__version__)
tokenizer = AutoTokenizer.from_pretrained("model")
tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
found = {}
for folder in ("model", "empty"):
    tokenizer.save_pretrained(folder)
    with open(f"{folder}/tokenizer_config.json") as file:
        config = json.load(file)
    again = AutoTokenizer.from_pretrained(folder)
    found[folder] = (config["eos_token"], again.eos_token, again.pad_token, os.path.exists(f"{folder}/special_tokens_map.json"))
    print(f"{folder}: tokenizer_config.json says {found[folder][0]}, loaded are {found[folder][1:3]}, special_tokens_map.json is there: {found[folder][3]}")
assert found == {"model": ("<|im_end|>", "</s>", "</s>", True), "empty": ("<|im_end|>", "<|im_end|>", "<|im_end|>", False)}
PYTHON
if grep -i "special_tokens_map\|eos" said5.txt; then echo "it says so now"; exit 1; fi
