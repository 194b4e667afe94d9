// What TRL 1.16 made of rows (tests/golden/trl116/make.py), and the model and adapter that it began with.

import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { sizeOf } from "../../src/base/shape.ts";
import { tensorShapes } from "../../src/files/basemodel.ts";
import { specOf } from "../../src/files/config.ts";
import { writeSafetensors } from "../../src/files/safetensors.ts";

export type TrlCase = {
  /** The model's chat template. */
  readonly template: string;
  /** Keys of our recipe that say the same. */
  readonly recipe: string;
  readonly data: readonly object[];
  /** Of each row its sequence, or the chosen and the rejected one. */
  readonly rows: readonly (readonly { readonly ids: readonly number[]; readonly mask: readonly number[] }[])[];
  readonly losses: readonly number[];
  /** Weights by their names in a PEFT file, as fp32 in base64. */
  readonly final: Readonly<Record<string, string>>;
};
type TrlGolden = {
  readonly config: Readonly<Record<string, unknown>>;
  readonly learning_rate: number;
  readonly batch_size: number;
  readonly steps: number;
  readonly cases: Readonly<Record<string, TrlCase>>;
};

const GOLDEN = join(import.meta.dir, "../golden");
export const trl: TrlGolden = JSON.parse(readFileSync(join(GOLDEN, "trl116/golden.json"), "utf8"));

/** lowbias32. */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Numbers from -1/8 to 1/8 by a hash of the name and the place; a norm's are around 1. */
function weights(name: string, shape: readonly number[]): Float32Array {
  let key = 0;
  for (const char of name) key = mix(key ^ char.codePointAt(0)!);
  const around = name.includes("norm") ? 1 : 0;
  return Float32Array.from({ length: sizeOf(shape) }, (_, i) => ((mix(mix(i) ^ key) >>> 8) * 2 ** -24 - 0.5) * 0.25 + around);
}

const tensor = (name: string, shape: readonly number[], as = name) => ({
  name: as,
  dtype: "f32" as const,
  shape,
  data: new Uint8Array(weights(name, shape).buffer),
});

/** Writes the base model, with its tokenizer and a chat template, to `folder`/model and the starting adapter to `folder`/start. */
export function writeTrlModel(folder: string, template: string): void {
  const [model, start] = [join(folder, "model"), join(folder, "start")];
  for (const made of [model, start]) mkdirSync(made, { recursive: true });
  const config = { architectures: ["LlamaForCausalLM"], model_type: "llama", ...trl.config };
  writeFileSync(join(model, "config.json"), JSON.stringify(config));
  writeFileSync(join(model, "chat_template.jinja"), template);
  for (const file of ["tokenizer.json", "tokenizer_config.json"])
    copyFileSync(join(GOLDEN, "tokenizers/smollm", file), join(model, file));
  const shapes = [...tensorShapes(specOf(config, "config.json"))];
  writeSafetensors(
    join(model, "model.safetensors"),
    shapes.map(([name, shape]) => tensor(`base_model.model.${name}`, shape, name)),
  );
  const factors = Object.entries(Object.values(trl.cases)[0]!.final).map(([name, bytes]) => {
    const width = Buffer.from(bytes, "base64").length / 8;
    return tensor(name, name.includes("lora_A") ? [2, width] : [width, 2]);
  });
  writeSafetensors(join(start, "adapter_model.safetensors"), factors);
  const adapter = { peft_type: "LORA", task_type: "CAUSAL_LM", r: 2, lora_alpha: 4, target_modules: ["q_proj", "v_proj"] };
  writeFileSync(join(start, "adapter_config.json"), JSON.stringify({ ...adapter, bias: "none" }));
}
