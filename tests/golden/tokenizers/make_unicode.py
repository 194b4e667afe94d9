"""Makes unicode.json: a hash over all code points of what the regular expressions and normal forms of tokenizers (0.23) know of
each."""

import hashlib
import json
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

POINTS = [point for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
EVERYTHING = "".join(map(chr, POINTS))
CLASSES = ["L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "Nd", "P", "S", "Z", "C"]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def members(pattern: str) -> str:
    words = pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(EVERYTHING)
    return ",".join(str(ord(char)) for word, _ in words for char in word)


golden = {
    "classes": {name: sha256(members(f"\\p{{{name}}}+")) for name in CLASSES},
    "forms": {
        form: sha256("\n".join(getattr(normalizers, form)().normalize_str(f"e{c}\u0323\u0301{c}\u0301") for c in EVERYTHING))
        for form in ["NFC", "NFD", "NFKC", "NFKD"]
    },
}
(Path(__file__).parent / "unicode.json").write_text(json.dumps(golden, indent=2) + "\n")
