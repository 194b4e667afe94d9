"""Makes configs.json: what AutoTokenizer makes of random tokenizer_config.json files and of those that transformers 4 wrote
next to them: the ids of random strings, and of two special tokens.

    python make_configs.py

Needs transformers (5.24) and tokenizers (0.23). Special tokens are named in several files and keys, with flags that differ.
"""

import json
import os
import random
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoTokenizer  # noqa: E402

COUNT, STRINGS = 64, 8
TOKENS = ["<s>", "</s>", "<unk>", "<pad>", "<|im_end|>", "<tool>", "ab", " x", "<extra>", "<image>"]
WORDS = list(dict.fromkeys("abcdeAB12 .,!?<>/|_sxyzimtolprunkg")) + ["ab"]
FLAGS = {"lstrip": 0.2, "rstrip": 0.2, "single_word": 0.15, "normalized": 0.4, "special": 0.6}
rng = random.Random(20261130)


def chance(of: float) -> bool:
    return rng.random() < of


def flags() -> dict:
    return {name: chance(of) for name, of in FLAGS.items()}


def token_of() -> str | dict:
    content = rng.choice(TOKENS)
    return content if chance(0.6) else {"__type": "AddedToken", "content": content, **flags(), "special": True}


def files_of() -> dict[str, dict]:
    words = WORDS + [token for token in TOKENS if token not in WORDS and chance(0.3)]
    vocab = {word: i for i, word in enumerate(words)}
    chosen = [token for token in TOKENS if chance(0.45)]
    new = [token for token in chosen if token not in vocab]
    added = [{"id": vocab.get(token, len(vocab) + (new.index(token) if token in new else 0)), "content": token, **flags()} for token in chosen]
    model = {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": [["a", "b"]]}
    split = {"type": "Split", "pattern": {"Regex": " ?[a-z]+"}, "behavior": "Isolated", "invert": False}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": sorted(added, key=lambda token: token["id"])}
    tokenizer |= {"normalizer": None, "pre_tokenizer": rng.choice([None, split]), "post_processor": None, "decoder": None, "model": model}
    config: dict = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {name: token_of() for name in ("bos_token", "eos_token", "unk_token", "pad_token") if chance(0.5)}
    if chance(0.2):
        config["tool_token"] = "<tool>"
    if chance(0.3):
        config["additional_special_tokens"] = rng.sample(TOKENS, 2)
    if chance(0.25):
        config["extra_special_tokens"] = rng.choice([{"image_token": "<image>"}, ["<extra>"], []])
    if chance(0.5):
        config["added_tokens_decoder"] = {str(token["id"]): {**token, **(flags() if chance(0.3) else {})} for token in added if chance(0.8)}
        for token in config["added_tokens_decoder"].values():
            del token["id"]
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    if chance(0.4):
        files["special_tokens_map.json"] = {"eos_token": rng.choice(TOKENS), rng.choice(["additional_special_tokens", "extra_special_tokens"]): [rng.choice(TOKENS)]}
    if chance(0.2):
        files["added_tokens.json"] = {rng.choice(TOKENS): len(vocab) + len(new)}
    return files


def text_of() -> str:
    return "".join(rng.choice(TOKENS + [*"ab c de. "]) for _ in range(rng.randint(1, 12)))


def main() -> None:
    cases = []
    while len(cases) < COUNT:
        files = files_of()
        with tempfile.TemporaryDirectory() as folder:
            for name, value in files.items():
                Path(folder, name).write_text(json.dumps(value))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        strings = [text_of() for _ in range(STRINGS)]
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in strings]
        cases.append({"files": files, "strings": strings, "ids": ids, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id})
    lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases]
    (Path(__file__).parent / "configs.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


main()
