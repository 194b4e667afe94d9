// What an adapter is made from besides its rows: saved adapters that it begins as or is compared with, and the base model.
// Their files are read again during a run, and must be the same as when it began.

import { RequestError } from "../../base/errors.ts";
import { adapterFingerprint, modelFingerprint } from "../../files/fingerprint.ts";
import { type Objective, referenceOf } from "../../objectives/registry.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";

/** A saved adapter, by the key of the recipe that names its folder. */
export type Source = { readonly key: "from" | "objective.reference"; readonly folder: string; readonly fingerprint: string };

/** The folder of the saved adapter that an objective compares with; null for none. */
export function referenceFolder(objective: Objective): string | null {
  const reference = referenceOf(objective);
  return reference !== null && typeof reference === "object" ? reference.folder : null;
}

/** Reads the files of all saved adapters that an adapter is made from. */
export function sourcesOf({ initialAdapter, objective }: AdapterRecipe): Source[] {
  const named = [
    ["from", initialAdapter],
    ["objective.reference", referenceFolder(objective)],
  ] as const;
  return named.flatMap(([key, folder]) => (folder === null ? [] : { key, folder, fingerprint: adapterFingerprint(folder) }));
}

/** Called when `folder` has been read. Throws a RequestError, `resume.changed`, where it has changed since. */
export function checkSource(sources: readonly Source[], folder: string): void {
  const known = sources.find((source) => source.folder === folder);
  if (!known || adapterFingerprint(folder) === known.fingerprint) return;
  throw changed(`the adapter in ${folder}`, "the adapter");
}

/**
 * Called when the base model in `folder` has been read. Throws a RequestError, `resume.changed`, where it has changed since.
 */
export function checkModel(folder: string, fingerprint: string): void {
  if (modelFingerprint(folder) !== fingerprint) throw changed(`the base model in ${folder}`, "the model");
}

const changed = (what: string, it: string): RequestError =>
  new RequestError(
    "resume.changed",
    `${what} was changed during the run`,
    `give the run back ${it} that it began with; what was kept is whole`,
  );
