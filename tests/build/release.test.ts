// scripts/release and the script that installs what it packs: the same archive each time, and nothing installed that is not it.

import { afterAll, expect, test } from "bun:test";
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..", "..");
const root = mkdtempSync(join(tmpdir(), "mlora-release-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

async function run(command: readonly string[], environment: Readonly<Record<string, string>> = {}) {
  const child = Bun.spawn([...command], { env: { ...process.env, ...environment }, stdout: "pipe", stderr: "pipe" });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { out, err, code };
}

/** A release of a program that says its version; of another for Arm, too, where it is asked for. */
async function released(name: string, { arm64 = false } = {}): Promise<string> {
  const dist = join(root, name);
  mkdirSync(dist);
  writeFileSync(join(dist, "mlora"), '#!/bin/sh\necho "mlora 7.8.9"\n', { mode: 0o755 });
  if (arm64) {
    mkdirSync(join(dist, "arm64"));
    writeFileSync(join(dist, "arm64", "mlora"), '#!/bin/sh\necho "mlora 7.8.9 for Arm"\n', { mode: 0o755 });
  }
  const { code, err } = await run([join(ROOT, "scripts", "release"), dist]);
  expect([code, err]).toEqual([0, ""]);
  return dist;
}

const ARCHIVE = "mlora-7.8.9-linux-x64.tar.xz";

test("a binary gives one archive, with its checksum, licence and changelog, and is installed from a folder and an address", async () => {
  const [one, two] = [await released("one"), await released("two")];
  expect(readFileSync(join(one, ARCHIVE)).equals(readFileSync(join(two, ARCHIVE)))).toBe(true);
  expect((await run(["sh", "-c", `cd ${one} && sha256sum -c ${ARCHIVE}.sha256`])).code).toBe(0);
  const { out: listed } = await run(["tar", "-tJf", join(one, ARCHIVE)]);
  for (const file of ["mlora", "LICENSE", "CHANGELOG.md"]) expect(listed).toContain(`mlora-7.8.9-linux-x64/${file}\n`);
  const target = join(root, "bin");
  const installed = await run(["sh", join(one, "install.sh"), target]);
  expect([installed.code, installed.out]).toEqual([0, expect.stringContaining(`installed mlora 7.8.9 in ${target}`)]);
  using server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: (request) => new Response(Bun.file(join(one, new URL(request.url).pathname))),
  });
  const alone = join(root, "alone");
  mkdirSync(alone);
  copyFileSync(join(one, "install.sh"), join(alone, "install.sh"));
  const fetched = await run(["sh", join(alone, "install.sh"), join(root, "bin2")], { MLORA_URL: server.url.origin });
  expect([fetched.code, fetched.err]).toEqual([0, ""]);
  expect(readdirSync(join(root, "bin2"))).toEqual(["mlora"]);
});

test("an archive of other bytes is not installed, and what is there stays", async () => {
  const dist = await released("three");
  appendFileSync(join(dist, ARCHIVE), "x");
  const target = join(root, "bin3");
  mkdirSync(target);
  writeFileSync(join(target, "mlora"), "the one before");
  const { code, err } = await run(["sh", join(dist, "install.sh"), target]);
  expect([code, err]).toEqual([1, expect.stringContaining("nothing was installed")]);
  expect(readdirSync(target)).toEqual(["mlora"]);
  expect(readFileSync(join(target, "mlora"), "utf8")).toBe("the one before");
  rmSync(join(dist, ARCHIVE));
  const missing = await run(["sh", join(dist, "install.sh"), target]);
  expect([missing.code, missing.err]).toEqual([1, expect.stringContaining("set MLORA_URL")]);
  expect(existsSync(join(target, "mlora"))).toBe(true);
});

test("the script takes the archive of its machine's processor, and says where there is none", async () => {
  const dist = await released("both", { arm64: true });
  expect((await run(["sh", "-c", `cd ${dist} && sha256sum -c *.sha256`])).code).toBe(0);
  const on = async (machine: string, folder: string, of = dist) => {
    const path = join(root, `as-${machine}`);
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, "uname"), `#!/bin/sh\n[ "$1" = -m ] && echo ${machine} || echo Linux\n`, { mode: 0o755 });
    return await run(["sh", join(of, "install.sh"), join(root, folder)], { PATH: `${path}:${process.env["PATH"]}` });
  };
  expect((await on("aarch64", "arm")).out).toContain("installed mlora 7.8.9 for Arm in");
  expect((await on("x86_64", "x64")).out).toContain("installed mlora 7.8.9 in");
  const foreign = await on("riscv64", "foreign");
  expect([foreign.code, foreign.err]).toEqual([1, expect.stringContaining("this is Linux on riscv64")]);
  const missing = await on("aarch64", "missing", await released("one-alone"));
  expect([missing.code, missing.err]).toEqual([1, expect.stringContaining("has no archive for aarch64")]);
  for (const folder of ["foreign", "missing"]) expect(existsSync(join(root, folder))).toBe(false);
});
