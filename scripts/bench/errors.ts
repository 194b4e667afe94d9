// How far products over a base in fewer bits are from those over its exact values: ||y - x W^T|| / ||x W^T|| and the same of dy
// W, compared with sums in f64.
//
//   bun scripts/bench/errors.ts [--device cpu] [--formats "dense int8 nf4"] [--rows 128] [--in 2048] [--out 1024] [--write]
//
// Normal weights and inputs, rounded to what the device computes with before anything is measured. --write adds the rows to
// docs/measurements/errors.md.

import { parseArgs } from "node:util";
import type { WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { Arena } from "../../src/device/arena.ts";
import type { Tensor } from "../../src/device/device.ts";
import { openDevice } from "../../src/device/open.ts";
import { type PackedWeight, partsOf, type Weight } from "../../src/device/packed.ts";
import { linearBackward, linearForward } from "../../src/ops/linear.ts";
import { quantise } from "../../src/ops/packed.ts";
import { tableOf } from "./table.ts";

const { values } = parseArgs({
  options: {
    device: { type: "string", default: "cpu" },
    formats: { type: "string", default: "dense int8 nf4" },
    rows: { type: "string", default: "128" },
    in: { type: "string", default: "2048" },
    out: { type: "string", default: "1024" },
    write: { type: "boolean", default: false },
  },
});
const [M, K, N] = [Number(values.rows), Number(values.in), Number(values.out)];

using device =
  values.device === "cuda"
    ? openDevice({ kind: "cuda", compute: "bf16", ordinal: 0, stagesOnHost: 1 })
    : openDevice({ kind: "cpu", compute: "f32", ordinal: 0, stagesOnHost: 1 });
const dtype = device.compute;
using arena = new Arena(device, 8 * (N * K + M * (N + K)) * 4 + 2 ** 20, "products");
device.reserveScratch(4 * N * K + 4 * M * (N + K) + 2 ** 20);

/** Normal numbers as the device holds them. */
function normal(seed: number, scale: number, rows: number, columns: number): { tensor: Tensor; values: Float32Array } {
  const rng = new Rng(seed);
  const values = Float32Array.from({ length: rows * columns }, () => scale * rng.normal());
  const tensor = arena.tensor(dtype, rows, columns);
  const halves = Uint16Array.from(new Uint32Array(values.buffer), (word) => word >>> 16);
  if (dtype === "bf16") values.set(new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer));
  device.write(tensor, dtype === "bf16" ? halves : values);
  return { tensor, values };
}

async function read(tensor: Tensor): Promise<Float32Array> {
  const { buffer } = await device.read(tensor);
  return dtype === "f32"
    ? new Float32Array(buffer)
    : new Float32Array(Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer);
}

/** a [rows, depth] times b [columns, depth] turned, in f64. */
function product(a: Float32Array, b: Float32Array, depth: number): Float64Array {
  const [rows, columns] = [a.length / depth, b.length / depth];
  const out = new Float64Array(rows * columns);
  for (let m = 0; m < rows; m++)
    for (let n = 0; n < columns; n++) {
      let total = 0;
      for (let k = 0; k < depth; k++) total += a[m * depth + k]! * b[n * depth + k]!;
      out[m * columns + n] = total;
    }
  return out;
}

function turned(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = values[i * columns + j]!;
  return out;
}

function errorOf(found: Float32Array, wanted: Float64Array): string {
  let [off, all] = [0, 0];
  for (const [i, want] of wanted.entries()) {
    off += (found[i]! - want) ** 2;
    all += want ** 2;
  }
  return `${(100 * Math.sqrt(off / all)).toPrecision(2)} %`;
}

const [w, x, dy] = [normal(1, 0.02, N, K), normal(2, 1, M, K), normal(3, 1, M, N)];
const wanted = { y: product(x.values, w.values, K), dx: product(dy.values, turned(w.values, N, K), N) };
const HEAD = `# Errors of products over a packed base

Rows of \`bun scripts/bench/errors.ts --write\`: relative errors of the two products of a frozen weight, of normal numbers, compared with sums in f64.

| date (UTC) | commit | device | held as | M x K x N | x W^T | dy W |
| --- | --- | --- | --- | --- | ---: | ---: |
`;
const keep = tableOf("errors", HEAD, values.write);

function held(format: WeightFormat): Weight {
  if (format === "dense") return w.tensor;
  const layout = { format, shape: [N, K] as const, firstRow: [0, N] };
  const weight: PackedWeight = { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
  quantise(device, { from: w.tensor, weight, linear: 0, absmax: arena.tensor("f32", Math.ceil((N * K) / 64)) });
  return weight;
}

for (const format of values.formats.split(" ") as WeightFormat[]) {
  const weight = held(format);
  const [y, dx] = [arena.tensor(dtype, M, N), arena.tensor(dtype, M, K)];
  linearForward(device, { x: x.tensor, weight, bias: null, residual: null, y, lora: null });
  linearBackward(device, { dy: dy.tensor, weight, dx, lora: null });
  const name = format === "dense" ? dtype : format;
  keep(device.name, name, `${M} x ${K} x ${N}`, errorOf(await read(y), wanted.y), errorOf(await read(dx), wanted.dx));
}
