// A layer's operations: which device calls become of them, and which layers are refused because they would compute something
// else.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { NullDevice } from "../../src/device/null.ts";
import { resolve } from "../../src/engine/program.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { Operation } from "../../src/families/definition.ts";
import { GROUPS, type Group, modulePath } from "../../src/families/linears.ts";
import { FAMILY_NAMES, familyOf } from "../../src/families/registry.ts";
import type { Link } from "../../src/link/link.ts";
import { pack } from "../../src/schedule/pack.ts";
import { randomFill, randomTokens, tinyFamilies, tinySizes } from "../helpers/tiny.ts";

const link: Link = {
  kind: "shm",
  send: async () => undefined,
  receive: async () => undefined,
  [Symbol.dispose]: () => undefined,
};
const low = ["lora_up_grad", "lora_down_grad"] as const;

test.each(["none", "selective", "full", "offload"] as const)(
  "the device calls of a middle layer, recomputation %s",
  async (recomputation) => {
    const device = new NullDevice();
    const spec = tinyFamilies["qwen3"]!;
    const adapters = [{ rank: 4, scale: 1, targets: ["q_proj", "gate_proj", "down_proj"], seed: 1, init: "default" }] as const;
    const layerRange = { from: 1, to: 2, first: false, last: false };
    const config = { spec, layerRange, sizes: tinySizes(device, spec, adapters, { layers: 1, recomputation }) };
    using stage = await Stage.open(device, config, randomFill(device, 1), { previous: link, next: link });
    await stage.admit(0, adapters[0]);
    const samples = [randomTokens(new Rng(4), spec.vocab, 9)];
    const segment = { adapter: 0, samples, seed: 1, step: 0, dropout: 0, firstRow: 0, weight: 1 };
    device.launched.length = 0;
    await stage.forward(0, pack([segment], 1, device.rowTile));
    const forward = device.launched.splice(0);
    expect<string[]>(forward).toEqual([
      ...["rmsnorm_forward", "lora_down", "linear_forward", "rope_forward", "attention_forward", "linear_forward"],
      ...["rmsnorm_forward", "lora_down", "linear_forward", "swiglu_forward", "lora_down", "linear_forward"],
    ]);
    await stage.backward(0);
    const again = (kernel: string, where: readonly string[]) => (where.includes(recomputation) ? [kernel] : []);
    expect<string[]>(device.launched).toEqual([
      ...(recomputation === "full" ? forward.slice(0, -1) : []), // all but the layer's output
      ...(recomputation === "offload" ? forward.slice(6, -1) : []), // the same of its later half
      ...[...again("swiglu_forward", ["selective"]), ...low, "linear_backward", "swiglu_backward"],
      ...[...again("rmsnorm_forward", ["selective"]), ...low, "linear_backward", "rmsnorm_backward"],
      ...(recomputation === "offload" ? forward.slice(0, 5) : []), // of its earlier half
      ...["linear_backward", "attention_backward", "rope_backward"],
      // With full recomputation the second norm has overwritten the first one's output.
      ...[...again("rmsnorm_forward", ["selective", "full"]), ...low, "linear_backward", "rmsnorm_backward"],
    ]);
  },
);

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
  ["is no gate of it", [norm("x", "a"), linears("a", "b"), norm("x", "c"), gate("b", "d", "c"), linears("d", "e", "x")]],
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
