// What an evaluation may rely on: a row's loss is the same bits whichever rows are evaluated next to it.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { CPU_ROW_TILE } from "../../src/device/tile.ts";
import { Stage } from "../../src/engine/stage.ts";
import { pack, type Tokens } from "../../src/schedule/pack.ts";
import { writeAdapter } from "../helpers/factors.ts";
import {
  adapterOn,
  LINEARS,
  randomFactors,
  randomFill,
  randomTokens,
  sparseFamilies,
  tinyFamilies,
  tinySizes,
  wholeModel,
} from "../helpers/tiny.ts";

const isOwn = new CpuDevice(1).rowTile === CPU_ROW_TILE;
const SEED = 17;

for (const [family, spec] of Object.entries({ ...tinyFamilies, ...sparseFamilies }))
  test.skipIf(!isOwn)(`rows of ${family} evaluated together have the losses that they have apart`, async () => {
    const device = new CpuDevice(2);
    const adapters = [5, 20].map((rank, i) => adapterOn(spec, { rank, scale: 0.7, targets: LINEARS, seed: i + 1 }));
    const sizes = tinySizes(device, spec, adapters, { layers: spec.layers, rows: 264, targets: 264 });
    const config = { spec, layerRange: wholeModel(spec), sizes };
    using stage = await Stage.open(device, config, randomFill(device, 1), { previous: null, next: null });
    for (const [slot, adapter] of adapters.entries()) {
      await stage.admit(slot, { ...adapter, init: "default" });
      await writeAdapter(stage, slot, await randomFactors(stage, slot, SEED + slot));
    }
    const rng = new Rng(SEED);
    const samples = range(9).map(() => randomTokens(rng, spec.vocab, 2 + rng.below(24)));
    const losses = async (slot: number, of: readonly Tokens[]) => {
      const share = { adapter: slot, samples: of, seed: 0, step: 0, dropout: 0, firstRow: 0, weight: 0 };
      return (await stage.evaluate(pack([share], adapters.length, device.rowTile)))!;
    };
    for (const slot of [0, 1]) {
      const together = await losses(slot, samples);
      expect(together.some(({ loss }) => loss > 0)).toBe(true);
      const pairs = [samples.slice(0, 4), samples.slice(4, 5), samples.slice(5)];
      const apart = [];
      for (const of of pairs) apart.push(...(await losses(slot, of)));
      expect(apart, `seed ${SEED}`).toEqual([...together]);
    }
  });
