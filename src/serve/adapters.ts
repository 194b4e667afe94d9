// Adapters of a folder that are loaded by name, as vLLM's users do it. Off unless the config names the folder.

import { realpathSync } from "node:fs";
import { resolve, sep } from "node:path";
import * as v from "valibot";
import { expected } from "../base/check.ts";
import { RequestError } from "../base/errors.ts";
import { badRequest, notFound } from "./errors.ts";
import type { Models } from "./models.ts";
import type { Call, Route } from "./router.ts";

const name = v.pipe(
  v.string(expected("a string")),
  v.regex(/^[A-Za-z0-9._:/-]{1,256}$/, "has other characters than a model's name"),
);
export const LoadBody = v.object({
  lora_name: name,
  lora_path: v.string(expected("a string")),
  load_inplace: v.nullish(v.boolean()),
});
export const UnloadBody = v.object({ lora_name: name });

export function adapterRoutes(models: Models, folder: string): Route[] {
  const load = async ({ tenant, json }: Call): Promise<Response> => {
    const { lora_name, lora_path, load_inplace } = await json(LoadBody);
    const at = placeIn(folder, lora_path);
    const known = models.list(tenant).find((row) => row.name === lora_name && row.is_loaded);
    if (known && load_inplace) await models.remove(known);
    if (models.isTaken(lora_name)) throw badRequest(`The lora adapter '${lora_name}' has already been loaded.`, "lora_name");
    models.add({ name: lora_name, tenant, folder: at, parent: models.base.name }, true);
    const row = models.find(tenant, lora_name)!;
    try {
      await models.use(row, () => Promise.resolve());
    } catch (error) {
      await models.remove(row);
      if (known && load_inplace && !models.isTaken(lora_name)) models.add(known, true); // what answered before does so again
      throw error instanceof RequestError ? asNamed(error, at, lora_path) : error;
    }
    return new Response(`Success: LoRA adapter '${lora_name}' added successfully.`);
  };

  const unload = async ({ tenant, json }: Call): Promise<Response> => {
    const { lora_name } = await json(UnloadBody);
    const known = models.list(tenant).find((row) => row.name === lora_name && row.is_loaded);
    if (!known) throw notFound(`The lora adapter '${lora_name}' cannot be found.`, "lora_name");
    await models.remove(known);
    return new Response(`Success: LoRA adapter '${lora_name}' removed successfully.`);
  };

  return [
    {
      method: "POST",
      path: "/v1/load_lora_adapter",
      summary: "Load an adapter of the server's folder",
      handler: load,
      body: LoadBody,
    },
    { method: "POST", path: "/v1/unload_lora_adapter", summary: "Unload it", handler: unload, body: UnloadBody },
  ];
}

/** The error as the client may see it: with the path that it gave, and not with that of the server. */
function asNamed({ message, hint, code }: RequestError, at: string, path: string): Error {
  const text = hint === undefined ? message : `${message}; ${hint}`;
  return badRequest(
    text.replaceAll(at, () => path),
    "lora_path",
    code,
  );
}

/** A folder below `folder`, links followed; else it is not found, whether there is something or not. */
function placeIn(folder: string, path: string): string {
  const missing = notFound(`There is no adapter '${path}' in the server's folder of adapters.`, "lora_path");
  try {
    const [root, at] = [realpathSync(folder), realpathSync(resolve(folder, path))];
    if (at.startsWith(`${root}${sep}`)) return at;
  } catch {
    throw missing;
  }
  throw missing;
}
