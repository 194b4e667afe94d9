// A model that sees, as a person trains its part for text: what the plan tells, PEFT's names, and the merged model.

import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { openSafetensors, type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import { writeTinyModel } from "../helpers/model.ts";
import { sums, Workplace } from "../helpers/program.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const model = join(place.root, "sees");
writeTinyModel(model, 2, { architectures: ["LlamaForCausalLM"] });
const plain = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
const { architectures: _, tie_word_embeddings: __, ...text } = plain;
await Bun.write(
  join(model, "config.json"),
  JSON.stringify({
    architectures: ["Mistral3ForConditionalGeneration"],
    model_type: "mistral3",
    text_config: { ...text, model_type: "mistral", sliding_window: null },
    vision_config: { model_type: "pixtral" },
  }),
);
/** The tiny model's tensors as older files of wrappers call them, and an encoder's. */
const tensors: TensorData[] = [];
{
  using file = openSafetensors(join(model, "model.safetensors"));
  for (const [name, { shape, bytes }] of file.tensors) {
    const data = new Uint16Array(bytes / 2);
    file.readInto(name, new Uint8Array(data.buffer));
    tensors.push({ name: `language_model.${name}`, dtype: "bf16", shape, data });
  }
}
for (const name of ["vision_tower.transformer.layers.0.attention.q_proj.weight", "multi_modal_projector.linear_1.weight"])
  tensors.push({ name, dtype: "bf16", shape: [3, 2], data: Uint16Array.of(1, 2, 3, 4, 5, 6) });
writeSafetensors(join(model, "model.safetensors"), tensors);

const recipe = (more = "") =>
  place.project(
    `[model]\npath = "${model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "a"\nrank = 2\nsteps = 2\ndata = "rows.jsonl"\n${more}`,
    { "rows.jsonl": sums(6) },
  );
const namesIn = (path: string): string[] => {
  using file = openSafetensors(path);
  return [...file.tensors.keys()].sort();
};

test("the plan tells what is not trained; the adapter has the wrapper's names; a merged model keeps its other parts", async () => {
  const path = recipe();
  const planned = await place.mlora("plan", path, "--json");
  expect(planned.code).toBe(0);
  expect(JSON.parse(planned.out).notices).toEqual([
    `${model}: text is trained, which 2 tensors do not take part in: 1 of vision_tower.* (encoder of images), ` +
      "1 of multi_modal_projector.* (connection of images or sound to text)",
  ]);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  const adapter = join(path, "..", "out", "a");
  const names = namesIn(join(adapter, "adapter_model.safetensors"));
  expect(names.length).toBe(2 * 2 * 7);
  for (const name of names) expect(name).toStartWith("base_model.model.model.language_model.layers.");
  const config = JSON.parse(readFileSync(join(adapter, "adapter_config.json"), "utf8"));
  const isTarget = (module: string) => new RegExp(`^(?:${config.target_modules})$`).test(module);
  expect(isTarget("model.language_model.layers.1.mlp.up_proj")).toBe(true);
  expect(isTarget("model.vision_tower.transformer.layers.0.attention.q_proj")).toBe(false);

  const merged = join(path, "..", "merged");
  expect((await place.mlora("export", adapter, "--output", merged)).code).toBe(0);
  expect(namesIn(join(merged, "model.safetensors"))).toEqual(tensors.map(({ name }) => name).sort());
  const say = (...from: string[]) =>
    place.mlora("generate", ...from, "--prompt", "1 + 1 =", "--max-new-tokens", "4", "--precision", "fp32", "--device", "cpu");
  expect((await say(merged)).code).toBe(0);
  expect((await place.mlora("run", recipe(`from = "${adapter}"\n`))).code).toBe(0);
}, 90_000);

test("a target in the encoder is refused in one line", async () => {
  const { code, err } = await place.mlora("run", recipe('targets = ["attention.q_proj"]\n'));
  expect(code).toBe(2);
  expect(err).toContain("only its part for text, model.language_model, is trained");
}, 120_000);
