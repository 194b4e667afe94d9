// Which keys of an adapter_config.json leave an adapter one of a known method, and with which values. All others are
// refused: PEFT adds keys with each release, and a key that is passed over is another function than the one that was
// trained.

import { listed } from "../base/check.ts";
import { RequestError } from "../base/errors.ts";
import { DEFINITIONS, hasKey, methodIn, PEFT_METHODS, type PeftMethod } from "../methods/registry.ts";
import type { JsonObject } from "./json.ts";
import { TABLE_KEYS } from "./pefttables.ts";

/** Read elsewhere, or without an effect on the numbers. */
const ANY: ReadonlySet<string> = new Set([
  ...TABLE_KEYS,
  ...["peft_type", "target_modules", "bias", "rank_pattern", "alpha_pattern", "exclude_modules", "layers_pattern"],
  ...["layers_to_transform", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"],
  ...["inference_mode", "runtime_config", "megatron_config", "megatron_core", "ensure_weight_tying"],
  ...PEFT_METHODS.flatMap((method) => DEFINITIONS[method].peft.keys),
]);

const PATTERNS = ["rank_pattern", "alpha_pattern"] as const;
const BOOLEANS = ["use_dora", "use_rslora", "fan_in_fan_out", "lora_bias", "use_qalora"] as const;

/** Initialisations that leave the base model unchanged, so that the file is a plain LoRA. */
const PLAIN_INITS: readonly unknown[] = [true, false, null, "gaussian", "orthogonal", "eva", "mica"];
/** Initialisations that are taken off the base model again where the file is loaded, and that the weight alone decides. */
const TAKEN_OFF = ["pissa", "olora"] as const;
export type TakenOff = (typeof TAKEN_OFF)[number];

const isEmpty = (value: unknown): boolean =>
  value == null || value === false || (typeof value === "object" && Object.keys(value).length === 0);

const titles = PEFT_METHODS.map((method) => DEFINITIONS[method].title);
const READ = `mlora reads ${listed(titles, "and")} adapters`;
export const CONVERT =
  "it was trained with changed base weights; have PEFT convert it: save_pretrained(folder, path_initial_model_for_weight_conversion=...)";

/**
 * The method of an adapter, and what PEFT takes off the base model where it loads it; null of a plain one. Throws a
 * RequestError, `peft.kind` or `peft.config`, for the first key with a value that is not understood.
 */
export function checkPeftConfig(
  config: JsonObject,
  path: string,
): { readonly method: PeftMethod; readonly takenOff: TakenOff | null } {
  const refuse = (key: string, hint = READ) =>
    new RequestError("peft.kind", `${path}: ${key} is ${JSON.stringify(config[key])}`, hint);
  const method = methodIn(config);
  if (method === null) throw refuse("peft_type");
  if ((config["bias"] ?? "none") !== "none") throw refuse("bias");
  for (const key of BOOLEANS)
    if (config[key] != null && typeof config[key] !== "boolean")
      throw new RequestError("peft.config", `${path}: ${key} is ${JSON.stringify(config[key])}, expected true or false`);
  const init = config["init_lora_weights"];
  const name = typeof init === "string" ? init.toLowerCase() : (init ?? null);
  const takenOff = TAKEN_OFF.find((of) => of === name) ?? null;
  if (!PLAIN_INITS.includes(name) && takenOff === null) throw refuse("init_lora_weights", CONVERT);
  for (const key of PATTERNS) if (!hasKey(method, key) && !isEmpty(config[key])) throw refuse(key);
  for (const key of Object.keys(config)) if (!ANY.has(key) && !isEmpty(config[key])) throw refuse(key);
  return { method, takenOff: hasKey(method, "init") ? takenOff : null };
}
