// Adapters that train the embedding and the output head: gradients, and that nothing else in a run changes what they learn.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { pack } from "../../src/schedule/pack.ts";
import { crowdTables, expectSame, type Ground, train } from "../helpers/crowd.ts";
import { factorsOf, readAdapter, writeAdapter } from "../helpers/factors.ts";
import { common, expectGradients, weightedLoss } from "../helpers/gradients.ts";
import { comparesWithPeft } from "../helpers/peft.ts";
import { tableGoldens } from "../helpers/table-golden.ts";
import { LINEARS, randomTokens, tinyFamilies, tinyStage } from "../helpers/tiny.ts";

const TOKENS = [5, 30, 17, 8, 41, 2, 50];
const product = (rank: number, scale: number) => ({ rank, scale });
/** Products of both tables, of one, rows of tokens, and adapters that leave the tables alone. */
const adapters: readonly PoolAdapter[] = [
  { rank: 3, scale: 1.7, targets: LINEARS, tables: { embedding: product(2, 0.9), head: product(3, 1.3) } },
  { rank: 5, scale: 0.4, targets: ["q_proj", "down_proj"] },
  { rank: 1, scale: 0, targets: [], tables: { head: product(20, 0.3) } },
  { rank: 4, scale: 0.8, targets: ["v_proj", "up_proj"], method: "dora" },
  { rank: 2, scale: 1.1, targets: ["o_proj"], tables: { embedding: product(5, 0.6) } },
];
const untied: readonly PoolAdapter[] = [
  { rank: 3, scale: 1.7, targets: LINEARS, tables: { embedding: { tokens: TOKENS }, head: { tokens: [3, 44, 21] } } },
  { rank: 5, scale: 0.4, targets: ["q_proj", "down_proj"] },
  { rank: 2, scale: 1, targets: ["up_proj"], tables: { embedding: product(3, 1.2), head: { tokens: [7, 9] } } },
  { rank: 2, scale: 1, targets: ["up_proj"], tables: { embedding: { tokens: [0, 12, 33, 25, 48, 6] }, head: product(6, 0.5) } },
];
const FAMILIES = ["llama", "qwen2", "granite"];

for (const [kind, of] of Object.entries({ products: adapters, tokens: untied }))
  for (const [i, family] of FAMILIES.entries())
    for (const dropout of i === 0 ? [0, 0.1] : [0.1])
      describe(`${kind}, ${family}, dropout ${dropout}`, () => {
        const spec = { ...tinyFamilies[family]!, ...(kind === "tokens" ? { tiedEmbeddings: false } : {}) };
        test("gradients agree with finite differences", () =>
          expectGradients(
            spec,
            { recomputation: (["none", "selective", "full", "offload"] as const)[i % 3]!, chunk: 24 * (1 + (i % 3)) },
            (rng) =>
              of.map((_, adapter) => ({
                ...common(adapter, dropout),
                samples: [11, 3, 28 + adapter].map((length) => randomTokens(rng, spec.vocab, length)),
              })),
            weightedLoss,
            of,
          ));
      });

// PEFT's own fp32 lies as far from itself with other micro-batches.
comparesWithPeft("cpu", "fp32", { loss: 1e-5, gradNorm: 3e-5, weights: 1e-4 }, true, tableGoldens());

const ground = (family: string, chunkTiles = 1): Ground => ({
  spec: tinyFamilies[family]!,
  open: () => new CpuDevice(2),
  passRows: 160,
  tables: crowdTables,
  chunkTiles,
});

describe("what an adapter learns of the tables depends on no other, bit for bit", () => {
  for (const family of ["llama", "qwen2", "granite"])
    test(family, async () => {
      const everyone = await train(range(8), ground(family));
      const few = await train([7, 3, 1, 0], ground(family, 3));
      for (const i of [7, 3, 1, 0]) {
        const alone = (await train([i], ground(family, 2))).get(i)!;
        expect(alone.losses.at(-1)).not.toBe(alone.losses[0]);
        expectSame(everyone.get(i)!, alone);
        expectSame(few.get(i)!, alone);
      }
    });
});

test("two stages learn what one does", async () => {
  for (const family of ["llama", "qwen2", "gemma2", "granite"]) {
    const who = [0, 1, 2, 3, 7];
    const one = await train(who, ground(family));
    const two = await train(who, ground(family, 2), [1]);
    for (const i of who) expectSame(two.get(i)!, one.get(i)!);
  }
});

test("rows that serve both tables are one parameter, with the gradient of both", async () => {
  const spec = tinyFamilies["qwen2"]!;
  const tables = { embedding: { tokens: TOKENS }, head: { tokens: TOKENS } };
  const adapter: PoolAdapter = { rank: 1, scale: 0, targets: [], tables };
  using stage = await tinyStage(new CpuDevice(2), spec, [adapter], []);
  const rng = new Rng(9);
  const samples = [11, 3, 28].map((length) => randomTokens(rng, spec.vocab, length));
  const batch = pack([{ ...common(0, 0), samples }], 1, stage.device.rowTile);
  const start = await readAdapter(stage, 0);
  expect(start.map(({ linear }) => linear)).toEqual(["embedding", "head"]);
  expect(start[0]!.values).toEqual(start[1]!.values);
  await stage.forward(0, batch);
  await stage.backward(0);
  const [first, gradient] = factorsOf(stage, 0, await stage.pool.read(0, "grads"));
  expect(first!.values.every((value) => value === 0)).toBe(true);
  const direction = gradient!.values.map(() => 0.3 * rng.normal());
  const lossAt = async (moved: number) => {
    const values = start[0]!.values.map((value, i) => value + moved * direction[i]!);
    await writeAdapter(
      stage,
      0,
      start.map((at) => ({ ...at, values })),
    );
    return weightedLoss(batch, (await stage.evaluate(batch))!, 0);
  };
  const numeric = ((await lossAt(0.01)) - (await lossAt(-0.01))) / 0.02;
  const along = gradient!.values.reduce((total, g, i) => total + g * direction[i]!, 0);
  expect(Math.abs(along - numeric) / (Math.hypot(...gradient!.values) * Math.hypot(...direction))).toBeLessThan(1e-3);
  const [squares] = await stage.pool.gradSquares([0]);
  expect(squares![0]).toBe(0);
  await stage.step([
    { adapter: 0, t: 1, learningRate: 0.01, ratio: 1, weightDecay: 0.1, coefficient: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8 },
  ]);
  const [one, other] = await readAdapter(stage, 0);
  expect(one!.values).toEqual(other!.values);
  expect(one!.values).not.toEqual(start[0]!.values);
});
