// What a server is: the keys of serve.toml, all of which have defaults.

import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { parse, TomlError } from "smol-toml";
import * as v from "valibot";
import { about, expected, notNegative, oneOf, place, positive, table, tableOf, text, truth, whole } from "../base/check.ts";
import { RequestError, textOf } from "../base/errors.ts";
import { isLoopback } from "../base/loopback.ts";
import { PRECISIONS } from "../base/precision.ts";
import { RECOMPUTATIONS } from "../base/recomputation.ts";
import type { Output } from "../base/schema.ts";
import { ownPlace } from "../base/source-name.ts";
import { faultsOf } from "../recipe/faults.ts";
import { stages } from "../recipe/schema.ts";
import { PEFT_METHODS } from "../session/primitives/capacity.ts";
import { checkReward, rewardSource } from "../session/rollouts/rewards.ts";

const MANY = 2 ** 31 - 1;
const MIB = 1 << 20;

export const ServeTable = v.strictObject({
  model: table({
    name: v.exactOptional(about(text, "what clients call the base model; the last two parts of its folder")),
    precision: about(oneOf(...PRECISIONS), "as in a recipe", "auto"),
  }),
  run: table({
    device: about(oneOf("auto", "cpu", "cuda"), "as in a recipe", "auto"),
    tokens_per_microbatch: v.exactOptional(about(whole(1, 1 << 24), "as in a recipe")),
    recomputation: about(oneOf("auto", ...RECOMPUTATIONS), "as in a recipe", "auto"),
    stages: about(stages, "as in a recipe", 1),
  }),
  server: table({
    folder: about(place, "where files, jobs and adapters are kept; relative to this file", "mlora-server"),
    listen: about(text, "host:port", "127.0.0.1:8000"),
    insecure: about(truth, "whether another host than loopback may be listened on without TLS", false),
    certificate: v.exactOptional(about(place, "the file of a TLS certificate, for https")),
    certificate_key: v.exactOptional(about(place, "the file of its key")),
    keys: v.exactOptional(
      about(place, "a file with a line for each key: a name and the key; else one is made and printed once"),
    ),
    organization: about(
      v.pipe(text, v.regex(/^[A-Za-z0-9_-]{1,32}$/, expected("letters, digits, _ and -"))),
      "its name in models",
      "mlora",
    ),
    log: about(oneOf("requests", "changes", "none"), "what is logged, a JSON object a line", "requests"),
  }),
  capacity: table({
    slots: about(whole(1, 1024), "adapters on the device at once", 8),
    rank: about(whole(1, 1024), "the largest rank of an adapter", 32),
    methods: about(
      v.pipe(v.array(oneOf(...PEFT_METHODS)), v.minLength(1, "is empty, expected a method")),
      "methods that adapters may have",
      ["lora"],
    ),
    max_length: about(whole(2, MANY), "tokens of a row, and of a conversation with its answer", 1024),
    batch_size: about(whole(1, 1 << 16), "rows of a micro-batch at most", 8),
    sequences: about(whole(1, 4096), "answers that are generated at once", 16),
    loaded: about(whole(1, 1 << 20), "adapters that are kept at hand for answers", 64),
  }),
  limits: table({
    file_bytes: about(whole(1, 2 ** 40), "of an uploaded file", 512 * MIB),
    files: about(whole(1, MANY), "of a key", 1000),
    disk_bytes: about(whole(1, 2 ** 48), "of a key's files, and of its weights in Tinker's protocol", 16 * 1024 * MIB),
    jobs: about(whole(1, MANY), "of a key that are not over", 100),
    body_bytes: about(whole(1, 2 ** 32), "of a request that is no upload", 16 * MIB),
    body_seconds: about(positive(), "in which a request that is no upload arrives", 30),
    upload_seconds: about(positive(), "in which an upload arrives", 3600),
    requests: about(whole(1, MANY), "of a key that are answered at once", 256),
    tokens_per_minute: v.exactOptional(
      about(whole(1, MANY), "of a key's prompts and answers; left out: as many as its share gives"),
    ),
    rows: about(whole(1, MANY), "that a training file must have", 10),
  }),
  jobs: table({
    at_once: v.exactOptional(about(whole(1, 1024), "jobs that train at once; as many as there are slots")),
    save_seconds: about(notNegative, "between two states that a job continues from after a kill", 60),
    checkpoints: about(whole(0, 1000), "models of ends of epochs that a job keeps", 3),
  }),
  tinker: table({
    session_seconds: about(whole(1, MANY), "of silence, after which a client's session is over; clients speak every 10", 900),
    models: about(whole(1, MANY), "of a key in open sessions", 256),
  }),
  adapters: table({
    folder: v.exactOptional(about(place, "adapters in it may be loaded by name (/v1/load_lora_adapter); left out: none")),
  }),
  reinforcement: table({
    generations: about(
      whole(2, 4096),
      "answers to each prompt, of jobs with method reinforcement whose compute_multiplier is 1",
      8,
    ),
    max_new_tokens: v.exactOptional(
      about(whole(1, 1 << 20), "tokens of an answer; left out, half of what a row may have, 256 at most"),
    ),
  }),
  /** By name, what clients may have their adapters learn from besides graders: nothing else is started or asked. */
  rewards: tableOf(
    v.pipe(v.string(), v.regex(/^[\w-]{1,40}$/, expected("a name of letters, digits, '_' and '-'"))),
    rewardSource,
  ),
  /** What the adapters of jobs are: keys of a recipe's [defaults], checked by the recipe's own schema. */
  adapter: tableOf(v.string(), v.unknown()),
});
/** Each table may be left out. */
const EMPTY = Object.fromEntries(Object.keys(ServeTable.entries).map((name) => [name, {}]));
export type ServeTable = Output<typeof ServeTable>;

export type ServeConfig = ServeTable & {
  /** The base model's folder, absolute, and what clients call it. */
  readonly base: string;
  readonly name: string;
  /** Absolute. */
  readonly folder: string;
  readonly listen: { readonly host: string; readonly port: number };
  /** PEM texts. */
  readonly tls: { readonly cert: string; readonly key: string } | null;
};

/** Flags of the command line, which go before the file. */
export type ServeFlags = {
  readonly config?: string | undefined;
  readonly folder?: string | undefined;
  readonly listen?: string | undefined;
  readonly name?: string | undefined;
  readonly keys?: string | undefined;
  readonly insecure?: boolean | undefined;
};

/** Throws a RequestError, `serve.config`, that names the file and the key. */
export function readConfig(model: string, flags: ServeFlags = {}): ServeConfig {
  const path = flags.config === undefined ? null : resolve(flags.config);
  const given = { ...EMPTY, ...(path === null ? {} : read(path)) };
  const checked = v.safeParse(ServeTable, given);
  if (!checked.success) {
    const faults = checked.issues.flatMap((issue) => faultsOf(issue, ServeTable));
    throw wrong(faults.map(({ path: at, message }) => `${path}: ${at.join(".")} ${message}`).join("\n"));
  }
  const near = (file: string) => resolve(path === null ? "." : dirname(path), file);
  const { output: of } = checked;
  const server = { ...of.server, ...(flags.insecure ? { insecure: true } : {}) };
  const keys = flags.keys !== undefined ? resolve(flags.keys) : server.keys === undefined ? undefined : near(server.keys);
  const { folder: adapters } = of.adapters;
  const base = resolve(model);
  const config: ServeConfig = {
    ...of,
    server: { ...server, ...(keys === undefined ? {} : { keys }) },
    adapters: adapters === undefined ? {} : { folder: near(adapters) },
    base,
    name: flags.name ?? of.model.name ?? nameOf(base),
    folder: flags.folder === undefined ? near(server.folder) : resolve(ownPlace("serve.config", "folder", flags.folder)),
    listen: flags.listen === undefined ? placeOf(server.listen) : placeOf(flags.listen, "--listen"),
    tls: tlsOf(server, near),
  };
  const parts = config.name.split("/");
  if (parts.length > 2 || !parts.every((part) => NAME.test(part)))
    throw wrong(`model.name is "${config.name}", expected ORG/NAME of letters, digits, '.', '_' and '-'`);
  for (const [name, reward] of Object.entries(config.rewards)) checkReward(reward, `rewards.${name}`);
  checkListen(config);
  return config;
}

const NAME = /^[A-Za-z0-9._-]+$/;

/** The last two parts of a model's folder that a name may have. */
const nameOf = (base: string): string =>
  [basename(dirname(base)), basename(base)].filter((part) => NAME.test(part)).join("/") || "model";

function read(path: string): object {
  try {
    return parse(readFileSync(path, "utf8"));
  } catch (error) {
    const at = error instanceof TomlError ? `:${error.line}:${error.column}` : "";
    throw wrong(`${path}${at}: ${textOf(error).split("\n")[0]}`);
  }
}

const wrong = (message: string, hint?: string): RequestError => new RequestError("serve.config", message, hint);

/** `key`: what named the address. Throws a RequestError, `serve.config`. */
export function placeOf(listen: string, key = "listen"): ServeConfig["listen"] {
  const found = /^(?:\[([0-9a-fA-F:]+)\]|([^:\s]+)):(\d{1,5})$/.exec(listen);
  const port = Number(found?.[3]);
  if (!found || port > 65_535) throw wrong(`${key} is "${listen}", expected host:port, as 127.0.0.1:8000`);
  return { host: (found[1] ?? found[2])!, port };
}

/** `place`: where a file that is named is; `keys`: what names the two. Throws a RequestError, `serve.config`. */
export function tlsOf(
  { certificate, certificate_key: key }: Pick<ServeTable["server"], "certificate" | "certificate_key">,
  place: (file: string) => string,
  keys = "server.certificate and server.certificate_key",
): ServeConfig["tls"] {
  if (certificate === undefined && key === undefined) return null;
  if (certificate === undefined || key === undefined) throw wrong(`${keys} need each other`, "give both, or none");
  const pem = (file: string) => {
    try {
      return readFileSync(place(file), "utf8");
    } catch (error) {
      throw wrong(`${place(file)}: ${textOf(error)}`);
    }
  };
  const tls = { cert: pem(certificate), key: pem(key) };
  const of = parsed(() => new X509Certificate(tls.cert), `${place(certificate)}: holds no certificate in PEM`);
  const own = parsed(() => createPrivateKey(tls.key), `${place(key)}: holds no private key in PEM without a passphrase`);
  if (!of.checkPrivateKey(own)) throw wrong(`${place(key)}: is not the key of ${place(certificate)}`);
  return tls;
}

function parsed<T>(parse: () => T, fault: string): T {
  try {
    return parse();
  } catch {
    throw wrong(fault);
  }
}

/** Throws a RequestError, `serve.config`, where keys would travel in clear text. */
export function checkListen({
  listen,
  tls,
  server,
}: Pick<ServeConfig, "listen" | "tls"> & { readonly server: Pick<ServeTable["server"], "insecure"> }): void {
  if (isLoopback(listen.host) || tls || server.insecure) return;
  throw wrong(
    `${listen.host} is not this machine's loopback, and keys would travel in clear text`,
    "give a certificate and its key, or --insecure where a proxy has TLS",
  );
}
