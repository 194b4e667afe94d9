// Which keys of an adapter_config.json leave an adapter a plain LoRA, DoRA or VeRA, and with which values. All others are refused: PEFT adds
// keys with each release, and a key that is passed over is another function than the one that was trained.

import { RequestError } from "../base/errors.ts";
import type { JsonObject } from "./json.ts";

/** Read elsewhere, or without an effect on the numbers. The tables of an initialisation go with `init_lora_weights`. */
const ANY: ReadonlySet<string> = new Set([
  ...["peft_type", "r", "lora_alpha", "lora_dropout", "vera_dropout", "use_dora", "use_rslora", "target_modules"],
  ...["projection_prng_key", "save_projection", "d_initial", "init_weights", "bias", "init_lora_weights"],
  ...["task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "runtime_config"],
  ...[
    "megatron_config",
    "megatron_core",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "ensure_weight_tying",
    "qalora_group_size",
  ],
  ...["rank_pattern", "alpha_pattern"],
  ...["eva_config", "corda_config", "loftq_config", "lora_ga_config", "velora_config"],
]);

/** A VeRA has one rank, for its projections are shared. */
const PATTERNS = ["rank_pattern", "alpha_pattern"];
const BOOLEANS = ["use_dora", "use_rslora", "fan_in_fan_out", "lora_bias", "use_qalora"] as const;

/** Beginnings that leave the base model as it is, so that the file is a plain LoRA. */
const PLAIN_INITS: readonly unknown[] = [true, false, null, "gaussian", "orthogonal", "eva", "mica"];
/** Beginnings that are taken off the base model again where the file is loaded, and that the weight alone decides. */
const TAKEN_OFF = ["pissa", "olora"] as const;
export type TakenOff = (typeof TAKEN_OFF)[number];

const isEmpty = (value: unknown): boolean =>
  value == null || value === false || (typeof value === "object" && Object.keys(value).length === 0);

const READ = "mlora reads LoRA, DoRA and VeRA adapters";
export const CONVERT =
  "it was trained beside changed base weights; have PEFT convert it: save_pretrained(folder, path_initial_model_for_weight_conversion=...)";

/**
 * What PEFT takes off the base model where it loads this adapter; null of a plain one. Throws a RequestError, `peft.kind` or `peft.config`, for the first
 * key with a value that is not understood.
 */
export function checkPeftConfig(config: JsonObject, path: string): TakenOff | null {
  const refuse = (key: string, hint = READ) =>
    new RequestError("peft.kind", `${path}: ${key} is ${JSON.stringify(config[key])}`, hint);
  if (config["peft_type"] !== "LORA" && config["peft_type"] !== "VERA") throw refuse("peft_type");
  if ((config["bias"] ?? "none") !== "none") throw refuse("bias");
  for (const key of BOOLEANS)
    if (config[key] != null && typeof config[key] !== "boolean")
      throw new RequestError("peft.config", `${path}: ${key} is ${JSON.stringify(config[key])}, expected true or false`);
  const init = config["init_lora_weights"];
  const name = typeof init === "string" ? init.toLowerCase() : (init ?? null);
  const takenOff = TAKEN_OFF.find((of) => of === name) ?? null;
  if (!PLAIN_INITS.includes(name) && takenOff === null) throw refuse("init_lora_weights", CONVERT);
  for (const key of PATTERNS) if (config["peft_type"] === "VERA" && !isEmpty(config[key])) throw refuse(key);
  for (const key of Object.keys(config)) if (!ANY.has(key) && !isEmpty(config[key])) throw refuse(key);
  return config["peft_type"] === "LORA" ? takenOff : null;
}
