// Names of what lies elsewhere: data sets and models on a hub, and addresses. A path is any other text.

import { RequestError } from "./errors.ts";

/** A repository of a hub, or a file or pattern of files in it. */
export type HubName = {
  readonly kind: "models" | "datasets";
  /** "org/name". */
  readonly repo: string;
  readonly revision: string;
  /** A file of the repository, or a pattern of files; "" for what the repository has. */
  readonly path: string;
  /** Of a data set; null where the repository decides. */
  readonly config: string | null;
  readonly split: string | null;
};

const SCHEME = "hf://";
export const REPO = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;

export const isAddress = (name: string): boolean => /^https?:\/\//i.test(name);
export const isHub = (name: string): boolean => name.startsWith(SCHEME);
/** Whether a text is an address of any kind (s3://, file://): as a path it would name folders that are not meant. */
export const hasScheme = (name: string): boolean => /^[A-Za-z][A-Za-z0-9+.-]*:\/\//.test(name);
/** Whether a shell would have put the user's folder in the place of its beginning. */
export const isHome = (path: string): boolean => /^~(\/|$)/.test(path);
/** The path that --`flag` names. A RequestError with this code for an address and a '~', which would become folders. */
export function ownPlace(code: string, flag: string, path: string): string {
  if (isHome(path))
    throw new RequestError(code, `--${flag} ${path}: the shell has left the '~' as it is`, "write the whole path");
  if (hasScheme(path)) throw new RequestError(code, `--${flag} ${path} is an address`, "name a place on this machine");
  return path;
}
/** Whether a name is not that of a file here. */
export const isRemote = (name: string): boolean => isAddress(name) || isHub(name);

/** As huggingface_hub's file system writes it: hf://datasets/org/name@revision/path; config and split are ours. */
export function hubText({ kind, repo, revision, path, config, split }: HubName): string {
  const at = revision === "main" ? "" : `@${revision.includes("/") ? encodeURIComponent(revision) : revision}`;
  const query = Object.entries({ config, split }).flatMap(([key, value]) => (value === null ? [] : `${key}=${value}`));
  const file = path === "" ? "" : `/${path}`;
  return `${SCHEME}${kind === "datasets" ? "datasets/" : ""}${repo}${at}${file}${query.length > 0 ? `?${query.join("&")}` : ""}`;
}

const SHAPE =
  /^hf:\/\/(datasets\/)?([\w.-]+\/[\w.-]+?)(?:@(refs\/(?:convert\/[\w.-]+|pr\/\d+)|[^/?]+))?(?:\/([^?]+))?(?:\?([^?]*))?$/;

/** What a hub's name says; null where it is not one. */
export function parseHub(name: string): HubName | null {
  const [found, dataset, repo, revision = "main", path = "", query = ""] = SHAPE.exec(name) ?? [];
  if (found === undefined || !REPO.test(repo!) || /^(datasets|spaces)\//.test(repo!)) return null;
  const pairs = query === "" ? [] : query.split("&").map((part) => part.split("=", 2));
  if (pairs.some(([key, value]) => !["config", "split"].includes(key!) || !value)) return null;
  const given = new Map(pairs as [string, string][]);
  if (given.size > 0 && (!dataset || path !== "")) return null;
  return {
    kind: dataset ? "datasets" : "models",
    repo: repo!,
    revision: decodeURIComponent(revision),
    path,
    config: given.get("config") ?? null,
    split: given.get("split") ?? null,
  };
}
