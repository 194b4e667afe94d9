// docs/extending.md, "A model family": layers of one model may differ. A family whose odd layers have no MLP and one linear for
// q, k and v learns what its loss says, and takes the memory that a plan says.

import { expect, test } from "bun:test";
import { CopyOfSources } from "../helpers/extending.ts";

const MIXED = `import { sum } from "../base/shape.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense } from "./dense.ts";
import { llama } from "./llama.ts";

const fused = (operation: Operation): Operation =>
  operation.op === "linears" && operation.group === "qkv"
    ? { ...operation, group: "qkvFused", out: [sum(operation.out)] }
    : operation;

export const mixed = {
  ...llama,
  architectures: ["MixedForCausalLM"],
  groups: { ...dense.groups, qkvFused: ["self_attn.qkv_proj"] },
  layer: (spec, index) => (index % 2 === 0 ? dense.layer(spec, index) : dense.layer(spec, index).slice(0, 5).map(fused)),
} as const satisfies Definition;
`;

type Trial = {
  readonly factors: number;
  readonly worst: number;
  readonly planned: number;
  readonly taken: number;
  readonly hash: string;
};

test("a family whose layers differ", async () => {
  using copy = new CopyOfSources();
  copy.write("src/families/mixed.ts", MIXED);
  copy.edit("src/families/registry.ts", "  smollm3,\n", "  smollm3,\n  mixed,\n");
  copy.edit("src/families/registry.ts", "import { qwen2 }", 'import { mixed } from "./mixed.ts";\nimport { qwen2 }');
  const [code, out] = await copy.run(process.execPath, "tests/helpers/family-trial.ts", "mixed");
  expect(code).toBe(0);
  const { linears, trials } = JSON.parse(out) as { readonly linears: readonly string[]; readonly trials: readonly Trial[] };
  expect(linears).toHaveLength(8);
  for (const { factors, worst, planned, taken, hash } of trials) {
    expect(factors).toBe(2 * (7 + 2 + 7)); // A and B of each linear of the three layers
    expect(worst).toBeLessThan(2e-3);
    expect(Math.abs(taken - planned) / planned).toBeLessThan(0.01);
    expect(hash).toBe(trials[0]!.hash);
  }
}, 200_000);
