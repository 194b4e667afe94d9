// The address of a NATS server, and the login. Plain data that holds secrets: it goes to children through their standard input
// and to threads by message, and only `describeAddress` makes text of any of it.

import { readFileSync } from "node:fs";
import * as v from "valibot";
import { environment, type Variable } from "../base/env.ts";
import { RequestError, textOf } from "../base/errors.ts";

const login = v.union([
  v.strictObject({ token: v.string() }),
  v.strictObject({ user: v.string(), password: v.string() }),
  v.strictObject({ seed: v.string() }), // of an nkey
]);
const tls = v.strictObject({ ca: v.optional(v.string()), cert: v.optional(v.string()), key: v.optional(v.string()) }); // PEM
export const addressSchema = v.strictObject({
  /** "nats://host:port" or "tls://host:port", without credentials: the servers of one cluster. */
  servers: v.pipe(v.array(v.string()), v.minLength(1)),
  login: v.nullable(login),
  /** Null: as the server requires, and with the system's certificates. */
  tls: v.optional(v.nullable(tls)),
});
export type Address = v.InferOutput<typeof addressSchema>;

const PORT = "4222";
const FORMS = 'give --nats as "nats://host:port", or "tls://host:port"; several servers of a cluster with commas between';

/** "host:port" of each server: what messages may say. */
export const describeAddress = ({ servers }: Address): string =>
  servers.map((server) => server.replace(/^\w+:\/\//, "")).join(", ");

/**
 * What `--nats` names, as "nats://host:4222", "tls://user:password@host", "nats://token@a,nats://b": credentials from the URL,
 * or else from the environment (MLORA_NATS_*, base/env.ts). Throws a RequestError, `nats.address`, without any of them.
 */
export function parseAddress(text: string, read: (name: Variable) => string | undefined = environment): Address {
  const urls = text.split(",").map((part) => parseServer(part.trim()));
  const logins = urls.map(loginOf).filter((found) => found !== null);
  if (new Set(logins.map((found) => JSON.stringify(found))).size > 1)
    throw new RequestError(
      "nats.address",
      "the servers of --nats have different credentials",
      "a cluster has one: give it once",
    );
  const servers = urls.map(({ protocol, hostname, port }) => `${protocol}//${hostname}:${port || PORT}`);
  const [ca, cert, key] = (["MLORA_NATS_CA", "MLORA_NATS_CERT", "MLORA_NATS_KEY"] as const).map((name) => fileOf(name, read));
  if ((cert === undefined) !== (key === undefined))
    throw new RequestError(
      "nats.address",
      "of MLORA_NATS_CERT and MLORA_NATS_KEY only one is set",
      "a certificate needs its key",
    );
  const given = { ...(ca === undefined ? {} : { ca }), ...(cert === undefined || key === undefined ? {} : { cert, key }) };
  const secured = Object.keys(given).length > 0 || urls.some(({ protocol }) => protocol === "tls:");
  return { servers, login: logins[0] ?? loginFrom(read), tls: secured ? given : null };
}

/** Errors leave out the text itself, which may hold a password. */
function parseServer(text: string): URL {
  const full = text.includes("://") ? text : `nats://${text}`;
  const url = URL.canParse(full) ? new URL(full) : null;
  if (!url || url.hostname === "") throw new RequestError("nats.address", "--nats is not the URL of a server", FORMS);
  if (url.protocol !== "nats:" && url.protocol !== "tls:")
    throw new RequestError("nats.address", `--nats begins with ${url.protocol}//, expected nats:// or tls://`, FORMS);
  if ((url.pathname !== "" && url.pathname !== "/") || url.search !== "" || url.hash !== "")
    throw new RequestError("nats.address", `--nats has something after ${url.host}`, FORMS);
  return url;
}

function loginOf({ username, password }: URL): Address["login"] {
  if (username === "" && password === "") return null;
  const [name, secret] = [decodeURIComponent(username), decodeURIComponent(password)];
  return secret === "" ? { token: name } : { user: name, password: secret };
}

function loginFrom(read: (name: Variable) => string | undefined): Address["login"] {
  const token = read("MLORA_NATS_TOKEN");
  const user = read("MLORA_NATS_USER");
  const password = read("MLORA_NATS_PASSWORD");
  const seed = fileOf("MLORA_NATS_NKEY", read);
  const set = Object.entries({ MLORA_NATS_TOKEN: token, MLORA_NATS_USER: user, MLORA_NATS_NKEY: seed }).filter(
    ([, value]) => value,
  );
  if (set.length > 1)
    throw new RequestError(
      "nats.address",
      `${set.map(([name]) => name).join(" and ")} are set`,
      "leave one: they exclude each other",
    );
  if ((user === undefined) !== (password === undefined))
    throw new RequestError("nats.address", "of MLORA_NATS_USER and MLORA_NATS_PASSWORD only one is set", "set both");
  if (token !== undefined) return { token };
  if (user !== undefined && password !== undefined) return { user, password };
  return seed === undefined ? null : { seed: seedIn(seed) };
}

/** The seed among the lines of an nkey's file, as nsc and nk write it. */
function seedIn(text: string): string {
  const [seed] = /\bSU[A-Z2-7]{56}\b/.exec(text) ?? [];
  if (seed === undefined)
    throw new RequestError(
      "nats.address",
      "the file that MLORA_NATS_NKEY names holds no user's seed",
      "a seed is a line that begins with SU",
    );
  return seed;
}

/** The content of the file that a variable names. */
export function fileOf(name: Variable, read: (name: Variable) => string | undefined = environment): string | undefined {
  const path = read(name);
  if (path === undefined) return undefined;
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new RequestError("nats.address", `${name}: ${textOf(error)}`, "give the path of a file that you may read", {
      cause: error,
    });
  }
}
