// How fast rows are read: templated, tokenised, checked. Compares checkouts, in turns, on the same rows.
//
//   bun scripts/bench/reading.ts [--rows 100000] [--rounds 5] [--model models/SmolLM2-135M-Instruct] [OTHER-CHECKOUT ...]
//
// Each round reads the file once in a process of its own for each checkout, this one first; the median of the rounds counts.
// Rows are chats of two turns, a third of them with a system message, so that the chat template and the search for answers are
// in the time.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values, positionals } = parseArgs({
  options: {
    rows: { type: "string", default: "100000" },
    rounds: { type: "string", default: "5" },
    model: { type: "string", default: join(ROOT, "models", "SmolLM2-135M-Instruct") },
  },
  allowPositionals: true,
});
const rows = Number(values.rows);
const checkouts = [ROOT, ...positionals.map((path) => resolve(path))];

const WORDS = "the a of to read write train adapter model row token answer question because 42 1997 {} : , . \n".split(" ");
const rng = new Rng(0x4ead);
const sentence = (words: number): string =>
  range(words)
    .map(() => WORDS[rng.below(WORDS.length)]!)
    .join(" ");
const chat = (i: number) => ({
  messages: [
    ...(i % 3 === 0 ? [{ role: "system", content: sentence(8) }] : []),
    { role: "user", content: `${i}: ${sentence(10 + rng.below(40))}` },
    { role: "assistant", content: `${sentence(5 + rng.below(40))}.` },
  ],
});

/** Reads the file as an adapter's data and prints the seconds and the number of tokens. */
const PROGRAM = `
const [root, model, file] = process.argv.slice(-3);
const { loadDataset } = await import(root + "/src/data/dataset.ts");
const { loadTokenizer } = await import(root + "/src/data/tokenizer.ts");
const { loadRecipe } = await import(root + "/src/recipe/load.ts");
const recipe = loadRecipe(file.replace("rows.jsonl", "recipe.toml"), {});
const tokenizer = loadTokenizer(model);
const begun = performance.now();
const { train } = loadDataset(recipe.adapters[0], tokenizer, 1_000_000);
const seconds = (performance.now() - begun) / 1000;
let tokens = 0;
for (const { ids } of train) tokens += ids.length;
console.log(JSON.stringify({ seconds, tokens }));
`;

const work = mkdtempSync(join(tmpdir(), "mlora-reading-"));
try {
  const file = join(work, "rows.jsonl");
  writeFileSync(
    file,
    range(rows)
      .map((i) => `${JSON.stringify(chat(i))}\n`)
      .join(""),
  );
  writeFileSync(
    join(work, "recipe.toml"),
    `[model]\npath = "${resolve(values.model)}"\n[run]\noutput = "out"\n[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 1\n`,
  );
  const program = join(work, "read.ts");
  writeFileSync(program, PROGRAM);
  const seconds = checkouts.map((): number[] => []);
  const tokens = checkouts.map(() => 0);
  for (let round = 0; round < Number(values.rounds); round++)
    for (const [i, root] of checkouts.entries()) {
      const { stdout, stderr, exitCode } = Bun.spawnSync([process.execPath, program, root, resolve(values.model), file]);
      if (exitCode !== 0) throw new Error(`${root}: ${stderr}`);
      const read = JSON.parse(`${stdout}`) as { seconds: number; tokens: number };
      seconds[i]!.push(read.seconds);
      tokens[i] = read.tokens;
    }
  const median = (all: readonly number[]) => all.toSorted((a, b) => a - b)[all.length >> 1]!;
  const first = median(seconds[0]!);
  for (const [i, all] of seconds.entries()) {
    const of = median(all);
    const spread = `${Math.min(...all).toFixed(2)} to ${Math.max(...all).toFixed(2)}`;
    const beside = i === 0 ? "" : `; this checkout takes ${(first / of).toFixed(3)} of it`;
    console.log(
      `${checkouts[i] === ROOT ? "this checkout" : `checkout ${i}`}: ${rows} rows, ${tokens[i]} tokens, ${of.toFixed(2)} s (${spread})${beside}`,
    );
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
