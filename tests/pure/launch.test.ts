// What scripts/launch gives to ssh.

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const LAUNCH = join(import.meta.dir, "..", "..", "scripts", "launch");
const folder = mkdtempSync(join(tmpdir(), "mlora-launch-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Starts it where `ssh` only notes that it was called, and lets nobody in. */
function launch(...args: string[]) {
  const called = join(folder, "called");
  rmSync(called, { force: true });
  writeFileSync(join(folder, "ssh"), `#!/bin/sh\ntouch '${called}'\nexit 255\n`, { mode: 0o755 });
  writeFileSync(join(folder, "recipe.toml"), "");
  const env = { ...process.env, PATH: `${folder}:${process.env["PATH"]}` };
  const { exitCode, stderr } = Bun.spawnSync([LAUNCH, "--mlora", "/bin/true", "--listen", "127.0.0.1:4222", ...args], { env });
  return { code: exitCode, err: `${stderr}`, called: existsSync(called) };
}
const recipe = join(folder, "recipe.toml");

test("ssh is given hosts, and never what it would take for an option", () => {
  for (const host of ["-oProxyCommand=touch x", "-oProxyCommand=x:2", "me@-oProxyCommand=x", "a b"])
    expect({ host, ...launch("--insecure", recipe, host) }).toMatchObject({
      ...{ host, code: 2, called: false, err: expect.stringMatching(/^scripts\/launch: /) },
    });
  expect(launch("--insecure", recipe, "gpu-b")).toMatchObject({ code: 2, called: true });
});

test("what crosses the network unencrypted is said", () => {
  expect(launch("--insecure", recipe, "gpu-b").err).toContain("cross the network unencrypted");
});
