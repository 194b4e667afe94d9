// Random calls of several adapters over shared slots, on one stage and on two: each comes to what it comes to alone.

import { afterAll, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { anyCallsAgree } from "../helpers/any-calls.ts";
import { PrimitivesPlace } from "../helpers/primitives.ts";

const places = (["fp32", "nf4"] as const).map((precision) => new PrimitivesPlace("cpu", precision));
afterAll(() => {
  for (const place of places) place[Symbol.dispose]();
});

test("calls of adapters come to the same bits, whatever others call", async () => {
  for (const i of range(4)) await anyCallsAgree(places[i % 2]!, Math.floor(1e9 * Math.random()), 2);
});
