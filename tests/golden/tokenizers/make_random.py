"""Makes random.json: tokenizers of random parts, and the ids that the original tokenizers make of random strings with them.

    python make_random.py

Needs tokenizers (0.23). Vocabularies lack characters of the strings, patterns match nothing in places, and added tokens take
white space along that other added tokens are made of: what public tokenizers have little of. A vocabulary is its words, by id.
"""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer

COUNT, STRINGS = 64, 12
CHARS = [*"abcAB12 \n\t.,!'▁é語½", "\u0301", "😀", "_"]
PATTERNS = [{"String": " "}, {"String": "."}] + [
    {"Regex": regex}
    for regex in (r"\s+", r"\p{N}{1,3}", r" ?[\p{L}]+", r"[^\s\p{L}\p{N}]+", r"(?i:'s|'t)|\p{L}+|\s+(?!\S)|\s+", r"a*", r"(?<=a)b", r"\p{M}*")
]
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
ADDED = ["<s>", "<|im|>", "ab", "a", " ", "\n\n", "  ", "\t", "a b", "<s", " <x> ", "12"]
rng = random.Random(20261130)


def chance(of: float) -> bool:
    return rng.random() < of


def model_of() -> dict:
    words = ["a"] + [char for char in CHARS if char != "a" and chance(0.7)]
    mergeable, merges = list(words), []
    for _ in range(rng.choice([0, 12, 40])):
        pair = [rng.choice(mergeable), rng.choice(mergeable)]
        merges.append(pair)
        made = "".join(pair)
        if made not in words:
            words.append(made)
            if len(made) < 6:
                mergeable += [made] * 2
    unknown = "<unk>" if chance(0.5) else None
    bytes_ = [f"<0x{byte:02X}>" for byte in "½é\n._<".encode()] if chance(0.4) else []
    words += dict.fromkeys(bytes_ + ([unknown] if unknown else []))
    return {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": chance(0.5),
        "byte_fallback": chance(0.5),
        "ignore_merges": chance(0.3),
        "vocab": {word: i for i, word in enumerate(words)},
        "merges": merges,
    }


def normalizer_of() -> dict | None:
    return rng.choice([None, None, {"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}])


def pre_tokenizer_of(depth: int = 0) -> dict | None:
    kind = rng.choice(["Split", "Split", "Digits", "Metaspace"] + (["Sequence", None] if depth == 0 else []))
    if kind is None:
        return None
    if kind == "Split":
        return {"type": kind, "pattern": rng.choice(PATTERNS), "behavior": rng.choice(BEHAVIORS), "invert": chance(0.4)}
    if kind == "Digits":
        return {"type": kind, "individual_digits": chance(0.5)}
    if kind == "Metaspace":
        return {"type": kind, "replacement": "▁", "prepend_scheme": rng.choice(["always", "never"]), "split": chance(0.5)}
    return {"type": kind, "pretokenizers": [pre_tokenizer_of(1) for _ in range(rng.randint(1, 3))]}


def added_of(vocab: dict[str, int]) -> list[dict]:
    tokens = rng.sample(ADDED, rng.choice([0, 2, 4]))
    new = [content for content in tokens if content not in vocab]
    return [
        {
            "id": vocab[content] if content in vocab else len(vocab) + new.index(content),
            "content": content,
            "single_word": chance(0.3),
            "lstrip": chance(0.3),
            "rstrip": chance(0.4),
            "normalized": chance(0.4),
            "special": chance(0.5),
        }
        for content in tokens
    ]


def text_of() -> str:
    return "".join(rng.choice(CHARS + ["<s>", "<|im|>", "<s", "ab", "  ", " ", "a", "aa"]) for _ in range(rng.randint(1, 18)))


def main() -> None:
    cases = []
    while len(cases) < COUNT:
        model = model_of()
        parts = {
            "added_tokens": sorted(added_of(model["vocab"]), key=lambda token: token["id"]),
            "normalizer": normalizer_of(),
            "pre_tokenizer": pre_tokenizer_of(),
            "model": model,
        }
        whole = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None, "decoder": None, **parts}
        tokenizer = Tokenizer.from_str(json.dumps(whole))
        if not tokenizer.encode("a", add_special_tokens=False).ids:
            continue  # no tokenizer of a language
        texts = [text_of() for _ in range(STRINGS)]
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        cases.append({**parts, "model": {**model, "vocab": list(model["vocab"])}, "strings": texts, "ids": ids})
    lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases]
    (Path(__file__).parent / "random.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


main()
