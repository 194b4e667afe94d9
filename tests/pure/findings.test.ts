// Each finding says which version it is of, and installs packages by their versions alone: it shows the same on any day.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const FOLDER = join(import.meta.dir, "../../findings");
const names = [...new Bun.Glob("*.sh").scanSync(FOLDER)].sort();

/** What a line installs by pip or npm, without its options. */
function installed(line: string): string[] {
  const [, packages] = /\b(?:pip"?|npm) install (.*)/.exec(line) ?? [];
  const words = (packages ?? "").replace(/\s*[>&|;].*/, "").split(/\s+/);
  return words.map((word) => word.replaceAll('"', "")).filter((word) => /^[a-z@]/i.test(word));
}

test.each(names)("%s", (name) => {
  const lines = readFileSync(join(FOLDER, name), "utf8").split("\n");
  expect(lines.flatMap(installed).filter((of) => !/==.|.@./.test(of))).toEqual([]);
  expect(
    lines
      .slice(
        1,
        lines.findIndex((line) => !line.startsWith("#")),
      )
      .join(" "),
  ).toMatch(/\b\d+\.\d+/);
});

test("a version is missed where it is missing", () => {
  const pip = 'py/bin/pip install --quiet "triton==$version" a==1.0 b >/dev/null';
  expect(installed(pip)).toEqual(["triton==$version", "a==1.0", "b"]);
  expect(installed("npm install --silent @x/y@1.2.3 z && true")).toEqual(["@x/y@1.2.3", "z"]);
});
