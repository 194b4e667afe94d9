// A server as a person starts it, and what asks it.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Running, Workplace } from "./program.ts";

export const KEYS = { one: `tml-${"a".repeat(24)}`, two: `tml-${"b".repeat(24)}`, three: `tml-${"c".repeat(24)}` } as const;

const configOf = (run: string) => `[model]
name = "local/tiny"
[capacity]
slots = 3
rank = 8
max_length = 128
sequences = 8
[run]
device = "cpu"
${run}
[adapter]
rank = 4
learning_rate = 3e-3
`;

export type Asking = (
  path: string,
  more?: { readonly key?: keyof typeof KEYS; readonly method?: string; readonly json?: unknown } & RequestInit,
) => Promise<Response>;
export type Started = { readonly url: string; readonly folder: string; readonly running: Running; readonly ask: Asking };

/** Makes a folder for a server with three keys; `more` is put after its config, `run` into its table of that name. */
export function serverFolder(place: Workplace, name: string, more = "", run = ""): string {
  const folder = join(place.root, name);
  mkdirSync(folder);
  writeFileSync(join(folder, "serve.toml"), configOf(run) + more);
  writeFileSync(join(folder, "keys.txt"), `one ${KEYS.one} # the first\n\ntwo ${KEYS.two}\nthree ${KEYS.three}\n`, {
    mode: 0o600,
  });
  return folder;
}

/** Starts the server of a folder, at a port that is free where none is given, and waits until it answers. */
export async function startServer(
  place: Workplace,
  folder: string,
  scheme: "http" | "https" = "http",
  port?: number,
): Promise<Started> {
  if (port !== undefined) return await startServerAt(place, folder, scheme, port);
  for (let tries = 0; ; tries++)
    try {
      return await startServerAt(place, folder, scheme, freePort());
    } catch (error) {
      if (tries === 4 || !`${error}`.includes("error[serve.listen]")) throw error; // another program has taken it meanwhile
    }
}

async function startServerAt(place: Workplace, folder: string, scheme: "http" | "https", port: number): Promise<Started> {
  const flags = ["--config", join(folder, "serve.toml"), "--keys", join(folder, "keys.txt"), "--folder", join(folder, "state")];
  const running = place.start(["serve", place.model, ...flags, "--listen", `127.0.0.1:${port}`]);
  const url = `${scheme}://127.0.0.1:${port}`;
  let ended: string | null = null;
  void running.ended.then(({ code, err }) => {
    ended = `the server ended with ${code}: ${err}`;
  });
  await eventually(async () => {
    if (ended !== null) throw new Error(ended);
    return await fetch(`${url}/healthz`, { tls: { rejectUnauthorized: false } }).then(
      ({ ok }) => ok,
      () => false,
    );
  });
  return { url, folder, running, ask: asking(url) };
}

const asking =
  (url: string): Asking =>
  (path, { key = "one", json, ...init } = {}) =>
    fetch(`${url}${path}`, {
      ...init,
      ...(json === undefined
        ? {}
        : { method: init.method ?? "POST", body: typeof json === "string" ? json : JSON.stringify(json) }),
      headers: { authorization: `Bearer ${KEYS[key]}`, ...(init.headers as Record<string, string>) },
    });

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const { port } = server;
  server.stop(true);
  return port!;
}

/** Asks until it holds; throws where that takes more than a minute. */
export async function eventually(is: () => Promise<boolean> | boolean): Promise<void> {
  for (const end = performance.now() + 60_000; !(await is()); await Bun.sleep(30))
    if (performance.now() > end) throw new Error("it did not come to be so within a minute");
}

/** The JSON of an answer, of which tests know the form. */
// biome-ignore lint/suspicious/noExplicitAny: tests look at what they expect
export const jsonOf = async (response: Response | Promise<Response>): Promise<any> => (await response).json();

export const chatRows = (count: number, from = 0): string =>
  Array.from({ length: count }, (_, i) => {
    const messages = [
      { role: "user", content: `${i + from} + 1?` },
      { role: "assistant", content: `${i + from + 1}` },
    ];
    return `${JSON.stringify({ messages })}\n`;
  }).join("");

/** Uploads a text; returns the file's object. */
export async function upload(
  ask: Asking,
  text: string | Uint8Array<ArrayBuffer>,
  filename = "rows.jsonl",
  key: keyof typeof KEYS = "one",
) {
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([text], filename));
  return await jsonOf(ask("/v1/files", { method: "POST", body: form, key }));
}

/** Waits until a job is as wanted. */
export async function jobUntil(ask: Asking, id: string, is: (status: string) => boolean) {
  let job = await jsonOf(ask(`/v1/fine_tuning/jobs/${id}`));
  await eventually(async () => {
    job = await jsonOf(ask(`/v1/fine_tuning/jobs/${id}`));
    return is(job.status);
  });
  return job;
}
export const isOver = (status: string): boolean => /^(succeeded|failed|cancelled)$/.test(status);
