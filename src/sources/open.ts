// From the names in a recipe to files on this machine: paths and patterns, addresses, and what lies on a hub.

import { isAddress, isHub } from "../base/source-name.ts";
import { checkDataFile, type DataFile, type FilesOf } from "../data/data-file.ts";
import { fileFingerprint } from "../files/fingerprint.ts";
import { addressed } from "./address.ts";
import { expanded } from "./expand.ts";
import { hubFiles, hubModel } from "./hub/open.ts";
import { type HubSettings, hubSettings } from "./hub/settings.ts";
import { localFiles } from "./local.ts";

export type Opening = {
  readonly hub: HubSettings;
  readonly signal?: AbortSignal | undefined;
  /** Called with a sentence that people should read. */
  readonly notice: (text: string) => void;
  /** Called with the bytes so far of a file that is fetched. */
  readonly progress?: ((name: string, bytes: number) => void) | undefined;
};

export type OpeningOptions = Partial<Opening> & {
  /** Whether the files' bytes are named by their hash. */
  readonly isHashed?: boolean;
};

/** The files that each name stands for, expanded. Throws RequestErrors and RunErrors that say which name. */
export async function openFiles(names: readonly string[], options: OpeningOptions = {}): Promise<FilesOf> {
  const opening = openingOf(options);
  const files = new Map<string, readonly DataFile[]>();
  for (const name of new Set(names)) {
    const found = await filesOf(name, opening);
    const ready: DataFile[] = [];
    for (const file of found) {
      checkDataFile(file);
      const hash = options.isHashed === true ? { hash: fileFingerprint(file.path) } : {};
      ready.push({ ...(await expanded(file, opening.signal)), ...hash });
    }
    files.set(name, ready);
  }
  return files;
}

/** Where a base model lies: a path as it is, a model of a hub in the cache. */
export async function openModel(path: string, options: OpeningOptions = {}): Promise<string> {
  return isHub(path) ? await hubModel(path, openingOf(options)) : path;
}

const openingOf = (options: OpeningOptions): Opening => ({
  ...options,
  hub: options.hub ?? hubSettings(),
  notice: options.notice ?? (() => undefined),
});

async function filesOf(name: string, opening: Opening): Promise<readonly DataFile[]> {
  if (isAddress(name)) return [await addressed(name, opening)];
  if (isHub(name)) return hubFiles(name, opening);
  return localFiles(name);
}
