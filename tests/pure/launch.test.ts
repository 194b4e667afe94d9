// What scripts/launch refuses before it reaches for any host. tests/build/launch.test.ts has it launch.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const LAUNCH = join(import.meta.dir, "..", "..", "scripts", "launch");
const folder = mkdtempSync(join(tmpdir(), "mlora-launch-"));
afterAll(() => rmSync(folder, { recursive: true }));
writeFileSync(join(folder, "r.toml"), "");
const program = (name: string, lines: string) => writeFileSync(join(folder, name), `#!/bin/sh\n${lines}\n`, { mode: 0o755 });
program("mlora", "echo mlora 1.2.3");
program("other", "echo other 1.2.3");
mkdirSync(join(folder, "bin"));
program("bin/ssh", "echo ssh was called >&2; exit 255"); // nothing that is refused comes to this

async function launch(...args: readonly string[]) {
  const child = Bun.spawn([LAUNCH, "--mlora", "mlora", ...args], {
    cwd: folder,
    env: { PATH: `${folder}/bin:${process.env["PATH"]}`, TMPDIR: folder },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  const [first] = err.split("\n").filter((line) => !line.startsWith("scripts/launch: --insecure"));
  return { code, out, first };
}

const LISTEN = ["--listen", "127.0.0.1:4222"];

test.each([
  [["--listen"], "--listen needs a value"],
  [["--lisen", "a:1"], "unknown option --lisen"],
  [["none.toml", "a"], "there is no recipe none.toml"],
  [[...LISTEN, "--here", "x[$(touch here)]", "r.toml", "a"], "--here x[$(touch here)]: expected a number of stages"],
  [["--listen", "a", "r.toml", "a"], "--listen a: expected HOST:PORT"],
  [["--listen", "a:x", "r.toml", "a"], "--listen a:x: expected HOST:PORT"],
  [["--mlora", "none", "r.toml", "a"], "there is no program ./none"],
  [["--insecure", ...LISTEN, "--mlora", "other", "r.toml", "a"], "./other is not a program of mlora's that runs here"],
  [[...LISTEN, "r.toml", "a:0"], "a:0: expected a number of stages after the colon"],
  [[...LISTEN, "r.toml", "a:2:2"], "a:2:2: expected a number of stages after the colon"],
  [[...LISTEN, "r.toml", "-oProxyCommand=true"], "-oProxyCommand=true: expected the name of a host"],
  [[...LISTEN, "r.toml", "-oProxyCommand=x:2"], "-oProxyCommand=x:2: expected the name of a host"],
  [[...LISTEN, "r.toml", "me@-oProxyCommand=x"], "me@-oProxyCommand=x: expected the name of a host"],
  [[...LISTEN, "r.toml", "a b"], "a b: expected the name of a host"],
  [[...LISTEN, "r.toml", ":2"], ":2: expected the name of a host"],
  [[...LISTEN, "r.toml", "a", "b", "a:2"], "a is named twice"],
])("%p is refused: %s", async (args, message) => {
  expect(await launch(...args)).toEqual({ code: 2, out: "", first: `scripts/launch: ${message}` });
});

test("without a recipe or a host it says how it is called, and --help says it on standard output", async () => {
  const usage = /^Trains over several machines/;
  for (const args of [[], ["r.toml"], ["r.toml", "--", "--seed", "1"]])
    expect(await launch(...args)).toEqual({ code: 2, out: "", first: expect.stringMatching(usage) });
  expect(await launch("--help")).toEqual({ code: 0, out: expect.stringMatching(usage), first: "" });
});

test.each([
  ["[fe80::1]:2", "fe80::1"],
  ["me@[fe80::1]", "me@fe80::1"],
  ["me@a:2", "me@a"],
])("%p is the host %s", async (host, name) => {
  const { code, first } = await launch(...LISTEN, "r.toml", host);
  expect([code, first]).toEqual([2, `scripts/launch: ssh does not let us into ${name}: ssh was called`]);
});
