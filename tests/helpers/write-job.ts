// A tiny model, rows and a recipe for scripts/nightly/deploy, in the folder that is the argument.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeTinyModel } from "./model.ts";
import { sums } from "./program.ts";

const folder = process.argv[2]!;
writeTinyModel(join(folder, "model"), 4);
writeFileSync(join(folder, "rows.jsonl"), sums(20));
writeFileSync(
  join(folder, "recipe.toml"),
  `[model]
path = "model"
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "a"
rank = 4
steps = 20
batch_size = 2
learning_rate = 1e-2
data = { train = "rows.jsonl" }
`,
);
