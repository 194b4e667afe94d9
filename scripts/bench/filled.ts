// More adapters than a GPU has room for: memory is taken until only so much is left, then all of them are trained, as many at a
// time as fit.
//
//   bun scripts/bench/filled.ts [--left 24] [--shape llama2-7b] [--adapters 64] [--mlora dist/mlora]
//
// Fails where one of them does not come to its end. Needs a GPU.

import { join } from "node:path";
import { parseArgs } from "node:util";
import { openDevice } from "../../src/device/open.ts";

const { values } = parseArgs({
  options: {
    left: { type: "string", default: "24" },
    shape: { type: "string", default: "llama2-7b" },
    adapters: { type: "string", default: "64" },
    mlora: { type: "string", default: join(import.meta.dir, "..", "..", "dist", "mlora") },
  },
});
const GIB = 2 ** 30;

using device = openDevice({ kind: "cuda", compute: "bf16", ordinal: 0, stagesOnHost: 1 });
const { free } = device.memory();
const taken = free - Number(values.left) * GIB;
if (taken <= 0) throw new Error(`the GPU has ${(free / GIB).toFixed(1)} GiB free, fewer than are to be left`);
for (let rest = taken; rest > 0; rest -= 4 * GIB) device.allocate(Math.min(rest, 4 * GIB), "filling the GPU");
console.log(`${(device.memory().free / GIB).toFixed(1)} GiB are left of ${(free / GIB).toFixed(1)}`);

const { shape, adapters } = values;
const settings = { shape, adapters, device: "cuda", rows: 1, length: 512, targets: "qkvo", steps: 2 };
const flags = Object.entries(settings).flatMap(([key, value]) => [`--${key}`, `${value}`]);
const { exitCode, stdout, stderr } = Bun.spawnSync([...values.mlora.split(" "), "bench", ...flags, "--json"]);
console.log(`${stdout}${stderr}`);
process.exit(exitCode);
