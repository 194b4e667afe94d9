#!/usr/bin/env bash
# Axolotl 0.19.0 (type: chat_template) learns the thoughts of an answer without the <think> that begins them, under Qwen 3's own template, whose generation prompt does not open them.
#
# Its search for a turn compares two renderings, of which both begin with "<think>\n", and takes what is equal for the header. So an adapter is taught to write thoughts and </think>, and never
# to begin them. (Where the generation prompt ends with <think>, as Qwen 3.5's does, nothing is missing.) TRL's training template marks the whole block as the assistant's, and mlora learns it.
# Needs python3 with venv, and 7 GB for PyTorch. Exits 0 as long as that is as seen on 2026-11-30.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2 colorama==0.4.6 addict==2.4.0 fire==0.7.1 python-dotenv==1.2.4 jinja2==3.1.6
py/bin/pip install --quiet --disable-pip-version-check --no-deps axolotl==0.19.0

cat >thoughts.py <<'P'
import logging
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
from pathlib import Path

import trl
from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
plain = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
plain.decoder = decoders.ByteLevel()
plain.add_special_tokens(["<|im_start|>", "<|im_end|>"])
plain.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|im_end|>")
tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()

prompter = ChatTemplatePrompter(
    tokenizer,
    chat_template=tokenizer.chat_template,
    message_property_mappings={"role": "role", "content": "content"},
    field_messages="messages",
)
strategy = ChatTemplateStrategy(
    prompter, tokenizer=tokenizer, train_on_inputs=False, sequence_len=4096, roles_to_train=["assistant"], train_on_eos="turn"
)
asked = [{"role": "user", "content": "2+3?"}]
for answer in ({"content": "5", "reasoning_content": "easy"}, {"content": "<think>\neasy\n</think>\n\n5"}):
    row = strategy.tokenize_prompt({"messages": [*asked, {"role": "assistant", **answer}]})
    learned = [id for id, label in zip(row["input_ids"], row["labels"]) if label != -100]
    whole = tokenizer.decode(row["input_ids"])
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    print("written", repr(whole.removeprefix(prompt)), "learned", repr(tokenizer.decode(learned)))
P
HF_HUB_OFFLINE=1 py/bin/python thoughts.py 2>/dev/null | tee got.txt
cat >want.txt <<'W'
written '<think>\neasy\n</think>\n\n5<|im_end|>\n' learned 'easy\n</think>\n\n5<|im_end|>'
written '<think>\neasy\n</think>\n\n5<|im_end|>\n' learned 'easy\n</think>\n\n5<|im_end|>'
W
diff want.txt got.txt
echo "as described"
