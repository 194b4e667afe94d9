// A pipeline over two GPUs of one machine, compared with one GPU, and with PEFT with FSDP.
//
//   bun scripts/bench/pipeline.ts [SET[:COUNTS] ..] [--adapters "2 4 8"] [--cuts "16,16 16.5,15.5"] [--steps 6] [--device cuda]
//                                 [--copies] [--peers] [--seconds N] [--limit 120] [--traces FOLDER] [--mlora dist/mlora]
//                                 [--write]
//
// A set (SETS below) is one shape and precision: rank 16 on q, k, v, o and dropout 0.05, unless it says otherwise; "7b-fp8:2,4"
// are runs of two and of four adapters. Each GPU by itself trains most adapters of a set, both at once, and their mean is what
// ratios are to; then two stages train each number of them, divided as a plan does or by --cuts. Fails where losses on two
// stages are not those of one GPU, bit for bit. --copies adds two processes with a copy of the base model each; --peers PEFT
// with FSDP on both GPUs, which needs a Python with the packages of requirements.txt. After --seconds nothing new is begun, and
// a measurement that takes longer than --limit seconds is ended. --traces keeps a trace of each two stages. --write adds the
// rows to docs/measurements/pipeline.md.

import { join } from "node:path";
import { parseArgs } from "node:util";
import { now } from "../../src/base/clock.ts";
import { maxOf, sum } from "../../src/base/shape.ts";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    adapters: { type: "string", default: "2 4 8" },
    cuts: { type: "string", default: "2" },
    steps: { type: "string", default: "6" },
    device: { type: "string", default: "cuda" },
    copies: { type: "boolean", default: false },
    peers: { type: "boolean", default: false },
    seconds: { type: "string", default: "Infinity" },
    limit: { type: "string", default: "120" },
    traces: { type: "string" },
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    write: { type: "boolean", default: false },
  },
});

type Work = Readonly<Record<"shape" | "precision" | "rank", string> & Record<"rows" | "length", number>> & {
  readonly adapters?: readonly number[];
};
const dense = (shape: string, precision: string, rank = "16"): Work => ({ shape, precision, rank, rows: 8, length: 512 });
const SETS: Readonly<Record<string, Work>> = {
  "7b-bf16": dense("llama2-7b", "bf16"),
  "7b-nf4": dense("llama2-7b", "nf4"),
  "7b-fp8": dense("llama2-7b", "fp8"),
  "13b-bf16": dense("llama2-13b", "bf16"),
  "13b-nf4": dense("llama2-13b", "nf4"),
  "13b-fp8": dense("llama2-13b", "fp8"),
  "7b-ranks": { ...dense("llama2-7b", "bf16", "4,8,16,32,64,128,192,256"), adapters: [8] },
  experts: { ...dense("qwen3-30b-a3b", "bf16"), rows: 2, length: 2048, adapters: [4, 12] },
  tiny: { ...dense("smollm2-135m", "fp32"), rows: 2, length: 16 },
};
const given = positionals.map((of) => of.split(":") as [string, string?]);
const counts = new Map(given.flatMap(([set, of]) => (of === undefined ? [] : [[set, of.split(",").map(Number)] as const])));
const wanted = given.length > 0 ? given.map(([set]) => set) : Object.keys(SETS).filter((name) => name !== "tiny");
const unknown = wanted.filter((name) => !(name in SETS));
if (unknown.length > 0) throw new Error(`no set ${unknown.join(", ")}; there are ${Object.keys(SETS).join(", ")}`);

const began = now();
const isLate = (): boolean => now() - began > 1000 * Number(values.seconds);

type Report = {
  readonly device: string;
  readonly tokens_per_s: number;
  readonly device_bytes: number;
  readonly stages: readonly { readonly layers: number }[];
  readonly pass_ms: readonly Readonly<Record<"forward" | "after_forward" | "backward" | "after_backward", number>>[];
  readonly bubble: number | null;
  readonly simulated_bubble: number | null;
  readonly links: readonly string[];
  readonly mhz: number | null;
  readonly watts: number | null;
  readonly losses: readonly number[];
};

async function output(command: readonly string[], environment: Readonly<Record<string, string>> = {}): Promise<string> {
  const limited = ["timeout", "--kill-after=5", values.limit, ...command]; // ends what the command has started, too
  const child = Bun.spawn(limited, { stdout: "pipe", stderr: "pipe", env: { ...process.env, ...environment } });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code === 124) throw new Error(`${command.join(" ")}: it took longer than ${values.limit} s\n${err.slice(-3000)}`);
  if (code !== 0) throw new Error(`${command.join(" ")}: exit code ${code}\n${err.slice(-3000)}`);
  return out.trimEnd().split("\n").at(-1)!;
}

const flagsOf = (settings: Readonly<Record<string, string | number>>): string[] =>
  Object.entries(settings).flatMap(([key, value]) => [`--${key}`, `${value}`]);

/** On `gpu` alone where it is given. */
async function bench(work: Work, adapters: number, stages: string, gpu?: number, trace?: string): Promise<Report> {
  const { shape, precision, rank, rows, length } = work;
  const { steps, device } = values;
  const settings = { shape, precision, adapters, stages, rows, length, steps, device, rank, targets: "qkvo", dropout: 0.05 };
  const kept = trace === undefined || values.traces === undefined ? {} : { trace: join(values.traces, `${trace}.json`) };
  const only: Record<string, string> = gpu === undefined ? {} : { CUDA_VISIBLE_DEVICES: `${gpu}` };
  return JSON.parse(await output([...values.mlora.split(" "), "bench", ...flagsOf({ ...settings, ...kept }), "--json"], only));
}

const HEAD = `# A pipeline over two GPUs

Rows of \`bun scripts/bench/pipeline.ts --write\`: q, k, v, o, dropout 0.05, rank 16 unless it says otherwise. "Ratio" is tokens/s
divided by those of one GPU in the same call, the mean of both; memory is of all GPUs together; bubbles are the idle share of
both stages' time while both train. PEFT's rows are compiled layer by layer, with as many rows on each GPU.

| date (UTC) | commit | GPU | shape | what | tokens/s | ratio | GiB | bubble, measured | simulated | link |
| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |
`;
const keep = tableOf("pipeline", HEAD, values.write);
const NOTHING = ["", "", ""];

type Measured = Pick<Report, "device" | "tokens_per_s" | "device_bytes"> & Partial<Pick<Report, "mhz" | "watts">>;
function row(set: string, what: string, of: Measured, one: Measured, rest: readonly string[] = NOTHING): void {
  const { shape, precision, rank, rows, length } = SETS[set]!;
  const work = [precision, `${rows} x ${length}`, ...(rank === "16" ? [] : [`ranks ${rank}`])];
  const [tokens, ratio] = [of.tokens_per_s, of.tokens_per_s / one.tokens_per_s];
  const bytes = (of.device_bytes / 2 ** 30).toFixed(1);
  keep(one.device, shape, `${work.join(", ")}: ${what}`, tokens.toFixed(0), ratio.toFixed(3), bytes, ...rest);
  if (of.mhz) console.log(`clock ${of.mhz} MHz, ${of.watts} W`);
}

const countsOf = (set: string): readonly number[] =>
  counts.get(set) ?? SETS[set]!.adapters ?? values.adapters.split(" ").map(Number);
const failures: string[] = [];

async function attempt<T>(what: string, work: () => Promise<T>): Promise<T | null> {
  if (isLate()) {
    console.log(`not begun, it is late: ${what}`);
    return null;
  }
  try {
    return await work();
  } catch (error) {
    failures.push(`${what}: ${(error as Error).message}`);
    return null;
  }
}

/** Of each set, what one GPU does on its own: the mean of both, which differ by a percent, measured at once. */
const ones = new Map<string, Report>();
for (const set of wanted) {
  const most = maxOf(countsOf(set));
  const both = await attempt(`${set} on one GPU`, () => Promise.all([0, 1].map((gpu) => bench(SETS[set]!, most, "1", gpu))));
  if (!both) continue;
  const tokens_per_s = sum(both.map((one) => one.tokens_per_s)) / both.length;
  ones.set(set, { ...both[0]!, tokens_per_s });
  for (const [gpu, one] of both.entries()) row(set, `1 GPU, number ${gpu}, ${most} adapters`, one, ones.get(set)!);
}

for (const [set, one] of ones) {
  const work = SETS[set]!;
  for (const count of countsOf(set))
    for (const cut of values.cuts.split(" ")) {
      const two = await attempt(`${set} on two stages (${cut})`, () =>
        bench(work, count, cut, undefined, `${set}-${count}-${cut}`),
      );
      if (!two) continue;
      const link = two.links.find((line) => line.includes("to stage 1")) ?? two.links[0] ?? "";
      const bubbles = [two.bubble, two.simulated_bubble].map((bubble) => bubble?.toFixed(3) ?? "");
      const layers = two.stages.map((stage) => stage.layers).join(" + ");
      row(set, `2 stages (${layers}), ${count} adapters`, two, one, [...bubbles, link.replace(/^.*? by /, "")]);
      console.log(
        `passes, ms: ${two.pass_ms.map((of) => `${of.forward} (+${of.after_forward}) ${of.backward} (+${of.after_backward})`).join("; ")}`,
      );
      const other = two.losses.findIndex((loss, i) => loss !== one.losses[i]);
      if (other >= 0)
        failures.push(`${set}, ${count} adapters: ${two.losses[other]} on two stages, ${one.losses[other]} on one GPU`);
    }
  if (!values.copies) continue;
  const copies = await attempt(`${set}, two copies`, () => Promise.all([0, 1].map((gpu) => bench(work, 2, "1", gpu))));
  if (!copies) continue;
  const tokens_per_s = sum(copies.map((copy) => copy.tokens_per_s));
  const device_bytes = sum(copies.map((copy) => copy.device_bytes));
  row(set, "2 processes, 2 adapters each", { device: one.device, tokens_per_s, device_bytes }, one);
}

for (const [set, one] of values.peers ? ones : []) {
  const { shape, precision, rank, rows, length } = SETS[set]!;
  if (precision !== "bf16" || rank !== "16") continue;
  const flags = flagsOf({ shape, rows, length, rank, dropout: 0.05 });
  const command = ["python3", "-B", join(ROOT, "scripts/bench/peer_fsdp.py"), ...flags];
  const peer = await attempt(`${set}, PEFT`, async () => JSON.parse(await output(command)));
  if (peer) row(set, "PEFT, FSDP, 1 adapter", { device: one.device, ...peer }, one);
}

if (failures.length > 0) throw new Error(failures.join("\n"));
