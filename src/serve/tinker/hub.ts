// The base model's configuration and tokenizer, as a Hugging Face hub has them: with HF_ENDPOINT set to this server, clients
// read the tokenizer from here. Weights are not served.

import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Call, Route } from "../router.ts";

const FILES = [
  "config.json",
  "tokenizer_config.json",
  "tokenizer.json",
  "tokenizer.model",
  "added_tokens.json",
  "special_tokens_map.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
];

/** Names of a hub have two parts. */
export const hubName = (name: string): string => (name.includes("/") ? name : `local/${name}`);

/** Needs no key: clients of a hub send none. */
export function hubRoutes(base: { readonly name: string; readonly folder: string }, tokenizer: string): Route[] {
  const places = new Map(
    FILES.flatMap((name) => {
      const place = join(name === "config.json" ? base.folder : tokenizer, name);
      return existsSync(place) ? [[name, place] as const] : [];
    }),
  );
  const read = (name: string) => readFileSync(places.get(name)!);
  const sha1 = (of: Uint8Array | string) => createHash("sha1").update(of).digest("hex");
  const hashes = new Map([...places.keys()].map((name) => [name, sha1(read(name))]));
  /** The one revision, by what is in it. */
  const commit = sha1([...hashes].flat().join(" "));
  const model = hubName(base.name);

  const missing = (code: string) => Response.json({ error: code }, { status: 404, headers: { "x-error-code": code } });
  const isKnown = ({ params }: Call) => `${params["org"]}/${params["name"]}` === model;
  const info = (call: Call): Response => {
    if (!isKnown(call)) return missing("RepoNotFound");
    const siblings = [...places.keys()].map((rfilename) => ({ rfilename }));
    return Response.json({ id: model, modelId: model, sha: commit, siblings, private: false, tags: [] });
  };
  const tree = (call: Call): Response => {
    if (!isKnown(call)) return missing("RepoNotFound");
    if (call.params["rest"]!.includes("/")) return missing("EntryNotFound"); // a folder within the revision
    const entries = [...places.keys()].map((path) => ({ type: "file", path, size: read(path).length, oid: hashes.get(path)! }));
    return Response.json(entries);
  };
  const resolve = (call: Call): Response => {
    const { revision, file } = call.params as { revision: string; file: string };
    if (!isKnown(call)) return missing("RepoNotFound");
    if (revision !== "main" && revision !== commit) return missing("RevisionNotFound");
    if (!places.has(file)) return missing("EntryNotFound");
    const bytes = read(file);
    const headers = {
      ...{ "x-repo-commit": commit, etag: `"${hashes.get(file)}"`, "content-length": `${bytes.length}` },
      "content-type": file.endsWith(".json") ? "application/json" : "application/octet-stream",
    };
    return new Response(call.request.method === "HEAD" ? null : bytes, { headers });
  };
  const at = "/:org/:name/resolve/:revision/:file+";
  return [
    { method: "GET", path: "/api/models/:org/:name", summary: "The base model, as a hub has it", handler: info, isOpen: true },
    { method: "GET", path: "/api/models/:org/:name/revision/:of", summary: "The same", handler: info, isOpen: true },
    { method: "GET", path: "/api/models/:org/:name/tree/:rest+", summary: "Its files", handler: tree, isOpen: true },
    { method: "HEAD", path: at, summary: "Whether a file is there", handler: resolve, isOpen: true },
    { method: "GET", path: at, summary: "A file of its tokenizer", handler: resolve, isOpen: true },
  ];
}
