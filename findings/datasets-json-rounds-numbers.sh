#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1: load_dataset("json") rounds the numbers of a file to 10 decimals, and says nothing, as soon as the file is one JSON list, or any of its fields has other keys or types from row to row, as the
# arguments of tool calls do. 1e-12 becomes 0.0, a degree of latitude loses its last digits. Such files are read by pandas' ujson and written again for Arrow (ujson_dumps, double_precision 10) before the rows are made: all of their
# numbers, not only those of the field. The same rows as JSON Lines with the same keys keep every digit. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()
SMALL, LONG = 1e-12, 0.12345678901234566


def rows_of(name, text):
    Path(name).write_text(text)
    return datasets.load_dataset("json", data_files=name, split="train", cache_dir=f"cache-{name}").to_list()


def lines(rows):
    return "\n".join(map(json.dumps, rows))


def call(**arguments):
    calls = [{"type": "function", "function": {"name": "near", "arguments": arguments}}]
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": calls}]}


print("datasets", datasets.__version__)
plain = [{"small": SMALL, "long": LONG}, {"small": SMALL, "long": LONG}]
found = {
    "JSON Lines": rows_of("plain.jsonl", lines(plain)),
    "the same as a JSON list": rows_of("list.json", json.dumps(plain)),
    "JSON Lines next to a field of two types": rows_of("mixed.jsonl", lines([row | {"note": note} for row, note in zip(plain, [{"of": 1}, {"of": "one"}])])),
}
for name, rows in found.items():
    print(f"{name}: {rows[0]['small']!r} and {rows[0]['long']!r}")
calls = rows_of("calls.jsonl", lines([call(latitude=48.85837009999999, step=SMALL), call(name="Paris")]))
arguments = calls[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
print(f"arguments of a tool call: {arguments}")
whole, *rounded = ([row[0]["small"], row[0]["long"]] for row in found.values())
assert whole == [SMALL, LONG]
assert rounded == [[0.0, 0.123456789]] * 2
assert arguments == {"latitude": 48.8583701, "step": 0.0}
PYTHON
