import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { VERSION } from "../../src/base/version.ts";

const ROOT = join(import.meta.dir, "..", "..");
const read = (name: string): string => readFileSync(join(ROOT, name), "utf8");

describe("CHANGELOG.md", () => {
  const sections = read("CHANGELOG.md").matchAll(/^## \[(.+?)\](?: - (\S+))?\n([\s\S]*?)(?=^## |$(?![\s\S]))/gm);
  const versions = [...sections].map(([, version = "", date, text = ""]) => ({ version, date, text }));
  const released = versions.filter(({ version }) => version !== "Unreleased");

  test("has the program's version as its newest, and that of each package file", () => {
    expect(released[0]?.version).toBe(VERSION);
    const lock = JSON.parse(read("package-lock.json"));
    expect([lock.version, lock.packages[""].version]).toEqual([VERSION, VERSION]);
  });

  test("has a date for each version, newest first, and something to say", () => {
    const order = released.map(({ version }) =>
      version
        .split(".")
        .map((part) => part.padStart(6, "0"))
        .join("."),
    );
    expect(order).toEqual([...order].sort().reverse());
    for (const { date, text } of released) {
      expect(date).toMatch(/^\d{4}-\d{2}-\d{2}$/);
      expect(text).toMatch(/^### (Added|Changed|Deprecated|Removed|Fixed|Security)\n\n- /m);
    }
  });
});
