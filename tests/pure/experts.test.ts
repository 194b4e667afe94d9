// What of a mixture of experts GPUs have kernels for.

import { expect, test } from "bun:test";
import { linearsOfModel } from "../../src/families/linears.ts";
import { type KernelNeed, requireKernels } from "../../src/plan/kernels.ts";
import { tinyExperts, tinySpec } from "../helpers/tiny.ts";

const of = (count: number, perToken: number) => tinySpec({ family: "mixtral", experts: tinyExperts(2, { count, perToken }) });
const ask = (spec: ReturnType<typeof tinySpec>, kind: "cpu" | "cuda", need: Partial<KernelNeed> = {}) =>
  requireKernels(spec, { kind, name: "some device" }, { adapters: [{ targets: ["q_proj"] }], ...need });

test("numbers of experts that kernels on GPUs cannot choose from are refused there, and right on the CPU", () => {
  for (const spec of [of(8, 2), of(512, 16), tinySpec({})]) ask(spec, "cuda");
  for (const [count, perToken] of [
    [12, 2],
    [520, 8],
    [64, 17],
  ] as const) {
    ask(of(count, perToken), "cpu");
    expect(() => ask(of(count, perToken), "cuda")).toThrow(`chooses ${perToken} of ${count} experts`);
  }
});

test("what no GPU has shown to be right is refused there by name: adapters in experts, and experts in mxfp4", () => {
  const adapters = [{ targets: linearsOfModel(of(8, 2)) }];
  ask(of(8, 2), "cpu", { adapters, expertFormat: "mxfp4" });
  expect(() => ask(of(8, 2), "cuda", { adapters })).toThrow("has adapters in its experts");
  expect(() => ask(of(8, 2), "cuda", { expertFormat: "mxfp4" })).toThrow("has experts in mxfp4");
});
