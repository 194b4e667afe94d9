// Requests to an `mlora serve` elsewhere, for the commands that are its clients.

import { readFileSync, statSync } from "node:fs";
import { basename } from "node:path";
import * as v from "valibot";
import { environment } from "../base/env.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { isLoopback } from "../base/loopback.ts";

export type ServerFlags = {
  readonly server?: unknown;
  readonly keyFile?: unknown;
  readonly insecure?: boolean;
};

/** Until the answer begins; uploads have as long as they take. */
const ANSWER_MS = 60_000;

/** What was made. */
export const Named = v.object({ id: v.pipe(v.string(), v.nonEmpty()) });

export class ServerClient {
  readonly #url: string;
  readonly #key: string;

  /** Throws RequestErrors for flags that are wrong, and for a key that would travel in clear text. */
  constructor({ server, keyFile, insecure = false }: ServerFlags) {
    if (server === undefined)
      throw new RequestError("cli.flag", "--server is missing", "name it: --server http://127.0.0.1:8000");
    const url = URL.parse(`${server}`);
    if (!url || !/^https?:$/.test(url.protocol))
      throw new RequestError("cli.flag", `--server ${server}: expected an address`, "as in --server http://127.0.0.1:8000");
    if (url.protocol === "http:" && !isLoopback(url.hostname) && !insecure)
      throw new RequestError(
        "cli.flag",
        `--server ${server}: the key would travel in clear text`,
        "write https://, or give --insecure",
      );
    this.#url = url.href.replace(/(\/v1)?\/?$/, "");
    this.#key = keyFile === undefined ? keyOfEnvironment() : keyIn(`${keyFile}`);
  }

  /**
   * The JSON of an answer. Throws RunErrors: `server.refused` with what the server says, `server.unreachable`, and
   * `server.answer` for one that is not of the schema.
   */
  async json<T>(path: string, schema: v.GenericSchema<unknown, T>, body?: object): Promise<T> {
    const sent = body ? { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } } : {};
    return this.#read(path, schema, { ...sent, signal: AbortSignal.timeout(ANSWER_MS) });
  }

  async bytes(path: string): Promise<Uint8Array> {
    const response = await this.#ask(path, {});
    return new Uint8Array(await response.arrayBuffer().catch((error) => this.#unreachable(error)));
  }

  /** Sends a file as rows to train on; returns its id there. */
  async upload(path: string): Promise<string> {
    const form = new FormData();
    form.set("purpose", "fine-tune");
    form.set("file", Bun.file(path), basename(path));
    return (await this.#read("/v1/files", Named, { method: "POST", body: form })).id;
  }

  async #read<T>(path: string, schema: v.GenericSchema<unknown, T>, init: RequestInit): Promise<T> {
    const response = await this.#ask(path, init);
    const text = await response.text().catch((error) => this.#unreachable(error));
    const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), schema), text);
    if (parsed.success) return parsed.output;
    throw new RunError(
      "server.answer",
      `${this.#url}${path} answers what cannot be read`,
      "is --server the address of an mlora serve of this version?",
    );
  }

  #unreachable(error: unknown): never {
    throw new RunError(
      "server.unreachable",
      `${this.#url}: ${textOf(error)}`,
      "is the server running, and --server its address?",
    );
  }

  async #ask(path: string, init: RequestInit): Promise<Response> {
    const headers = { ...(init.headers as Record<string, string>), authorization: `Bearer ${this.#key}` };
    let response: Response;
    try {
      response = await fetch(`${this.#url}${path}`, { ...init, headers, redirect: "error" });
    } catch (error) {
      return this.#unreachable(error);
    }
    if (response.ok) return response;
    const said = (await response.json().catch(() => null)) as { readonly error?: { readonly message?: string } } | null;
    throw new RunError("server.refused", said?.error?.message ?? `${this.#url}${path} answers ${response.status}`);
  }
}

function keyOfEnvironment(): string {
  const key = environment("MLORA_SERVER_KEY");
  if (key !== undefined) return key;
  throw new RequestError("cli.key", "there is no key", "give --key-file FILE, or set MLORA_SERVER_KEY");
}

/** The key that a file holds: alone, or as the first of a server's file of keys. Errors never show it. */
function keyIn(path: string): string {
  let text: string;
  try {
    if ((statSync(path).mode & 0o077) !== 0)
      throw new RequestError(
        "cli.key",
        `${path}: other users of this machine may read it`,
        `take that away: chmod 600 ${path}`,
      );
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw error instanceof RequestError ? error : new RequestError("cli.key", `${path}: ${textOf(error)}`);
  }
  const lines = text.split("\n").flatMap((line) => {
    const words = line.replace(/#.*/, "").trim().split(/\s+/).filter(Boolean);
    return words.length === 0 ? [] : [words];
  });
  const [first] = lines;
  if (lines.length !== 1 || first!.length > 3)
    throw new RequestError("cli.key", `${path}: expected one line with one key`, "write the key alone into a file");
  return first!.length === 1 ? first![0]! : first![1]!;
}
