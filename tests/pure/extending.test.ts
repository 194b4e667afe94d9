// docs/extending.md, as a contributor follows it: the example of a section is put into a copy of the sources, which must
// compile and work.

import { expect, test } from "bun:test";
import { join } from "node:path";
import { CopyOfSources, ROOT, shownIn } from "../helpers/extending.ts";

test("an objective", async () => {
  using copy = new CopyOfSources();
  const files = shownIn("An objective");
  expect([...files.keys()]).toEqual(["src/objectives/margin.ts"]);
  for (const [path, code] of files) copy.write(path, code);
  const registry = "src/objectives/registry.ts";
  copy.edit(registry, "const OBJECTIVES = { sft,", "const OBJECTIVES = { margin, sft,");
  copy.edit(
    registry,
    'import { kto } from "./kto.ts";',
    'import { kto } from "./kto.ts";\nimport { margin } from "./margin.ts";',
  );
  expect(await copy.check()).toEqual([0, ""]);
  const recipe = `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "d.jsonl"
objective = { name = "margin", least_margin = 3 }`;
  copy.write(
    "try.ts",
    `import { parseRecipe, formatRecipe } from "./src/recipe/load.ts";
import { preferenceLoss } from "./src/objectives/registry.ts";
const recipe = parseRecipe(${JSON.stringify(recipe)}, "/r.toml");
const { objective } = parseRecipe(formatRecipe(recipe), "/r.toml").adapters[0]!;
const scored = (logp: number) => ({ logp, targets: 2 });
const row = { own: scored(-4), other: scored(-5), reference: null, label: true, similar: null };
console.log(JSON.stringify([objective, preferenceLoss(objective as never, [row], { rows: 2, tokens: 4 })]));`,
  );
  const [code, out] = await copy.run(process.execPath, "try.ts");
  expect(code).toBe(0);
  expect(JSON.parse(out)).toEqual([
    { name: "margin", leastMargin: 3 },
    [{ loss: 1, gradients: [-0.5, 0.5], rewards: [-4, -5] }],
  ]);
}, 120_000);

test("a command", async () => {
  using copy = new CopyOfSources();
  const shown = shownIn("A command");
  expect([...shown.keys()]).toEqual(["src/cli/layers.ts", "src/main.ts"]);
  copy.write("src/cli/layers.ts", shown.get("src/cli/layers.ts")!);
  const declared = shown.get("src/main.ts")!.replace(/^.*\n/, "");
  copy.edit("src/main.ts", "  const remote = () =>", `${declared}  const remote = () =>`);
  expect(await copy.check()).toEqual([0, ""]);
  const model = join(ROOT, "tests", "golden", "peft", "llama", "model");
  expect(await copy.run(process.execPath, "src/main.ts", "layers", model, "--json")).toEqual([0, '{"layers":2}\n']);
  expect((await copy.run(process.execPath, "src/main.ts", "--help"))[1]).toContain("Say how many layers a base model has");
}, 120_000);
