// How fast a GPU trains over a base in each precision and with each kind of adapter, and in how much memory.
//
//   bun scripts/bench/precision.ts [CASE ...] [--steps 8] [--mlora dist/mlora] [--write]
//
// Each case is one `mlora bench`, in the same run as the case that it is compared with. Ratios count. Needs a GPU; fp8
// needs Hopper. --write adds the rows to docs/measurements/precision.md.

import { join } from "node:path";
import { parseArgs } from "node:util";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: "string", default: "8" },
    device: { type: "string", default: "cuda" },
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    write: { type: "boolean", default: false },
  },
});

type Settings = Readonly<Record<string, string | number>>;
type Report = Readonly<Record<"tokens_per_s" | "device_bytes" | "planned_bytes", number>> & { readonly device: string };

const BASE = { rows: 2, length: 512, adapters: 4, rank: 16, targets: "qkvo", dropout: 0.05, shape: "llama2-7b" };
/** What is asked for: a share of the speed of another case, or GiB at most. */
const CASES: Readonly<Record<string, { readonly settings: Settings; readonly of?: string; readonly asked?: string }>> = {
  bf16: { settings: { precision: "bf16", recomputation: "none" } },
  fp8: { settings: { precision: "fp8", recomputation: "none" }, of: "bf16", asked: "1.4" },
  int8: { settings: { precision: "int8", recomputation: "none" }, of: "bf16", asked: "0.8" },
  nf4: { settings: { precision: "nf4", recomputation: "none" }, of: "bf16", asked: "0.8" },
  "nf4-fp8": { settings: { precision: "nf4-fp8", recomputation: "none" }, of: "bf16", asked: "1.3" },
  "4 DoRA adapters": { settings: { precision: "bf16", recomputation: "none", method: "dora" }, of: "bf16", asked: "0.8" },
  "nf4, full recomputation": { settings: { precision: "nf4", recomputation: "full" }, asked: "7 GiB" },
  "13B, nf4, full recomputation": {
    settings: { precision: "nf4", recomputation: "full", shape: "llama2-13b" },
    asked: "12 GiB",
  },
  "70B, nf4": { settings: { precision: "nf4", shape: "llama3-70b", adapters: 1, steps: 2 }, asked: "80 GB" },
};
const unknown = positionals.filter((name) => !(name in CASES));
if (unknown.length > 0) throw new Error(`no case is called ${unknown.join(", ")}; there are ${Object.keys(CASES).join(", ")}`);

async function measure(settings: Settings): Promise<Report> {
  const all = { ...BASE, steps: values.steps, device: values.device, ...settings };
  const flags = Object.entries(all).flatMap(([key, value]) => [`--${key}`, `${value}`]);
  const child = Bun.spawn([...values.mlora.split(" "), "bench", ...flags, "--json"], { stdout: "pipe", stderr: "pipe" });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code !== 0) throw new Error(`mlora bench ${flags.join(" ")}: exit code ${code}\n${err}`);
  return JSON.parse(out);
}

const HEAD = `# Precisions and kinds of adapters

Rows of \`bun scripts/bench/precision.ts --write\`: four adapters of 2 x 512 tokens each, rank 16 on q, k, v, o, dropout 0.05, of the Llama-2-7B
shape where nothing else is said. The ratio is that of tokens/s to the bf16 row's; "asked" is the least of it, or the most memory.

| date (UTC) | commit | GPU | case | tokens/s | ratio | GiB (planned) | asked |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: |
`;
const keep = tableOf("precision", HEAD, values.write);
const found = new Map<string, Report>();
for (const name of positionals.length > 0 ? positionals : Object.keys(CASES)) {
  const { settings, of, asked = "" } = CASES[name]!;
  const report = await measure(settings);
  found.set(name, report);
  const beside = of === undefined ? undefined : found.get(of);
  const ratio = beside ? (report.tokens_per_s / beside.tokens_per_s).toFixed(2) : "";
  const gib = (bytes: number) => (bytes / 2 ** 30).toFixed(1);
  const memory = `${gib(report.device_bytes)} (${gib(report.planned_bytes)})`;
  keep(report.device, name, report.tokens_per_s, ratio, memory, asked);
}
