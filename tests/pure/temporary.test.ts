// Folders for what is gone with a process: under TMPDIR, for this user alone, or an error that says which way out there is.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { RunError } from "../../src/base/errors.ts";
import { newTemporaryFolder } from "../../src/base/temporary.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-temporary-"));
const before = process.env["TMPDIR"];
afterAll(() => {
  if (before === undefined) delete process.env["TMPDIR"];
  else process.env["TMPDIR"] = before;
  rmSync(root, { recursive: true, force: true });
});

test("each is new and closed to others; where none can be made, the error names TMPDIR", () => {
  process.env["TMPDIR"] = root;
  const [one, two] = [newTemporaryFolder("a"), newTemporaryFolder("a")];
  expect(one).not.toBe(two);
  expect([dirname(one), statSync(one).mode & 0o077]).toEqual([root, 0]);
  process.env["TMPDIR"] = join(root, "none");
  try {
    newTemporaryFolder("a");
    throw new Error("made");
  } catch (error) {
    expect(error).toBeInstanceOf(RunError);
    expect(error).toMatchObject({ code: "files.temporary", hint: "set TMPDIR to a folder that may be written" });
    expect((error as Error).message).toContain(join(root, "none"));
  }
});
