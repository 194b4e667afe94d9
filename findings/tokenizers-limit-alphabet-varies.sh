#!/usr/bin/env bash
# Hugging Face's tokenizers (Python 0.23.3): BpeTrainer with limit_alphabet gives another vocabulary each time.
#
# limit_alphabet=N keeps the N most frequent characters of the corpus. Which ones are kept among equally frequent characters is not
# defined: the same call over the same texts keeps others from one process to the next, so that a tokenizer cannot be trained again
# to the same file. Without the limit, or with initial_alphabet naming the characters, the result is the same each time.
#
# Prints the number of different vocabularies of 8 processes for each; ends with 1 if the limit alone gives the same one always.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3

cat >"$work/train.py" <<'PY'
import hashlib
import sys

from tokenizers import Tokenizer, models, trainers

TEXTS = ["abcdefghijklmnopqrstuvwxyz"] * 3  # each character three times
OPTIONS = {
    "limit": dict(limit_alphabet=13),
    "named": dict(limit_alphabet=13, initial_alphabet=list("abcdefghijklm")),
    "all": dict(),
}
tokenizer = Tokenizer(models.BPE())
tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=40, show_progress=False, **OPTIONS[sys.argv[1]]))
print("".join(sorted(word for word in tokenizer.get_vocab() if len(word) == 1)))
PY

declare -A different
for how in limit named all; do
  for _ in 1 2 3 4 5 6 7 8; do "$work/venv/bin/python" "$work/train.py" "$how"; done | sort | uniq -c >"$work/$how"
  different[$how]="$(wc -l <"$work/$how")"
  echo "$how: ${different[$how]} different alphabets in 8 processes, such as $(awk 'NR <= 2 { printf "%s ", $2 }' "$work/$how")"
done
[[ "${different[limit]}" -gt 1 && "${different[named]}" == 1 && "${different[all]}" == 1 ]]
