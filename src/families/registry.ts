// All families, and what the program asks of one by its name, which is config.json's `model_type`. Nothing outside this folder
// compares names of families.

import { invariant, RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type ConfigObject, ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { llama } from "./llama.ts";
import { mistral } from "./mistral.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3 } from "./qwen3.ts";

export const FAMILIES = { llama, mistral, qwen2, qwen3 } as const satisfies Readonly<Record<string, Definition>>;

export type Family = keyof typeof FAMILIES;
export const FAMILY_NAMES = Object.keys(FAMILIES) as readonly Family[];

const isFamily = (name: unknown): name is Family => typeof name === "string" && Object.hasOwn(FAMILIES, name);

export function familyOf({ family }: Pick<ModelSpec, "family">): Definition {
  invariant(isFamily(family), `no family is called ${family}`);
  return FAMILIES[family];
}

/** How a model of this type, a value of config.json, chooses its tokenizer's class. */
export const tokenizerOf = (modelType: unknown): Definition["tokenizer"] =>
  isFamily(modelType) ? FAMILIES[modelType].tokenizer : { class: null, isFixed: false };

const ARCHITECTURES = new Map(
  FAMILY_NAMES.flatMap((family) => FAMILIES[family].architectures.map((name) => [name as string, family] as const)),
);

/** The spec that a parsed config.json describes; `path` is for messages. Throws a RequestError "model.*" that names the key. */
export function specOf(config: ConfigObject, path: string): ModelSpec {
  const { architectures } = config;
  const [name] = Array.isArray(architectures) ? architectures : [];
  const family = ARCHITECTURES.get(name);
  if (family === undefined)
    throw new RequestError(
      "model.architecture",
      `${path}: architectures is ${JSON.stringify(architectures)}`,
      `mlora trains ${[...ARCHITECTURES.keys()].join(", ")}`,
    );
  return { family, ...FAMILIES[family].read(new ConfigReader(config, path)) };
}
