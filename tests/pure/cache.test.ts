import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { cachedFile } from "../../src/base/cache.ts";
import { RunError } from "../../src/base/errors.ts";
import { thrown } from "../helpers/refused.ts";

const content = new TextEncoder().encode("#!/bin/sh\n");
const sha256 = new Bun.CryptoHasher("sha256").update(content).digest("hex");

let root = "";
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "mlora cache ")); // with spaces
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

const folder = (name: string, mode = 0o700): string => {
  const path = join(root, name);
  mkdirSync(path, { recursive: true });
  chmodSync(path, mode);
  return path;
};
const put = (...folders: readonly string[]): string => cachedFile("some/tool", sha256, () => content, folders);

describe("a cached file", () => {
  test("has the content, may be run, and is the owner's alone", () => {
    const path = put(join(root, "new", "deep"));
    expect(path).toEndWith("/tool");
    expect(readFileSync(path)).toEqual(Buffer.from(content));
    expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(statSync(dirname(path)).mode & 0o777).toBe(0o700);
    expect(readdirSync(dirname(path))).toEqual(["tool"]); // nothing is left of the making
  });

  test("is not written again while it is whole", () => {
    const path = put(folder("twice"));
    const asked = () => {
      throw new Error("asked for again");
    };
    expect(cachedFile("some/tool", sha256, asked, [folder("twice")])).toBe(path);
  });

  test.each([
    ["cut short", content.slice(0, 4)],
    ["changed without a change of size", content.with(3, 0x41)],
    ["empty", new Uint8Array()],
  ])("is fixed when it was %s", (_, wrong) => {
    const path = put(folder("mended"));
    writeFileSync(path, wrong);
    expect(readFileSync(put(folder("mended")))).toEqual(Buffer.from(content));
  });

  test("is looked at to its last byte", () => {
    const big = new Uint8Array(300_001).fill(7);
    const bigSha = new Bun.CryptoHasher("sha256").update(big).digest("hex");
    const putBig = () => cachedFile("big", bigSha, () => big, [folder("whole")]);
    for (const wrong of [big.with(300_000, 8), big.with(70_000, 8), new Uint8Array([...big, 7]), big.subarray(1)]) {
      writeFileSync(putBig(), wrong);
      expect(readFileSync(putBig()).equals(big)).toBe(true);
    }
  });

  test("lies next to another of the same name", () => {
    const other = new TextEncoder().encode("other");
    const otherSha = new Bun.CryptoHasher("sha256").update(other).digest("hex");
    const first = put(folder("two"));
    const second = cachedFile("tool", otherSha, () => other, [folder("two")]);
    expect(readFileSync(first)).toEqual(Buffer.from(content));
    expect(readFileSync(second)).toEqual(Buffer.from(other));
  });
});

describe("a folder that will not do is passed over", () => {
  test("where others may write", () => {
    expect(put(folder("open", 0o777), folder("safe"))).toStartWith(folder("safe"));
    expect(put(folder("group", 0o770), folder("safe"))).toStartWith(folder("safe"));
    expect(put(folder("sticky", 0o1777))).toStartWith(folder("sticky")); // as /tmp: no other can change what is ours
  });

  test("where others may write in the file's own folder", () => {
    chmodSync(dirname(put(folder("shelf"))), 0o777);
    expect(put(folder("shelf"), folder("safe"))).toStartWith(folder("safe"));
  });

  test("where something else lies in its place", () => {
    writeFileSync(join(root, "file"), "");
    symlinkSync("/proc/self", join(root, "link"));
    expect(put(join(root, "file"), join(root, "link"), folder("safe"))).toStartWith(folder("safe"));
  });

  test("and where none is left, the error names each with its reason", () => {
    writeFileSync(join(root, "plain"), "");
    const error = thrown(RunError, () => put(join(root, "plain"), folder("open", 0o777)));
    expect(error.code).toBe("cache.unusable");
    expect(error.message).toMatch(/plain: .*\n.*open: others may write in it/);
    expect(error.hint).toContain("MLORA_CACHE");
  });
});

test("many processes at once get the same whole file", async () => {
  const to = folder("race");
  const big = "x".repeat(3 << 20);
  const script = `
    import { cachedFile } from ${JSON.stringify(join(import.meta.dir, "../../src/base/cache.ts"))};
    const content = new TextEncoder().encode(${JSON.stringify("x")}.repeat(3 << 20));
    const sha256 = new Bun.CryptoHasher("sha256").update(content).digest("hex");
    const path = cachedFile("big", sha256, () => content, [${JSON.stringify(to)}]);
    console.log(new Bun.CryptoHasher("sha256").update(await Bun.file(path).bytes()).digest("hex") === sha256);`;
  const children = Array.from({ length: 6 }, () => Bun.spawn([process.execPath, "-e", script], { stdout: "pipe" }));
  const said = await Promise.all(children.map((child) => child.stdout.text()));
  expect(said).toEqual(Array(6).fill("true\n"));
  const [shelf] = readdirSync(to);
  expect(readdirSync(join(to, shelf!))).toEqual(["big"]);
  expect(readFileSync(join(to, shelf!, "big"), "utf8") === big).toBe(true);
});
