// docs/models.md is what the registry of families says.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { modelsPage } from "../../scripts/models.ts";
import { FAMILIES } from "../../src/families/registry.ts";
import { WRAPPERS } from "../../src/families/wrappers.ts";

test("docs/models.md is up to date: bun scripts/models.ts", () => {
  expect(readFileSync(join(import.meta.dir, "..", "..", "docs", "models.md"), "utf8")).toBe(modelsPage());
});

test("every architecture that is read has a row, and every tower a family", () => {
  const page = modelsPage();
  const names = Object.values(FAMILIES).flatMap(({ architectures }) => architectures as readonly string[]);
  for (const name of [...names, ...Object.keys(WRAPPERS)]) expect(page).toContain(`\`${name}\``);
  for (const { towers } of Object.values(WRAPPERS))
    for (const family of Object.values(towers)) expect(Object.keys(FAMILIES)).toContain(family);
});
