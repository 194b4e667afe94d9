// What a config.json leaves out is what the configuration class of transformers takes for it: a model is the same with all keys
// of its class and with none.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FAMILIES, specOf } from "../../src/families/registry.ts";

const GOLDEN: Readonly<Record<string, Record<string, unknown>>> = JSON.parse(
  readFileSync(join(import.meta.dir, "../golden/config/defaults.json"), "utf8"),
);

test.each(Object.keys(GOLDEN) as (keyof typeof FAMILIES)[])("%s", (type) => {
  const architectures = [...FAMILIES[type].architectures];
  expect(architectures.length).toBeGreaterThan(0);
  const whole = specOf({ ...GOLDEN[type], architectures }, "config.json");
  expect(specOf({ model_type: type, architectures }, "config.json")).toEqual(whole);
});
