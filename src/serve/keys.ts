// Keys: each has a name, that of its tenant, and all that is made with a key belongs to its tenant. Keys are kept as hashes.

import { createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { RequestError, textOf } from "../base/errors.ts";
import { randomToken } from "../base/secret.ts";
import { counted } from "../base/units.ts";
import { ApiError } from "./errors.ts";
import type { Database } from "./store.ts";

/** Tinker's client refuses keys that begin otherwise. */
const PREFIX = "tml-";
const LEAST = 20;

const hashOf = (key: string): Buffer => Buffer.from(new Bun.CryptoHasher("sha256").update(key).digest());

export type Keys = {
  /** The tenant of a request, and whether it has the key of a read-only link of that tenant. Throws an ApiError 401. */
  readonly accessOf: (headers: Headers) => { readonly tenant: string; readonly isViewer: boolean };
  /** The key of a tenant's read-only link: made of the tenant's own, and void with it. */
  readonly viewKeyOf: (tenant: string) => string;
  /** A key that was made now, to be printed once; null where there were keys. */
  readonly made: string | null;
  /** The weight of a tenant's share in what is computed. */
  readonly weightOf: (tenant: string) => number;
};

/** From the hash of a key, which it does not give away. */
const viewKey = (hash: Buffer): string =>
  `view-${createHmac("sha256", hash).update("read-only link").digest("hex").slice(0, 40)}`;

/** The keys of a file; without one, those that the server has made, a first one now if there is none. */
export function openKeys(db: Database, file: string | undefined): Keys {
  const known: Known[] = [];
  const weights = new Map<string, number>();
  let made: string | null = null;
  if (file !== undefined)
    for (const { name, key, weight } of readKeys(file)) {
      known.push({ name, hash: hashOf(key) });
      weights.set(name, weight);
    }
  else {
    const rows = db.all<{ name: string; hash: Uint8Array }>("SELECT name, hash FROM keys");
    known.push(...rows.map(({ name, hash }) => ({ name, hash: Buffer.from(hash) })));
    if (known.length === 0) {
      made = `${PREFIX}${randomToken()}`;
      const first = { name: "default", hash: hashOf(made) };
      db.run("INSERT INTO keys (name, hash) VALUES (?, ?)", first.name, first.hash);
      known.push(first);
    }
  }
  return keysOf(known, made, (tenant) => weights.get(tenant) ?? 1);
}

/** A key of its own for each run's page; both of them are in links. */
export const newRunKeys = (): Keys => {
  const made = randomToken();
  return keysOf([{ name: "run", hash: hashOf(made) }], made, () => 1);
};

type Known = { readonly name: string; readonly hash: Buffer };

function keysOf(known: readonly Known[], made: string | null, weightOf: Keys["weightOf"]): Keys {
  const all = known.flatMap(({ name, hash }) => [
    { tenant: name, isViewer: false, hash },
    { tenant: name, isViewer: true, hash: hashOf(viewKey(hash)) },
  ]);
  const find = (key: string) => {
    const hash = hashOf(key);
    let found: (typeof all)[number] | null = null;
    for (const of of all) if (timingSafeEqual(of.hash, hash)) found = of; // all of them, whichever it is
    return found;
  };
  return {
    ...{ made, weightOf },
    viewKeyOf: (tenant) => viewKey(known.find(({ name }) => name === tenant)!.hash),
    accessOf(headers) {
      const bearer = /^Bearer\s+(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1];
      const key = bearer ?? headers.get("x-api-key");
      if (!key)
        throw new ApiError(401, "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'.", {
          code: "invalid_api_key",
        });
      const found = find(key);
      if (found === null) throw new ApiError(401, "Incorrect API key provided.", { code: "invalid_api_key" });
      const { tenant, isViewer } = found;
      return { tenant, isViewer };
    },
  };
}

/** Lines of a name, a key and perhaps a weight; what follows # says nothing. Errors name the line, never the key. */
function readKeys(file: string): { readonly name: string; readonly key: string; readonly weight: number }[] {
  const wrong = (what: string, hint?: string) => new RequestError("serve.keys", `${file}${what}`, hint);
  let text: string;
  try {
    if ((statSync(file).mode & 0o077) !== 0)
      throw wrong(": other users of this machine may read it", `take that away: chmod 600 ${file}`);
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw error instanceof RequestError ? error : wrong(`: ${textOf(error)}`);
  }
  const found = text.split("\n").flatMap((line, i) => {
    const words = line.replace(/#.*/, "").trim().split(/\s+/).filter(Boolean);
    if (words.length === 0) return [];
    const [name, key, share = "1"] = words;
    const weight = Number(share);
    if (words.length > 3 || !(weight > 0 && Number.isFinite(weight)) || !/^[A-Za-z0-9_-]{1,64}$/.test(name!))
      throw wrong(`:${i + 1}: expected a name of letters, digits, '_' and '-', a key, and perhaps a weight above 0`);
    if (key === undefined) throw wrong(`:${i + 1}: has no key`);
    if (key.length < LEAST)
      throw wrong(`:${i + 1}: the key has ${counted(key.length, "character")}, expected ${LEAST} or more`);
    return [{ name: name!, key, weight, line: i + 1 }];
  });
  if (found.length === 0) throw wrong(": has no key", "write a line of a name and a key");
  const again = found.find(({ name, key }, i) => found.findIndex((of) => of.name === name || of.key === key) !== i);
  if (again) throw wrong(`:${again.line}: has a name or a key of an earlier line`);
  return found;
}
