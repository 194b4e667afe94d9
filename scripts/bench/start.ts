// How long a start takes: from the command to the first optimizer step, with a base model whose files are in the page cache.
//
//   bun scripts/bench/start.ts [--shape llama2-7b] [--folder FOLDER] [--mlora "COMMAND"] [--rounds 2] [--device auto]
//
// Writes a model of that shape with random weights into FOLDER (as large as the real one; left there, so that a second call is
// quick), trains one adapter for two steps, and prints the seconds until metrics.jsonl has its first.

import { existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { sizeOf } from "../../src/base/shape.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { writeByteTokenizer } from "../../tests/helpers/model.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "llama2-7b" },
    folder: { type: "string", default: join(tmpdir(), "mlora-start") },
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    rounds: { type: "string", default: "2" },
    device: { type: "string", default: "auto" },
  },
});

/** The model's files: config.json, one safetensors file of small random bf16 numbers, a tokenizer of bytes. */
function writeModel(folder: string): void {
  const spec = shapeOf(values.shape);
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
}

/** Seconds until the first step of a run. */
async function start(model: string): Promise<number> {
  const work = mkdtempSync(join(tmpdir(), "mlora-start-run-"));
  try {
    const rows = Array.from({ length: 16 }, (_, i) => JSON.stringify({ text: `row ${i} `.repeat(60) }));
    writeFileSync(join(work, "data.jsonl"), `${rows.join("\n")}\n`);
    const recipe = `[model]\npath = "${model}"\n[run]\noutput = "out"\n[[adapter]]\nname = "a"\ndata = "data.jsonl"\nrank = 16\nsteps = 2\nbatch_size = 8\nmax_length = 512\n`;
    writeFileSync(join(work, "recipe.toml"), recipe);
    const metrics = join(work, "out", "metrics.jsonl");
    const begin = performance.now();
    const child = Bun.spawn([...values.mlora.split(" "), "run", join(work, "recipe.toml"), "--device", values.device], {
      stdout: "ignore",
      stderr: "pipe",
    });
    let seconds = Number.NaN;
    while (child.exitCode === null) {
      if (existsSync(metrics) && readFileSync(metrics, "utf8").includes('"type":"step"')) {
        seconds = (performance.now() - begin) / 1000;
        break;
      }
      await Bun.sleep(5);
    }
    const [text, code] = [await child.stderr.text(), await child.exited];
    if (code !== 0 || Number.isNaN(seconds)) throw new Error(`mlora ended with ${code} before its first step: ${text}`);
    return seconds;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const model = join(values.folder, values.shape);
if (!existsSync(join(model, "config.json"))) {
  process.stderr.write(`start: writing a model of the shape ${values.shape} to ${model}\n`);
  writeModel(model);
}
for (let round = 1; round <= Number(values.rounds); round++)
  process.stdout.write(`${values.shape}, round ${round}: ${(await start(model)).toFixed(2)} s to the first step\n`);
