// Data sets and models by name: huggingface_hub's cache, its token and its rules, against a server that speaks the hub's API.
// tests/golden/hub has what huggingface_hub and datasets do with the same server and the same names.

import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MloraError } from "../../src/base/errors.ts";
import { hubText, parseHub } from "../../src/base/source-name.ts";
import { type HubSettings, hubSettings } from "../../src/sources/hub/settings.ts";
import { splitFiles } from "../../src/sources/hub/splits.ts";
import { openFiles, openModel } from "../../src/sources/open.ts";
import { HUB_REPOS, serveHub } from "../helpers/hub-server.ts";

const GOLDEN = join(import.meta.dir, "..", "golden", "hub");
const folder = mkdtempSync(join(tmpdir(), "mlora-hub-"));
const saved = { ...process.env };
let server: ReturnType<typeof serveHub>;
beforeEach(() => {
  server = serveHub(HUB_REPOS, { "old/rows": "org/rows" });
  process.env["MLORA_CACHE"] = join(folder, "cache");
});
afterEach(() => {
  server[Symbol.dispose]();
  rmSync(join(folder, "cache"), { recursive: true, force: true });
  rmSync(join(folder, "hub"), { recursive: true, force: true });
  for (const key of Object.keys(process.env)) if (!(key in saved)) delete process.env[key];
  Object.assign(process.env, saved);
});
afterAll(() => rmSync(folder, { recursive: true }));

const notices: string[] = [];
const hub = (changes: Partial<HubSettings> = {}): HubSettings => ({
  endpoint: server.endpoint,
  cache: join(folder, "hub"),
  token: null,
  offline: false,
  ...changes,
});
async function texts(name: string, changes: Partial<HubSettings> = {}): Promise<string[]> {
  const files = await openFiles([name], { hub: hub(changes), notice: (text) => notices.push(text) });
  return files.get(name)!.map(({ path }) => readFileSync(path, "utf8"));
}
async function failure(call: Promise<unknown>): Promise<MloraError> {
  const error = await call.then(
    () => null,
    (error) => error,
  );
  expect(error).toBeInstanceOf(MloraError);
  expect(error.hint).toMatch(/\S/);
  return error;
}

/** As make.py lists the cache. */
function cacheNow(): Record<string, unknown> {
  const root = join(folder, "hub");
  const found: Record<string, unknown> = {};
  for (const name of readdirSync(root, { recursive: true, encoding: "utf8" }).sort()) {
    const path = join(root, name);
    if (lstatSync(path).isSymbolicLink()) found[name] = { link: readlinkSync(path) };
    else if (lstatSync(path).isFile() && name.includes("/refs/")) found[name] = { text: readFileSync(path, "utf8") };
    else if (lstatSync(path).isFile() && name.includes("/blobs/")) found[name] = { bytes: statSync(path).size };
  }
  return found;
}

describe("the cache", () => {
  test("is as huggingface_hub leaves it after the same downloads, and no token goes elsewhere", async () => {
    const golden = JSON.parse(readFileSync(join(GOLDEN, "cache.json"), "utf8")) as {
      cache: Record<string, unknown>;
      tokens: string[][];
    };
    const model = await openModel("hf://org/small.model", { hub: hub({ token: "hf_secret" }) });
    expect(model).toBe(join(folder, "hub", "models--org--small.model", "snapshots", "1".repeat(40)));
    for (const at of ["", "@v1.0", "@refs/convert/parquet"]) await texts(`hf://datasets/org/rows${at}/data/train.jsonl`);
    await texts("hf://datasets/org/closed/train.jsonl", { token: "hf_secret" });
    expect(cacheNow()).toEqual(golden.cache);
    expect(golden.tokens.filter(([host]) => host === "store").every(([, , token]) => token === null)).toBe(true);
    const atStore = server.asked.filter(({ host }) => host === "store");
    expect(atStore.map(({ token }) => token)).toEqual([null, null]);
    const before = server.asked.length;
    await openModel("hf://org/small.model", { hub: hub() });
    expect(server.asked.slice(before).every(({ path }) => path.startsWith("/api/"))).toBe(true); // nothing is fetched again
  });

  test("serves alone, whole or not at all", async () => {
    const [name, set] = ["hf://datasets/org/rows/data/train.jsonl", "hf://datasets/org/rows?split=test"];
    const offline = { offline: true };
    expect((await failure(texts(name, offline))).message).toContain("is not in");
    const rows = await texts(name);
    const asked = server.asked.length;
    expect(await texts(name, offline)).toEqual(rows);
    const error = await failure(texts(set, offline));
    expect(error.message).toBe("the dataset org/rows is not whole in the cache: 1 of 1 file is missing, as README.md");
    expect(server.asked).toHaveLength(asked);
    notices.length = 0;
    expect(await texts(name, { endpoint: "http://127.0.0.1:9" })).toEqual(rows);
    expect(notices.join()).toMatch(/127\.0\.0\.1:9.* cannot be reached: .*; the dataset org\/rows is taken from the cache$/);
  });

  test("of huggingface_hub alone is used, but for shards of which some are missing", async () => {
    const root = join(folder, "hub", "datasets--org--other");
    const snapshot = join(root, "snapshots", "3".repeat(40));
    mkdirSync(join(root, "refs"), { recursive: true });
    mkdirSync(snapshot, { recursive: true });
    writeFileSync(join(root, "refs", "main"), "3".repeat(40));
    writeFileSync(join(snapshot, "train-00000-of-00002.jsonl"), '{"text": "a"}\n');
    const all = "hf://datasets/org/other/*.jsonl";
    expect((await failure(texts(all, { offline: true }))).message).toContain("1 of 2 shards of train are there");
    writeFileSync(join(snapshot, "train-00001-of-00002.jsonl"), '{"text": "b"}\n');
    expect(await texts(all, { offline: true })).toHaveLength(2);
  });
});

describe("downloads", () => {
  test("continue where they broke, and are compared with the hub's hash", async () => {
    server.breakNext(30_000);
    const at = await openModel("hf://org/small.model", { hub: hub() });
    expect(readFileSync(join(at, "model-00001-of-00002.safetensors"))).toEqual(Buffer.alloc(70_000, "a"));
    expect(server.asked.filter(({ host }) => host === "store").map(({ range }) => range)).toEqual([null, "bytes=30000-", null]);
    rmSync(join(folder, "hub"), { recursive: true });
    server.setDamage(true);
    expect((await failure(openModel("hf://org/small.model", { hub: hub() }))).message).toBe(
      "org/small.model/model-00001-of-00002.safetensors has another hash than its server says after the download",
    );
    expect(Object.keys(cacheNow()).filter((name) => name.includes("00001"))).toEqual([]);
  });

  test("of two processes at once both come out", async () => {
    const [one, two] = await Promise.all([1, 2].map(() => openModel("hf://org/small.model", { hub: hub() })));
    expect(one).toBe(two!);
    expect(Object.keys(cacheNow()).filter((name) => name.includes("incomplete"))).toEqual([]);
    expect(readFileSync(join(one!, "model-00002-of-00002.safetensors"))).toHaveLength(50_000);
  });

  test("take the names of a revision, a split, a file; and follow a repository that has moved", async () => {
    const first = await texts("hf://datasets/org/rows@v1.0/data/train.jsonl");
    const second = await texts("hf://datasets/org/rows");
    expect(second[0]).toStartWith(first[0]!);
    expect(second[0]).not.toBe(first[0]!);
    expect(await texts("hf://datasets/org/rows?split=test")).not.toEqual(second);
    expect(await texts("hf://datasets/org/rows/data/*.jsonl")).toHaveLength(2);
    expect(await texts("hf://datasets/old/rows/data/train.jsonl")).toEqual(second);
  });
});

test("what the hub lacks or does not give is told apart", async () => {
  const cases = [
    ["hf://datasets/org/none", "hub.repo"],
    ["hf://datasets/org/closed", "hub.repo"],
    ["hf://datasets/org/gated", "hub.gated"],
    ["hf://datasets/org/rows@v9", "hub.revision"],
    ["hf://datasets/org/rows/none.csv", "hub.file"],
    ["hf://datasets/org/rows?split=nine", "hub.split"],
    ["hf://datasets/org/rows?config=nine", "hub.split"],
    ["hf://datasets/rows", "hub.name"],
    ["hf://org/small.model", "hub.name"],
  ];
  for (const [name, code] of cases) expect([name, (await failure(texts(name!))).code]).toEqual([name, code]);
  expect((await failure(openModel("hf://org/small.model/none.gguf", { hub: hub() }))).code).toBe("hub.file");
});

test("a file whose name leads out of the repository is refused", async () => {
  for (const path of ["../../../outside.jsonl", "a/../../b.jsonl"])
    expect((await failure(texts(`hf://datasets/org/evil/${path}`))).message).toBe(
      `dataset org/evil has a file '${path}', which leads elsewhere`,
    );
});

test("files of splits are those that datasets takes", () => {
  type Case = { name: string; files: string[]; card: string | null; config: string | null; splits: Record<string, string[]> };
  const cases = JSON.parse(readFileSync(join(GOLDEN, "splits.json"), "utf8")) as Case[];
  for (const { name, files, card, config, splits } of cases)
    for (const [split, want] of Object.entries(splits))
      expect([name, config, split, splitFiles(name, files, card, { config, split })]).toEqual([name, config, split, want]);
  const several = cases.find(({ name }) => name === "several")!;
  expect(() => splitFiles("x", several.files, several.card, { config: null, split: null })).toThrow(
    "has the configurations en, de",
  );
  expect(() => splitFiles("x", ["a.csv", "b.parquet"], null, { config: null, split: null })).toThrow(
    "has csv and parquet files in split 'train'",
  );
});

test("settings are those of huggingface_hub", () => {
  const home = join(folder, "home");
  mkdirSync(home, { recursive: true });
  writeFileSync(join(home, "token"), " hf_file\n");
  for (const key of Object.keys(process.env)) if (/^(HF_|TRANSFORMERS_)/.test(key)) delete process.env[key];
  Object.assign(process.env, { HF_HOME: home, HF_ENDPOINT: "https://hub.example/" });
  expect(hubSettings()).toEqual({
    endpoint: "https://hub.example",
    cache: join(home, "hub"),
    token: "hf_file",
    offline: false,
  });
  Object.assign(process.env, { HF_TOKEN: "hf_own", HF_HUB_CACHE: "/elsewhere", HF_HUB_OFFLINE: "YES" });
  expect(hubSettings()).toMatchObject({ cache: "/elsewhere", token: "hf_own", offline: true });
  process.env["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1";
  expect(hubSettings().token).toBeNull();
});

test("names are read as they are written", () => {
  const base = { kind: "datasets", repo: "org/na.me", revision: "main", path: "", config: null, split: null } as const;
  for (const name of [
    base,
    { ...base, revision: "v1.0", path: "data/a b.csv" },
    { ...base, revision: "refs/convert/parquet", config: "en", split: "train" },
    { ...base, kind: "models" as const, revision: "a/branch", path: "x.gguf" },
  ])
    expect(parseHub(hubText(name))).toEqual(name);
  for (const wrong of [
    "hf://x",
    "hf://datasets/x",
    "hf://a/b?split=c",
    "hf://datasets/a/b?other=c",
    "hf://datasets/a/b/c?split=d",
  ])
    expect(parseHub(wrong)).toBeNull();
});
