// What adapters of different ranks cost next to each other: tokens/s while all of them train, and the wall time of the whole
// command, from its start to the last export.
//
//   bun scripts/bench/mixed-ranks.ts [--mlora dist/mlora [--mlora OTHER]] [--mixes "8x16 7x8+1x256"] [--shape llama2-7b]
//                                    [--targets "q_proj k_proj v_proj o_proj"] [--tokens 57344] [--folder FOLDER]
//                                    [--device cuda] [--rounds 1] [--write]
//
// A mix is a sum of NUMBERxRANK. Each adapter trains a row of about 512 tokens a step, with dropout 0.05. Several --mlora take
// turns, mix by mix, so that one build is measured against another in the same call; a mix that one of them cannot run is
// reported and left out. Of a mix of several ranks the table also says its share of what uniform runs predict: the time of its
// tokens at their own rank's rate, where the uniform runs of all its ranks are among the mixes. Writes a model with random
// weights into --folder, where it stays. --write adds the rows to docs/measurements/mixed-ranks.md.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { range, sum } from "../../src/base/shape.ts";
import { randomModel } from "./random-model.ts";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const LADDER = [4, 8, 16, 32, 64, 64, 128, 256];
const UNIFORM = [...new Set(LADDER)].map((rank) => `8x${rank}`);
const { values } = parseArgs({
  options: {
    mlora: { type: "string", multiple: true, default: [join(ROOT, "dist", "mlora")] },
    mixes: {
      type: "string",
      default: [...UNIFORM, "7x8+1x256", LADDER.map((rank) => `1x${rank}`).join("+"), "512x16"].join(" "),
    },
    shape: { type: "string", default: "llama2-7b" },
    targets: { type: "string", default: "q_proj k_proj v_proj o_proj" },
    tokens: { type: "string", default: "57344" },
    folder: { type: "string", default: join(tmpdir(), "mlora-start") },
    device: { type: "string", default: "cuda" },
    rounds: { type: "string", default: "1" },
    write: { type: "boolean", default: false },
  },
});
/** A row of text comes to this many tokens of the byte tokenizer, about. */
const ROW_TOKENS = 512;
/** Milliseconds between two looks at the metrics. */
const INTERVAL = 5;

/** The rank of each adapter. */
const ranksOf = (mix: string): readonly number[] =>
  mix.split("+").flatMap((term) => {
    const [number, rank] = term.split("x").map(Number);
    if (!number || !rank) throw new Error(`'${mix}' is not a sum of NUMBERxRANK`);
    return new Array<number>(number).fill(rank);
  });

function recipeOf(model: string, ranks: readonly number[], steps: number): string {
  const settings = { steps, batch_size: 1, max_length: ROW_TOKENS, dropout: 0.05, data: "rows.jsonl" };
  const defaults = Object.entries({ ...settings, targets: values.targets.split(" ") });
  const adapters = ranks.map((rank, i) => `[[adapter]]\nname = "a${i}"\nrank = ${rank}\n`);
  return `[model]\npath = ${JSON.stringify(model)}\n[run]\noutput = "out"\n[defaults]\n${defaults
    .map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`)
    .join("")}${adapters.join("")}`;
}

type Measured = { readonly rate: number; readonly seconds: number };

/** Of one run; throws what it says where it fails. */
async function measure(mlora: string, model: string, mix: string): Promise<Measured> {
  const ranks = ranksOf(mix);
  const steps = Math.max(4, Math.ceil(Number(values.tokens) / ROW_TOKENS / ranks.length));
  const work = mkdtempSync(join(tmpdir(), "mlora-mixed-"));
  try {
    const rows = range(16).map((i) => JSON.stringify({ text: `${i} `.repeat(ROW_TOKENS).slice(0, ROW_TOKENS - 2) }));
    writeFileSync(join(work, "rows.jsonl"), `${rows.join("\n")}\n`);
    writeFileSync(join(work, "recipe.toml"), recipeOf(model, ranks, steps));
    const metrics = join(work, "out", "metrics.jsonl");
    const begin = performance.now();
    const command = [...mlora.split(" "), "run", join(work, "recipe.toml"), "--device", values.device];
    const child = Bun.spawn(command, { stdout: "ignore", stderr: "pipe" });
    const ended = child.exited;
    const said = child.stderr.text();
    /** Tokens that had been trained when a line was seen. */
    const seen: { readonly at: number; readonly tokens: number }[] = [];
    for (let lines = 0, tokens = 0, code: number | null = null; code === null; ) {
      code = await Promise.race([ended, Bun.sleep(INTERVAL).then(() => null)]);
      const all = existsSync(metrics) ? readFileSync(metrics, "utf8").split("\n").slice(0, -1) : [];
      const steps = all.slice(lines).flatMap((line) => {
        const event = JSON.parse(line);
        return event.type === "step" ? [event.tokens as number] : [];
      });
      lines = all.length;
      tokens += sum(steps);
      if (steps.length > 0) seen.push({ at: performance.now(), tokens });
    }
    const seconds = (performance.now() - begin) / 1000;
    if ((await ended) !== 0) throw new Error(await said);
    // A quarter of the tokens to warm up.
    const last = seen.at(-1)!;
    const first = seen.find(({ tokens }) => tokens >= last.tokens / 4)!;
    return { rate: ((last.tokens - first.tokens) / (last.at - first.at)) * 1000, seconds };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const HEAD = `# Adapters of different ranks together

Rows of \`bun scripts/bench/mixed-ranks.ts --write\`: a row of 512 tokens a step for each adapter, dropout 0.05. Share: of the rate that the
uniform runs of its ranks predict. Seconds: of the whole command, from its start to the last export.

| date (UTC) | commit | mlora | shape | targets | mix | tokens/s | share | seconds |
| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: |
`;
const row = tableOf("mixed-ranks", HEAD, values.write);
const model = randomModel(values.folder, values.shape);
const rates = new Map<string, number>();
for (const _ of range(Number(values.rounds)))
  for (const mix of values.mixes.split(" "))
    for (const mlora of values.mlora) {
      const ranks = ranksOf(mix);
      const cells = [mlora, values.shape, values.targets.replaceAll("_proj", ""), mix] as const;
      let measured: Measured;
      try {
        measured = await measure(mlora, model, mix);
      } catch (error) {
        process.stderr.write(`${mlora} cannot run ${mix}: ${error instanceof Error ? error.message : error}\n`);
        continue;
      }
      if (new Set(ranks).size === 1) rates.set(`${mlora} ${ranks[0]}`, measured.rate);
      const own = ranks.map((rank) => rates.get(`${mlora} ${rank}`) ?? Number.NaN);
      const predicted = ranks.length / sum(own.map((rate) => 1 / rate));
      const share = Number.isNaN(predicted) || new Set(ranks).size === 1 ? "" : (measured.rate / predicted).toFixed(3);
      row(...cells, Math.round(measured.rate), share, measured.seconds.toFixed(1));
    }
