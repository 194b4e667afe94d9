// The key of a run in a file, and in the environment: read where this user alone may read it, and in no error's text.

import { afterAll, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { newRunKey } from "../../src/bus/seal.ts";
import { givenKey, keyFor, saveKey } from "../../src/cluster/keyfile.ts";
import { refused } from "../helpers/refused.ts";

const NAMES = ["MLORA_CACHE", "MLORA_RUN_KEY"] as const;
const before = NAMES.map((name) => process.env[name]);
const root = mkdtempSync(join(tmpdir(), "mlora-keyfile-"));
const set = (name: string, value: string | undefined): void => {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
};
set("MLORA_CACHE", join(root, "cache"));
set("MLORA_RUN_KEY", undefined);
afterAll(() => {
  for (const [i, name] of NAMES.entries()) set(name, before[i]);
  rmSync(root, { recursive: true, force: true });
});

test("a key that is saved is read again, is the user's alone, and goes with the run", () => {
  const key = newRunKey();
  let path = "";
  {
    using saved = saveKey("a-run", key);
    path = saved.path;
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readFileSync(path, "utf8")).toBe(`${key}\n`);
    expect(keyFor(path)).toBe(key);
  }
  expect(existsSync(path)).toBe(false);
});

test.each([0o640, 0o604, 0o620, 0o602, 0o610, 0o601])(
  "a file that others may open (%o) is refused, without its key",
  (mode) => {
    const [path, key] = [join(root, "open.key"), newRunKey()];
    writeFileSync(path, key);
    chmodSync(path, mode);
    const { code, message, hint } = refused(() => keyFor(path));
    expect([code, message, hint]).toEqual(["run.key", expect.stringContaining("is open to other users"), expect.any(String)]);
    expect(`${message}${hint}`).not.toContain(key);
    rmSync(path);
  },
);

test.each([
  ["too short", "k".repeat(31)],
  ["too long", "k".repeat(257)],
  ["two lines", `${"k".repeat(40)}\n${"k".repeat(40)}`],
  ["other characters", `${"k".repeat(40)}+`],
  ["nothing", ""],
])("what is no key is refused in a file and in the environment, and not shown: %s", (_, text) => {
  const path = join(root, "wrong.key");
  writeFileSync(path, text, { mode: 0o600 });
  set("MLORA_RUN_KEY", text);
  for (const ask of [() => keyFor(path), () => keyFor(null)]) {
    const { code, message } = refused(ask);
    expect(code).toBe("run.key");
    if (text !== "") expect(message).not.toContain(text);
  }
  set("MLORA_RUN_KEY", undefined);
});

test("without a file the environment's key is taken; without both, or where the file is gone, it is said", () => {
  const key = "k".repeat(32);
  expect(givenKey()).toBeNull();
  expect(refused(() => keyFor(null)).message).toContain("the run's key is not given");
  expect(refused(() => keyFor(join(root, "gone.key"))).message).toContain("gone.key");
  set("MLORA_RUN_KEY", key);
  expect([givenKey(), keyFor(null)]).toEqual([key, key]);
  set("MLORA_RUN_KEY", undefined);
});
