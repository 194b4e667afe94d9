// What a path of a base model may be: a folder, a GGUF file, links to these; all else is refused by name.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isModelPath, modelPlace } from "../../src/files/modelpath.ts";
import { refused } from "../helpers/refused.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-modelpath-"));
afterAll(() => rmSync(root, { recursive: true }));

test("a folder, a file and links to these are models; a circle of links, a name too long and what is not there are refused", () => {
  const at = (name: string) => join(root, name);
  mkdirSync(at("model"));
  writeFileSync(at("m.gguf"), "");
  writeFileSync(at("notes.txt"), "");
  for (const [link, to] of [
    ["linked", "model"],
    ["linked.gguf", "m.gguf"],
    ["one", "two"],
    ["two", "one"],
    ["dangling", "none"],
  ] as const)
    symlinkSync(to, at(link));
  expect(modelPlace(at("linked"))).toEqual({ folder: at("linked"), gguf: null });
  expect(modelPlace(at("linked.gguf"))).toEqual({ folder: root, gguf: at("linked.gguf") });
  for (const [name, why] of [
    ["one", "ELOOP"],
    ["x".repeat(300), "ENAMETOOLONG"],
    ["dangling", "no such folder"],
    ["none", "no such folder"],
    ["notes.txt/model", "ENOTDIR"],
    ["notes.txt", "is no folder and no GGUF file"],
  ] as const) {
    const error = refused(() => modelPlace(at(name)));
    expect([error.code, error.message], name).toEqual(["model.folder", expect.stringContaining(why)]);
    if (/^E/.test(why)) expect(() => isModelPath(at(name))).toThrow(why);
    else expect(isModelPath(at(name)), name).toBe(false);
  }
});
