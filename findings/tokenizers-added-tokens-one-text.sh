#!/usr/bin/env bash
# Hugging Face's tokenizers (Python 0.23.3): two added tokens that the normaliser makes one text of, such as "US" and "us" of a tokenizer that lower-cases, share that text by chance. Both have ids and both are looked for in the
# normalised text (normalized=True, which is the default of add_tokens), but which id the text gets is decided anew each time the tokenizer is loaded: by the order of a hash map (refresh_added_tokens). The same tokenizer.json, the same process and the
# same text give either, so that a model is trained with one id and served with the other. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from collections import Counter

import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

print("tokenizers", tokenizers.__version__)


def counts(normaliser, tokens, text):
    """How often 200 loads of one file give which ids."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "in": 1, "the": 2}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normaliser, pre_tokenizers.Whitespace()
    made.add_tokens([AddedToken(token, normalized=True) for token in tokens])
    file = made.to_str()
    return Counter(str(Tokenizer.from_str(file).encode(text).ids) for _ in range(200))


cases = {
    "lower case": (normalizers.Lowercase(), ["US", "us"], "in the US"),
    "NFC": (normalizers.NFC(), ["\u00e9", "e\u0301"], "in the \u00e9"),
    "no normaliser": (None, ["US", "us"], "in the US"),
}
for name, case in cases.items():
    found = counts(*case)
    print(f"{name}, added {case[1]}: {case[2]!r} is {dict(found)}")
    # A fair coin falls on one side 200 times running once in 2^199.
    assert len(found) == (1 if case[0] is None else 2)
PYTHON
