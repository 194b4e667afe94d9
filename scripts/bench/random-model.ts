// A base model's files with random weights, as large as the real one's: for benchmarks of whole commands.

import { existsSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { sizeOf } from "../../src/base/shape.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { writeByteTokenizer } from "../../tests/helpers/model.ts";

/**
 * A model of a known shape in `folder`/`shape`, where it stays for the next call: config.json, one safetensors file of small
 * random bf16 numbers, a tokenizer of bytes. Returns its folder.
 */
export function randomModel(within: string, shape: string): string {
  const folder = join(within, shape);
  if (existsSync(join(folder, "config.json"))) return folder;
  process.stderr.write(`writing a model of the shape ${shape} to ${folder}\n`);
  const spec = shapeOf(shape);
  mkdirSync(folder, { recursive: true });
  writeByteTokenizer(folder);
  let at = 0;
  const shapes = [...tensorShapes(spec)];
  const header = shapes.map(([name, shape]) => {
    const bytes = 2 * sizeOf(shape);
    at += bytes;
    return [name, { dtype: "BF16", shape, data_offsets: [at - bytes, at] }];
  });
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(header)));
  const size = new BigUint64Array([BigInt(json.length)]);
  const noise = Uint16Array.from({ length: 1 << 24 }, (_, i) => 0x3c00 + ((i * 2654435761) >>> 25) + (((i * 40503) & 1) << 15));
  const block = new Uint8Array(noise.buffer);
  const fd = openSync(join(folder, "model.safetensors"), "w");
  writeSync(fd, new Uint8Array(size.buffer));
  writeSync(fd, json);
  for (const [, shape] of shapes)
    for (let left = 2 * sizeOf(shape); left > 0; left -= block.length)
      writeSync(fd, block.subarray(0, Math.min(left, block.length)));
  const config = {
    architectures: ["LlamaForCausalLM"],
    hidden_size: spec.hidden,
    intermediate_size: spec.intermediate,
    num_hidden_layers: spec.layers,
    num_attention_heads: spec.heads,
    num_key_value_heads: spec.kvHeads,
    vocab_size: spec.vocab,
    max_position_embeddings: spec.maxPositions,
    rms_norm_eps: spec.normEps,
    rope_theta: spec.ropes[0]!.theta,
    tie_word_embeddings: spec.tiedEmbeddings,
  };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config)); // last: what is whole has it
  return folder;
}
