"""Ids of texts by Rust's tokenizers, for scripts/bench/tokens.ts: FOLDER has tokenizer.json, FILE a text a line, as JSON."""

import hashlib
import json
import resource
import sys
import time

import tokenizers

folder, file = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
texts = [json.loads(line)["text"] for line in open(file, encoding="utf-8")]


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


begun, before = time.perf_counter(), cpu()
encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
seconds, used = time.perf_counter() - begun, cpu() - before
digest = hashlib.sha256()
for one in encoded:
    digest.update(json.dumps(one.ids, separators=(",", ":")).encode())
tokens = sum(len(one.ids) for one in encoded)
print(json.dumps({"seconds": seconds, "cpu": used, "tokens": tokens, "digest": digest.hexdigest(), "version": tokenizers.__version__}))
