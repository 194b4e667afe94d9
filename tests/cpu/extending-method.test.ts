// docs/extending.md, "A method": LoRA-FA, added as the page says, computes what LoRA does with A frozen, and its files are
// PEFT's.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { initialise } from "../../src/engine/pool/random-init.ts";
import { linearShape, linearsOfModel } from "../../src/families/linears.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { toF32 } from "../../src/files/convert.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors } from "../../src/files/safetensors.ts";
import { CopyOfSources, shownIn } from "../helpers/extending.ts";
import { sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
const copy = new CopyOfSources();
afterAll(() => {
  place[Symbol.dispose]();
  copy[Symbol.dispose]();
});

type Trial = { readonly kinds: readonly object[]; readonly gradNorm: number; readonly worst: number };
async function trial(method: string, other: string, sources = copy): Promise<Trial> {
  const [code, out] = await sources.run(process.execPath, "tests/helpers/method-trial.ts", method, other);
  expect(code).toBe(0);
  return JSON.parse(out) as Trial;
}

/** Adds a method to the registries, as the page says. */
function register(sources: CopyOfSources, name: string, file: string, definition: string): void {
  const registry = "src/methods/registry.ts";
  sources.edit(registry, "const ALL = { lora,", `const ALL = { lora, ${name}: ${definition},`);
  sources.edit(registry, "import { lora } from", `import { ${definition} } from "./${file}";\nimport { lora } from`);
}

test("is at most 4 files, and the compiler asks for those that are missing", async () => {
  const shown = shownIn("A method");
  expect([...shown.keys()]).toEqual(["src/methods/lora-fa.ts"]);
  for (const [path, code] of shown) copy.write(path, code);
  register(copy, "lora_fa", "lora-fa.ts", "loraFa");
  const [code, out] = await copy.check();
  expect(code).not.toBe(0);
  const incomplete = [...out.matchAll(/^(\S+)\(/gm)].map(([, path]) => path);
  expect(incomplete).toEqual(["src/engine/methods/registry.ts"]);
  copy.edit("src/engine/methods/registry.ts", "{ lora: {},", "{ lora: {}, lora_fa: {},");
  expect(await copy.check()).toEqual([0, ""]);
  expect(copy.touched()).toEqual(["engine/methods/registry.ts", "methods/lora-fa.ts", "methods/registry.ts"]);
}, 200_000);

test("its gradients and step are LoRA's for B, bit for bit, and leave A, which weight decay does not change either", async () => {
  const [its, others] = [await trial("lora_fa", "lora"), await trial("lora", "lora")];
  expect(its.kinds).toEqual([
    { factor: "A", gradient: "zero", after: "unchanged" },
    { factor: "B", gradient: "the other's", after: "the other's" },
  ]);
  expect(others.kinds).toEqual(["A", "B"].map((factor) => ({ factor, gradient: "the other's", after: "the other's" })));
  expect(its.worst).toBeLessThan(1e-3);
  expect(its.gradNorm).toBeGreaterThan(0);
  expect(its.gradNorm).toBeLessThan(others.gradNorm);
});

test("is trained from a recipe, exported as PEFT's LoRA with the A that it began with, and continued", async () => {
  const mlora = (...args: string[]) => copy.run(process.execPath, "src/main.ts", ...args);
  const recipe = (more: string) => `[model]\npath = "${place.model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]
name = "a"\nmethod = "lora_fa"\nrank = 4\nseed = 7\nweight_decay = 0.1\nlearning_rate = 1e-2\nsteps = 3\ndata = "rows.jsonl"\n${more}`;
  const rows = { "rows.jsonl": sums(12) };
  const path = place.project(recipe(""), rows);
  const spec = readModelSpec(place.model);
  const [planned, json] = await mlora("plan", path, "--json");
  expect(planned).toBe(0);
  const trained = linearsOfModel(spec).reduce((total, linear) => total + spec.layers * 4 * linearShape(spec, linear).out, 0);
  expect(JSON.parse(json).adapters[0].parameters).toBe(trained);
  expect((await mlora("run", path))[0]).toBe(0);
  const folder = join(path, "..", "out", "a");
  const { method, rank, tensor } = readPeftAdapter(folder, spec);
  expect([method, rank]).toEqual(["lora", 4]);
  for (const layer of [0, 1])
    for (const linear of linearsOfModel(spec)) {
      const columns = linearShape(spec, linear).in;
      const at = { seed: 7, layer, linear, factor: "A", rows: 4, columns } as const;
      expect(tensor(layer, linear, "A")).toEqual(initialise("default", at));
      expect(tensor(layer, linear, "B").some((value) => value !== 0)).toBe(true);
    }
  expect((await mlora("run", place.project(recipe(`from = "${folder}"\n`), rows)))[0]).toBe(0);
  const other = recipe(`from = "${folder}"\n`).replace("lora_fa", "dora");
  expect((await mlora("run", place.project(other, rows)))[0]).toBe(2);
});

/** A VeRA whose b has another name, and a first value that is a key of the recipe. */
const NAMED = {
  "src/methods/named.ts": `import { about, positive } from "../base/check.ts";
import { define, type SettingsOf } from "./definition.ts";
import { vera } from "./vera.ts";

const keys = { ...vera.keys, c_initial: about(positive(), "first value of c", 0.5) };
type Named = SettingsOf<typeof keys>;
const { shared, config } = vera.peft;

export const named = define({
  ...vera,
  title: "Named",
  keys,
  settings: ["projection_seed", "d_initial", "c_initial"],
  tensors: {
    lambda_d: vera.tensors.lambda_d,
    c: { axes: "out", initial: ({ cInitial = 0.5 }: Named) => cInitial, peft: "vera_c" },
  },
  peft: {
    ...vera.peft,
    peftType: "NAMED",
    config: (fields) => ({ ...config(fields), peft_type: "NAMED" }),
    shared: {
      ...shared,
      factor: (name, width, of, own) => shared.factor(name, width, of, (tensor) => own(tensor === "lambda_b" ? "c" : tensor)),
    },
  },
});
`,
  "src/engine/methods/named.ts": `import type { Computation } from "./computation.ts";
import { vera } from "./vera.ts";

export const named: Computation = { table: vera.table!, expansion: vera.expansion! };
`,
};

test("one with a tensor, a key and a computation of its own is 4 files", async () => {
  using other = new CopyOfSources();
  for (const [path, code] of Object.entries(NAMED)) other.write(path, code);
  register(other, "named", "named.ts", "named");
  const registry = "src/engine/methods/registry.ts";
  other.edit(registry, "{ lora: {},", "{ lora: {}, named,");
  other.edit(
    registry,
    'import { vera } from "./vera.ts";',
    'import { named } from "./named.ts";\nimport { vera } from "./vera.ts";',
  );
  expect(await other.check()).toEqual([0, ""]);
  const own = ["engine/methods/named.ts", "engine/methods/registry.ts", "methods/named.ts", "methods/registry.ts"];
  expect(other.touched()).toEqual(own);
  const { kinds, worst } = await trial("named", "named", other);
  expect(kinds).toEqual(["c", "lambda_d"].map((factor) => ({ factor, gradient: "the other's", after: "the other's" })));
  expect(worst).toBeLessThan(1e-3);

  const mlora = (...args: string[]) => other.run(process.execPath, "src/main.ts", ...args);
  const recipe = (rate: number) => `[model]\npath = "${place.model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]
name = "a"\nmethod = "named"\nrank = 5\nc_initial = 0.25\nlearning_rate = ${rate}\nsteps = 2\ndata = "rows.jsonl"\ntargets = ["q_proj"]`;
  const exported = async (rate: number) => {
    const path = place.project(recipe(rate), { "rows.jsonl": sums(12) });
    expect((await mlora("run", path))[0]).toBe(0);
    const folder = join(path, "..", "out", "a");
    expect((await mlora("export", folder, "--output", join(path, "..", "merged")))[0]).toBe(0);
    using file = openSafetensors(join(folder, "adapter_model.safetensors"));
    const raw = new Uint8Array(file.tensors.get("base_model.model.model.layers.0.self_attn.q_proj.vera_c")!.bytes);
    file.readInto("base_model.model.model.layers.0.self_attn.q_proj.vera_c", raw);
    return toF32(raw, "f32");
  };
  for (const value of await exported(1e-12)) expect(value).toBeCloseTo(0.25, 6);
  expect((await exported(0.1)).every((value) => Math.abs(value - 0.25) > 0.01)).toBe(true);
}, 200_000);
