// Calls of the primitives that are refused.

import { afterAll, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { openPrimitives } from "../../src/session/primitives/open.ts";
import { rowOf } from "../../src/session/primitives/primitives.ts";
import { PAIRS, PrimitivesPlace, tokens } from "../helpers/primitives.ts";

const place = new PrimitivesPlace();
afterAll(() => place[Symbol.dispose]());

test("what is wrong with a call is said before anything is computed", async () => {
  await using on = await place.open(["lora", "dpo"]);
  const row = rowOf([1, 2], [3, 4]);
  const long = rowOf(tokens(20), tokens(20));
  const weights = (...values: number[]) => [{ ...row, weights: Float32Array.from(values) }];
  const sampled = (more: object, prompt: readonly number[] = [1]) => on.sample("lora", [prompt], { maxTokens: 2, ...more });
  const cases: readonly (readonly [string, () => Promise<unknown>])[] = [
    ["there is no adapter 'x'", () => on.forwardBackward("x", [row])],
    ["there is no adapter 'x'", () => on.sample("x", [[1]], { maxTokens: 1 })],
    ["was given no rows", () => on.forwardBackward("lora", [])],
    ["token 1 is 260; the model has 260", () => on.forwardBackward("lora", [rowOf([1, 260], [3])])],
    ["token 0 is -1", () => on.forward("lora", [rowOf([-1], [3])])],
    ["expected 2 tokens or more, found 1", () => on.forwardBackward("lora", [rowOf([], [3])])],
    ["no token is a target", () => on.forwardBackward("lora", [rowOf([1, 2], [])])],
    ["expected 4 weights, found 3", () => on.forwardBackward("lora", weights(0, 0, 1))],
    ["the weight of token 3 is NaN", () => on.forwardBackward("lora", weights(0, 0, 1, Number.NaN))],
    ["the weight of token 2 is Infinity", () => on.forwardBackward("lora", weights(0, 0, Number.POSITIVE_INFINITY, 1))],
    ["token 1 has the weight 2, and is no target", () => on.forwardBackward("lora", weights(0, 2, 1, 1))],
    ["1 of 2 rows have weights", () => on.forwardBackward("lora", [row, ...weights(0, 0, 1, 1)])],
    ["expected a mask of 4 tokens, found 2", () => on.forwardBackward("lora", [{ ...row, mask: new Uint8Array(2) }])],
    [
      "row 1 has 80 tokens; the stages have room for",
      () =>
        on.forwardBackward("lora", [
          row,
          { ...long, ids: Int32Array.from([...long.ids, ...long.ids]), mask: new Uint8Array(80).fill(1) },
        ]),
    ],
    ["sft expects one sequence, found 2", () => on.forwardBackward("lora", [PAIRS[0]!])],
    ["dpo expects two sequences, found 1", () => on.forwardBackward("dpo", [row])],
    ["none was given", () => on.forwardBackward("dpo", PAIRS)],
    ["expected 12 references, found 1", () => on.forwardBackward("dpo", PAIRS, { references: [[0, 0]] })],
    ["found 0, NaN", () => on.forwardBackward("dpo", PAIRS.slice(0, 1), { references: [[0, Number.NaN]] })],
    ["has no reference", () => on.forwardBackward("lora", [row], { references: [[0, 0]] })],
    ["has no gradient", () => on.step("lora")],
    ["as learningRate, found -1", () => on.step("lora", { learningRate: -1 })],
    ["as beta1, found 1", () => on.step("lora", { beta1: 1 })],
    ["adamw has no momentum", () => on.step("lora", { momentum: 0.9 } as never)],
    ["the step is one of sgd", () => on.step("lora", { name: "sgd" })],
    ["as maxTokens, found 0", () => sampled({ maxTokens: 0 })],
    ["as n, found 1.5", () => sampled({ n: 1.5 })],
    ["as seed, found -1", () => sampled({ seed: -1 })],
    ["as topP, found 0", () => sampled({ sampling: { topP: 0 } })],
    ["as temperature, found NaN", () => sampled({ sampling: { temperature: Number.NaN } })],
    ["as stops, found 260", () => sampled({ stops: [260] })],
    ["prompt 0 has no token", () => sampled({}, [])],
    ["prompt 0: token 0 is 999", () => sampled({}, [999])],
    ["a sequence has 60 at most", () => sampled({ maxTokens: 10 }, tokens(51))],
  ];
  for (const [text, call] of cases) {
    const error = await call().then(
      () => null,
      (reason: unknown) => reason,
    );
    expect(error, text).toBeInstanceOf(RequestError);
    expect((error as RequestError).message).toContain(text);
  }
  await using uncached = await openPrimitives(place.recipe(["lora"]));
  await expect(uncached.sample("lora", [[1]], { maxTokens: 1 })).rejects.toMatchObject({ code: "primitives.sample" });
});
