// What a hub says of a repository: its commit and files, and where a file's bytes lie.

import * as v from "valibot";
import { RequestError, RunError } from "../../base/errors.ts";
import { ask } from "../http.ts";
import { byName } from "../local.ts";
import type { FileHash } from "../partial.ts";
import type { HubSettings } from "./settings.ts";

export type Kind = "models" | "datasets";
export type Repo = { readonly kind: Kind; readonly repo: string; readonly revision: string };
export type Listing = { readonly commit: string; readonly files: readonly string[] };

const info = v.object({ sha: v.pipe(v.string(), v.regex(/^[0-9a-f]{40}$/)) });
const tree = v.array(v.object({ type: v.string(), path: v.string() }));
const MOST_PAGES = 10_000;

export const nameOf = ({ kind, repo }: Pick<Repo, "kind" | "repo">): string =>
  `${kind === "datasets" ? "dataset" : "model"} ${repo}`;

/** The commit and files of a revision. Throws a RequestError for what the hub does not have or give, else a RunError. */
export async function listing(hub: HubSettings, of: Repo, signal?: AbortSignal): Promise<Listing> {
  const api = `${hub.endpoint}/api/${of.kind}/${of.repo}`;
  const read = async <T>(
    url: string,
    schema: v.GenericSchema<unknown, T>,
  ): Promise<{ readonly value: T; readonly next: string | null }> => {
    const { response, url: last } = await ask(url, { token: hub.token, signal });
    if (!response.ok) throw refusal(hub, of, response);
    const value = await jsonIn(hub, response, schema, `says nothing of the ${nameOf(of)} that can be read`);
    const [, next] = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("link") ?? "") ?? [];
    return { value, next: next === undefined ? null : new URL(next, last).href };
  };
  const { sha } = (await read(`${api}/revision/${encodeURIComponent(of.revision)}`, info)).value;
  const files: string[] = [];
  let at: string | null = `${api}/tree/${sha}?recursive=true&expand=false`;
  for (let page = 0; at !== null; page++) {
    if (page === MOST_PAGES || new URL(at).origin !== new URL(hub.endpoint).origin)
      throw unclear(hub, `does not end the list of the ${nameOf(of)}`);
    const { value, next }: Awaited<ReturnType<typeof read<v.InferOutput<typeof tree>>>> = await read(at, tree);
    files.push(...value.flatMap(({ type, path }) => (type === "file" ? [path] : [])));
    at = next;
  }
  return { commit: sha, files: files.sort(byName) };
}

const unclear = ({ endpoint }: HubSettings, why: string): RunError =>
  new RunError("hub.answer", `${endpoint} ${why}`, "see whether HF_ENDPOINT is a hub");

/** The JSON of an answer. Throws a RunError, `hub.answer`, with `why` where it has another form. */
export async function jsonIn<T>(
  hub: HubSettings,
  response: Response,
  schema: v.GenericSchema<unknown, T>,
  why: string,
): Promise<T> {
  const parsed = v.safeParse(schema, await response.json().catch(() => null));
  if (parsed.success) return parsed.output;
  throw unclear(hub, why);
}

export type FileFacts = {
  /** Names the bytes: the sha256 of a large file, git's name of a small one. */
  readonly etag: string;
  readonly hash: FileHash | null;
  readonly size: number | null;
  readonly url: string;
  /** Whether the bytes lie with the hub itself, which the token is for. */
  readonly isOwn: boolean;
};

/** Where a file of a commit lies. Redirects to another host are not followed: that says nothing of the hub's own names. */
export async function fileFacts(
  hub: HubSettings,
  of: Repo,
  commit: string,
  path: string,
  signal?: AbortSignal,
): Promise<FileFacts> {
  const at = path.split("/").map(encodeURIComponent).join("/");
  const url = `${hub.endpoint}/${of.kind === "datasets" ? "datasets/" : ""}${of.repo}/resolve/${commit}/${at}`;
  const { response, url: last } = await ask(url, { method: "HEAD", token: hub.token, away: false, signal });
  const { headers, status } = response;
  if (status >= 400) throw refusal(hub, of, response, path);
  const location = headers.get("location");
  const etag = (headers.get("x-linked-etag") ?? headers.get("etag"))?.replace(/^W\//, "").replace(/^"|"$/g, "");
  const found = headers.get("x-repo-commit");
  if (!etag || !/^[\w-]+$/.test(etag) || (found !== null && found !== commit))
    throw unclear(hub, `does not name the bytes of ${path} of the ${nameOf(of)}`);
  const size = headers.get("x-linked-size") ?? (location === null ? headers.get("content-length") : null);
  return {
    etag,
    hash: hashOf(etag),
    size: size === null ? null : Number(size),
    url: location === null ? last : new URL(location, last).href,
    isOwn: location === null || new URL(location, last).origin === new URL(hub.endpoint).origin,
  };
}

function hashOf(etag: string): FileHash | null {
  if (/^[0-9a-f]{64}$/.test(etag)) return { kind: "sha256", hex: etag };
  return /^[0-9a-f]{40}$/.test(etag) ? { kind: "git", hex: etag } : null;
}

/** Why the hub gives nothing, by its status and the code that it adds. */
function refusal(
  { endpoint, token }: HubSettings,
  of: Repo,
  { status, headers }: Response,
  path?: string,
): RequestError | RunError {
  const what = nameOf(of);
  const code = headers.get("x-error-code");
  if (code === "EntryNotFound")
    return new RequestError("hub.file", `the ${what} has no file ${path} at ${of.revision}`, "name a file that it has");
  if (code === "RevisionNotFound")
    return new RequestError("hub.revision", `the ${what} has no revision ${of.revision}`, "give a branch, a tag or a commit");
  if (code === "GatedRepo" || status === 403)
    return new RequestError(
      "hub.gated",
      `the ${what} is open to those alone that its owner lets in`,
      `ask for access at ${endpoint}, and set HF_TOKEN`,
    );
  if (code === "RepoNotFound" || status === 401 || status === 404) {
    const way =
      token === null ? "check the name; for a private one set HF_TOKEN" : "check the name, and whether the token may read it";
    return new RequestError("hub.repo", `${endpoint} has no ${what}${status === 401 ? " for this token" : ""}`, way);
  }
  return new RunError("hub.failed", `${endpoint} answers with ${status} for the ${what}`, "try again later");
}
