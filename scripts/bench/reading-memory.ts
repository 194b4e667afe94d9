// What reading many rows takes in time and memory, and whether the longest row counts: nothing of it is left once it is cut to
// max_length.
//
//   bun scripts/bench/reading-memory.ts [--rows 1000000] [--longest 40,2000000] [--model models/SmolLM2-135M-Instruct]
//
// For each length, in bytes, of the one longest row, the rows are read by the thread of a run in a process of its own. Told are
// the time, how often and how late progress came, the process's largest memory, and what it has when all is read.

import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { range } from "../../src/base/shape.ts";
import { readData } from "../../src/data/reading.ts";
import { loadRecipe } from "../../src/recipe/load.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    rows: { type: "string", default: "1000000" },
    longest: { type: "string", default: "40,2000000" },
    model: { type: "string", default: join(ROOT, "models", "SmolLM2-135M-Instruct") },
    /** One reading, in this process: the folder with the rows. */
    read: { type: "string" },
  },
});
const MIB = 2 ** 20;
const model = resolve(values.model);

const row = (i: number, bytes: number): string =>
  `${JSON.stringify({ prompt: `${i}: what is ${i} and ${i * 7}?`, completion: "word ".repeat(Math.ceil(bytes / 5)).trimEnd() })}\n`;

function writeRows(folder: string, rows: number, longest: number): void {
  const file = openSync(join(folder, "rows.jsonl"), "w");
  for (let from = 0; from < rows; from += 1000)
    writeSync(
      file,
      range(Math.min(1000, rows - from))
        .map((i) => row(from + i, from + i === rows >> 1 ? longest : 40))
        .join(""),
    );
  closeSync(file);
  const adapter = '[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 1\nmax_length = 256\n';
  writeFileSync(join(folder, "recipe.toml"), `[model]\npath = "${model}"\n[run]\noutput = "out"\n${adapter}`);
}

async function read(folder: string): Promise<void> {
  const { adapters } = loadRecipe(join(folder, "recipe.toml"), {});
  const begun = performance.now();
  let [calls, last, latest] = [0, begun, 0];
  const progress = () => {
    const now = performance.now();
    [calls, last, latest] = [calls + 1, now, Math.max(latest, now - last)];
  };
  const [data] = await readData(adapters, { model, vocab: 1_000_000, progress });
  const seconds = (performance.now() - begun) / 1000;
  Bun.gc(true);
  await Bun.sleep(2000); // the allocator gives memory back by and by
  const status = readFileSync("/proc/self/status", "utf8");
  const mib = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+) kB`, "m").exec(status)![1]) / 1024;
  const { counts, train } = data!;
  const bytes = 5 * train.reduce((all, { ids }) => all + ids.length, 0);
  console.log(
    `  ${counts.rows} rows in ${seconds.toFixed(1)} s (${Math.round(counts.rows / seconds)} rows/s), progress ${calls} times, ` +
      `at most ${Math.round(latest)} ms apart; ${Math.round(mib("VmHWM"))} MiB at most, ${Math.round(mib("VmRSS"))} MiB when all is read, ` +
      `${Math.round(bytes / MIB)} MiB of them tokens`,
  );
}

if (values.read !== undefined) await read(values.read);
else
  for (const longest of values.longest.split(",").map(Number)) {
    const folder = mkdtempSync(join(tmpdir(), "mlora-reading-"));
    try {
      writeRows(folder, Number(values.rows), longest);
      console.log(`the longest row has ${longest} bytes:`);
      const { exitCode } = Bun.spawnSync([process.execPath, import.meta.path, "--model", model, "--read", folder], {
        stdio: ["ignore", "inherit", "inherit"],
      });
      if (exitCode !== 0) throw new Error(`reading ended with ${exitCode}`);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
