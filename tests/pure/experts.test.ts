// What of a mixture of experts GPUs have kernels for.

import { expect, test } from "bun:test";
import type { Linear } from "../../src/families/linears.ts";
import { requireKernels } from "../../src/plan/memory.ts";
import { tinyExperts, tinySpec } from "../helpers/tiny.ts";

const GPU = { kind: "cuda", name: "a GPU" } as const;
const of = (count: number, perToken: number) => tinySpec({ family: "mixtral", experts: tinyExperts(2, { count, perToken }) });

test("experts that kernels on GPUs cannot choose from are refused by number, for the CPU they are right", () => {
  for (const spec of [of(8, 2), of(512, 16), tinySpec({})]) requireKernels(spec, GPU);
  for (const [count, perToken] of [
    [12, 2],
    [520, 8],
    [64, 17],
  ] as const) {
    requireKernels(of(count, perToken), { kind: "cpu", name: "a CPU" });
    expect(() => requireKernels(of(count, perToken), GPU)).toThrow(`chooses ${perToken} of ${count} experts`);
  }
});

test("adapters in experts are refused on GPUs, and others are not", () => {
  const [attention, inside]: readonly (readonly Linear[])[] = [["q_proj"], ["q_proj", "w1"]];
  requireKernels(of(8, 2), GPU, [{ targets: attention! }]);
  requireKernels(of(8, 2), { kind: "cpu", name: "a CPU" }, [{ targets: inside! }]);
  expect(() => requireKernels(of(8, 2), GPU, [{ targets: attention! }, { targets: inside! }])).toThrow("on CPUs alone");
});
