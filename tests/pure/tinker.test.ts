// Tinker's messages and losses: what is broken has one error; losses have the derivatives that they say.

import { describe, expect, test } from "bun:test";
import { logProb, topOf } from "../../src/base/logits.ts";
import { fieldsOf, float32s, int64s, WireFault } from "../../src/base/protobuf.ts";
import { Rng } from "../../src/base/rng.ts";
import { candidates } from "../../src/base/sample.ts";
import { range, sum } from "../../src/base/shape.ts";
import { targetLoss } from "../../src/objectives/policy.ts";
import { pack } from "../../src/schedule/pack.ts";
import { ApiError } from "../../src/serve/errors.ts";
import { addressOf, forwardBackwardResult, readForwardBackward } from "../../src/serve/tinker/messages.ts";
import { datumLogProbs, denseOf, lossOf, rowsOf } from "../../src/serve/tinker/rows.ts";
import { distributionOf } from "../../src/session/distribution.ts";
import { mutateBytes } from "../helpers/mutate.ts";
import { POLICY_LOSSES } from "../helpers/policies.ts";
import { floats, forwardBackwardBytes, ints, weightedDatum } from "../helpers/tinker.ts";

const IDS = [5, 7, 300, 70_000];
const several = {
  tokens: [1, 2],
  inputs: {
    target_tokens: { dtype: "int64", values: [3, 4, 5, 6, 7, 8], shape: [2, 3] },
    weights: { dtype: "float32", values: [0.5, 0, 0, 0, -1, 0], shape: [2, 3] },
  },
} as const;
const sampled = {
  tokens: [1, 2, 3],
  inputs: { target_tokens: ints([2, 3, 4]), logprobs: floats([-1, -2, -3]), advantages: floats([0, 1, -1]) },
};
const MESSAGES = [
  forwardBackwardBytes("s:train:0", 3, [weightedDatum(IDS, [0, 1, 0.25])]),
  forwardBackwardBytes("s:train:0", 4, [several, weightedDatum([1, 2], [1])], "cross_entropy", {}, true),
  forwardBackwardBytes("s:train:1", 1, [sampled], "ppo", { clip_low_threshold: 0.7 }),
];

describe("messages", () => {
  test("are read as they were written", () => {
    expect(addressOf(MESSAGES[1]!)).toEqual({ model: "s:train:0", number: 4 });
    const { data, config, loss } = readForwardBackward(MESSAGES[2]!);
    expect([loss, [...config]]).toEqual(["ppo", [["clip_low_threshold", 0.7]]]);
    expect([...data[0]!.tokens]).toEqual([1, 2, 3]);
    expect(lossOf({ loss, config })).toEqual({ name: "ppo", low: 0.7, high: 1.2 });
    const [row] = rowsOf(readForwardBackward(MESSAGES[0]!).data, null)[0]!.rows;
    expect([...row!.ids]).toEqual(IDS);
    expect([[...row!.mask], [...row!.weights!], row!.targets]).toEqual([[0, 0, 1, 1], [0, 0, 1, 0.25], undefined]);
    const [columns] = rowsOf(readForwardBackward(MESSAGES[1]!).data, null);
    expect(columns!.rows.map(({ targets, ids }) => [...(targets ?? ids)].slice(1))).toEqual([
      [3, 6],
      [4, 7],
      [5, 8],
    ]);
    expect(columns!.rows.map(({ mask }) => [...mask])).toEqual([
      [0, 1, 0],
      [0, 0, 1],
      [1, 1, 1],
    ]);
    const found = datumLogProbs(
      columns!,
      range(3).map((k) => Float32Array.of(Number.NaN, -k, -10 - k)),
    );
    expect([...found.logProbs]).toEqual([-0, -1, -2, -10, -11, -12]);
  });

  test("of results have an array for each width of targets", () => {
    const bytes = forwardBackwardResult(
      [
        { logProbs: Float32Array.of(-1, -2), width: null },
        { logProbs: Float32Array.of(-3), width: null },
        { logProbs: Float32Array.of(-4, -5), width: 2 },
      ],
      { "loss:sum": 2.5 },
    );
    const inner = (message: Uint8Array, number: number) =>
      [...fieldsOf(message)].filter((field) => field.number === number).map((field) => field.value as Uint8Array);
    const records = inner(bytes, 2).map((record) => inner(inner(record, 2)[0]!, 2)[0]!);
    expect(records.map((tensor) => [...float32s(inner(tensor, 1)[0]!)])).toEqual([
      [-1, -2, -3],
      [-4, -5],
    ]);
    expect(records.map((tensor) => int64s(inner(tensor, 2)[0]!))).toEqual([
      [0, 8, 12],
      [0, 8],
    ]);
    expect(records.map((tensor) => inner(tensor, 4).length)).toEqual([0, 1]);
  });

  test("that are broken have one error, 10,000 times", () => {
    const rng = new Rng(11);
    let [refused, read] = [0, 0];
    for (const i of range(10_000)) {
      const bytes = mutateBytes(MESSAGES[i % 3]!, rng, MESSAGES[(i + 1) % 3]!);
      try {
        addressOf(bytes);
        const { data, ...given } = readForwardBackward(bytes);
        for (const { rows } of rowsOf(data, lossOf(given)))
          for (const { ids, mask } of rows) expect(mask.length).toBe(ids.length);
        read++;
      } catch (error) {
        if (!(error instanceof WireFault || (error instanceof ApiError && error.status === 400))) throw error;
        expect(error.message.length).toBeLessThan(400);
        refused++;
      }
    }
    expect(Math.min(refused, read)).toBeGreaterThan(100);
  });
});

describe("losses of policies", () => {
  test.each(POLICY_LOSSES.map((loss) => [loss.name, loss] as const))("%s has the weight of its derivative", (name, loss) => {
    const rng = new Rng(3);
    for (let i = 0; i < 300; i++) {
      const [p, q, advantage] = [-3 * rng.uniform(), -3 * rng.uniform(), rng.normal()];
      const ratio = Math.exp(p - q);
      const h = 1e-6;
      if ("low" in loss && Math.min(Math.abs(ratio - loss.low), Math.abs(ratio - loss.high)) < 1e-3) continue;
      // CISPO's clipped ratio is a constant.
      const at = (x: number) =>
        name === "cispo" ? -Math.min(4, Math.max(0, ratio)) * advantage * x : targetLoss(loss, x, q, advantage).loss;
      const slope = (at(p + h) - at(p - h)) / (2 * h);
      const { weight, loss: value } = targetLoss(loss, p, q, advantage);
      expect(-weight).toBeCloseTo(slope, 5);
      expect(value).toBeCloseTo(at(p), 12);
    }
  });

  test("an advantage of 0 counts nothing, however unlikely the token was", () => {
    for (const loss of POLICY_LOSSES.slice(0, 3))
      expect(Math.abs(targetLoss(loss, -1, -1000, 0).weight) + Math.abs(targetLoss(loss, -1, -1000, 0).loss)).toBe(0);
  });
});

test("log-probabilities of sampled tokens are those of the distribution that they come from", () => {
  const rng = new Rng(2);
  const logits = Float32Array.from({ length: 40 }, () => 4 * rng.normal());
  for (const sampling of [
    { temperature: 0.7, topK: 0, topP: 1 },
    { temperature: 1.5, topK: 5, topP: 1 },
    { temperature: 1, topK: 0, topP: 0.8 },
  ]) {
    const { logProb: of, top } = distributionOf(logits, sampling);
    const all = candidates(logits, sampling);
    for (const [id, probability] of all) expect(of(id)).toBeCloseTo(Math.log(probability), 5);
    expect(top(3).map(([id]) => id)).toEqual(all.slice(0, 3).map(([id]) => id));
  }
  const [[best]] = topOf(logits, 1) as [[number, number]];
  expect(distributionOf(logits, { temperature: 1e-30, topK: 0, topP: 1 }).logProb(best)).toBe(0);
  expect(distributionOf(logits, { temperature: 0, topK: 0, topP: 1 }).logProb(best)).toBe(logProb(logits, best));
});

test("what is only scored leaves all other targets where they are", () => {
  const row = (isScored: boolean) => ({
    ids: Int32Array.of(1, 2, 3, 4, 5),
    mask: Uint8Array.of(0, 0, 1, 0, 1),
    ...(isScored ? { isScored } : {}),
  });
  const segment = { adapter: 0, seed: 0, step: 0, dropout: 0, firstRow: 0, weight: 0.5 };
  const [plain, scored] = [false, true].map((is) => pack([{ ...segment, samples: [row(is), row(is)] }], 1, 8));
  const learned = plain!.sequences.reduce((total, { targets }) => total + targets, 0);
  expect(learned).toBe(4);
  for (const table of ["targetRows", "targetIds", "weights"] as const)
    expect([...scored![table].subarray(0, learned)]).toEqual([...plain![table].subarray(0, learned)]);
  expect(scored!.sequences.map(({ firstTarget, targets }) => [firstTarget, targets])).toEqual([
    [0, 2],
    [2, 2],
    [4, 2],
    [6, 2],
  ]);
  expect([...scored!.targetRows.subarray(4, 8)]).toEqual([0, 2, 4, 6]);
  expect(sum(scored!.weights)).toBe(2);
});

test("whole numbers that a token cannot have are refused by their place, not cut to 32 bits", () => {
  const of = (value: number) =>
    denseOf({ dtype: "int64", shape: [2], values: [1, value], sparse: null }, "targets", "int64", 2);
  for (const value of [2 ** 31 - 1, 1 - 2 ** 31]) expect([...Array.from(of(value).column(0))]).toEqual([1, value]);
  for (const value of [2 ** 31, -(2 ** 31), 2 ** 32 + 5]) expect(() => of(value)).toThrow(`targets have ${value} as value 1`);
});
