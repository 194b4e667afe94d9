// Files at addresses: fetched once, asked about again, resumed where a download broke, and never half of one.

import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MloraError } from "../../src/base/errors.ts";
import type { HubSettings } from "../../src/sources/hub/settings.ts";
import { openFiles } from "../../src/sources/open.ts";
import { download } from "../../src/sources/partial.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-downloads-"));
const before = process.env["MLORA_CACHE"];
const BODY = Buffer.from('{"text": "a row"}\n'.repeat(20_000));

type Behaviour = { etag: string | null; body: Buffer; breakAt: number | null; head: number; ranges: boolean };
const usual: Behaviour = { etag: '"one"', body: BODY, breakAt: null, head: 200, ranges: true };
let now: Behaviour = usual;
let asked: { method: string; path: string; range: string | null; token: string | null }[] = [];

/** A body that ends too early. */
const broken = (bytes: Buffer): ReadableStream =>
  new ReadableStream({
    type: "direct",
    async pull(controller) {
      controller.write(bytes);
      await controller.flush();
      controller.close();
    },
  });

const answer = (request: Request): Response => {
  const { pathname } = new URL(request.url);
  const range = request.headers.get("range");
  asked.push({ method: request.method, path: pathname, range, token: request.headers.get("authorization") });
  if (pathname === "/away.jsonl") return Response.redirect(`http://127.0.0.1:${other.port}/rows.jsonl`, 302);
  if (pathname === "/none.jsonl") return new Response("no", { status: 404 });
  const { etag, body, breakAt, head, ranges } = now;
  const headers: Record<string, string> = etag === null ? {} : { etag };
  if (request.method === "HEAD")
    return new Response(null, { status: head, headers: { ...headers, "content-length": `${body.length}` } });
  const from = ranges && range !== null && request.headers.get("if-range") === etag ? Number(/\d+/.exec(range)![0]) : 0;
  const part = body.subarray(from);
  const status = from > 0 ? 206 : 200;
  const more = from > 0 ? { "content-range": `bytes ${from}-${body.length - 1}/${body.length}` } : {};
  if (breakAt !== null && breakAt > from) {
    now = { ...now, breakAt: null };
    const length = { "content-length": `${part.length}` };
    return new Response(broken(part.subarray(0, breakAt - from)), { status, headers: { ...headers, ...more, ...length } });
  }
  return new Response(part, { status, headers: { ...headers, ...more } });
};
const server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: answer });
const other = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: answer });
const url = `http://127.0.0.1:${server.port}/rows.jsonl`;

beforeAll(() => {
  process.env["MLORA_CACHE"] = join(folder, "cache");
});
beforeEach(() => {
  rmSync(join(folder, "cache"), { recursive: true, force: true });
  now = usual;
  asked = [];
});
afterAll(() => {
  if (before === undefined) delete process.env["MLORA_CACHE"];
  else process.env["MLORA_CACHE"] = before;
  server.stop(true);
  other.stop(true);
  rmSync(folder, { recursive: true });
});

const hub = (offline = false): HubSettings => ({ endpoint: "http://127.0.0.1:1", cache: folder, token: null, offline });
const notices: string[] = [];
async function fetched(address = url, offline = false): Promise<Buffer> {
  const files = await openFiles([address], { hub: hub(offline), notice: (text) => notices.push(text) });
  return readFileSync(files.get(address)![0]!.path);
}
const gets = () => asked.filter(({ method }) => method === "GET").length;
async function failure(call: Promise<unknown>): Promise<MloraError> {
  const error = await call.then(
    () => null,
    (error) => error,
  );
  expect(error).toBeInstanceOf(MloraError);
  return error;
}

test("a file is fetched once, and again when it has changed", async () => {
  expect(await fetched()).toEqual(BODY);
  expect(await fetched()).toEqual(BODY);
  expect(gets()).toBe(1);
  now = { ...usual, etag: '"two"', body: BODY.subarray(18) };
  expect(await fetched()).toEqual(BODY.subarray(18));
  expect(gets()).toBe(2);
});

test("the cache serves where the network is away or is not asked", async () => {
  expect((await failure(fetched(url, true))).code).toBe("source.offline");
  await fetched();
  expect(await fetched(url, true)).toEqual(BODY);
  now = { ...usual, head: 503 };
  notices.length = 0;
  expect(await fetched()).toEqual(BODY);
  expect(notices).toEqual([`${url} answers with 503; the rows that were fetched earlier are used`]);
  now = usual;
  expect((await failure(fetched(`http://127.0.0.1:${server.port}/none.jsonl`))).message).toContain("answers with 404");
});

test("a download that breaks continues where it ended, of the same bytes alone", async () => {
  now = { ...usual, breakAt: 100_000 };
  expect(await fetched()).toEqual(BODY);
  expect(asked.filter(({ method }) => method === "GET").map(({ range }) => range)).toEqual([null, "bytes=100000-"]);
  now = {
    ...usual,
    etag: '"three"',
    body: Buffer.from(BODY.toString().replaceAll("row", "new")),
    breakAt: 50_000,
    ranges: false,
  };
  expect((await fetched()).toString()).not.toContain("row");
});

test("the part that a killed process left is taken over, and checked with the rest", async () => {
  const sha256 = new Bun.CryptoHasher("sha256").update(BODY).digest("hex");
  const stem = join(folder, "blob");
  const gone = Bun.spawnSync(["true"]).pid;
  const wanted = {
    stem,
    name: "rows",
    url,
    asking: {},
    size: BODY.length,
    resumes: true,
    hash: { kind: "sha256", hex: sha256 },
  } as const;
  writeFileSync(`${stem}.${gone}-abcd.incomplete`, BODY.subarray(0, 70_000));
  const partial = await download({ ...wanted, ifRange: '"one"' });
  expect(readFileSync(partial)).toEqual(BODY);
  expect(asked.map(({ range }) => range)).toEqual(["bytes=70000-"]);
  rmSync(partial);
  writeFileSync(`${stem}.${gone}-abcd.incomplete`, Buffer.alloc(70_000));
  const error = await failure(download({ ...wanted, ifRange: '"one"' }));
  expect(error.message).toBe("rows has another hash than its server says after the download");
  expect(readdirSync(folder).filter((name) => name.startsWith("blob"))).toEqual([]);
});

test("redirects are followed, and what is not encrypted is refused", async () => {
  expect(await fetched(`http://127.0.0.1:${server.port}/away.jsonl`)).toEqual(BODY);
  expect((await failure(fetched("http://example.org/rows.jsonl"))).code).toBe("data.url");
});
