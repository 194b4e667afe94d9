// JSON files as a whole: what is wrong in one is said with its place.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { jsonFault, parseJsonFile } from "../../src/base/json-file.ts";
import { Rng } from "../../src/base/rng.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readJsonObject } from "../../src/files/json.ts";
import { writeTinyModel } from "../helpers/model.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-json-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const messageOf = (read: () => unknown): string => {
  try {
    read();
    return "read";
  } catch (error) {
    return (error as Error).message;
  }
};

test.each([
  ["", "line 1, column 1: expected a value, found the end of the file"],
  ['{\n  "a": 1,\n}', 'line 3, column 1: expected a key in double quotes, found "}"'],
  ['{"a": 1\n "b": 2}', "line 2, column 2: expected ',' or '}', found"],
  ["{a: 1}", "line 1, column 2: expected a key in double quotes or '}', found \"a\""],
  ['{"a" 1}', "line 1, column 6: expected ':' after the key, found \"1\""],
  ["[1, 2", "line 1, column 6: expected ',' or ']', found the end of the file"],
  ["[1,]", 'line 1, column 4: expected a value, found "]"'],
  ["[01]", "line 1, column 2: expected a value or ']', found \"01\""],
  ["[True]", "line 1, column 2: expected a value or ']', found \"True\""],
  ['{"a": "x\ny"}', "line 1, column 7: expected a value, found a text that is not closed"],
  ['{"a": "\\x"}', "line 1, column 7: expected a value, found a text that is not closed"],
  ["{} {}", 'line 1, column 4: expected nothing more, found "{"'],
  ["\0\0", 'line 1, column 1: expected a value, found "\\u0000"'],
])("%j", (text, fault) => {
  expect(jsonFault(text)).toStartWith(fault);
});

test("what JSON.parse takes has no fault, and what it refuses has one: texts with signs put in, taken out and cut off", () => {
  const rng = new Rng(7);
  const pick = (from: string) => from[Math.floor(rng.uniform() * from.length)]!;
  const good = '{"a\\n\\u00e9": [1, -0.5e+3, {"b": [], "c": {}}, "x\\"y", true, false, null],\n "d": {"e": "é"} }';
  let [taken, refused] = [0, 0];
  for (let trial = 0; trial < 3000; trial++) {
    let text = good;
    for (let edits = Math.floor(rng.uniform() * 3); edits >= 0; edits--) {
      const at = Math.floor(rng.uniform() * text.length);
      const kept = Math.floor(rng.uniform() * 3); // 0: a sign less; 1: another after it; 2: cut off
      text =
        kept === 2 && rng.uniform() < 0.2
          ? text.slice(0, at)
          : text.slice(0, at + (kept > 0 ? 1 : 0)) + (kept > 0 ? pick('{}[],:"\\ 01eE.-+tn\n') : "") + text.slice(at + 1);
    }
    let isJson = true;
    try {
      JSON.parse(text);
    } catch {
      isJson = false;
    }
    if (isJson) taken++;
    else refused++;
    expect(jsonFault(text) === null, JSON.stringify(text)).toBe(isJson);
  }
  expect(Math.min(taken, refused)).toBeGreaterThan(20);
});

test("long texts and deep lists have a place, too", () => {
  const long = JSON.stringify({ a: "x\\".repeat(1 << 17), b: ["é".repeat(1 << 17)] });
  expect(jsonFault(long)).toBeNull();
  expect(jsonFault(`${long.slice(0, -1)}\n]`)).toBe("line 2, column 1: expected ',' or '}', found \"]\"");
  expect(jsonFault("[".repeat(1 << 16))).toStartWith(`line 1, column ${(1 << 16) + 1}: expected a value or ']'`);
});

test("a folder, a pipe, too many bytes and other encodings are refused, and none is waited for", () => {
  const [folder, pipe, file] = [join(root, "folder"), join(root, "pipe"), join(root, "file.json")];
  mkdirSync(folder);
  expect(Bun.spawnSync(["mkfifo", pipe]).exitCode).toBe(0);
  writeFileSync(file, '{"a": 1}');
  expect(messageOf(() => parseJsonFile(folder))).toBe("it is a folder");
  expect(messageOf(() => parseJsonFile(pipe))).toBe("it is no regular file");
  expect(messageOf(() => parseJsonFile(file, 7))).toBe("it has 8 bytes, at most 7 are read");
  writeFileSync(file, new Uint8Array([0x22, 0xff, 0x22]));
  expect(messageOf(() => parseJsonFile(file))).toBe("it is not UTF-8 text");
});

test("every JSON file of a model's folder is refused with file, place and a way out", () => {
  const model = join(root, "model");
  writeTinyModel(model);
  for (const [file, read] of [
    ["config.json", () => readModelSpec(model)],
    ["tokenizer.json", () => loadTokenizer(model)],
    ["tokenizer_config.json", () => loadTokenizer(model)],
    ["generation_config.json", () => readJsonObject(join(model, "generation_config.json"), "model.generation")],
  ] as const) {
    const path = join(model, file);
    rmSync(path, { force: true });
    writeFileSync(path, '{\n  "a": 1,\n}\n');
    expect(read).toThrow(
      expect.objectContaining({
        message: `${path}: cannot be read as JSON: line 3, column 1: expected a key in double quotes, found "}"`,
        hint: expect.stringContaining("damaged"),
      }),
    );
    rmSync(path);
    expect(Bun.spawnSync(["mkfifo", path]).exitCode).toBe(0);
    expect(messageOf(read)).toContain("it is no regular file");
    rmSync(path);
    writeTinyModel(model);
  }
});
