// Measured speeds are kept by what was measured.

import { expect, test } from "bun:test";
import type { Plan } from "../../src/plan/plan.ts";
import { SHAPES } from "../../src/plan/shapes.ts";
import { runKey } from "../../src/session/planning/speeds.ts";

test("models that differ in the sizes of their linears alone have speeds of their own", () => {
  const spec = Object.values(SHAPES).find(({ family }) => family === "llama")!;
  const keyOf = (of: typeof spec): string => {
    const sizes = { format: "bf16", recomputation: "none" };
    const device = { kind: "cuda", name: "a GPU", compute: "bf16" };
    return runKey({ device, spec: of, stages: [{ sizes }] } as unknown as Plan);
  };
  const keys = [
    spec,
    { ...spec, intermediate: 2 * spec.intermediate },
    { ...spec, kvHeads: spec.kvHeads / 2 },
    { ...spec },
  ].map(keyOf);
  expect(new Set(keys.slice(0, 3)).size).toBe(3);
  expect(keys[3]).toBe(keys[0]!);
});
