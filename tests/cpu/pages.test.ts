// Pages of the cache and prompts in pieces on the cpu device, by tiles and by rows as GPUs extend sequences.

import { describe } from "bun:test";
import { CpuDevice } from "../../src/device/cpu.ts";
import { sharesPages } from "../helpers/pages.ts";
import { sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const { llama, mistral } = tinyFamilies;
const { qwen3next, qwen3moe } = sparseFamilies;

describe("pages of the cache", () => {
  for (const [name, spec] of Object.entries({ llama, mistral, qwen3next, qwen3moe }))
    sharesPages(name, () => new CpuDevice(2), spec!);
});
