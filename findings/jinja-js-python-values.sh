#!/usr/bin/env bash
# @huggingface/jinja 0.5.11 renders chat templates otherwise than Jinja 3.1 where Python's values and loop controls are concerned.
#
# A chat template is written for Python's Jinja, and serving programs render it there. With the JavaScript package the same template and
# the same row give another text, without an error:
#   - what a round of a loop wrote before {% continue %} is gone;
#   - strip('x') takes off white space instead of the characters that are named;
#   - 1.0 is written as 1;
#   - objects of a row whose keys look like whole numbers change their order.
# Needs npm, python3 with venv. Prints both renderings; fails when they are the same, or others than seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund @huggingface/jinja@0.5.11
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check jinja2==3.1.6

cat >cases.json <<'J'
[
  ["{% for x in xs %}[{{ x }}]{% if x == 1 %}{% continue %}{% endif %}.{% endfor %}", "{\"xs\": [1, 2]}"],
  ["{{ s.strip('x') }}|", "{\"s\": \"xx a xx\"}"],
  ["{{ n }}", "{\"n\": 1.0}"],
  ["{% for k in d %}{{ k }} {% endfor %}", "{\"d\": {\"b\": 0, \"10\": 0, \"2\": 0}}"]
]
J
cat >js.mjs <<'J'
import { readFileSync } from "node:fs";
import { Template } from "@huggingface/jinja";
for (const [template, row] of JSON.parse(readFileSync("cases.json", "utf8")))
  console.log(JSON.stringify(new Template(template).render(JSON.parse(row))));
J
cat >py.py <<'P'
import json
from jinja2 import Environment
environment = Environment(extensions=["jinja2.ext.loopcontrols"])
for template, row in json.load(open("cases.json")):
    print(json.dumps(environment.from_string(template).render(**json.loads(row))))
P
node js.mjs >js.txt
py/bin/python py.py >py.txt
paste -d'\t' js.txt py.txt | awk -F'\t' '{ printf "javascript %-24s python %s\n", $1, $2 }'
cat >js.want <<'W'
"[2]."
"xx a xx|"
"1"
"2 10 b "
W
cat >py.want <<'W'
"[1][2]."
" a |"
"1.0"
"b 10 2 "
W
diff js.want js.txt && diff py.want py.txt && echo "as described"
