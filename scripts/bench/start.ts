// How long a start takes: from the command to the first optimizer step, with a base model whose files are in the page cache.
//
//   bun scripts/bench/start.ts [--shape llama2-7b] [--folder FOLDER] [--mlora "COMMAND"] [--rounds 2] [--device auto] [--json]
//
// Writes a model of that shape with random weights into FOLDER (as large as the real one; left there, so that a second call is
// quick), trains one adapter for two steps, and prints the seconds until metrics.jsonl has its first; with --json a last line
// with the median of the rounds.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { median } from "./history/rows.ts";
import { randomModel } from "./random-model.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "llama2-7b" },
    folder: { type: "string", default: join(tmpdir(), "mlora-start") },
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    rounds: { type: "string", default: "2" },
    device: { type: "string", default: "auto" },
    json: { type: "boolean", default: false },
  },
});

/** Seconds until the first step of a run. */
async function start(model: string): Promise<number> {
  const work = mkdtempSync(join(tmpdir(), "mlora-start-run-"));
  try {
    const rows = Array.from({ length: 16 }, (_, i) => JSON.stringify({ text: `row ${i} `.repeat(60) }));
    writeFileSync(join(work, "data.jsonl"), `${rows.join("\n")}\n`);
    const recipe = `[model]\npath = "${model}"\n[run]\noutput = "out"\n[[adapter]]\nname = "a"\ndata = "data.jsonl"\nrank = 16\nsteps = 2\nbatch_size = 8\nmax_length = 512\n`;
    writeFileSync(join(work, "recipe.toml"), recipe);
    const metrics = join(work, "out", "metrics.jsonl");
    const begin = performance.now();
    const child = Bun.spawn([...values.mlora.split(" "), "run", join(work, "recipe.toml"), "--device", values.device], {
      stdout: "ignore",
      stderr: "pipe",
    });
    let seconds = Number.NaN;
    while (child.exitCode === null) {
      if (existsSync(metrics) && readFileSync(metrics, "utf8").includes('"type":"step"')) {
        seconds = (performance.now() - begin) / 1000;
        break;
      }
      await Bun.sleep(5);
    }
    const [text, code] = [await child.stderr.text(), await child.exited];
    if (code !== 0 || Number.isNaN(seconds)) throw new Error(`mlora ended with ${code} before its first step: ${text}`);
    return seconds;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const model = randomModel(values.folder, values.shape);
const found: number[] = [];
for (let round = 1; round <= Number(values.rounds); round++) {
  found.push(await start(model));
  process.stdout.write(`${values.shape}, round ${round}: ${found.at(-1)!.toFixed(2)} s to the first step\n`);
}
if (values.json) console.log(JSON.stringify({ shape: values.shape, seconds: median(found), rounds: found }));
