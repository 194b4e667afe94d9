// docs/extending.md, "A method": LoRA-FA, added as the page says, computes what LoRA does with A frozen, and its files are
// PEFT's.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { initialise } from "../../src/engine/random-init.ts";
import { LINEARS, linearShape } from "../../src/families/linears.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { CopyOfSources, shownIn } from "../helpers/extending.ts";
import { sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
const copy = new CopyOfSources();
afterAll(() => {
  place[Symbol.dispose]();
  copy[Symbol.dispose]();
});

test("is at most 4 files, and the compiler asks for those that are missing", async () => {
  const shown = shownIn("A method");
  expect([...shown.keys()]).toEqual(["src/methods/lora-fa.ts"]);
  for (const [path, code] of shown) copy.write(path, code);
  const registry = "src/methods/registry.ts";
  copy.edit(registry, "const ALL = { lora,", "const ALL = { lora, lora_fa: loraFa,");
  copy.edit(
    registry,
    'import { lora } from "./lora.ts";',
    'import { lora } from "./lora.ts";\nimport { loraFa } from "./lora-fa.ts";',
  );
  const [code, out] = await copy.check();
  expect(code).not.toBe(0);
  const incomplete = [...out.matchAll(/^(\S+)\(/gm)].map(([, path]) => path);
  expect(incomplete).toEqual(["src/engine/methods/registry.ts"]);
  copy.edit("src/engine/methods/registry.ts", "{ lora: {},", "{ lora: {}, lora_fa: {},");
  expect(await copy.check()).toEqual([0, ""]);
  expect(copy.touched()).toEqual(["engine/methods/registry.ts", "methods/lora-fa.ts", "methods/registry.ts"]);
}, 200_000);

test("its gradients and step are LoRA's for B, bit for bit, and leave A, which weight decay does not change either", async () => {
  const trial = async (method: string) => {
    const [code, out] = await copy.run(process.execPath, "tests/helpers/method-trial.ts", method, "lora");
    expect(code).toBe(0);
    return JSON.parse(out) as { readonly kinds: readonly object[]; readonly gradNorm: number };
  };
  const [its, others] = [await trial("lora_fa"), await trial("lora")];
  expect(its.kinds).toEqual([
    { factor: "A", gradient: "zero", after: "unchanged" },
    { factor: "B", gradient: "the other's", after: "the other's" },
  ]);
  expect(others.kinds).toEqual(["A", "B"].map((factor) => ({ factor, gradient: "the other's", after: "the other's" })));
  expect(its.gradNorm).toBeGreaterThan(0);
  expect(its.gradNorm).toBeLessThan(others.gradNorm);
}, 60_000);

test("is trained from a recipe, exported as PEFT's LoRA with the A that it began with, and continued", async () => {
  const mlora = (...args: string[]) => copy.run(process.execPath, "src/main.ts", ...args);
  const recipe = (more: string) => `[model]\npath = "${place.model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]
name = "a"\nmethod = "lora_fa"\nrank = 4\nseed = 7\nweight_decay = 0.1\nlearning_rate = 1e-2\nsteps = 3\ndata = "rows.jsonl"\n${more}`;
  const rows = { "rows.jsonl": sums(12) };
  const path = place.project(recipe(""), rows);
  const spec = readModelSpec(place.model);
  const [planned, json] = await mlora("plan", path, "--json");
  expect(planned).toBe(0);
  const trained = LINEARS.reduce((total, linear) => total + spec.layers * 4 * linearShape(spec, linear).out, 0);
  expect(JSON.parse(json).adapters[0].parameters).toBe(trained);
  expect((await mlora("run", path))[0]).toBe(0);
  const folder = join(path, "..", "out", "a");
  const { method, rank, tensor } = readPeftAdapter(folder, spec);
  expect([method, rank]).toEqual(["lora", 4]);
  for (const layer of [0, 1])
    for (const linear of LINEARS) {
      const columns = linearShape(spec, linear).in;
      const at = { seed: 7, layer, linear, factor: "A", rows: 4, columns } as const;
      expect(tensor(layer, linear, "A")).toEqual(initialise("default", at));
      expect(tensor(layer, linear, "B").some((value) => value !== 0)).toBe(true);
    }
  expect((await mlora("run", place.project(recipe(`from = "${folder}"\n`), rows)))[0]).toBe(0);
  const other = recipe(`from = "${folder}"\n`).replace("lora_fa", "dora");
  expect((await mlora("run", place.project(other, rows)))[0]).toBe(2);
}, 120_000);
