// A base model whose config.json ties the head to the embedding and whose files have another head: told, planned, trained,
// merged.

import { afterAll, expect, test } from "bun:test";
import { cpSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readModelSpec } from "../../src/files/config.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import { bf16TensorsIn, writeHead } from "../helpers/base-cases.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

/** The tiny model with a head in its files. */
function modelWith(head: "other" | "same"): string {
  const folder = join(place.root, `head-${head}`);
  cpSync(place.model, folder, { recursive: true });
  writeHead(folder, head);
  return folder;
}
const [other, same] = [modelWith("other"), modelWith("same")];
const spec = readModelSpec(place.model);
const TOLD = `notice: ${other}/config.json ties the output head to the embedding (tie_word_embeddings is true)`;

const recipe = (model: string, keys = "steps = 6", name = "a") =>
  place.project(
    `[model]\npath = "${model}"\nprecision = "fp32"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "${name}"
data = { train = "rows.jsonl", eval = "held.jsonl" }\nlearning_rate = 1e-2\neval_every = 6\n${keys}\n`,
    { "rows.jsonl": sums(12), "held.jsonl": sums(24).split("\n").slice(12).join("\n") },
  );
const ran = async (...args: string[]) => {
  const ended = await place.mlora(...args);
  expect([ended.code, ended.code === 0 ? "" : ended.err]).toEqual([0, ""]);
  return ended;
};
const lossesOf = (path: string) => metrics(join(path, "..", "out"), "evaluation").map(({ loss }) => loss as number);
const jsonIn = (...path: string[]) => JSON.parse(readFileSync(join(...path), "utf8"));
function namesIn(folder: string): string[] {
  using file = openSafetensors(join(folder, "model.safetensors"));
  return [...file.tensors.keys()];
}

test("the plan tells, and has room for it", async () => {
  const planOf = async (model: string) => {
    const path = recipe(model);
    const json = JSON.parse((await ran("plan", path, "--json")).out);
    return { ...json, text: (await ran("plan", path)).out.replaceAll(/ +/g, " ") };
  };
  const [one, two, none] = [await planOf(other), await planOf(same), await planOf(place.model)];
  expect(one.text).toContain(TOLD.replace(": ", " "));
  for (const of of [two, none]) {
    expect([of.notices, of.model.tiedEmbeddings]).toEqual([[], true]);
    expect(of.memory_bytes.weights).toBe(none.memory_bytes.weights);
  }
  const head = spec.vocab * spec.hidden * 4;
  const more = one.memory_bytes.weights - none.memory_bytes.weights;
  expect(one.model.tiedEmbeddings).toBe(false);
  expect([more >= head, more < 1.3 * head]).toEqual([true, true]);
});

test("trained on one stage and on two, and merged, it is the head of the files; an equal one stays tied", async () => {
  const path = recipe(other);
  expect((await ran("run", path)).err).toContain(TOLD);
  const losses = lossesOf(path);
  const two = recipe(other);
  await ran("run", two, "--stages", "2");
  expect(lossesOf(two)).toEqual(losses);
  const plain = recipe(same);
  expect((await ran("run", plain)).err).not.toContain("notice");
  expect(Math.abs(lossesOf(plain)[0]! - losses[0]!)).toBeGreaterThan(1e-2);

  for (const [of, isTied] of [
    [path, false],
    [plain, true],
  ] as const) {
    const [adapter, merged] = [join(of, "..", "out", "a"), join(of, "..", "merged")];
    const { err } = await ran("export", adapter, "--output", merged, "--dtype", "fp32");
    expect(err.includes(TOLD)).toBe(!isTied);
    expect(jsonIn(merged, "config.json").tie_word_embeddings).toBe(isTied);
    expect(namesIn(merged).includes("lm_head.weight")).toBe(!isTied);
    const again = recipe(merged, "steps = 1", "fresh");
    expect((await ran("run", again)).err).not.toContain("notice");
    expect(lossesOf(again)[0]! / lossesOf(of).at(-1)!).toBeCloseTo(1, 4);
    const say = (...from: string[]) =>
      ran(
        "generate",
        ...from,
        "--prompt",
        "What is 2 + 3?",
        "--max-new-tokens",
        "12",
        "--precision",
        "fp32",
        "--device",
        "cpu",
      );
    const [said, beside] = [await say(merged), await say("--adapter", adapter)];
    expect(said.out).toBe(beside.out);
    expect(beside.err.includes(TOLD)).toBe(!isTied);
  }
});

/** The tiny model with its tensors changed. */
function changed(name: string, change: (tensors: TensorData[]) => TensorData[]): string {
  const folder = join(place.root, name);
  cpSync(other, folder, { recursive: true });
  const path = join(folder, "model.safetensors");
  writeSafetensors(path, change(bf16TensorsIn(path)));
  return folder;
}

test("tensors that config.json does not describe are reported by name; what is computed anew from it is not", async () => {
  const more = ["0.self_attn.q_proj.bias", "0.self_attn.rotary_emb.inv_freq", "9.mlp.up_proj.weight"].map(
    (name): TensorData => ({ name: `model.layers.${name}`, dtype: "bf16", shape: [2], data: new Uint16Array(2) }),
  );
  const folder = changed("more", (tensors) => [...tensors.filter(({ name }) => name !== "lm_head.weight"), ...more]);
  expect(JSON.parse((await ran("plan", recipe(folder), "--json")).out).notices).toEqual([
    `${folder}: text is trained, which 1 tensor does not take part in: 1 of model.layers.9.* (layer beyond num_hidden_layers)`,
    `${folder}: 1 tensor that config.json does not describe is left out: model.layers.0.self_attn.q_proj.bias`,
  ]);
});

test("a head of another shape is refused by name", async () => {
  const cut = (of: TensorData): TensorData =>
    of.name === "lm_head.weight"
      ? { ...of, shape: [5, spec.hidden], data: (of.data as Uint16Array).slice(0, 5 * spec.hidden) }
      : of;
  const { code, err } = await place.mlora("plan", recipe(changed("short", (tensors) => tensors.map(cut))));
  expect([code, err]).toEqual([
    2,
    expect.stringContaining(`lm_head.weight is [5,${spec.hidden}], wanted [${spec.vocab},${spec.hidden}]`),
  ]);
});
