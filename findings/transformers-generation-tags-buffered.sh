#!/usr/bin/env bash
# transformers 5.24.0: where a chat template has {% generation %} within a macro, a {% set %} block or a {% filter %} block, return_assistant_tokens_mask marks other tokens than the assistant's, and says nothing. A block's place is
# taken for the length of what the whole template has put out so far, and what a macro has written before the tag is not put out before the macro ends: the mask begins as many characters too early, at the turn's header, and misses the
# answer's end. A macro that is called within the tag is counted well. TRL's assistant_only_loss learns by this mask. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 jinja2==3.1.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/warnings.txt" <<'PYTHON'
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = Tokenizer(models.WordLevel({chr(code): code for code in range(128)}, unk_token="?"))
letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?")
messages = [
    {"role": "user", "content": "Is it?"},
    {"role": "assistant", "content": "Yes, it is."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "No."},
]
TURN = "<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %};"
TEMPLATES = {
    "plain": "{% for m in messages %}" + TURN + "{% endfor %}",
    "macro": "{% macro turn(m) %}" + TURN + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "set": "{% for m in messages %}{% set turn %}" + TURN + "{% endset %}{{ turn }}{% endfor %}",
    "filter": "{% for m in messages %}{% filter trim %}" + TURN + "{% endfilter %}{% endfor %}",
    "macro within": "{% macro text(m) %}{{ m.content }}{% endmacro %}{% for m in messages %}" + TURN.replace("{{ m.content }}{% endgen", "{{ text(m) }}{% endgen") + "{% endfor %}",
}
print("transformers", transformers.__version__)
learned, texts = {}, set()
for name, template in TEMPLATES.items():
    made = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
    texts.add("".join(map(chr, made["input_ids"])))
    spans = "".join(chr(token) if is_learned else "\0" for token, is_learned in zip(made["input_ids"], made["assistant_masks"]))
    learned[name] = [span for span in spans.split("\0") if span]
    print(f"{name}: learned is {learned[name]}")
assert len(texts) == 1
right, wrong = ["Yes, it is.", "No."], ["<assistant>", "<as"]
assert learned == {"plain": right, "macro": wrong, "set": wrong, "filter": wrong, "macro within": right}
PYTHON
grep -i "generation" "$folder/warnings.txt" && exit 1
echo "as described"
