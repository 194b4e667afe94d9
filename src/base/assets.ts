// The files that come with the program: native libraries, nats-server, kernels.
//
// In a checkout they lie where scripts/setup and scripts/kernels put them. In the compiled binary they are embedded, some in a
// form that xz packs better (asset-codings.ts); what the system has to open by a path is copied into a cache folder first
// (cache.ts).

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CODINGS, type CodingName } from "./asset-codings.ts";
import { cachedFile } from "./cache.ts";
import { RunError } from "./errors.ts";

/** What scripts/build embeds with the assets: where each begins in which file, and how many bytes it has there. */
export type AssetManifest = Readonly<
  Record<
    string,
    {
      readonly file: string;
      readonly from: number;
      readonly bytes: number;
      readonly coding?: CodingName;
      /** Hash of the content, of assets that are opened by a path alone: no hash can be packed. */
      readonly sha256?: string;
    }
  >
>;

const EMBEDDED = "/$bunfs/root/assets";
const CHECKOUT = join(import.meta.dir, "..", "..");
/** Folders of a checkout that hold assets, by how the assets' names begin. */
const FOLDERS = [
  { prefix: "kernels/", folder: join(CHECKOUT, "kernels", "build"), madeBy: "scripts/kernels" },
  { prefix: "", folder: join(CHECKOUT, "ffi", "build"), madeBy: "scripts/setup" },
] as const;

const placeOf = (name: string) => FOLDERS.find(({ prefix }) => name.startsWith(prefix))!;

/** Names of all assets there are, sorted: "kernels/manifest.json", "libmlora.so", ... */
export function assetNames(): string[] {
  if (Bun.isStandaloneExecutable) return Object.keys(manifest()).sort();
  return FOLDERS.flatMap(({ prefix, folder }) => filesUnder(folder).map((file) => prefix + file)).sort();
}

/** An asset's content. Throws a RunError where there is no such asset. */
export function readAsset(name: string): Uint8Array {
  if (!Bun.isStandaloneExecutable) return readFileSync(inCheckout(name));
  const { bytes, file, from, coding } = entry(name);
  if (latest.file !== file) latest = { file, content: readFileSync(join(EMBEDDED, file)) };
  const content = latest.content.subarray(from, from + bytes);
  if (content.length === latest.content.length) latest = NOTHING;
  return coding ? CODINGS[coding].decode(content) : content;
}

const NOTHING = { file: "", content: new Uint8Array(0) };
/** The last file with several assets: all kernels that a GPU loads are in one. */
let latest: { readonly file: string; readonly content: Uint8Array } = NOTHING;

/** The absolute path of an asset in the file system, executable. Throws a RunError where it cannot be had. */
export function assetPath(name: string): string {
  if (!Bun.isStandaloneExecutable) return inCheckout(name);
  const { sha256 } = entry(name);
  if (!sha256) throw new Error(`${name} was built to be read, not to be opened by a path`);
  return cachedFile(name, sha256, () => readAsset(name));
}

let known: AssetManifest | undefined; // read once: it lists hundreds of kernels

function manifest(): AssetManifest {
  known ??= JSON.parse(readFileSync(join(EMBEDDED, "manifest.json"), "utf8")) as AssetManifest;
  return known;
}

function entry(name: string): AssetManifest[string] {
  const found = manifest()[name];
  if (!found) throw new RunError("asset.missing", `${name} was not built into this mlora`, "build it again with scripts/build");
  return found;
}

function inCheckout(name: string): string {
  const { prefix, folder, madeBy } = placeOf(name);
  const path = join(folder, name.slice(prefix.length));
  if (!existsSync(path)) throw new RunError("asset.missing", `${path} is not there`, `run ${madeBy}`);
  return path;
}

/** Files under a folder that are neither hidden nor in a hidden folder, by their paths in it; none where there is no folder. */
function filesUnder(folder: string): string[] {
  if (!existsSync(folder)) return [];
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile())
    .map((file) => join(file.parentPath, file.name).slice(folder.length + 1));
  return files.filter((path) => !path.split("/").some((part) => part.startsWith(".")));
}
