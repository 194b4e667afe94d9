// What a model's config.json says that is refused instead of passed over.

import { expect, test } from "bun:test";
import { specOf } from "../../src/files/config.ts";

test("a rope for each kind of layer is refused by name", () => {
  const config = { architectures: ["LlamaForCausalLM"], rope_theta: 1e5 };
  expect(specOf(config, "c").ropeTheta).toBe(1e5);
  const nested = { ...config, rope_parameters: { full_attention: { rope_theta: 5 } } };
  expect(() => specOf(nested, "c")).toThrow("rope_parameters.full_attention is");
});
