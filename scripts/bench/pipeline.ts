// A pipeline over two GPUs of one machine, compared with one GPU, two processes with a copy of the base model each, and PEFT
// with FSDP.
//
//   bun scripts/bench/pipeline.ts [--shapes "llama2-7b llama2-13b"] [--adapters "2 4 8"] [--steps 12] [--device cuda]
//                                 [--peers] [--mlora dist/mlora] [--write]
//
// Rank 16 on q, k, v, o, 8 x 512 tokens an adapter's mini-batch. Fails where losses on two stages are not those of one GPU, bit
// for bit. --peers runs PEFT with FSDP on both GPUs, which needs a Python with the packages of requirements.txt. --write adds
// the rows to docs/measurements/pipeline.md.

import { join } from "node:path";
import { parseArgs } from "node:util";
import { sum } from "../../src/base/shape.ts";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    shapes: { type: "string", default: "llama2-7b llama2-13b" },
    adapters: { type: "string", default: "2 4 8" },
    rows: { type: "string", default: "8" },
    length: { type: "string", default: "512" },
    steps: { type: "string", default: "12" },
    device: { type: "string", default: "cuda" },
    peers: { type: "boolean", default: false },
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    write: { type: "boolean", default: false },
  },
});

type Report = {
  readonly device: string;
  readonly tokens_per_s: number;
  readonly device_bytes: number;
  readonly bubble: number | null;
  readonly simulated_bubble: number | null;
  readonly links: readonly string[];
  readonly losses: readonly number[];
};

async function output(command: readonly string[], environment: Readonly<Record<string, string>> = {}): Promise<string> {
  const child = Bun.spawn([...command], { stdout: "pipe", stderr: "pipe", env: { ...process.env, ...environment } });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code !== 0) throw new Error(`${command.join(" ")}: exit code ${code}\n${err.slice(-3000)}`);
  return out.trimEnd().split("\n").at(-1)!;
}

async function bench(shape: string, adapters: number, stages: number, gpu?: number): Promise<Report> {
  const { rows, length, steps, device } = values;
  const settings = { shape, adapters, stages, rows, length, steps, device, rank: 16, targets: "qkvo", dropout: 0.05 };
  const flags = Object.entries(settings).flatMap(([key, value]) => [`--${key}`, `${value}`]);
  const only: Record<string, string> = gpu === undefined ? {} : { CUDA_VISIBLE_DEVICES: `${gpu}` };
  return JSON.parse(await output([...values.mlora.split(" "), "bench", ...flags, "--json"], only));
}

const HEAD = `# A pipeline over two GPUs

Rows of \`bun scripts/bench/pipeline.ts --write\`: rank 16 on q, k, v, o, dropout 0.05, ${values.rows} x ${values.length} tokens an adapter's mini-batch, bf16. "Ratio"
is tokens/s divided by those of one GPU; memory is of all GPUs together; bubbles are the idle share of both stages' time while both train.
PEFT's rows are compiled layer by layer, with as many rows on each GPU.

| date (UTC) | commit | GPU | shape | what | tokens/s | ratio | GiB | bubble, measured | simulated | link |
| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |
`;
const keep = tableOf("pipeline", HEAD, values.write);

function report(
  gpu: string,
  shape: string,
  what: string,
  tokens: number,
  bytes: number,
  ratio: number,
  rest: readonly string[],
): void {
  keep(gpu, shape, what, tokens.toFixed(0), ratio.toFixed(2), (bytes / 2 ** 30).toFixed(1), ...rest);
}

const NOTHING = ["", "", ""];
const failures: string[] = [];
for (const shape of values.shapes.split(" ")) {
  const counts = values.adapters.split(" ").map(Number);
  const most = Math.max(...counts);
  const one = await bench(shape, most, 1, 0);
  const beside = (tokens: number) => tokens / one.tokens_per_s;
  report(one.device, shape, `1 GPU, ${most} adapters`, one.tokens_per_s, one.device_bytes, 1, NOTHING);
  for (const count of counts) {
    const two = await bench(shape, count, 2);
    const link = two.links.find((line) => line.includes("to stage 1")) ?? two.links[0] ?? "";
    const bubbles = [two.bubble, two.simulated_bubble].map((bubble) => bubble?.toFixed(3) ?? "");
    const how = [...bubbles, link.replace(/^.*? by /, "")];
    report(two.device, shape, `2 stages, ${count} adapters`, two.tokens_per_s, two.device_bytes, beside(two.tokens_per_s), how);
    const other = two.losses.findIndex((loss, i) => loss !== one.losses[i]);
    if (other >= 0)
      failures.push(`${shape}, ${count} adapters: ${two.losses[other]} on two stages, ${one.losses[other]} on one GPU`);
  }
  const copies = await Promise.all([0, 1].map((gpu) => bench(shape, 2, 1, gpu)));
  const [tokens, bytes] = [sum(copies.map((copy) => copy.tokens_per_s)), sum(copies.map((copy) => copy.device_bytes))];
  report(one.device, shape, "2 processes, 2 adapters each", tokens, bytes, beside(tokens), NOTHING);
  if (!values.peers) continue;
  const { rows, length } = values;
  const flags = Object.entries({ shape, rows, length, rank: 16, dropout: 0.05 }).flatMap(([key, value]) => [
    `--${key}`,
    `${value}`,
  ]);
  const peer = JSON.parse(await output(["python3", "-B", join(ROOT, "scripts/bench/peer_fsdp.py"), ...flags]));
  report(one.device, shape, "PEFT, FSDP, 1 adapter", peer.tokens_per_s, peer.device_bytes, beside(peer.tokens_per_s), NOTHING);
}

if (failures.length > 0) throw new Error(failures.join("\n"));
