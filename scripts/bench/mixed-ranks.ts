// What adapters of different ranks cost next to each other: tokens/s while all of them train, and the wall time of the whole
// command, from its start to the last export.
//
//   bun scripts/bench/mixed-ranks.ts [--mlora dist/mlora [--mlora OTHER]] [--mixes "8x16 7x8+1x256"] [--shape llama2-7b]
//                                    [--targets "q_proj k_proj v_proj o_proj"] [--tokens 57344] [--folder FOLDER]
//                                    [--device cuda] [--rounds 1] [--steps STEPS [--resident NUMBER]] [--write]
//
// A mix is a sum of NUMBERxRANK or NUMBERxRANKxROWS. Each adapter trains ROWS (1) rows of about 512 tokens a step, with dropout
// 0.05. With --steps the rate is that of --tokens tokens after every adapter has made that number of steps, and then the run
// is ended by force: no adapter is evaluated or exported, which for hundreds would take longer than what is measured.
// --resident: adapters on the device at once, while the others wait for their turn in host memory. Several --mlora take
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
    steps: { type: "string" },
    resident: { type: "string" },
    write: { type: "boolean", default: false },
  },
});
/** A row of text comes to this many tokens of the byte tokenizer, about. */
const ROW_TOKENS = 512;
/** Milliseconds between two looks at the metrics. */
const INTERVAL = 5;

type Adapter = { readonly rank: number; readonly rows: number };

const adaptersOf = (mix: string): readonly Adapter[] =>
  mix.split("+").flatMap((term) => {
    const [number, rank, rows = 1] = term.split("x").map(Number);
    if (!number || !rank || !rows) throw new Error(`'${mix}' is not a sum of NUMBERxRANK or NUMBERxRANKxROWS`);
    return new Array<Adapter>(number).fill({ rank, rows });
  });

/** A run that is ended by force has more steps to make than are waited for. */
const FURTHER = 1000;

function recipeOf(model: string, all: readonly Adapter[], steps: number): string {
  const settings = { steps, max_length: ROW_TOKENS, dropout: 0.05, data: "rows.jsonl" };
  const defaults = Object.entries({ ...settings, targets: values.targets.split(" ") });
  const adapters = all.map(({ rank, rows }, i) => `[[adapter]]\nname = "a${i}"\nrank = ${rank}\nbatch_size = ${rows}\n`);
  const resident = values.resident === undefined ? "" : `resident_adapters = ${values.resident}\n`;
  return `[model]\npath = ${JSON.stringify(model)}\n[run]\noutput = "out"\ncheckpoint = false\n${resident}[defaults]\n${defaults
    .map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`)
    .join("")}${adapters.join("")}`;
}

type Measured = {
  readonly rate: number;
  readonly seconds: number;
  /** Bytes of the GPU in use, at most; NaN where nvidia-smi does not say. */
  readonly gpuBytes: number;
  /** Bytes of all adapters, on the device and in host memory, of the sum of what each takes; by the plan. */
  readonly overhead: number;
};

/** Bytes in use on the first GPU. */
async function gpuBytes(): Promise<number> {
  if (!Bun.which("nvidia-smi")) return Number.NaN;
  const asked = Bun.spawn(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], { stdout: "pipe" });
  return Number((await asked.stdout.text()).split("\n")[0]) * 2 ** 20;
}

/** What a plan says of the adapters' memory. */
async function overheadOf(command: readonly string[]): Promise<number> {
  const planned = Bun.spawn([...command, "--json"], { stdout: "pipe", stderr: "pipe" });
  const [out, said] = await Promise.all([planned.stdout.text(), planned.stderr.text()]);
  if ((await planned.exited) !== 0) throw new Error(said);
  const { memory_bytes: memory, host_bytes: host = 0, adapters } = JSON.parse(out);
  return (memory.adapters + host) / sum((adapters as { memory_bytes: number }[]).map((of) => of.memory_bytes));
}

/** A run outlives this process otherwise, and the GPU's memory with it. */
let running: Bun.Subprocess | null = null;
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    running?.kill("SIGKILL");
    process.exit(1);
  });

/** Of one run; throws what it says where it fails. */
async function measure(mlora: string, model: string, mix: string): Promise<Measured> {
  const adapters = adaptersOf(mix);
  const rowsOfStep = sum(adapters.map(({ rows }) => rows));
  const counted = values.steps === undefined ? null : Number(values.steps);
  const steps = counted === null ? Math.max(4, Math.ceil(Number(values.tokens) / ROW_TOKENS / rowsOfStep)) : counted + FURTHER;
  const work = mkdtempSync(join(tmpdir(), "mlora-mixed-"));
  try {
    const rows = range(16).map((i) => JSON.stringify({ text: `${i} `.repeat(ROW_TOKENS).slice(0, ROW_TOKENS - 2) }));
    writeFileSync(join(work, "rows.jsonl"), `${rows.join("\n")}\n`);
    writeFileSync(join(work, "recipe.toml"), recipeOf(model, adapters, steps));
    const metrics = join(work, "out", "metrics.jsonl");
    const command = (name: string) => [...mlora.split(" "), name, join(work, "recipe.toml"), "--device", values.device];
    const overhead = await overheadOf(command("plan"));
    const begin = performance.now();
    const child = Bun.spawn(command("run"), { stdout: "ignore", stderr: "pipe" });
    running = child;
    const ended = child.exited;
    const said = child.stderr.text();
    /** Tokens that had been trained when a line was seen. */
    const seen: { readonly at: number; readonly tokens: number }[] = [];
    const made = new Map<string, number>();
    const least = () => (made.size < adapters.length ? 0 : Math.min(...made.values()));
    let [warm, used, isEnough] = [0, Number.NaN, false];
    for (let lines = 0, tokens = 0, code: number | null = null; code === null; ) {
      code = await Promise.race([ended, Bun.sleep(INTERVAL).then(() => null)]);
      const all = existsSync(metrics) ? readFileSync(metrics, "utf8").split("\n").slice(0, -1) : [];
      const steps = all.slice(lines).flatMap((line) => {
        const event = JSON.parse(line);
        if (event.type === "step") made.set(event.adapter, event.step);
        return event.type === "step" ? [event.tokens as number] : [];
      });
      lines = all.length;
      tokens += sum(steps);
      if (steps.length > 0) seen.push({ at: performance.now(), tokens });
      if (warm === 0 && least() >= (counted ?? 1)) [warm, used] = [tokens, await gpuBytes()];
      if (counted === null || isEnough || warm === 0 || tokens < warm + Number(values.tokens)) continue;
      isEnough = true;
      child.kill("SIGKILL");
    }
    const seconds = (performance.now() - begin) / 1000;
    if (!isEnough && (await ended) !== 0) throw new Error(await said);
    const last = seen.at(-1)!;
    const first = seen.find(({ tokens }) => tokens >= (counted === null ? last.tokens / 4 : warm))!; // warmed up
    return { rate: ((last.tokens - first.tokens) / (last.at - first.at)) * 1000, seconds, gpuBytes: used, overhead };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const HEAD = `# Adapters of different ranks together

Rows of \`bun scripts/bench/mixed-ranks.ts --write\`: a row of 512 tokens a step for each adapter, dropout 0.05. Share: of the rate that the
uniform runs of its ranks predict. Seconds: of the whole command, from its start to the last export, or to the last step with --steps.
GiB: of the GPU, as nvidia-smi says. Needs: what the plan counts for all adapters, over the sum of what each takes.

| date (UTC) | commit | mlora | shape | targets | mix | tokens/s | share | seconds | GiB | needs |
| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
`;
const row = tableOf("mixed-ranks", HEAD, values.write);
const model = randomModel(values.folder, values.shape);
const rates = new Map<string, number>();
for (const _ of range(Number(values.rounds)))
  for (const mix of values.mixes.split(" "))
    for (const mlora of values.mlora) {
      const ranks = adaptersOf(mix).map(({ rank }) => rank);
      const resident = values.resident === undefined ? "" : `, ${values.resident} on the GPU`;
      const cells = [mlora, values.shape, values.targets.replaceAll("_proj", ""), `${mix}${resident}`] as const;
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
      const gpu = Number.isNaN(measured.gpuBytes) ? "" : (measured.gpuBytes / 2 ** 30).toFixed(1);
      row(...cells, Math.round(measured.rate), share, measured.seconds.toFixed(1), gpu, measured.overhead.toFixed(4));
    }
