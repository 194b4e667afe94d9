"""Makes what transformers (5.24) and Jinja2 (3.1.6) render, for tests/pure/jinja.test.ts.

    python make.py [--out FOLDER] [--more FOLDER] [--snippets COUNT]

templates.json.gz: the chat templates of TRL 1.16 (Apache-2.0), as they lie in its package.
conversations.jsonl: conversations in the text that a row has; numbers and the order of keys matter.
renderings.json: for each template a hash of each conversation's text, or null where the template refuses it.
snippets.json: small templates over the variables of snippet-variables.json, with their text, or null for an error.

--more renders the templates of another folder (*.jinja) as well, and --out writes elsewhere: for templates that are not free to
be copied. --snippets makes that many random snippets instead of those kept. Dates are 26 July 2024.
"""

import argparse
import datetime
import gzip
import hashlib
import json
import random
from importlib.util import find_spec
from pathlib import Path

from conversations import CONVERSATIONS
from snippets import SNIPPETS, VARIABLES, random_snippet
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = Path(__file__).parent
KEPT = 400
SPECIALS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def strftime_now(form: str) -> str:
    return datetime.datetime(2024, 7, 26).strftime(form)


def render(template, variables: dict) -> str | None:
    """The text, or None for an error."""
    try:
        return template.render(strftime_now=strftime_now, **variables)
    except Exception:
        return None


def chat(template, line: str) -> str | None:
    row = json.loads(line)
    return render(template, {**SPECIALS, "tools": None, "documents": None, "add_generation_prompt": False, **row})


def digest(text: str | None) -> str | None:
    return text if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def snippet(text: str) -> str | None:
    try:
        template = _compile_jinja_template(text)
    except Exception:
        return None
    rendered = render(template, json.loads(VARIABLES))
    return None if rendered is None or " at 0x" in rendered else rendered


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--more", type=Path)
    parser.add_argument("--snippets", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    trl = Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    files = sorted(options.more.glob("*.jinja") if options.more else trl.glob("*.jinja"))
    templates = {file.stem: file.read_text() for file in files}
    packed = gzip.compress(json.dumps(templates).encode(), 9, mtime=0)
    (options.out / "templates.json.gz").write_bytes(packed)
    (options.out / "conversations.jsonl").write_text("\n".join(CONVERSATIONS) + "\n")
    texts = {name: [chat(_compile_jinja_template(text), line) for line in CONVERSATIONS] for name, text in templates.items()}
    hashes = {name: [digest(text) for text in found] for name, found in texts.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(found, separators=(',', ':'))}" for name, found in hashes.items()]
    (options.out / "renderings.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    if options.out != HERE:
        (options.out / "texts.json").write_text(json.dumps(texts))
    rng = random.Random(options.seed)
    made = [random_snippet(rng) for _ in range(options.snippets or KEPT)]
    kept = made if options.snippets else [*SNIPPETS, *made]
    pairs = [json.dumps([text, snippet(text)], ensure_ascii=True) for text in kept]
    (options.out / "snippets.json").write_text("[\n" + ",\n".join(pairs) + "\n]\n")
    (options.out / "snippet-variables.json").write_text(VARIABLES + "\n")


main()
