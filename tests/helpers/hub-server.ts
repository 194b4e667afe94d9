// A server that speaks the part of the Hugging Face hub's API that reading needs, and another host that large files lie with.

export type HubRepo = {
  readonly kind: "models" | "datasets";
  readonly repo: string;
  /** Branches and tags with their commits. */
  readonly refs: Readonly<Record<string, string>>;
  /** Files of each commit. */
  readonly commits: Readonly<Record<string, Readonly<Record<string, Buffer>>>>;
  /** The token that it asks for; left out, it is open. */
  readonly token?: string;
  readonly gated?: true;
};
export type Asked = {
  readonly host: "hub" | "store";
  readonly method: string;
  readonly path: string;
  readonly token: string | null;
  readonly range: string | null;
};

const hex = (kind: "sha256" | "sha1", ...parts: readonly (string | Buffer)[]): string => {
  const hasher = new Bun.CryptoHasher(kind);
  for (const part of parts) hasher.update(part);
  return hasher.digest("hex");
};
const isLarge = (path: string): boolean => /\.(safetensors|parquet|gz)$/.test(path);
const etagOf = (path: string, bytes: Buffer): string =>
  isLarge(path) ? hex("sha256", bytes) : hex("sha1", `blob ${bytes.length}\0`, bytes);
const refusal = (status: number, code: string): Response =>
  new Response(JSON.stringify({ error: code }), { status, headers: { "x-error-code": code, "x-error-message": code } });

const PAGE = 3;

/** A few entries of the tree, and the address of those that follow. */
function treePage(url: URL, files: HubRepo["commits"][string]): Response {
  const folders = [...new Set(Object.keys(files).flatMap((path) => (path.includes("/") ? [path.split("/")[0]!] : [])))];
  const entries = [
    ...folders.map((path) => ({ type: "directory", oid: hex("sha1", path), size: 0, path })),
    ...Object.entries(files).map(([path, bytes]) => ({
      ...{ type: "file", oid: hex("sha1", `blob ${bytes.length}\0`, bytes), size: bytes.length, path },
      ...(isLarge(path) ? { lfs: { oid: hex("sha256", bytes), size: bytes.length, pointerSize: 130 } } : {}),
    })),
  ];
  const from = Number(url.searchParams.get("cursor") ?? 0);
  const next = new URL(url);
  next.searchParams.set("cursor", `${from + PAGE}`);
  const headers = from + PAGE < entries.length ? { link: `<${next.href}>; rel="next"` } : {};
  return Response.json(entries.slice(from, from + PAGE), { headers });
}

export function serveHub(repos: readonly HubRepo[], moved: Readonly<Record<string, string>> = {}) {
  const asked: Asked[] = [];
  /** Bytes after which the store ends the next answer. */
  let breakAt: number | null = null;
  let damage = false;
  const note = (host: Asked["host"], request: Request) => {
    const { pathname, search } = new URL(request.url);
    const { method, headers } = request;
    asked.push({ host, method, path: pathname + search, token: headers.get("authorization"), range: headers.get("range") });
  };
  const blobs = new Map<string, Buffer>();
  const store = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request) {
      note("store", request);
      const whole = blobs.get(new URL(request.url).pathname.slice(1));
      if (!whole) return new Response("no", { status: 404 });
      const bytes = damage ? Buffer.from(whole).fill(0, 0, 1) : whole;
      const range = request.headers.get("range");
      const from = range === null ? 0 : Number(/\d+/.exec(range)![0]);
      const headers = {
        etag: '"another"',
        ...(range === null ? {} : { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` }),
      };
      const status = range === null ? 200 : 206;
      const end = breakAt;
      if (end === null || end <= from) return new Response(bytes.subarray(from), { status, headers });
      breakAt = null;
      const body = new ReadableStream({
        type: "direct",
        async pull(controller) {
          controller.write(bytes.subarray(from, end));
          await controller.flush();
          controller.close();
        },
      });
      return new Response(body, { status, headers: { ...headers, "content-length": `${bytes.length - from}` } });
    },
  });

  const find = (kind: string, name: string, request: Request): HubRepo | Response => {
    const repo = repos.find((of) => of.kind === kind && of.repo === name);
    const given = request.headers.get("authorization");
    if (!repo || (repo.token !== undefined && given !== `Bearer ${repo.token}`))
      return refusal(given === null ? 401 : 404, "RepoNotFound");
    return repo.gated ? refusal(403, "GatedRepo") : repo;
  };
  const commitOf = ({ refs, commits }: HubRepo, revision: string) => refs[revision] ?? (revision in commits ? revision : null);

  const hub = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request) {
      note("hub", request);
      const { pathname } = new URL(request.url);
      for (const [from, to] of Object.entries(moved))
        if (pathname.includes(`/${from}/`))
          return new Response(null, { status: 307, headers: { location: pathname.replace(from, to) } });
      const [, kind, name, revision] = /^\/api\/(models|datasets)\/([^/]+\/[^/]+)\/revision\/([^/]+)$/.exec(pathname) ?? [];
      if (kind !== undefined) {
        const repo = find(kind, name!, request);
        if (repo instanceof Response) return repo;
        const sha = commitOf(repo, decodeURIComponent(revision!));
        if (sha === null) return refusal(404, "RevisionNotFound");
        const siblings = Object.entries(repo.commits[sha]!).map(([rfilename, { length }]) => ({ rfilename, size: length }));
        return Response.json({ id: name, sha, siblings, private: false, tags: [], downloads: 0, likes: 0 });
      }
      const [, treeKind, treeName, treeAt] = /^\/api\/(models|datasets)\/([^/]+\/[^/]+)\/tree\/([^/]+)$/.exec(pathname) ?? [];
      if (treeKind !== undefined) {
        const repo = find(treeKind, treeName!, request);
        if (repo instanceof Response) return repo;
        const sha = commitOf(repo, decodeURIComponent(treeAt!));
        return sha === null ? refusal(404, "RevisionNotFound") : treePage(new URL(request.url), repo.commits[sha]!);
      }
      const [, set, own, at, path] = /^\/(datasets\/)?([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(pathname) ?? [];
      if (own === undefined) return new Response("no", { status: 404 });
      const repo = find(set ? "datasets" : "models", own, request);
      if (repo instanceof Response) return repo;
      const commit = commitOf(repo, decodeURIComponent(at!));
      if (commit === null) return refusal(404, "RevisionNotFound");
      const file = decodeURIComponent(path!);
      const bytes = repo.commits[commit]![file];
      if (!bytes)
        return new Response(null, { status: 404, headers: { "x-error-code": "EntryNotFound", "x-repo-commit": commit } });
      const etag = etagOf(file, bytes);
      const headers = { "x-repo-commit": commit };
      if (!isLarge(file))
        return new Response(request.method === "HEAD" ? null : bytes, {
          headers: { ...headers, etag: `"${etag}"`, "content-length": `${bytes.length}` },
        });
      blobs.set(etag, bytes);
      const linked = {
        "x-linked-etag": `"${etag}"`,
        "x-linked-size": `${bytes.length}`,
        location: `http://127.0.0.1:${store.port}/${etag}`,
      };
      return new Response(null, { status: 302, headers: { ...headers, ...linked } });
    },
  });
  return {
    endpoint: `http://127.0.0.1:${hub.port}`,
    asked,
    /** The store ends its next answer after this number of bytes of the file. */
    breakNext: (bytes: number) => {
      breakAt = bytes;
    },
    setDamage: (is: boolean) => {
      damage = is;
    },
    [Symbol.dispose]() {
      hub.stop(true);
      store.stop(true);
    },
  };
}

const [FIRST, SECOND] = ["1".repeat(40), "2".repeat(40)] as const;
const text = (value: string): Buffer => Buffer.from(value);
const row = (n: number): string => `${JSON.stringify({ prompt: `question ${n}`, completion: `answer ${n}` })}\n`;

/** What the tests and huggingface_hub read: a model in two shards, and data sets of two commits. */
export const HUB_REPOS: readonly HubRepo[] = [
  {
    kind: "models",
    repo: "org/small.model",
    refs: { main: FIRST },
    commits: {
      [FIRST]: {
        "README.md": text("a model\n"),
        "config.json": text('{"model_type": "llama"}\n'),
        "tokenizer.json": text("{}\n"),
        "model.safetensors.index.json": text(
          '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}\n',
        ),
        "model-00001-of-00002.safetensors": Buffer.alloc(70_000, "a"),
        "model-00002-of-00002.safetensors": Buffer.alloc(50_000, "b"),
        "pytorch_model.bin": Buffer.alloc(10, "c"),
        "original/params.json": text("{}"),
      },
    },
  },
  {
    kind: "datasets",
    repo: "org/rows",
    refs: { main: SECOND, "v1.0": FIRST, "refs/convert/parquet": FIRST },
    commits: {
      [FIRST]: { "data/train.jsonl": text(row(1)) },
      [SECOND]: {
        "README.md": text("---\nlicense: mit\n---\nrows\n"),
        "data/train.jsonl": text(row(1) + row(2)),
        "data/test.jsonl": text(row(3)),
      },
    },
  },
  {
    kind: "datasets",
    repo: "org/closed",
    refs: { main: FIRST },
    commits: { [FIRST]: { "train.jsonl": text(row(1)) } },
    token: "hf_secret",
  },
  {
    kind: "datasets",
    repo: "org/evil",
    refs: { main: FIRST },
    commits: { [FIRST]: { "../../../outside.jsonl": text(row(1)), "a/../../b.jsonl": text(row(1)) } },
  },
  { kind: "datasets", repo: "org/gated", refs: { main: FIRST }, commits: { [FIRST]: {} }, gated: true },
];
