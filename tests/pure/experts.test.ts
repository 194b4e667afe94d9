// What of a mixture of experts GPUs have kernels for.

import { expect, test } from "bun:test";
import { requireKernels } from "../../src/plan/memory.ts";
import { tinyExperts, tinySpec } from "../helpers/tiny.ts";

const of = (count: number, perToken: number) => tinySpec({ family: "mixtral", experts: tinyExperts(2, { count, perToken }) });

test("experts that kernels on GPUs cannot choose from are refused by number, for the CPU they are right", () => {
  for (const spec of [of(8, 2), of(512, 16), tinySpec({})]) requireKernels(spec, { kind: "cuda" });
  for (const [count, perToken] of [
    [12, 2],
    [520, 8],
    [64, 17],
  ] as const) {
    requireKernels(of(count, perToken), { kind: "cpu" });
    expect(() => requireKernels(of(count, perToken), { kind: "cuda" })).toThrow(`chooses ${perToken} of ${count} experts`);
  }
});
