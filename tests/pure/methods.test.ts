// What the definitions of methods must agree in, with each other and with their computations.

import { expect, test } from "bun:test";
import { COMPUTATIONS } from "../../src/engine/methods/registry.ts";
import { checkPeftConfig } from "../../src/files/peftconfig.ts";
import { layoutAdapters, roomOf } from "../../src/methods/layout.ts";
import {
  DEFINITIONS,
  FACTORS,
  fileMethodOf,
  isMoreThanLora,
  ownEntries,
  PEFT_METHODS,
  storedBy,
  TENSORS,
} from "../../src/methods/registry.ts";
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
      rankPattern: {},
      alphaPattern: {},
      settings: { projectionSeed: 3, dInitial: 0.2 },
    });
    expect(checkPeftConfig(JSON.parse(JSON.stringify(config)), "c")).toEqual({ method: fileMethodOf(method), takenOff: null });
    expect((config as Record<string, unknown>)[peft.dropout]).toBe(0.1);
  });

  test(`${method}: where it has a target, there is memory for its tensors, and elsewhere for a LoRA's alone`, () => {
    const capacity = { rank: 8, ...roomOf([{ targets: ["q_proj", "o_proj"] }, { targets: ["o_proj"], method }]) };
    const { sites } = layoutAdapters(tinySpec(), { from: 0, to: 1 }, capacity);
    const [qkv, o] = ["qkv", "o"].map((group) => Object.keys(sites.find((site) => site.group === group)!.tensors));
    expect(qkv).toEqual([...storedBy("lora")]);
    expect(o).toEqual(isMoreThanLora(method) ? FACTORS.filter((name) => [...storedBy(method), ...qkv!].includes(name)) : qkv!);
  });
}
