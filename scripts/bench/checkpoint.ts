// What keeping every adapter costs training: runs with and without it, in turn, on this machine.
//
//   bun scripts/bench/checkpoint.ts [--shape llama2-7b] [--device cuda] [--adapters 32] [--seconds 20] [--steps 60]
//     [--rounds 2]
//                                   [--mlora dist/mlora] [--write]
//
// All adapters are saved each --seconds; the cost of one such save is printed as a share of a minute. --write adds a row to
// docs/measurements/checkpoint.md.

import { join } from "node:path";
import { parseArgs } from "node:util";
import { range } from "../../src/base/shape.ts";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "llama2-7b" },
    device: { type: "string", default: "cuda" },
    adapters: { type: "string", default: "32" },
    rows: { type: "string", default: "1" },
    length: { type: "string", default: "512" },
    targets: { type: "string", default: "qkvo" },
    seconds: { type: "string", default: "20" },
    steps: { type: "string", default: "60" },
    rounds: { type: "string", default: "2" },
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    write: { type: "boolean", default: false },
  },
});

type Report = { readonly device: string; readonly mean_ms: number; readonly checkpoints: number; readonly rank: number };

function measure(keep: boolean): Report {
  const { shape, device, adapters, rows, length, targets, steps } = values;
  const settings = { shape, device, adapters, rows, length, targets, steps, ...(keep ? { checkpoint: values.seconds } : {}) };
  const flags = Object.entries(settings).flatMap(([key, value]) => [`--${key}`, value]);
  const { exitCode, stdout, stderr } = Bun.spawnSync([...values.mlora.split(" "), "bench", ...flags, "--json"]);
  if (exitCode !== 0) throw new Error(`mlora bench ${flags.join(" ")}: exit code ${exitCode}\n${stderr}`);
  return JSON.parse(`${stdout}`);
}

const pairs = range(Number(values.rounds)).map((round) => {
  const [first, second] = round % 2 === 0 ? [measure(false), measure(true)] : [measure(true), measure(false)];
  const [without, with_] = round % 2 === 0 ? [first, second] : [second, first];
  const saves = with_.checkpoints / Number(values.adapters);
  const cost = ((with_.mean_ms - without.mean_ms) * Number(values.steps)) / 1000 / saves;
  console.log(
    `${without.mean_ms} ms a step without, ${with_.mean_ms} with ${saves.toFixed(1)} saves of all: ${cost.toFixed(2)} s each`,
  );
  return { cost, report: without };
});
const costs = pairs.map(({ cost }) => cost).sort((a, b) => a - b);
const cost = costs[costs.length >> 1]!;
const { device, rank } = pairs[0]!.report;
const segment = `${((100 * cost) / 60).toFixed(1)} %`;
const HEAD = `# Checkpoints

Rows of \`bun scripts/bench/checkpoint.ts --write\`: by how many seconds a save of all adapters prolongs training, and what that is of a minute.

| date (UTC) | commit | device | shape | adapters | rank | rounds | seconds a save | at one a minute |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
`;
tableOf("checkpoint", HEAD, values.write)(device, values.shape, values.adapters, rank, values.rounds, cost.toFixed(2), segment);
