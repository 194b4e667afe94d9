// The primitives on a GPU: the bits of a run, of `mlora generate` and of a state that was saved.

import { afterAll, describe, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { anyCallsAgree } from "../helpers/any-calls.ts";
import { needs } from "../helpers/needs.ts";
import { PrimitivesPlace } from "../helpers/primitives.ts";
import { primitivesAgree } from "../helpers/primitives-suite.ts";

const places = (["fp32", "bf16", "nf4"] as const).map((precision) => new PrimitivesPlace("cuda", precision));
afterAll(() => {
  for (const place of places) place[Symbol.dispose]();
});

needs("gpu")("the primitives on the GPU", () => {
  for (const place of places)
    describe(place.precision, () => {
      primitivesAgree(place, [1]);
      test("random calls come to the same bits, whatever others call", async () => {
        for (const _ of range(2)) await anyCallsAgree(place, Math.floor(1e9 * Math.random()), 1);
      }, 120_000);
    });
});
