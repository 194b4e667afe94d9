"""Writes trl.json: which parts of chats TRL's training templates mark as the assistant's.

Needs transformers 5.24.0 and trl 1.16.0. The templates are TRL's (Apache-2.0), but for the date, which is fixed.
"""

import json
import re
from pathlib import Path

import trl
from transformers.utils.chat_template_utils import render_jinja_template

FAMILIES = ["cohere2", "deepseekv3", "gemma3", "gptoss", "lfm2_v2", "llama3", "phi3", "qwen2_5", "qwen3", "qwen3_5_think"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = {"type": "function", "id": "call00001", "function": {"name": "add", "arguments": {"a": 1}}}


def user(content):
    return {"role": "user", "content": content}


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


RESULT = {"role": "tool", "content": "R1", "tool_call_id": "call00001", "name": "add"}
CHATS = {
    "one turn": [user("U1"), said("A1")],
    "two turns": [user("U1"), said("A1"), user("U2"), said("A2")],
    "the same text": [user("yes"), said("yes"), user("yes"), said("yes")],
    "question last": [user("U1"), said("A1"), user("U2")],
    "white space": [user(" U1\n"), said("A1\n"), user("U2"), said(" A2  ")],
    "thoughts": [user("U1"), said("<think>\nT1\n</think>\n\nA1"), user("U2"), said("<think>\nT2\n</think>\n\nA2")],
    "thoughts apart": [user("U1"), said("A1", reasoning_content="T1"), user("U2"), said("A2", reasoning_content="T2")],
    "tools": [user("U1"), said("", tool_calls=[CALL]), RESULT, said("A1"), user("U2"), said("A2")],
    "words before a call": [user("U1"), said("W1", tool_calls=[CALL]), RESULT, said("A1")],
    "a call last": [user("U1"), said("", tool_calls=[CALL])],
}


def answers(template, chat):
    try:
        texts, spans = render_jinja_template([chat], chat_template=template, return_assistant_tokens_mask=True, **NAMES)
    except Exception:  # a template that knows no such chat
        return None
    return {"text": texts[0], "answers": [texts[0][a:b] for a, b in spans[0]]}


families = {}
for family in FAMILIES:
    template = (Path(trl.__file__).parent / "chat_templates" / f"{family}_training.jinja").read_text()
    template = re.sub(r"strftime_now\([^)]*\)", '"2026-01-01"', template)
    found = {name: answers(template, chat) for name, chat in CHATS.items()}
    families[family] = {"template": template, "chats": {name: of for name, of in found.items() if of}}
golden = {"messages": CHATS, "families": families}
Path(__file__).with_name("trl.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
