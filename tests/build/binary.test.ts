// dist/mlora as people get it: copied somewhere, with nothing around it. scripts/test builds it before these run.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { version } from "../../package.json";
import { CODINGS } from "../../src/base/asset-codings.ts";
import { bundlePage } from "../../src/web/bundle.ts";
import { writeTinyModel } from "../helpers/model.ts";
import { sums } from "../helpers/program.ts";

const BUILT = join(import.meta.dir, "../../dist/mlora");

let place = "";
let binary = "";
beforeAll(() => {
  if (!existsSync(BUILT)) throw new Error("dist/mlora is not there: run scripts/build");
  place = mkdtempSync(join(tmpdir(), "mlora elsewhere ")); // with spaces
  binary = join(place, "renamed");
  copyFileSync(BUILT, binary);
});
afterAll(() => rmSync(place, { recursive: true, force: true }));

async function run(args: readonly string[], environment: Record<string, string> = {}, cwd = place) {
  const child = Bun.spawn([binary, ...args], { env: environment, cwd, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { out, err, code };
}

test("says its version in less than 0.2 s", async () => {
  let best = Number.POSITIVE_INFINITY; // of many: the machine may be busy, the program is not
  for (let i = 0; i < 40 && best >= 200; i++) {
    const begin = performance.now();
    expect(await run(["--version"])).toEqual({ out: `mlora ${version}\n`, err: "", code: 0 });
    best = Math.min(best, performance.now() - begin);
  }
  expect(best).toBeLessThan(200);
});

const ROOT = join(import.meta.dir, "../..");
/** Parts that others made, as they are embedded on x86-64: their SHA-256, and what xz -6 packs them into. */
const KNOWN = {
  "node_modules/@oven/bun-linux-x64/bin/bun": {
    sha256: "10702245766b225e70bbf6235fd6b47214fd94b4760d00ffaed8ab0df57ac235",
    packed: 39_351_004,
  },
  "ffi/build/libscipy_openblas.so": {
    sha256: "0024232b80b2e21f7eb271df35acef63c00898417f5d1606ba258d95fa4d3527",
    packed: 4_091_528,
  },
  "ffi/build/nats-server": {
    sha256: "c41a682709781ac6622e62d5d096494a15ab5c94bf0c6d4d25152e86e48a0418",
    packed: 4_856_232,
  },
} as const;

/**
 * Bytes that xz -6 packs bytes into, as two halves at once: of the tests that wait for the build this one is the longest, and
 * halves take 0.1 % more than one whole. Not a slice of a file: as standard input Bun 1.4.4 gives all of the file.
 */
async function packed(content: Uint8Array<ArrayBuffer>): Promise<number> {
  const halves = `--block-size=${Math.ceil(content.length / 2)}`;
  const { stdout, exited } = Bun.spawn(["xz", "-6", "--threads=2", halves, "--stdout"], {
    stdin: new Blob([content]),
    stderr: "inherit",
  });
  let bytes = 0;
  for await (const chunk of stdout) bytes += chunk.length;
  expect(await exited).toBe(0);
  return bytes;
}

/** Bytes that a part takes: packed only where it is another than the known one. */
async function packedPart(name: keyof typeof KNOWN, content: Uint8Array<ArrayBuffer>): Promise<number> {
  const known = KNOWN[name];
  return new Bun.CryptoHasher("sha256").update(content).digest("hex") === known.sha256 ? known.packed : packed(content);
}

test("xz packs it into at most 60 MB", async () => {
  // It begins with Bun, all but some addresses, and holds the libraries in a form that packs well: two thirds of the time that
  // packing takes, and other numbers with other versions alone. Parts by themselves take no less than in one, some KB more.
  const [whole, bun] = [await Bun.file(BUILT).bytes(), await Bun.file(join(ROOT, Object.keys(KNOWN)[0]!)).bytes()];
  let differing = 0;
  for (let i = 0; i < bun.length; i++) if (whole[i] !== bun[i]) differing++;
  expect(differing).toBeLessThan(bun.length / 1000);
  let bytes = await packedPart("node_modules/@oven/bun-linux-x64/bin/bun", bun);
  let rest = Buffer.from(whole.buffer, bun.length);
  for (const name of ["ffi/build/libscipy_openblas.so", "ffi/build/nats-server"] as const) {
    const part = CODINGS.addresses.encode(await Bun.file(join(ROOT, name)).bytes());
    const at = rest.indexOf(part);
    expect(at, name).toBeGreaterThan(0);
    bytes += await packedPart(name, new Uint8Array(part));
    rest = Buffer.concat([rest.subarray(0, at), rest.subarray(at + part.length)]);
  }
  const own = await packed(new Uint8Array(rest));
  expect(own).toBeGreaterThan(3.5e6); // the program alone
  expect(bytes + own).toBeLessThanOrEqual(60e6);
});

describe("with an empty environment", () => {
  type Report = { version: string; can_train: boolean; parts: Record<string, { state: string; folder?: string }> };

  test("doctor unpacks the native parts and finds them working", async () => {
    const cache = join(place, "cache");
    const { out, err, code } = await run(["doctor", "--json"], { MLORA_CACHE: cache });
    expect([code, err]).toEqual([0, ""]);
    const report: Report = JSON.parse(out);
    expect(report).toMatchObject({ version, can_train: true });
    for (const part of ["processor", "products", "nats-server", "device"])
      expect(report.parts[part]).toMatchObject({ state: "ok" });
    expect(report.parts["cache"]!.folder).toBe(cache);
    expect(
      readdirSync(cache, { recursive: true })
        .map(String)
        .map((path) => path.split("/").at(-1)),
    ).toEqual(expect.arrayContaining(["libmlora.so", "libscipy_openblas.so", "nats-server"]));
  });

  test("it does not need a home: the temporary folder will do", async () => {
    const temporary = join(place, "temporary");
    mkdirSync(temporary);
    const { out, code } = await run(["doctor"], { TMPDIR: temporary, HOME: "/proc/nowhere", XDG_CACHE_HOME: "/proc/nowhere" });
    expect(code).toBe(0);
    expect(out).toContain(`${temporary}/mlora-`);
  });

  test("where nothing can be unpacked it says so, and what to do, and fails", async () => {
    const { out, err, code } = await run(["doctor"], { MLORA_CACHE: "/proc/nowhere" });
    expect(code).toBe(1);
    expect(out).toMatch(/FAULT {2}products .*libscipy_openblas\.so/);
    expect(out).toContain("hint: set MLORA_CACHE");
    expect(err).toStartWith("error[doctor.unfit]: this machine cannot train");
  });
});

describe("a wrong request", () => {
  test.each([
    [["rnu"], "there is no command 'rnu'", "did you mean 'run'?"],
    [["run"], "missing required args", "usage: mlora run <recipe>"],
    [["doctor", "--jsno"], "unknown option '--jsno'", "did you mean --json?"],
    [["run", "none.toml"], "none.toml", "hint: "],
    [["run", "a.toml", "--seed", "1", "--seed", "2"], "--seed was given 2 times", "usage: mlora run"],
  ])("%p ends with 2 and one error", async (args, message, hint) => {
    const { out, err, code } = await run(args);
    expect([code, out]).toEqual([2, ""]);
    expect(err).toMatch(/^error\[[\w.]+\]: .*\nhint: .*\n$/);
    expect(err).toContain(message);
    expect(err).toContain(hint);
  });
});

test("help goes to stdout, and no command at all is a wrong request", async () => {
  const help = await run(["--help"]);
  expect([help.code, help.err]).toEqual([0, ""]);
  for (const command of ["run <recipe>", "plan <recipe>", "doctor"]) expect(help.out).toContain(command);
  expect(await run([])).toEqual({ ...help, code: 2 });
  expect((await run(["help", "run"])).out).toContain("--output <folder>");
});

test("obeys no .env and no bunfig.toml of the folder it runs in", async () => {
  const folder = join(place, "data");
  mkdirSync(folder);
  writeFileSync(join(folder, "evil.ts"), 'console.log("obeyed");');
  writeFileSync(join(folder, "bunfig.toml"), 'preload = ["./evil.ts"]\n');
  writeFileSync(join(folder, ".env"), "MLORA_CACHE=/proc/nowhere\n");
  const { out, code } = await run(["doctor"], { TMPDIR: folder }, folder);
  expect([code, out.includes("obeyed")]).toEqual([0, false]);
});

test("reads data in a thread that it brings with it", async () => {
  const folder = join(place, "project");
  writeTinyModel(join(folder, "model"));
  writeFileSync(join(folder, "rows.jsonl"), sums(20));
  const adapter = '[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 1\n';
  writeFileSync(join(folder, "recipe.toml"), `[model]\npath = "model"\n[run]\noutput = "out"\ndevice = "cpu"\n${adapter}`);
  const { out, err, code } = await run(["plan", join(folder, "recipe.toml"), "--json"], { TMPDIR: place });
  expect([code, err]).toEqual([0, ""]);
  expect(JSON.parse(out).adapters[0].rows).toBe(20);
});

test("shows a run on the live page that it brings with it", async () => {
  writeTinyModel(join(place, "paged-model"), 1);
  writeFileSync(join(place, "paged.jsonl"), sums(4));
  const recipe = `[model]\npath = "paged-model"\n[run]\noutput = "paged"\ndevice = "cpu"\n[[adapter]]\nname = "a"\ndata = "paged.jsonl"\nsteps = 2\n`;
  writeFileSync(join(place, "paged.toml"), recipe);
  const child = Bun.spawn([binary, "run", "paged.toml", "--web", "127.0.0.1:0", "--keep-open"], {
    ...{ env: {}, cwd: place, stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  });
  const reader = child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  let told = "";
  while (!told.includes("to look only")) told += (await reader.read()).value;
  const { origin, hash } = new URL(/live page: (\S+)/.exec(told)![1]!);
  const bundled = await bundlePage();
  for (const [path, name] of [
    ["/", "index.html"],
    ["/page/app.js", "app.js"],
    ["/page/app.css", "app.css"],
  ] as const)
    expect(Buffer.from(await (await fetch(`${origin}${path}`)).bytes()).equals(bundled[name])).toBe(true);
  const headers = { authorization: `Bearer ${hash.replace("#key=", "")}` };
  const events = (await fetch(`${origin}/page/events`, { headers })).body!.pipeThrough(new TextDecoderStream()).getReader();
  let seen = "";
  while (!seen.includes('"state":"done"')) {
    const { value, done } = await events.read();
    if (done) throw new Error(seen);
    seen += value;
  }
  child.kill("SIGTERM");
  for (let next = await reader.read(); !next.done; next = await reader.read()) told += next.value;
  expect([await child.exited, told]).toEqual([0, expect.not.stringContaining("error")]);
});

test("a reader that goes away is no fault", async () => {
  const child = Bun.spawn(["bash", "-c", '"$0" help | true; echo $PIPESTATUS', binary], {
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  expect([out, err]).toEqual(["0\n", ""]);
});

test("runs for a user that may execute but not read or write it", async () => {
  chmodSync(binary, 0o111);
  expect((await run(["--version"])).code).toBe(0);
});
