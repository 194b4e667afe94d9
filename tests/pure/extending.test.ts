// docs/extending.md, as somebody follows it: the example of a section is put into a copy of the sources, which must compile and work.

import { expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..", "..");
const PAGE = readFileSync(join(ROOT, "docs", "extending.md"), "utf8");

/** The files that a section shows, by their paths. */
function shownIn(section: string): Map<string, string> {
  const text = PAGE.split(/^## /m).find((part) => part.startsWith(section))!;
  const blocks = [...text.matchAll(/^( *)```ts\n([\s\S]*?)^ *```$/gm)].map(([, indent, code]) =>
    code!.replaceAll(new RegExp(`^${indent}`, "gm"), ""),
  );
  return new Map(blocks.map((code) => [/^\/\/ (\S+)\n/.exec(code)![1]!, code]));
}

function edit(path: string, from: string, to: string): void {
  const text = readFileSync(path, "utf8");
  expect(text).toContain(from);
  writeFileSync(path, text.replace(from, to));
}

test("an objective", async () => {
  const copy = mkdtempSync(join(tmpdir(), "mlora-extending-"));
  try {
    for (const name of ["src", "ffi", "package.json", "tsconfig.json"])
      cpSync(join(ROOT, name), join(copy, name), {
        recursive: true,
        filter: (path) => !path.startsWith(join(ROOT, "ffi", "build")),
      });
    symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
    const files = shownIn("An objective");
    expect([...files.keys()]).toEqual(["src/objectives/margin.ts"]);
    for (const [path, code] of files) writeFileSync(join(copy, path), code);
    const registry = join(copy, "src", "objectives", "registry.ts");
    edit(registry, "const OBJECTIVES = { sft,", "const OBJECTIVES = { margin, sft,");
    edit(registry, 'import { kto } from "./kto.ts";', 'import { kto } from "./kto.ts";\nimport { margin } from "./margin.ts";');
    edit(join(copy, "tsconfig.json"), '"include": [', '"include": ["src", "ffi"], "unused": [');
    const run = async (...command: string[]) => {
      const { exited, stdout } = Bun.spawn(command, { cwd: copy, stdout: "pipe", stderr: "pipe" });
      return [await exited, await new Response(stdout).text()];
    };
    expect(await run("node_modules/.bin/tsc", "-p", ".")).toEqual([0, ""]);
    const recipe = `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "d.jsonl"
objective = { name = "margin", least_margin = 3 }`;
    writeFileSync(
      join(copy, "try.ts"),
      `import { parseRecipe, formatRecipe } from "./src/recipe/load.ts";
import { preferenceLoss } from "./src/objectives/registry.ts";
const recipe = parseRecipe(${JSON.stringify(recipe)}, "/r.toml");
const { objective } = parseRecipe(formatRecipe(recipe), "/r.toml").adapters[0]!;
const scored = (logp: number) => ({ logp, targets: 2 });
const row = { own: scored(-4), other: scored(-5), reference: null, label: true, similar: null };
console.log(JSON.stringify([objective, preferenceLoss(objective as never, [row], { rows: 2, tokens: 4 })]));`,
    );
    const [code, out] = await run(process.execPath, "try.ts");
    expect(code).toBe(0);
    expect(JSON.parse(`${out}`)).toEqual([
      { name: "margin", leastMargin: 3 },
      [{ loss: 1, slopes: [-0.5, 0.5], rewards: [-4, -5] }],
    ]);
  } finally {
    rmSync(copy, { recursive: true });
  }
}, 120_000);
