// A folder that is written next to its place: what a killed process left of one is removed by the names that it wrote down, and
// whatever else lies there, or is reached through a link, is left.

import { afterAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { stampOfProcess } from "../../src/base/process.ts";
import { openPart } from "../../src/files/part.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-part-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const fresh = () => mkdtempSync(join(root, "x-"));

const GONE = `4711 12 a-boot-before.1 ${hostname()}`;
const NAMES = ["config.json", "model.safetensors"];
const STAMP = ".mlora-export";

/** A folder such as an export leaves that was killed. */
function leave(path: string, process = GONE, names: readonly string[] = NAMES): void {
  mkdirSync(path);
  writeFileSync(join(path, STAMP), JSON.stringify({ process, names }));
  for (const name of ["config.json", "model.safetensors.4711-abc123.tmp"]) writeFileSync(join(path, name), "half");
}

const filesIn = (folder: string): string[] => readdirSync(folder, { recursive: true }).map(String).sort();

/** Has an export begin and end next to what lies there. */
function passBy(whole: string): void {
  const part = openPart(whole, NAMES);
  for (const name of NAMES) writeFileSync(join(part.path, name), "whole");
  part.finish();
  expect(filesIn(whole)).toEqual(NAMES);
}

describe("what a killed process left", () => {
  test("is removed by the next that writes the same, and by no other", () => {
    const folder = fresh();
    leave(join(folder, "whole.12.part"));
    leave(join(folder, "other.12.part"));
    passBy(join(folder, "whole"));
    expect(readdirSync(folder).sort()).toEqual(["other.12.part", "whole"]);
  });

  test("stays while the process may run", () => {
    const folder = fresh();
    leave(join(folder, "whole.12.part"), stampOfProcess());
    leave(join(folder, "whole.13.part"), `4711 12 boot.1 ${hostname()}-2`);
    const before = filesIn(folder);
    passBy(join(folder, "whole"));
    rmSync(join(folder, "whole"), { recursive: true });
    expect(filesIn(folder)).toEqual(before);
  });

  test("in a folder within it goes, too, with that folder if it is empty then", () => {
    const folder = fresh();
    for (const theirs of [[], ["mine.jinja"]]) {
      const part = join(folder, "whole.12.part");
      leave(part, GONE, [...NAMES, "templates/tool_use.jinja"]);
      mkdirSync(join(part, "templates"));
      for (const name of ["tool_use.jinja", ...theirs]) writeFileSync(join(part, "templates", name), "x");
      passBy(join(folder, "whole"));
      expect(existsSync(part) ? filesIn(part) : []).toEqual(theirs.flatMap((name) => ["templates", `templates/${name}`]));
      rmSync(join(folder, "whole"), { recursive: true });
    }
  });

  test("goes without what others have put there, folders and links among it", () => {
    const [folder, outside] = [fresh(), fresh()];
    writeFileSync(join(outside, "config.json"), "mine");
    const part = join(folder, "whole.12.part");
    leave(part, GONE, [...NAMES, "linked.json", "folder", "../whole.json", "linked/config.json"]);
    writeFileSync(join(part, "thesis.txt"), "mine");
    mkdirSync(join(part, "folder"));
    writeFileSync(join(part, "folder", "config.json"), "mine");
    symlinkSync(join(outside, "config.json"), join(part, "linked.json"));
    symlinkSync(outside, join(part, "linked"));
    writeFileSync(join(folder, "whole.json"), "mine");
    passBy(join(folder, "whole"));
    const left = ["folder", "folder/config.json", "linked", "linked.json", "linked/config.json", "thesis.txt"];
    expect(filesIn(part)).toEqual(left);
    expect(readFileSync(join(outside, "config.json"), "utf8")).toBe("mine");
    expect(readFileSync(join(folder, "whole.json"), "utf8")).toBe("mine");
    passBy(join(folder, "again")); // and what is left is no export's half
    expect(existsSync(join(part, "thesis.txt"))).toBe(true);
  });

  test("is known by a stamp of its own: not by a link to one, through a link to a folder, or by another text", () => {
    const [folder, outside] = [fresh(), fresh()];
    leave(join(outside, "real"));
    const before = filesIn(outside);
    symlinkSync(join(outside, "real"), join(folder, "whole.12.part"));
    for (const [i, text] of [GONE, "", "{", '{"process":1,"names":["config.json"]}'].entries()) {
      const part = join(folder, `whole.${i + 20}.part`);
      leave(part);
      writeFileSync(join(part, STAMP), text);
    }
    const linked = join(folder, "whole.30.part");
    leave(linked);
    rmSync(join(linked, STAMP));
    symlinkSync(join(outside, "real", STAMP), join(linked, STAMP));
    const here = filesIn(folder);
    passBy(join(folder, "whole"));
    rmSync(join(folder, "whole"), { recursive: true });
    expect(filesIn(folder)).toEqual(here);
    expect(filesIn(outside)).toEqual(before);
    expect(lstatSync(join(folder, "whole.12.part")).isSymbolicLink()).toBe(true);
  });
});

describe("a part that fails", () => {
  test("leaves nothing of its own, and what others have put there", () => {
    for (const theirs of [[], ["thesis.txt"]]) {
      const folder = fresh();
      const part = openPart(join(folder, "whole"), NAMES);
      for (const name of [...NAMES, ...theirs]) writeFileSync(join(part.path, name), "x");
      part.discard();
      expect(existsSync(part.path) ? filesIn(part.path) : []).toEqual(theirs);
      expect(existsSync(join(folder, "whole"))).toBe(false);
    }
  });
});
