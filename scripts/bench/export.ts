// What an adapter takes to begin, to be read from the device and to be exported, without a base model: of this source tree, or
// of another in turn with it.
//
//   bun scripts/bench/export.ts [--shape llama2-7b] [--ranks "16 256"] [--targets "q_proj k_proj v_proj o_proj"]
//                               [--device cuda] [--rounds 3] [--folder FOLDER] [--init default] [--write]
//
// Begin: memory, first values, and the copy that kernels read. Read: the parameters on the host. Export: PEFT's files written,
// synced, read back and compared, into --folder. The medians of all rounds count; the first round of a process also takes
// pinned memory. --write adds the rows to docs/measurements/export.md.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { range, sum } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import { AdapterPool } from "../../src/engine/adapter-pool.ts";
import { fillInitial } from "../../src/engine/initialise.ts";
import { noOriginal } from "../../src/engine/weight-source.ts";
import { LINEARS } from "../../src/families/linears.ts";
import { exportPeft } from "../../src/files/peftexport.ts";
import type { Init } from "../../src/methods/init.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { tableOf } from "./table.ts";

const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "llama2-7b" },
    ranks: { type: "string", default: "16 256" },
    targets: { type: "string", default: "q_proj k_proj v_proj o_proj" },
    device: { type: "string", default: "cuda" },
    rounds: { type: "string", default: "3" },
    folder: { type: "string", default: tmpdir() },
    init: { type: "string", default: "default" },
    write: { type: "boolean", default: false },
  },
});

const spec = shapeOf(values.shape);
const layerRange = { from: 0, to: spec.layers };
const names = values.targets.split(" ");
const targets = LINEARS.filter((linear) => names.includes(linear));

const open = () => (values.device === "cpu" ? new CpuDevice() : new CudaDevice("bf16"));

/** Seconds of each part. */
async function measure(pool: AdapterPool, rank: number): Promise<number[]> {
  const adapter = { rank, scale: 2, targets };
  const folder = mkdtempSync(join(values.folder, "mlora-export-"));
  const times: number[] = [performance.now()];
  const init = values.init as Init;
  pool.admit(0, adapter);
  await fillInitial(pool, { spec, layerRange, original: noOriginal }, 0, { ...adapter, seed: 3, init });
  await pool.device.idle();
  times.push(performance.now());
  const [params] = await (await pool.snapshot(0, ["params"])).values;
  times.push(performance.now());
  const stages = [{ layerRange, params: params as Float32Array }];
  const peft = { ...adapter, alpha: 2 * rank, dropout: 0, rslora: false, baseModel: values.shape };
  exportPeft(join(folder, "adapter"), { name: "adapter", spec, peft, stages });
  times.push(performance.now());
  rmSync(folder, { recursive: true });
  pool.release(0);
  return times.slice(1).map((time, i) => (time - times[i]!) / 1000);
}

const median = (of: readonly number[]): number => of.toSorted((a, b) => a - b)[of.length >> 1]!;

const HEAD = `# The beginning and the end of an adapter

Rows of \`bun scripts/bench/export.ts --write\`: seconds that an adapter alone takes to begin, to be read from the device, and to be written as PEFT's files,
synced, read back and compared; the median, and the first of a process.

| date (UTC) | commit | device | shape | targets | rank | M parameters | begin | read | export | first |
| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |
`;
const row = tableOf("export", HEAD, values.write);
using device = open();
for (const rank of values.ranks.split(" ").map(Number)) {
  using pool = new AdapterPool(device, spec, layerRange, 1, []);
  const all: number[][] = [];
  for (const _ of range(Number(values.rounds))) all.push(await measure(pool, rank));
  const parts = [0, 1, 2].map((i) => median(all.map((of) => of[i]!)).toFixed(2));
  pool.admit(0, { rank, scale: 1, targets });
  const parameters = sum(pool.layout(0).tensors.map(({ rows, columns }) => rows * columns)) / 1e6;
  const first = all[0]!.map((seconds) => seconds.toFixed(2)).join(", ");
  row(device.name, values.shape, targets.join(" ").replaceAll("_proj", ""), rank, parameters.toFixed(0), ...parts, first);
}
