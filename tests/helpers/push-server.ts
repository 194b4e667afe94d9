// A server that speaks the part of the Hugging Face hub's API that writing needs, and another host that large files go to.

export type Sent = {
  readonly host: "hub" | "store";
  readonly method: string;
  readonly path: string;
  readonly token: string | null;
  readonly type: string | null;
  /** JSON, lines of it, or the number of bytes. */
  readonly body: unknown;
};

const TOKEN = "hf_writer";
const sha256 = (bytes: Uint8Array) => new Bun.CryptoHasher("sha256").update(bytes).digest("hex");

/** `partBytes`: of the parts in which large files come; 0 for whole ones. `gone`: the status of the first answers. */
export function servePush({ partBytes = 0, gone = [] as number[] } = {}) {
  const sent: Sent[] = [];
  const repos = new Map<string, { readonly visibility: string; readonly files: Map<string, Buffer> }>();
  const blobs = new Map<string, Buffer[]>();
  const note = async (host: Sent["host"], request: Request): Promise<Buffer> => {
    const bytes = Buffer.from(await request.arrayBuffer());
    const type = request.headers.get("content-type");
    const lines = () =>
      bytes
        .toString()
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line));
    const body = /ndjson/.test(type ?? "") ? lines() : /json/.test(type ?? "") ? lines()[0] : bytes.length;
    const token = request.headers.get("authorization");
    sent.push({ host, method: request.method, path: new URL(request.url).pathname, token, type, body });
    return bytes;
  };
  const store = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      const bytes = await note("store", request);
      const [, oid, part] = new URL(request.url).pathname.split("/");
      const parts = blobs.get(oid!) ?? [];
      parts[Number(part ?? 1) - 1] = bytes;
      blobs.set(oid!, parts);
      return new Response(null, { headers: { etag: `"${sha256(bytes).slice(0, 8)}"` } });
    },
  });
  const refuse = (status: number, message: string) =>
    new Response(JSON.stringify({ error: message }), { status, headers: { "x-error-message": message } });
  const hub = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request): Promise<Response> {
      await note("hub", request);
      const { path, body, token } = sent.at(-1)!;
      const status = gone.shift();
      if (status !== undefined) return refuse(status, "away");
      if (path.startsWith("/complete/")) return Response.json({ ok: true }); // whose address is the secret
      if (token !== `Bearer ${TOKEN}`) return refuse(401, "Invalid username or password.");
      const given = body as Record<string, never>;
      if (path === "/api/repos/create") {
        const { organization, name, visibility } = given;
        if (organization === "others")
          return refuse(403, "You don't have the rights to create a model under the namespace others");
        const id = `${organization}/${name}`;
        if (repos.has(id)) return refuse(409, "You already created this model repo");
        repos.set(id, { visibility: visibility ?? "public", files: new Map() });
        return Response.json({ url: `${hub.url.origin}/${id}`, name: id });
      }
      if (path === "/api/validate-yaml") return Response.json({ errors: [], warnings: [] });
      const [, action, rest] = /^\/api\/models\/[^/]+\/[^/]+\/(preupload|commit)\/(.+)$/.exec(path) ?? [];
      if (action === "preupload") {
        const files = (given["files"] as unknown as { path: string }[]).map(({ path }) => {
          return { path, uploadMode: /\.safetensors$/.test(path) ? "lfs" : "regular", shouldIgnore: false, oid: null };
        });
        return Response.json({ files });
      }
      const [, id] = /^\/(?:api\/models\/)?([^/]+\/[^/.]+)/.exec(path) ?? [];
      if (path.endsWith("/info/lfs/objects/batch"))
        return Response.json({
          transfer: "basic",
          objects: placesOf(given["objects"] as unknown as { oid: string; size: number }[], id!),
        });
      if (path.endsWith("/verify")) {
        const { oid, size } = given as unknown as { oid: string; size: number };
        const whole = Buffer.concat(blobs.get(oid) ?? []);
        return whole.length === size && sha256(whole) === oid ? new Response() : refuse(422, "the object is another");
      }
      if (action === "commit") {
        const files = repos.get(id!)!.files;
        for (const { key, value } of body as { key: string; value: Record<string, string> }[]) {
          if (key === "file") files.set(value["path"]!, Buffer.from(value["content"]!, "base64"));
          if (key === "lfsFile") files.set(value["path"]!, Buffer.concat(blobs.get(value["oid"]!) ?? []));
        }
        const commitOid = "c".repeat(40);
        return Response.json({ success: true, commitOid, commitUrl: `${hub.url.origin}/${id}/commit/${commitOid}?${rest}` });
      }
      return refuse(404, `nothing at ${path}`);
    },
  });
  const placesOf = (objects: { oid: string; size: number }[], id: string) =>
    objects.map(({ oid, size }) => {
      if (blobs.has(oid)) return { oid, size };
      const verify = { href: `${hub.url.origin}/${id}.git/info/lfs/verify`, header: {} };
      if (partBytes === 0) return { oid, size, actions: { upload: { href: `${store.url.origin}/${oid}` }, verify } };
      const urls = Array.from({ length: Math.ceil(size / partBytes) }, (_, i) => [
        `${i + 1}`,
        `${store.url.origin}/${oid}/${i + 1}`,
      ]);
      const header = { chunk_size: `${partBytes}`, ...Object.fromEntries(urls) };
      return { oid, size, actions: { upload: { href: `${hub.url.origin}/complete/${oid}`, header }, verify } };
    });
  return {
    endpoint: hub.url.origin,
    token: TOKEN,
    sent,
    repos,
    [Symbol.dispose]: () => {
      void hub.stop(true);
      void store.stop(true);
    },
  };
}
