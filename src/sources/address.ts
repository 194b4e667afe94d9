// A file at an address: fetched once, asked about again at each use, and taken from the cache where the network is away.

import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../base/atomic.ts";
import { RequestError, RunError } from "../base/errors.ts";
import { isLoopback } from "../base/loopback.ts";
import type { DataFile } from "../data/data-file.ts";
import { shelf, touch, trim } from "./cache.ts";
import { ask, shown } from "./http.ts";
import type { Opening } from "./open.ts";
import { download, hashFile, refused, settle } from "./partial.ts";

const meta = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({ url: v.string(), state: v.nullable(v.string()), sha256: v.string() }),
);
type Meta = v.InferOutput<typeof meta>;

/** The file at an address. Throws RequestErrors and RunErrors that name it. */
export async function addressed(url: string, { signal, notice, progress, hub }: Opening): Promise<DataFile> {
  const parsed = URL.parse(url);
  if (parsed === null) throw new RequestError("data.url", `${url} is no address`, "an address begins with https://");
  if (parsed.protocol === "http:" && !isLoopback(parsed.hostname))
    throw new RequestError("data.url", `${shown(url)} is not encrypted: others could change the rows`, "use https://");
  const folder = join(shelf("downloads"), hashText(url));
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const name = shown(url);
  const fileOf = ({ sha256 }: Meta): DataFile => {
    touch(folder);
    return { name, path: join(folder, sha256) };
  };
  const known = knownIn(folder);
  if (hub.offline) {
    if (known) return fileOf(known);
    throw new RunError("source.offline", `${name} is not in the cache, and HF_HUB_OFFLINE is set`, "unset it, or name a file");
  }
  try {
    const { response: head } = await ask(url, { method: "HEAD", signal });
    const noHead = [403, 404, 405, 501].includes(head.status); // some hosts sign addresses for GET alone
    if (!head.ok && !noHead) throw refused(name, head.status);
    const state = head.ok ? stateOf(head) : null;
    if (known && state !== null && known.state === state) return fileOf(known);
    const length = head.ok ? head.headers.get("content-length") : null;
    const resumes = state !== null && !state.startsWith("W/");
    const partial = await download({
      stem: join(folder, `body-${hashText(state ?? "")}`),
      ...{ name, url, asking: { signal }, hash: null, resumes },
      size: length === null ? null : Number(length),
      ...(resumes ? { ifRange: state } : {}),
      ...(progress ? { progress: (bytes: number) => progress(name, bytes) } : {}),
    });
    const made: Meta = { url: name, state, sha256: hashFile(partial, "sha256") };
    settle(partial, join(folder, made.sha256));
    writeFileAtomic(join(folder, META), `${JSON.stringify(made)}\n`, 0o600);
    trim(shelf("downloads"));
    return fileOf(made);
  } catch (error) {
    signal?.throwIfAborted();
    if (!known || !(error instanceof RunError)) throw error;
    notice(`${error.message}; the rows that were fetched earlier are used`);
    return fileOf(known);
  }
}

const META = "meta.json";
const hashText = (text: string): string => new Bun.CryptoHasher("sha256").update(text).digest("hex").slice(0, 32);

/** What changes with the bytes: the entity tag, else the time of the last change. */
const stateOf = ({ headers }: Response): string | null => headers.get("etag") ?? headers.get("last-modified");

function knownIn(folder: string): Meta | null {
  const path = join(folder, META);
  const read = existsSync(path) ? v.safeParse(meta, readFileSync(path, "utf8")) : null;
  return read?.success && existsSync(join(folder, read.output.sha256)) ? read.output : null;
}
