// What a server adds to training: tokens/s of clients that train step by step by Tinker's protocol, and of `mlora run` with the
// same rows and settings.
//
//   bun scripts/bench/serving.ts [--mlora dist/mlora] [--shape llama3-8b] [--clients 32] [--rank 16] [--rows 4]
//                                [--tokens 128-512] [--steps 10] [--folder FOLDER] [--device cuda] [--precision auto]
//                                [--stages 1] [--model FOLDER] [--save "60 10"] [--python PATH]
//                                [--seed 1] [--write]
//
// Each adapter is a LoRA on all linear layers with rows of its own, --rows of them a step, of random lengths. One run trains
// all of them, then as many clients at once train theirs at one server: a client sends the rows and the step, waits for the
// results of both, and sends the next. The server saves each model at --save's intervals, in seconds, with one measurement
// each. Clients are this program's own, or, with --python, Tinker's Python client in that environment. The rate is that of
// the steps that end after each adapter's second and before the first one's last. Fails where a gradient's norm is not the
// run's, bit for bit. Writes a model with random weights into --folder, where it stays; --model is one that is there, with a
// tokenizer of bytes. --write adds a row to docs/measurements/serving.md.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { stringify } from "smol-toml";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { randomModel } from "./random-model.ts";
import { type Client, type Finished, ownClient, pythonClients, type Rows } from "./serving-clients.ts";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    shape: { type: "string", default: "llama3-8b" },
    clients: { type: "string", default: "32" },
    rank: { type: "string", default: "16" },
    rows: { type: "string", default: "4" },
    tokens: { type: "string", default: "128-512" },
    steps: { type: "string", default: "10" },
    stages: { type: "string", default: "1" },
    model: { type: "string" },
    folder: { type: "string", default: join(tmpdir(), "mlora-start") },
    device: { type: "string", default: "cuda" },
    precision: { type: "string", default: "auto" },
    save: { type: "string", default: "60" },
    python: { type: "string" },
    seed: { type: "string", default: "1" },
    write: { type: "boolean", default: false },
  },
});
const [clients, rank, rowsOfStep, steps] = [values.clients, values.rank, values.rows, values.steps].map(Number) as [
  ...[number, number, number, number],
];
const [least, most] = values.tokens.split("-").map(Number) as [number, number];
const RATE = 1e-4;
/** Steps of each adapter before those that are counted; milliseconds between two looks at a run's metrics. */
const [WARM, INTERVAL] = [2, 5];
const KEY = `tml-${"k".repeat(32)}`;

/** A run or a server outlives this process otherwise, and the GPU's memory with it. */
let running: Bun.Subprocess | null = null;
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    running?.kill("SIGKILL");
    process.exit(1);
  });

/** Tokens/s of the steps between every adapter's warm-up and the first one's end. */
function rateOf(finished: readonly Finished[]): number {
  const last = (wanted: number) => finished.filter(({ step }) => step === wanted).map(({ at }) => at);
  const [from, to] = [Math.max(...last(WARM)), Math.min(...last(steps))];
  if (!(to > from)) throw new Error("one adapter has ended before another has begun: give more --steps");
  return (1000 * sum(finished.filter(({ at }) => at > from && at <= to).map(({ tokens }) => tokens))) / (to - from);
}

/** The same in each two seconds, from the first step that ended on. */
function ratesOf(finished: readonly Finished[]): string {
  const [first, last] = [Math.min(...finished.map(({ at }) => at)), Math.max(...finished.map(({ at }) => at))];
  const each = range(Math.floor((last - first) / 2000)).map((i) => {
    const [from, to] = [first + 2000 * i, first + 2000 * (i + 1)];
    return sum(finished.filter(({ at }) => at > from && at <= to).map(({ tokens }) => tokens)) / 2;
  });
  return each.map((rate) => rate.toFixed(0)).join(" ");
}

/** The texts of each adapter: a token of the model's tokenizer for each character, and one that ends them. */
function textsOf(adapter: number): string[] {
  const rng = new Rng(Number(values.seed), adapter);
  return range(rowsOfStep * steps).map(() =>
    String.fromCharCode(...range(least + rng.below(most - least + 1) - 2).map(() => 97 + rng.below(26))),
  );
}

const settings = {
  ...{ rank, alpha: 32, targets: "all-linear", batch_size: rowsOfStep, steps, max_length: most, shuffle: false },
  ...{ learning_rate: RATE, betas: [0.9, 0.95], eps: 1e-12, weight_decay: 0, max_grad_norm: false },
  ...{ scheduler: "constant", warmup: 0 },
};

const ofRun = { device: values.device, stages: Number(values.stages) };

function recipeOf(model: string, work: string): string {
  return stringify({
    model: { path: model, precision: values.precision },
    run: { output: join(work, "out"), ...ofRun },
    defaults: settings,
    adapter: range(clients).map((i) => ({ name: `a${i}`, data: `rows-${i}.jsonl`, seed: i })),
  });
}

/** Steps of a run as they come; it is ended by force after the last one, as nothing that follows is measured. */
async function run(model: string, work: string): Promise<Finished[]> {
  writeFileSync(join(work, "recipe.toml"), recipeOf(model, work));
  const child = Bun.spawn([...values.mlora.split(" "), "run", join(work, "recipe.toml")], { stdout: "ignore", stderr: "pipe" });
  running = child;
  const said = child.stderr.text();
  const metrics = join(work, "out", "metrics.jsonl");
  const finished: Finished[] = [];
  for (let code: number | null = null, lines = 0; finished.length < clients * steps && code === null; ) {
    code = await Promise.race([child.exited, Bun.sleep(INTERVAL).then(() => null)]);
    const all = existsSync(metrics) ? readFileSync(metrics, "utf8").split("\n").slice(0, -1) : [];
    const at = performance.now();
    for (const line of all.slice(lines)) {
      const { type, adapter, step, tokens, grad_norm: gradNorm } = JSON.parse(line);
      if (type === "step") finished.push({ adapter: Number(adapter.slice(1)), step, tokens, at, gradNorm });
    }
    lines = all.length;
  }
  child.kill("SIGKILL");
  await child.exited;
  if (finished.length < clients * steps) throw new Error(await said);
  return finished;
}

type Served = { readonly finished: readonly Finished[]; readonly device: string };

/** The same by clients of a server. */
async function serve(model: string, work: string, save: number): Promise<Served> {
  const [folder, port] = [join(work, `server-${save}`), freePort()];
  mkdirSync(folder);
  writeFileSync(join(folder, "keys.txt"), `bench ${KEY}\n`, { mode: 0o600 });
  const config = {
    model: { name: "bench", precision: values.precision },
    run: ofRun,
    server: { folder: "state", keys: "keys.txt", log: "none", listen: `127.0.0.1:${port}` },
    capacity: { slots: clients, rank, max_length: most, batch_size: rowsOfStep, sequences: 1 },
    jobs: { save_seconds: save },
    limits: { requests: 4 * clients + 16, body_bytes: 64 << 20 },
  };
  writeFileSync(join(folder, "serve.toml"), stringify(config));
  const child = Bun.spawn([...values.mlora.split(" "), "serve", model, "--config", join(folder, "serve.toml")], {
    stdout: "pipe",
    stderr: "pipe",
  });
  running = child;
  const [said, printed] = [child.stderr.text(), child.stdout.text()];
  const url = `http://127.0.0.1:${port}`;
  const trained = async (): Promise<readonly Finished[]> => {
    for (let code: number | null = null; ; ) {
      code = await Promise.race([child.exited, Bun.sleep(50).then(() => null)]);
      if (code !== null) throw new Error(`the server ended with ${code}: ${await said}`);
      if (await answers(url)) break;
    }
    const client: Client = { url, key: KEY, model: "bench", rank, rate: RATE };
    const rows = range(clients).map((i): Rows => ({ adapter: i, steps, rowsOfStep, texts: textsOf(i) }));
    if (values.python !== undefined) return await pythonClients(values.python, client, rows);
    return (await Promise.all(rows.map((of) => ownClient(client, of)))).flat();
  };
  try {
    const finished = await trained();
    child.kill("SIGTERM");
    return { finished, device: / on (.*): http/.exec(await printed)![1]! };
  } finally {
    child.kill("SIGTERM");
    const late = setTimeout(() => child.kill("SIGKILL"), 5000);
    await child.exited;
    clearTimeout(late);
  }
}

const answers = (url: string): Promise<boolean> =>
  fetch(`${url}/healthz`).then(
    ({ ok }) => ok,
    () => false,
  );

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const { port } = server;
  server.stop(true);
  return port!;
}

const nameOf = ({ adapter, step }: Finished) => `step ${step} of adapter ${adapter}`;

/** Throws where the two have not learned the same. */
function checkSame(ran: readonly Finished[], served: readonly Finished[]): void {
  const norms = new Map(ran.map((of) => [nameOf(of), of]));
  const others = served.filter((of) => norms.get(nameOf(of))!.gradNorm !== of.gradNorm);
  const tokens = served.filter((of) => norms.get(nameOf(of))!.tokens !== of.tokens);
  if (tokens.length > 0) throw new Error(`${nameOf(tokens[0]!)} has ${tokens[0]!.tokens} tokens at the server`);
  if (others.length === 0) return;
  const [first] = others as [Finished];
  const want = norms.get(nameOf(first))!;
  throw new Error(
    `${others.length} of ${served.length} gradients are not the run's: the norm of ${nameOf(first)} is ${first.gradNorm}, ${want.gradNorm} of the run`,
  );
}

const HEAD = `# Training at a server

Rows of \`bun scripts/bench/serving.ts --write\`.

| date (UTC) | commit | device | shape | precision | what | \`mlora run\`, tokens/s | at the server | ratio |
| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: |
`;
const model = values.model ?? randomModel(values.folder, values.shape);
const work = mkdtempSync(join(tmpdir(), "mlora-serving-"));
const keep = tableOf("serving", HEAD, values.write);
try {
  for (const i of range(clients))
    writeFileSync(
      join(work, `rows-${i}.jsonl`),
      textsOf(i)
        .map((text) => `${JSON.stringify({ text })}\n`)
        .join(""),
    );
  const ran = await run(model, work);
  const alone = rateOf(ran);
  console.log(`mlora run: ${alone.toFixed(0)} tokens/s; in each 2 s ${ratesOf(ran)}`);
  for (const save of values.save.split(" ").map(Number)) {
    const { finished, device } = await serve(model, work, save);
    const rate = rateOf(finished);
    console.log(
      `at the server, saved each ${save} s: ${rate.toFixed(0)} tokens/s, ${(rate / alone).toFixed(3)} of it; in each 2 s ${ratesOf(finished)}`,
    );
    checkSame(ran, finished);
    const who = values.python === undefined ? "" : " in Python";
    const where = ofRun.stages === 1 ? "" : ` on ${ofRun.stages} stages`;
    const what = `${clients} clients${who}${where}, rank ${rank}, ${rowsOfStep} rows of ${values.tokens} tokens a step, saved each ${save} s`;
    keep(
      device,
      values.model ?? values.shape,
      values.precision,
      what,
      Math.round(alone),
      Math.round(rate),
      (rate / alone).toFixed(3),
    );
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
