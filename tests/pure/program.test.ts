// A layer's operations: which device calls become of them, and which layers are refused because they would compute something
// else.

import { expect, test } from "bun:test";
import type { WeightFormat } from "../../src/base/precision.ts";
import { RECOMPUTATIONS, type Recomputation } from "../../src/base/recomputation.ts";
import { Rng } from "../../src/base/rng.ts";
import { NullDevice } from "../../src/device/null.ts";
import { resolve } from "../../src/engine/layers/program.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { Operation } from "../../src/families/definition.ts";
import { GROUPS, type Group, modulePath } from "../../src/families/linears.ts";
import { FAMILY_NAMES, familyOf } from "../../src/families/registry.ts";
import type { Link } from "../../src/link/link.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { pack } from "../../src/schedule/pack.ts";
import { randomFill, randomTokens, tinyFamilies, tinySizes } from "../helpers/tiny.ts";

const link: Link = {
  kind: "shm",
  send: async () => undefined,
  receive: async () => undefined,
  [Symbol.dispose]: () => undefined,
};
const low = ["lora_up_grad", "lora_down_grad"] as const;

type MiddleLayer = {
  readonly targets?: PoolAdapter["targets"];
  readonly format?: WeightFormat;
  readonly method?: "dora";
  readonly isLatest?: boolean;
};

/** What the forward and the backward pass of a middle layer launch; unless it is the latest another pass runs between them. */
async function middleLayer(
  recomputation: Recomputation,
  { targets = ["q_proj", "gate_proj", "down_proj"], format = "dense", method, isLatest = false }: MiddleLayer = {},
) {
  const device = new NullDevice();
  const spec = tinyFamilies["qwen3"]!;
  const adapter: PoolAdapter = { rank: 4, scale: 1, targets, ...(method && { method }) };
  const layerRange = { from: 1, to: 2, first: false, last: false };
  const sizes = tinySizes(device, spec, [adapter], { layers: 1, recomputation, format, expertFormat: format, inFlight: 2 });
  const config = { spec, layerRange, sizes };
  using stage = await Stage.open(device, config, randomFill(device, 1), { previous: link, next: link });
  await stage.admit(0, { ...adapter, seed: 1, init: "default" });
  const samples = [randomTokens(new Rng(4), spec.vocab, 9)];
  const segment = { adapter: 0, samples, seed: 1, step: 0, dropout: 0, firstRow: 0, weight: 1 };
  device.launched.length = 0;
  const batch = pack([segment], 1, device.rowTile);
  await stage.forward(0, batch);
  const forward: string[] = device.launched.splice(0);
  if (!isLatest) await stage.evaluate(batch);
  device.launched.length = 0;
  await stage.backward(0);
  return { forward, backward: [...device.launched] as string[] };
}

test.each(RECOMPUTATIONS)("the device calls of a middle layer, recomputation %s", async (recomputation) => {
  const { forward, backward } = await middleLayer(recomputation);
  expect(forward).toEqual([
    ...["rmsnorm_forward", "lora_down", "linear_forward", "rope_forward", "attention_forward", "linear_forward"],
    ...["rmsnorm_forward", "lora_down", "linear_forward", "swiglu_forward", "lora_down", "linear_forward"],
  ]);
  const gradients = [
    ...[...low, "linear_backward", "swiglu_backward"],
    ...[...low, "linear_backward", "rmsnorm_backward"],
    ...(recomputation === "offload" ? forward.slice(0, 5) : []), // of its earlier half
    ...["linear_backward", "attention_backward", "rope_backward"],
    ...[...low, "linear_backward", "rmsnorm_backward"], // gradients make the outputs of norms and activation as they read them
  ];
  expect(backward).toEqual([
    ...(recomputation === "full" ? forward.slice(0, -1) : []), // all but the layer's output
    ...(recomputation === "offload" ? forward.slice(6, -1) : []), // the same of its later half
    ...gradients,
  ]);
  expect((await middleLayer(recomputation, { isLatest: true })).backward).toEqual(gradients); // all is there yet
});

test.each(RECOMPUTATIONS)("what a method's own rows read is there, recomputation %s", async (recomputation) => {
  const { forward, backward } = await middleLayer(recomputation, { method: "dora" });
  const cheap = (launched: readonly string[]) => launched.filter((name) => /^(rmsnorm|swiglu)_forward$/.test(name));
  const again = {
    none: [], // kept for it
    selective: ["swiglu_forward", "rmsnorm_forward", "rmsnorm_forward"],
    full: [...cheap(forward), "rmsnorm_forward"], // the second norm has overwritten the first one's output
    offload: ["rmsnorm_forward", "swiglu_forward", "rmsnorm_forward"],
  };
  expect(cheap(backward)).toEqual(again[recomputation]);
});

test.each<[WeightFormat, PoolAdapter["targets"], readonly string[]]>([
  ["fp8", ["q_proj"], []], // rounded as they are made by the products that read them
  ["fp8", ["q_proj", "gate_proj"], ["swiglu_backward"]],
  ["fp8", ["q_proj", "down_proj"], ["swiglu_forward"]],
  ["nf4-fp8", ["q_proj"], []],
  ["nf4", ["q_proj"], ["swiglu_forward", "swiglu_backward"]],
])("whether SwiGLU's results are written, over %s with adapters on %j", async (format, targets, expected) => {
  for (const recomputation of RECOMPUTATIONS) {
    const { forward, backward } = await middleLayer(recomputation, { targets, format });
    const isAgain = targets.includes("down_proj") && /full|offload/.test(recomputation);
    expect([...forward, ...backward].filter((name) => name.startsWith("swiglu"))).toEqual(
      ["swiglu_forward", ...(isAgain ? ["swiglu_forward"] : []), "swiglu_backward"].filter((name) => expected.includes(name)),
    );
  }
});

const norm = (from: string, to: string): Operation => ({ op: "norm", from, to, weight: to, size: 8, eps: 1e-5 });
const linears = (from: string, to: string, residual: string | null = null): Operation => {
  return { op: "linears", from, to, group: to, in: 8, out: [8], bias: false, residual };
};
const swiglu = (from: string, to: string): Operation => ({ op: "swiglu", from, to });
const gate = (from: string, to: string, gate: string): Operation => ({ op: "gate", from, to, gate });
const heads = { heads: 2, kvHeads: 1, headDim: 2 };
const rope: Operation = { op: "rope", from: "a", to: "b", heads, table: 0, norms: null, eps: 1e-5 };

test.each<[string, readonly Operation[]]>([
  ["of 16 features reads 8", [{ ...norm("x", "a"), size: 16 } as Operation]],
  ["read before it is computed", [linears("h", "a", "x")]],
  ["computed twice", [linears("x", "a"), linears("x", "a")]],
  ["a, which is no stream", [{ ...linears("x", "a"), out: [4] } as Operation]],
  ["nothing reads a", [linears("x", "a"), linears("x", "b")]],
  ["b and a are needed at once", [linears("x", "a"), linears("a", "b"), linears("b", "c")]],
  ["x is read after", [norm("x", "h"), linears("h", "a", "x"), norm("x", "i"), linears("i", "b", "a")]],
  ["its input has been overwritten", [linears("x", "a"), rope, linears("a", "c", "x")]],
  ["may have to be computed again", [norm("x", "a"), norm("x", "b"), linears("a", "c", "x")]],
  ["may have to be computed again", [norm("x", "a"), norm("a", "b"), linears("b", "c", "x")]],
  [
    "cannot add to the gradient of a",
    [
      { ...linears("x", "a"), out: [8, 8] } as Operation,
      swiglu("a", "b"),
      linears("b", "c"),
      swiglu("a", "d"),
      linears("d", "e", "c"),
    ],
  ],
  [
    "may have to be computed again",
    [norm("x", "a"), linears("a", "b"), norm("x", "c"), gate("b", "d", "c"), linears("d", "e", "x")],
  ],
  [
    "cannot add to the gradient of b",
    [linears("x", "a"), linears("x", "b"), gate("a", "c", "b"), linears("b", "d"), linears("c", "e", "d")],
  ],
])("refuses a layer: %s", (message, operations) => {
  expect(() => resolve(operations, 0, 8)).toThrow(message);
});

test("a group is the same in all families, and families before the last of an architecture say which configs are theirs", () => {
  const all = FAMILY_NAMES.map((family) => familyOf({ family }));
  for (const { groups } of all)
    for (const [group, paths] of Object.entries(groups)) expect(paths).toEqual(GROUPS[group as Group].map(modulePath));
  const ofArchitecture = Map.groupBy(
    all.flatMap((family) => family.architectures.map((name) => ({ name, family }))),
    ({ name }) => name,
  );
  for (const [name, families] of ofArchitecture)
    for (const { family } of families.slice(0, -1)) expect([name, family.isFor]).toEqual([name, expect.any(Function)]);
});
