// What the definitions of methods must agree in, with each other and with their computations.

import { expect, test } from "bun:test";
import { COMPUTATIONS } from "../../src/engine/methods/registry.ts";
import { checkPeftConfig } from "../../src/files/peftconfig.ts";
import { ALIGN, layoutAdapter } from "../../src/methods/layout.ts";
import { DEFINITIONS, FACTORS, fileMethodOf, ownEntries, PEFT_METHODS, storedBy, TENSORS } from "../../src/methods/registry.ts";
import { tinySpec } from "../helpers/tiny.ts";

for (const method of PEFT_METHODS) {
  const { tensors, keys, settings, continued, keepsProduct, peft } = DEFINITIONS[method];

  test(`${method}: a tensor's name means the same tensor as in other methods`, () => {
    for (const [name, tensor] of Object.entries(tensors)) expect(TENSORS[name as keyof typeof TENSORS]).toEqual(tensor);
    const names = FACTORS.map((name) => TENSORS[name].peft);
    expect(new Set(names).size).toBe(names.length);
  });

  test(`${method}: a key's name means the same key as in other methods; those that stages know, and that must agree, are its own`, () => {
    for (const [key, schema] of Object.entries(keys))
      expect(ownEntries[key as keyof typeof ownEntries] as unknown).toBe(schema);
    for (const key of [...settings, ...continued]) expect(Object.keys(keys)).toContain(key);
  });

  test(`${method}: computes rows exactly if the product that they need is kept`, () => {
    expect(COMPUTATIONS[method].rows !== undefined).toBe(keepsProduct === true);
  });

  test(`${method}: its config is read as its own, or as that of the method with the same files`, () => {
    const fields = { baseModel: "m", rank: 4, alpha: 8, dropout: 0.1, rslora: false, targets: ["q_proj"], layers: null };
    const config = peft.config({
      ...fields,
      parameters: null,
      rankPattern: {},
      alphaPattern: {},
      settings: { projectionSeed: 3, dInitial: 0.2 },
    });
    expect(checkPeftConfig(JSON.parse(JSON.stringify(config)), "c")).toEqual({ method: fileMethodOf(method), takenOff: null });
    expect((config as Record<string, unknown>)[peft.dropout]).toBe(0.1);
  });

  test(`${method}: where it has targets there is memory for its own tensors alone, each in a part of the block of its own`, () => {
    const adapter = { rank: 5, targets: ["q_proj", "v_proj", "o_proj"], method } as const;
    const { sites, tensors, size, scratch } = layoutAdapter(tinySpec(), { from: 0, to: 1 }, adapter);
    expect(sites.map(({ group }) => group)).toEqual(["qkv", "o"]);
    expect(new Set(tensors.map(({ factor }) => factor))).toEqual(new Set(storedBy(method)));
    const ends = tensors.map(({ offset, rows, columns }) => offset + rows * columns);
    for (const [i, { offset }] of tensors.entries()) expect(offset).toBe(Math.ceil((ends[i - 1] ?? 0) / ALIGN) * ALIGN);
    expect(size).toBe(Math.ceil(ends.at(-1)! / ALIGN) * ALIGN);
    expect(scratch > 0).toBe(COMPUTATIONS[method].expansion !== undefined);
  });

  test(`${method}: the tables have room for the addresses of its vectors`, () => {
    const stored = storedBy(method).filter((factor) => factor !== "A" && factor !== "B").length;
    expect(2 * stored + Object.keys(COMPUTATIONS[method].derived ?? {}).length).toBeLessThanOrEqual(4);
  });
}

test("of every rank the elements of each tensor are a multiple of 8, as a GPU counts them for the norm of a gradient", () => {
  const spec = tinySpec(); // features of multiples of 8
  for (const method of PEFT_METHODS)
    for (const rank of [1, 5, 12, 33, 256]) {
      const { tensors } = layoutAdapter(spec, { from: 0, to: 2 }, { rank, targets: ["k_proj", "down_proj"], method });
      for (const { offset, rows, columns } of tensors) expect([offset % 8, (rows * columns) % 8]).toEqual([0, 0]);
    }
});
