// A saved adapter as the table of a recipe that continues it.

import { join } from "node:path";
import { snake } from "../../base/case.ts";
import { RequestError } from "../../base/errors.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { readPeftAdapter } from "../../files/peft.ts";
import { placeFields } from "../../files/peftplaces.ts";
import { isScaled, OWN_KEYS } from "../../methods/registry.ts";
import { isFile } from "./adapters.ts";

/**
 * Method, ranks, scales and places of the PEFT adapter in `folder`, by a recipe's keys, with `from`. Throws RequestErrors where
 * it does not fit the model.
 */
export function savedTable(folder: string, spec: ModelSpec): Readonly<Record<string, unknown>> {
  if (!isFile(join(folder, "adapter_config.json")))
    throw new RequestError("adapter.folder", `${folder} holds no adapter`, "name a folder as PEFT writes it");
  const saved = readPeftAdapter(folder, spec, () => {
    throw new Error("a part of a weight is read while an adapter is looked at");
  });
  const { rank, alpha, targets, layers, rankPattern, alphaPattern } = placeFields(saved, spec);
  const own = Object.entries(saved.own ?? {}).map(([key, value]) => [snake(key), value] as const);
  const isFilled = (table: object) => Object.keys(table).length > 0;
  return {
    ...Object.fromEntries(own.filter(([key]) => (OWN_KEYS as readonly string[]).includes(key))),
    ...{ method: saved.method, rank, targets, from: folder },
    ...(isScaled(saved.method) ? { alpha } : {}),
    ...(layers ? { layers } : {}),
    ...(isFilled(rankPattern) ? { rank_pattern: rankPattern } : {}),
    ...(isFilled(alphaPattern) ? { alpha_pattern: alphaPattern } : {}),
  };
}
