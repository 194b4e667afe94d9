#!/usr/bin/env bash
# transformers 5.24.0: the same tokenizer.json and tokenizer_config.json ("tokenizer_class": "LlamaTokenizer") give other ids by model_type in
# config.json alone. For "llama" AutoTokenizer drops the file's normaliser and builds its own pre-tokenizer (" a" is one token); for "mistral"
# it takes the file as it stands (two tokens). And with a tokenizer.json "add_bos_token" in tokenizer_config.json is without effect.
# Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from transformers import AutoTokenizer, __version__

vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}
tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", fuse_unk=True))
tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])


def load(model_type, **more):
    folder = Path(f"{model_type}-{len(more)}")
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(folder)


ids = {name: load(name)(" a", add_special_tokens=False).input_ids for name in ("llama", "mistral")}
without = load("llama", add_bos_token=False)("a").input_ids
print("transformers", __version__, ids, "add_bos_token=false:", without)
assert ids == {"llama": [5], "mistral": [3, 5]}, ids
assert without == [1, 5], without
PYTHON
