"""Makes graders.json, which mlora's text similarities are tested against: rapidfuzz's ratio and the F measures of rouge-score.

    python tests/golden/graders/make.py    # with rapidfuzz==3.14.6 and rouge-score==0.1.2
"""

import json
import random
from pathlib import Path

from rapidfuzz import fuzz
from rouge_score import rouge_scorer

HERE = Path(__file__).resolve().parent
NAMES = {f"rouge_{n}": f"rouge{n}" for n in (1, 2, 3, 4, 5)} | {"rouge_l": "rougeL"}
WORDS = ["the", "The", "cat", "cats", "sat", "on", "a", "mat", "42", "3.5", "Zürich", "naïve", "x-y", "end.", "👍", "b\n"]


def main() -> None:
    rng = random.Random(7)
    text = lambda: " ".join(rng.choices(WORDS, k=rng.randint(0, 14)))  # noqa: E731
    pairs = [("", ""), ("", "a"), ("same text here now ok", "same text here now ok"), ("Ab", "aB"), ("👍👍", "👍")]
    pairs += [(text(), text()) for _ in range(40)]
    scorer = rouge_scorer.RougeScorer(list(NAMES.values()), use_stemmer=False)
    rows = []
    for a, b in pairs:
        found = scorer.score(b, a)
        scores = {name: found[of].fmeasure for name, of in NAMES.items()}
        rows.append(dict(input=a, reference=b, scores=dict(fuzzy_match=fuzz.ratio(a, b) / 100, **scores)))
    (HERE / "graders.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n")


main()
