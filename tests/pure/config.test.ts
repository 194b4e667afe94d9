// What a model's config.json says that is refused instead of passed over.

import { expect, test } from "bun:test";
import { specOf } from "../../src/families/registry.ts";

test("a rope for each kind of layer is refused by name", () => {
  const config = { architectures: ["LlamaForCausalLM"], rope_theta: 1e5 };
  expect(specOf(config, "c").ropes[0]!.theta).toBe(1e5);
  const nested = { ...config, rope_parameters: { full_attention: { rope_theta: 5 } } };
  expect(() => specOf(nested, "c")).toThrow("rope_parameters.full_attention is");
});

test("original positions of llama3's rope that are null are refused with their place, as transformers does", () => {
  const scaling = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const config = { architectures: ["LlamaForCausalLM"], max_position_embeddings: 64, rope_scaling: scaling };
  const original = (more: object) => {
    const { scaling } = specOf({ ...config, ...more }, "c").ropes[0]!;
    return scaling?.kind === "llama3" ? scaling.originalMaxPositions : null;
  };
  expect([original({}), original({ original_max_position_embeddings: 16 })]).toEqual([64, 16]);
  const inside = { rope_scaling: { ...scaling, original_max_position_embeddings: null } };
  expect(() => original(inside)).toThrow("c: rope_scaling: original_max_position_embeddings is null");
  expect(() => original({ original_max_position_embeddings: null })).toThrow("c: original_max_position_embeddings is null");
});
