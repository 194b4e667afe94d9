// What decides that a kernel is compiled again: its code, and nothing that is only read by people.

import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CopyOfSources, ROOT } from "../helpers/extending.ts";

test("comments and docstrings of a kernel are no part of its hash, code is", async () => {
  using copy = new CopyOfSources();
  copy.take("kernels/triton");
  const path = copy.at("kernels/triton/xent.py");
  const text = readFileSync(path, "utf8");
  const hashes = async (): Promise<string[]> => {
    const [code, rows] = await copy.run(join(ROOT, ".venv/bin/python"), "-B", "kernels/triton/compile.py", "--rows");
    expect(code).toBe(0);
    const { kernels } = JSON.parse(rows) as { kernels: { name: string; source_sha256: string }[] };
    return kernels.filter(({ name }) => name === "xent").map(({ source_sha256 }) => source_sha256);
  };
  const before = await hashes();
  expect(before.length).toBeGreaterThan(0);
  const commented = text
    .replace(/^"""/, '"""Other words.\n\n')
    .replace(/^(@triton\.jit)$/gm, '# A comment, with a "quote".\n\n$1')
    .replace(/^import triton$/m, "import triton  # why");
  expect(commented).not.toBe(text);
  writeFileSync(path, commented);
  expect(await hashes()).toEqual(before);
  writeFileSync(path, `${text}\nADDED = "# no comment"\n`);
  const changed = await hashes();
  expect(changed).not.toEqual(before);
  writeFileSync(path, `${text}\nADDED = "# another text"\n`);
  expect(await hashes()).not.toEqual(changed);
});
