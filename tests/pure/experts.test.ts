// What of a mixture of experts GPUs have kernels for.

import { expect, test } from "bun:test";
import { isOfExperts, linearsIn } from "../../src/families/linears.ts";
import { countSites, expertNotices } from "../../src/plan/experts.ts";
import { requireKernels } from "../../src/plan/memory.ts";
import { placeAdapter } from "../../src/plan/places.ts";
import type { AdapterRecipe } from "../../src/recipe/recipe.ts";
import { refused } from "../helpers/refused.ts";
import { inExperts, placedOn, sparseFamilies, tinyExperts, tinySpec } from "../helpers/tiny.ts";

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

test("linears whose widths kernels on GPUs would round are refused by name", () => {
  const odd = tinySpec({ intermediate: 44 });
  requireKernels(odd, { kind: "cpu", name: "a CPU" });
  expect(() => requireKernels(odd, GPU)).toThrow(/gate_proj has 44 rows of \d+, expected multiples of 8/);
});

const recipe = (name: string, targets: string | readonly string[], dropout = 0) =>
  ({ name, targets, dropout }) as unknown as AdapterRecipe;

test("a plan counts linears of attention, of dense MLPs and of experts, and says what all-linear leaves out", () => {
  const spec = sparseFamilies["qwen3moe"]!;
  const [shared, , , , attention] = inExperts(spec);
  expect(countSites(shared!, spec.layers)).toEqual({ attention: 3, dense: 0, experts: 6 });
  expect(countSites(attention!, spec.layers)).toEqual({ attention: 3, dense: 0, experts: 0 });
  const mixers = sparseFamilies["nemotronH"]!; // a layer of Mamba, one of attention
  const everywhere = placedOn(mixers, { rank: 2, scale: 1, targets: linearsIn(mixers) });
  expect(countSites(everywhere, mixers.layers)).toEqual({ attention: 4, dense: 2, experts: 0 });
  const all = recipe("a", "all-linear", 0.1);
  const named = recipe("b", ["q_proj", "down_proj"], 0.1);
  const [without, dropping, ...more] = expertNotices([all, named, recipe("c", ["q_proj"], 0.1)], spec);
  expect(without).toBe("targets \"all-linear\" of 'a' has no experts: name gate_proj, up_proj, down_proj to train them, too");
  expect(dropping).toBe("dropout of 'b' does not act in experts, where PEFT refuses it");
  expect([more, expertNotices([all], tinySpec({}))]).toEqual([[], []]);
});

test("routers, methods and beginnings that experts do not have are refused with one line", () => {
  const spec = sparseFamilies["qwen3moe"]!;
  const asked = {
    ...{ name: "a", exclude: null, layers: null, rank: 2, rankPattern: {}, alpha: 4, alphaPattern: {}, rslora: false },
    method: "lora" as const,
    init: "default" as const,
    experts: "shared-outer" as const,
  };
  const message = (changes: object) =>
    refused(() => placeAdapter({ ...asked, targets: ["down_proj"], ...changes }, spec)).message;
  expect(message({ targets: ["gate"] })).toBe("adapter 'a': its targets have model.layers.0.mlp.gate, a router");
  expect(message({ method: "dora" })).toContain('targets experts with method "dora"');
  expect(message({ init: "pissa" })).toContain('targets experts with init "pissa"');
  const placed = placeAdapter({ ...asked, targets: "all-linear" }, spec);
  expect(placed.targets.filter(isOfExperts)).toEqual([]);
  expect(placeAdapter({ ...asked, targets: ["down_proj"] }, spec).places!.experts).toBe("shared-outer");
});
