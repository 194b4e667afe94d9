"""Makes strings.json: what transformers' AutoTokenizer makes of seeded strings with many tokenizers, a byte for each string.

    python make_strings.py FOLDER NAME...

Needs transformers (5.24) and tokenizers (0.23). FOLDER/NAME holds a tokenizer: `scripts/tokenizers.ts FOLDER` brings the public
ones and writes each one's strings.json; `convert.py` makes more. Prints how many strings the class read otherwise than the
file.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

HERE = Path(__file__).parent


def digest(ids: list[int]) -> int:
    """FNV-1a over the ids, folded to a byte."""
    value = 0x811C9DC5
    for number in ids:
        value = ((value ^ number) * 0x01000193) & 0xFFFFFFFF
    return (value ^ value >> 8 ^ value >> 16 ^ value >> 24) & 0xFF


def main() -> None:
    path = HERE / "strings.json"
    golden = json.loads(path.read_text()) if path.exists() else {}
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name
        made = json.loads((folder / "strings.json").read_text())
        auto = AutoTokenizer.from_pretrained(folder)
        alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = [auto(text, add_special_tokens=False).input_ids for text in made["strings"]]
        otherwise = sum(alone.encode(text, add_special_tokens=False).ids != row for text, row in zip(made["strings"], ids))
        print(f"{name}: {type(auto).__name__}, {len(ids)} strings, {otherwise} otherwise than by the file")
        golden[name] = {"class": type(auto).__name__, "otherwise": otherwise, "seed": made["seed"], "ids": bytes(map(digest, ids)).hex()}
    lines = [f"{json.dumps(name)}: {json.dumps(golden[name], separators=(',', ':'))}" for name in sorted(golden)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
