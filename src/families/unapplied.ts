// What a config.json has transformers do while it trains a model, and mlora does not.

import type { ModelSpec } from "../base/spec.ts";
import type { ConfigObject } from "./config.ts";

/** Dropouts of the base model, which transformers' layers apply in training alone. */
const DROPOUTS = ["attention_dropout", "resid_pdrop"];

/** Says of each such key what is not done; `config` is all of a config.json. */
export function unappliedKeys(config: ConfigObject, { experts }: Pick<ModelSpec, "experts">): readonly string[] {
  const inner = config["text_config"];
  const text = (typeof inner === "object" && inner !== null ? inner : config) as ConfigObject;
  const dropouts = DROPOUTS.filter((key) => typeof text[key] === "number" && text[key] > 0).map(
    (key) => `${key} is ${text[key]}, a dropout of the base model, which is not applied; the key dropout is an adapter's own`,
  );
  const isBalanced = experts?.router.score === "softmax" && text["router_aux_loss_coef"] !== 0;
  if (!isBalanced || text["output_router_logits"] !== true) return dropouts;
  return [
    ...dropouts,
    "output_router_logits is true, by which transformers adds a loss that balances experts; none is added here",
  ];
}
