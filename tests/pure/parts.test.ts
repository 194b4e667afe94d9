// Where a layer may be divided: its two parts are programs of their own, and have all of the layer between them.

import { expect, test } from "bun:test";
import { layersIn, layersText } from "../../src/base/layers.ts";
import { range } from "../../src/base/shape.ts";
import { programOf, resolve } from "../../src/engine/layers/program.ts";
import { GROUPS } from "../../src/families/linears.ts";
import { canCut, cutOf, hasLinear, INPUT, operationsIn } from "../../src/families/parts.ts";
import { familyOf } from "../../src/families/registry.ts";
import { layerTensors } from "../../src/families/tensors.ts";
import { layoutAdapter, tensorsIn } from "../../src/methods/layout.ts";
import { sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const families = { ...tinyFamilies, ...sparseFamilies };
const specs = Object.entries(families);

test.each(specs)("the parts of %s are programs, and have each operation once", (_, spec) => {
  for (const layer of range(spec.layers)) {
    const all = familyOf(spec).layer(spec, layer);
    if (!canCut(spec, layer)) {
      expect(() => operationsIn(spec, { from: layer, to: layer + 0.5 }, layer)).toThrow("cannot be divided");
      continue;
    }
    const [before, after] = [
      operationsIn(spec, { from: 0, to: layer + 0.5 }, layer),
      operationsIn(spec, { from: layer + 0.5, to: spec.layers }, layer),
    ];
    expect([...before, ...after].map(({ op, to }) => `${op} ${to}`)).toEqual(all.map(({ op, to }) => `${op} ${to}`));
    expect(before.some(({ op }) => ["attention", "deltaRule", "shortConvolution", "stateSpace"].includes(op))).toBe(true);
    expect(after[0]!.from).toBe(INPUT);
    for (const part of [before, after]) expect(resolve(part, layer, spec.hidden).values.get(INPUT)!.width).toBe(spec.hidden);
  }
});

test("what Llama and a mixture of experts begin with may end a stage; what shares keys, or has inputs of its own, may not", () => {
  const may = (family: string) => range(families[family]!.layers).every((layer) => canCut(families[family]!, layer));
  for (const family of ["llama", "qwen3", "qwen3moe", "gemma3"]) expect([family, may(family)]).toEqual([family, true]);
  expect(may("gemma4")).toBe(false);
});

test("a stream that something later reads, too, is no place to divide", () => {
  const norm = (from: string, to: string) => ({ op: "norm", from, to, weight: to, size: 8, eps: 1e-5 }) as const;
  const add = (from: string, to: string, residual: string) =>
    ({ op: "linears", from, to, group: "o", in: 8, out: [8], bias: false, residual }) as const;
  expect(cutOf([norm("x", "a"), add("a", "mid", "x"), norm("mid", "b"), add("b", "out", "mid")])).toBe(2);
  expect(cutOf([norm("x", "a"), add("a", "mid", "x"), norm("mid", "b"), add("b", "out", "x")])).toBeNull();
  expect(cutOf([norm("x", "a"), add("a", "out", "x")])).toBeNull();
});

test("weights and parameters of two parts are those of the whole", () => {
  const spec = tinyFamilies["llama"]!;
  const adapter = { rank: 4, targets: ["q_proj", "o_proj", "gate_proj", "down_proj"] } as const;
  for (const cut of [0.5, 1, 1.5, spec.layers - 0.5]) {
    const parts = [
      { from: 0, to: cut },
      { from: cut, to: spec.layers },
    ];
    const whole = { from: 0, to: spec.layers };
    const names = (part: (typeof parts)[number]) =>
      layersIn(part).flatMap((layer) =>
        layerTensors(spec, layer, part).groups.flatMap(({ linears }) => linears.map(({ name }) => name)),
      );
    expect(parts.flatMap(names).sort()).toEqual(names(whole).sort());
    expect(parts.flatMap((part) => tensorsIn(spec, part, adapter))).toEqual(tensorsIn(spec, whole, adapter));
    const size = (part: (typeof parts)[number]) => layoutAdapter(spec, part, adapter).size;
    expect(size(parts[0]!) + size(parts[1]!)).toBe(size(whole));
    const groups = (part: (typeof parts)[number]) => programOf(spec, part).flatMap(({ operations }) => operations.length);
    expect(groups(parts[0]!).length + groups(parts[1]!).length).toBe(spec.layers + (Number.isInteger(cut) ? 0 : 1));
    const held = (part: (typeof parts)[number]) =>
      GROUPS.qkv.filter((linear) => hasLinear(spec, part, Math.floor(cut), linear)).length;
    if (!Number.isInteger(cut)) expect(parts.map(held)).toEqual([3, 0]);
  }
});

test("ranges in words", () => {
  expect(layersText({ from: 0, to: 16 })).toBe("0 to 15");
  expect(layersText({ from: 3, to: 4 })).toBe("3");
  expect(layersText({ from: 0, to: 16.5 })).toBe("0 to 16 (16 in part)");
  expect(layersText({ from: 3.5, to: 16.5 })).toBe("3 to 16 (3 and 16 in part)");
});
