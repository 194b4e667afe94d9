"""The reward of recipes/arithmetic.toml: reads answers from standard input, a JSON object a line, and prints a number for each.

1 for the sum, up to 0.5 for a number near it, 0 for anything else.
"""

import json
import re
import sys

for line in sys.stdin:
    asked = json.loads(line)
    number = re.match(r"\s*(\d+)", asked["completion"])
    distance = abs(int(number[1]) - asked["row"]["answer"]) if number else None
    print(0 if distance is None else 1 if distance == 0 else max(0, 0.5 - 0.1 * distance))
