// `bun family-trial.ts FAMILY`: adapters on every linear of a tiny model of three layers. Prints, for each recomputation, the
// largest error of a gradient against finite differences of the loss, relative to its size, the planned and the taken bytes,
// and a hash of the gradients.

import { Rng } from "../../src/base/rng.ts";
import { sum } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { linearsOfModel, modulesOf } from "../../src/families/linears.ts";
import { placed } from "../../src/methods/placement.ts";
import { pack } from "../../src/schedule/pack.ts";
import { factorsOf, readAdapter, writeAdapter } from "./factors.ts";
import { plannedBytes, randomTokens, tinySizes, tinySpec, tinyStage } from "./tiny.ts";

const spec = tinySpec({ family: process.argv[2]!, layers: 3, windows: [null, 5, null] });
const sites = new Set(modulesOf(spec).map(({ layer, linear }) => `${layer}.${linear}`));
const site = { rank: 3, scale: 1.7 };
const places = placed(spec.layers, (layer, linear) => (sites.has(`${layer}.${linear}`) ? site : null));
const adapters = [places, { ...places, method: "dora" as const }];
const samples = [11, 18].map((length) => randomTokens(new Rng(9), spec.vocab, length));
const rows = { samples, seed: 4, step: 3, dropout: 0.1, firstRow: 7, weight: 0.05 };

async function trial(recomputation: "none" | "selective" | "full") {
  const device = new CpuDevice(2);
  using stage = await tinyStage(device, spec, adapters, [5, 6], { recomputation });
  const sizes = tinySizes(device, spec, adapters, { layers: spec.layers, recomputation });
  const planned = plannedBytes(device, spec, sizes, adapters);
  const batch = pack(
    adapters.map((_, adapter) => ({ ...rows, adapter })),
    adapters.length,
    device.rowTile,
  );
  await stage.forward(0, batch);
  await stage.backward(0);
  const gradients = await Promise.all([0, 1].map(async (slot) => factorsOf(stage, slot, await stage.pool.read(slot, "grads"))));
  const lossOf = async () => rows.weight * sum((await stage.evaluate(batch))!.map(({ loss }) => loss));
  const errors: number[] = [];
  const before = await readAdapter(stage, 0);
  for (const [i, at] of before.entries()) {
    const gradient = gradients[0]![i]!.values;
    const rng = new Rng(i, 77);
    const direction = Float32Array.from(gradient, () => 0.3 * rng.normal());
    const lossAt = async (moved: number): Promise<number> => {
      await writeAdapter(stage, 0, [{ ...at, values: at.values.map((value, j) => value + 0.004 * moved * direction[j]!) }]);
      return lossOf();
    };
    const [near, far] = [(await lossAt(1)) - (await lossAt(-1)), (await lossAt(2)) - (await lossAt(-2))];
    await writeAdapter(stage, 0, [at]);
    const along = gradient.reduce((total, g, j) => total + g * direction[j]!, 0);
    errors.push(Math.abs(along - (8 * near - far) / (12 * 0.004)) / (Math.hypot(...gradient) * Math.hypot(...direction)));
  }
  const hash = Bun.hash(
    Buffer.concat(gradients.flat().map(({ values }) => Buffer.from(values.buffer, values.byteOffset, values.byteLength))),
  ).toString(16);
  return { factors: before.length, worst: Math.max(...errors), planned, taken: device.allocated, hash };
}

const trials = [await trial("none"), await trial("selective"), await trial("full")];
console.log(JSON.stringify({ linears: linearsOfModel(spec), trials }));
