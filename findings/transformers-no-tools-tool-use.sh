#!/usr/bin/env bash
# transformers 5.24.0 takes a model's template for chats with tools (tool_use, as Hermes 3 has one) also where tools is an empty list, and its default one only for None.
#
# So a row of a data set whose column of tools is [] for chats without any is trained in another prompt than a chat that is asked without tools is answered in, and the same chat, with
# and without the column, has other tokens.
# Needs python3 with venv (PyTorch is not needed). Exits 0 as long as that is as seen on 2026-11-30.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6

cat >tools.py <<'P'
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
tokenizer.chat_template = {
    "default": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
    "tool_use": "You may call: {{ tools }}. {% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
}
for tools in (None, []):
    print(tools, "|", tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tools=tools, tokenize=False))
P
HF_HUB_OFFLINE=1 py/bin/python tools.py 2>/dev/null | tee got.txt
printf '%s\n' "None | user: hi" "[] | You may call: []. user: hi" | diff - got.txt
echo "as described"
