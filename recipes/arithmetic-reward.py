"""The reward of recipes/arithmetic.toml: reads answers from standard input, a JSON object a line, and prints a number for each:
1 where the answer is the sum of its row, else 0."""

import json
import sys

for line in sys.stdin:
    asked = json.loads(line)
    print(int(asked["completion"].strip() == str(asked["row"]["answer"])))
