// The memory that `mlora plan` predicts compared with what a device gives: different mixes of batch, length, rank and number of
// adapters, and the paper's model fitted to what was measured.
//
//   bun scripts/bench/memory.ts [--shape llama2-7b] [--mixes 20] [--device cuda] [--gpus 1] [--mlora dist/mlora] [--write]
//
// Each mix is one `mlora bench` of a few steps, on one of --gpus. --write adds a row to docs/measurements/memory.md.

import { join } from "node:path";
import { parseArgs } from "node:util";
import { Rng } from "../../src/base/rng.ts";
import { maxOf, range, sum } from "../../src/base/shape.ts";
import { fitMemory } from "../../src/plan/memory-model.ts";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "llama2-7b" },
    mixes: { type: "string", default: "20" },
    device: { type: "string", default: "cuda" },
    gpus: { type: "string", default: "1" },
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    write: { type: "boolean", default: false },
  },
});

type Report = { readonly device: string; readonly planned_bytes: number; readonly device_bytes: number };
type Mix = { readonly adapters: number; readonly rows: number; readonly length: number; readonly rank: number };

const rng = new Rng(2026);
const oneOf = <T>(of: readonly T[]): T => of[rng.below(of.length)]!;
const mixes = range(Number(values.mixes)).map(
  (): Mix => ({
    adapters: oneOf([1, 2, 4, 8]),
    rows: oneOf([1, 2, 4]),
    length: oneOf([128, 256, 512, 1024]),
    rank: oneOf([8, 16, 32, 64]),
  }),
);

async function measure({ adapters, rows, length, rank }: Mix, gpu: number): Promise<Report> {
  const settings = { shape: values.shape, device: values.device, adapters, rows, length, rank, targets: "qkvo", steps: 1 };
  const flags = Object.entries(settings).flatMap(([key, value]) => [`--${key}`, `${value}`]);
  const visible = values.device === "cuda" ? { CUDA_VISIBLE_DEVICES: `${gpu}` } : {};
  const child = Bun.spawn([...values.mlora.split(" "), "bench", ...flags, "--json"], {
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...visible },
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code !== 0) throw new Error(`mlora bench ${flags.join(" ")}: exit code ${code}\n${err}`);
  return JSON.parse(out);
}

const reports: Report[] = [];
let next = 0;
async function measureAll(gpu: number): Promise<void> {
  while (next < mixes.length) {
    const i = next++;
    reports[i] = await measure(mixes[i]!, gpu);
    say(mixes[i]!, reports[i]!);
  }
}
function say(mix: Mix, report: Report): void {
  const gib = (bytes: number) => (bytes / 2 ** 30).toFixed(2);
  console.log(`${JSON.stringify(mix)}: planned ${gib(report.planned_bytes)} GiB, taken ${gib(report.device_bytes)} GiB`);
}
await Promise.all(range(Number(values.gpus)).map(measureAll));

const error = (predicted: (report: Report) => number) =>
  sum(reports.map((report) => Math.abs(predicted(report) / report.device_bytes - 1))) / reports.length;
const plain = error(({ planned_bytes }) => planned_bytes);
const beside = sum(reports.map(({ planned_bytes, device_bytes }) => device_bytes - planned_bytes)) / reports.length;
const corrected = error(({ planned_bytes }) => planned_bytes + beside);
const worst = maxOf(reports.map(({ planned_bytes, device_bytes }) => Math.abs((planned_bytes + beside) / device_bytes - 1)));
const samples = mixes.map(({ adapters, rows, length }, i) => ({
  sequences: adapters * rows,
  length,
  bytes: reports[i]!.device_bytes,
}));
const paper = fitMemory(samples).meanError;
const segment = (of: number) => `${(100 * of).toFixed(2)} %`;
const HEAD = `# Memory, planned and taken

Rows of \`bun scripts/bench/memory.ts --write\`: mixes of adapters, rows, length and rank. Mean absolute error of the plan, of the plan with
what is taken next to it (one number, the mean over all mixes) and of that in the worst mix; and of the paper's Mem = b0 + b1 B L + b2 B L^2
fitted to the same measurements, which knows nothing of ranks and adapters.

| date (UTC) | commit | device | shape | mixes | plan | plan, corrected | worst | paper's model |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
`;
tableOf("memory", HEAD, values.write)(
  reports[0]!.device,
  values.shape,
  mixes.length,
  segment(plain),
  segment(corrected),
  segment(worst),
  segment(paper),
);
