// Files go to a repository of a hub as huggingface_hub sends them: large ones to its store, then one commit of all.

import * as v from "valibot";
import { RequestError, RunError } from "../../base/errors.ts";
import { type Ask, ask } from "../http.ts";
import { jsonIn } from "./api.ts";
import type { HubSettings } from "./settings.ts";

/** A file of the commit: its path there and its bytes. */
export type PushedFile = { readonly path: string; readonly bytes: Blob };
export type Push = {
  readonly hub: HubSettings;
  readonly repo: string;
  readonly files: readonly PushedFile[];
  readonly isPrivate: boolean;
  readonly revision: string;
  readonly summary: string;
};

const json = { "content-type": "application/json" };
const LFS = { accept: "application/vnd.git-lfs+json", "content-type": "application/vnd.git-lfs+json" };
/** Of the beginning of a file, by which the hub chooses how it is to come. */
const SAMPLE = 512;
const UPLOAD_MS = 3_600_000;

const link = v.object({ href: v.string(), header: v.optional(v.record(v.string(), v.union([v.string(), v.number()])), {}) });
const modes = v.object({
  files: v.array(v.object({ path: v.string(), uploadMode: v.picklist(["lfs", "regular"]), shouldIgnore: v.boolean() })),
});
const batch = v.object({
  objects: v.array(
    v.object({
      oid: v.string(),
      error: v.optional(v.object({ message: v.string() })),
      actions: v.optional(v.object({ upload: link, verify: v.optional(link) })),
    }),
  ),
});
const commit = v.object({ commitUrl: v.string(), commitOid: v.string() });
type Large = { readonly file: PushedFile; readonly oid: string };

/** Makes the repository if it is not there, and commits the files. Throws a RequestError or a RunError, `hub.*` or `http.*`. */
export async function pushFiles(push: Push): Promise<{ readonly url: string; readonly commit: string }> {
  const { hub, repo, files, revision, summary } = push;
  const at = encodeURIComponent(revision);
  await createRepo(push);
  const wanted = await Promise.all(files.map(fileQuestion));
  const { files: chosen } = await send(push, `/api/models/${repo}/preupload/${at}`, { files: wanted }, modes);
  const how = new Map(chosen.map((of) => [of.path, of]));
  const ignored = files.find(({ path }) => how.get(path)?.shouldIgnore !== false);
  if (ignored)
    throw new RunError(
      "hub.answer",
      `${hub.endpoint} leaves out ${ignored.path}`,
      `look at ${repo}'s .gitignore: it names this file`,
    );
  const isLarge = ({ path, bytes }: PushedFile) => how.get(path)?.uploadMode === "lfs" && bytes.size > 0;
  const large = await Promise.all(files.filter(isLarge).map(async (file) => ({ file, oid: await sha256(file.bytes) })));
  if (large.length > 0) await uploadLarge(push, large);
  const lines = [
    { key: "header", value: { summary, description: "" } },
    ...(await Promise.all(files.map((file) => commitLine(file, large)))),
  ];
  const body = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  const path = `/api/models/${repo}/commit/${at}`;
  const made = await answer(
    push,
    await request(push, path, { body, headers: { "content-type": "application/x-ndjson" } }),
    commit,
  );
  return { url: made.commitUrl, commit: made.commitOid };
}

/** One that is there stays as it is. */
async function createRepo(push: Push): Promise<void> {
  const [organization, name] = push.repo.split("/");
  const visibility = push.isPrivate ? "private" : "public";
  const body = JSON.stringify({ name, organization, visibility });
  const response = await request(push, "/api/repos/create", { body, headers: json });
  if (!response.ok && response.status !== 409) throw await refusal(push, response);
  await letGo(response);
}

async function fileQuestion({ path, bytes }: PushedFile) {
  const sample = Buffer.from(await bytes.slice(0, SAMPLE).arrayBuffer()).toString("base64");
  return { path, sample, size: bytes.size };
}

async function commitLine(file: PushedFile, large: readonly Large[]) {
  const { path, bytes } = file;
  const oid = large.find((of) => of.file === file)?.oid;
  if (oid !== undefined) return { key: "lfsFile", value: { path, algo: "sha256", oid, size: bytes.size } };
  const content = Buffer.from(await bytes.arrayBuffer()).toString("base64");
  return { key: "file", value: { content, path, encoding: "base64" } };
}

async function uploadLarge(push: Push, large: readonly Large[]): Promise<void> {
  const objects = large.map(({ file, oid }) => ({ oid, size: file.bytes.size }));
  const asked = {
    operation: "upload",
    transfers: ["basic", "multipart"],
    objects,
    hash_algo: "sha256",
    ref: { name: push.revision },
  };
  const found = await send(push, `/${push.repo}.git/info/lfs/objects/batch`, asked, batch, LFS);
  for (const { file, oid } of large) {
    const object = found.objects.find((of) => of.oid === oid);
    if (!object || object.error)
      throw new RunError(
        "hub.failed",
        `${push.hub.endpoint} does not take ${file.path}: ${object?.error?.message ?? "no answer"}`,
      );
    if (!object.actions) continue; // it has these bytes already
    const { upload, verify } = object.actions;
    await uploadTo(push, upload, file, oid);
    if (verify) await checked(push, verify.href, { oid, size: file.bytes.size }, tokenFor(push, verify.href));
  }
}

/** In one piece, or in parts where the store asks for these. */
async function uploadTo(
  push: Push,
  { href, header }: v.InferOutput<typeof link>,
  file: PushedFile,
  oid: string,
): Promise<void> {
  const put = async (url: string, body: Blob): Promise<Response> => {
    const { response } = await ask(url, { method: "PUT", body, headMs: UPLOAD_MS });
    if (!response.ok) throw new RunError("hub.failed", `${file.path} was not taken: ${response.status}`, "try again later");
    await letGo(response);
    return response;
  };
  const size = Number(header["chunk_size"]);
  if (header["chunk_size"] === undefined) return void (await put(href, file.bytes));
  const urls = Object.entries(header)
    .filter(([key]) => /^\d+$/.test(key))
    .sort(([a], [b]) => Number(a) - Number(b));
  if (!(size > 0) || urls.length !== Math.ceil(file.bytes.size / size))
    throw new RunError("hub.answer", `${push.hub.endpoint} gives ${urls.length} places for ${file.path}`, "try again later");
  const parts: { partNumber: number; etag: string }[] = [];
  for (const [i, [, url]] of urls.entries()) {
    const response = await put(`${url}`, file.bytes.slice(i * size, (i + 1) * size));
    parts.push({ partNumber: i + 1, etag: response.headers.get("etag") ?? "" });
  }
  await checked(push, href, { oid, parts }, null); // the address itself is the secret
}

/** Of an answer whose head says all: a connection that is lost with its body changes nothing. */
const letGo = (response: Response): Promise<void> => response.body?.cancel().catch(() => undefined) ?? Promise.resolve();

/** Another host than the hub, which the hub names, gets no token. */
const tokenFor = ({ hub }: Push, url: string): string | null =>
  new URL(url).origin === new URL(hub.endpoint).origin ? hub.token : null;

async function checked(push: Push, url: string, what: object, token: string | null): Promise<void> {
  const { response } = await ask(url, { method: "POST", headers: LFS, token, body: JSON.stringify(what), headMs: UPLOAD_MS });
  if (!response.ok) throw await refusal(push, response);
  await letGo(response);
}

const request = async ({ hub }: Push, path: string, options: Ask): Promise<Response> =>
  (await ask(`${hub.endpoint}${path}`, { method: "POST", token: hub.token, away: false, ...options })).response;

async function send<T>(
  push: Push,
  path: string,
  what: object,
  schema: v.GenericSchema<unknown, T>,
  headers = json,
): Promise<T> {
  return answer(push, await request(push, path, { body: JSON.stringify(what), headers }), schema);
}

async function answer<T>(push: Push, response: Response, schema: v.GenericSchema<unknown, T>): Promise<T> {
  if (!response.ok) throw await refusal(push, response);
  return jsonIn(push.hub, response, schema, "answers what cannot be read");
}

async function refusal({ hub, repo }: Push, response: Response): Promise<RequestError | RunError> {
  const { status, headers } = response;
  const said = headers.get("x-error-message") ?? (await response.text().catch(() => "")).slice(0, 200);
  if (status === 401 || status === 403)
    return new RequestError(
      "hub.token",
      `${hub.endpoint} does not let ${hub.token === null ? "a request without a token" : "this token"} write to ${repo}: ${said}`,
      "set HF_TOKEN to a token that may write there",
    );
  if (status === 404 || status === 400 || status === 422)
    return new RequestError("hub.repo", `${hub.endpoint} refuses ${repo}: ${said}`, "check the name");
  return new RunError("hub.failed", `${hub.endpoint} answers with ${status}: ${said}`, "try again later");
}

async function sha256(bytes: Blob): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256");
  for await (const chunk of bytes.stream() as unknown as AsyncIterable<Uint8Array>) hash.update(chunk);
  return hash.digest("hex");
}
