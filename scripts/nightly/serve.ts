// A server under load that is killed at seeded moments: its clients retry, nothing is lost, and nothing is done twice.
//
//   bun scripts/nightly/serve.ts [--minutes 5] [--clients 200] [--kills 20] [--seed 1]
//
// Clients of two keys, the first with four times as many, ask base and adapters and train jobs of the same rows and seed, which
// must all come to the same bytes. Prints what was served and the server's memory; fails where something is not as it must be.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { now, sleep } from "../../src/base/clock.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { Workplace } from "../../tests/helpers/program.ts";
import { chatRows, jsonOf, type KEYS, type Started, serverFolder, startServer, upload } from "../../tests/helpers/server.ts";

type Key = keyof typeof KEYS;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "5" },
    clients: { type: "string", default: "200" },
    kills: { type: "string", default: "20" },
    seed: { type: "string", default: "1" },
  },
});
const rng = new Rng(Number(values.seed));
const milliseconds = 60_000 * Number(values.minutes);

using place = new Workplace(2);
const folder = serverFolder(
  place,
  "server",
  "[jobs]\nsave_seconds = 0.5\n[limits]\njobs = 1000\nfiles = 100000\nrequests = 4096\n",
);
let server: Started = await startServer(place, folder);
const end = now() + milliseconds;
const faults: string[] = [];
const served: Record<string, number> = { one: 0, two: 0 };
const trained: Record<Key, string[]> = { one: [], two: [], three: [] };

/** An answer, asked again while the server is away; null when the time is over. */
async function persist<T>(ask: () => Promise<T>): Promise<T | null> {
  for (let wait = 50; now() < end; wait = Math.min(2000, 2 * wait))
    try {
      return await ask();
    } catch {
      await sleep(wait);
    }
  return null;
}

const call = async (key: Key, path: string, json?: unknown) => {
  const response = await server.ask(path, { key, ...(json === undefined ? {} : { json }) });
  const body = await jsonOf(response);
  if (response.status === 429 || response.status >= 500) throw new Error(body.error.message);
  if (!response.ok) {
    faults.push(`${path}: ${body.error.message}`);
    throw new Error("refused");
  }
  return body;
};

async function asks(key: Key, seed: number): Promise<void> {
  while (now() < end) {
    const model = trained[key].at(-1 - (seed % 3)) ?? "local/tiny";
    const body = { model, prompt: "abc", max_tokens: 8, seed };
    const answer = await persist(() => call(key, "/v1/completions", body));
    served[key]! += answer?.usage.completion_tokens ?? 0;
  }
}

async function trains(key: Key): Promise<void> {
  const file = await persist(async () => upload(server.ask, chatRows(12), "rows.jsonl", key));
  while (file && now() < end) {
    const body = { model: "local/tiny", training_file: file.id, seed: 3, hyperparameters: { n_epochs: 6, batch_size: 2 } };
    let job = await persist(() => call(key, "/v1/fine_tuning/jobs", body));
    while (job && !/^(succeeded|failed)$/.test(job.status) && now() < end) {
      await sleep(200);
      job = (await persist(() => call(key, `/v1/fine_tuning/jobs/${job.id}`))) ?? job;
    }
    if (job?.status === "failed") faults.push(`${job.id} failed: ${job.error.message}`);
    if (job?.status !== "succeeded") continue;
    const events = (await persist(() => call(key, `/v1/fine_tuning/jobs/${job.id}/events?limit=1000`)))?.data ?? [];
    const steps = events.filter((of: { type: string }) => of.type === "metrics").length;
    if (events.length > 0 && steps !== 36) faults.push(`${job.id} has ${steps} steps in its events, expected 36`);
    trained[key].push(job.fine_tuned_model);
  }
}

const memory: number[] = [];
const watches = async (): Promise<void> => {
  for (; now() < end; await sleep(1000)) {
    const status = `/proc/${server.running.pid}/status`;
    if (existsSync(status)) memory.push(Number(/VmRSS:\s+(\d+)/.exec(readFileSync(status, "utf8"))?.[1] ?? 0) / 1024);
  }
};

const kills = async (): Promise<void> => {
  const moments = range(Number(values.kills))
    .map(() => end - milliseconds * (0.05 + 0.9 * rng.uniform()))
    .sort((a, b) => a - b);
  for (const moment of moments) {
    await sleep(Math.max(0, moment - now()));
    server.running.kill("SIGKILL");
    await server.running.ended;
    server = await startServer(place, folder);
  }
};

const clients = Number(values.clients);
const asking = range(clients).map((i) => asks(i % 5 === 4 ? "two" : "one", i));
await Promise.all([...asking, ...range(8).map((i) => trains(i % 2 === 0 ? "one" : "two")), watches(), kills()]);
server.running.kill("SIGTERM");
const { err } = await server.running.ended;
faults.push(...err.split("\n").filter((line) => line.includes('"event":"error"')));

const jobs = join(folder, "state", "jobs");
const models = readdirSync(jobs).map((id) => join(jobs, id, "model", "adapter_model.safetensors"));
const bytes = new Set(models.filter(existsSync).map((path) => Bun.hash(readFileSync(path))));
if (bytes.size !== 1) faults.push(`jobs of the same rows and seed came to ${bytes.size} different adapters`);
const shares = Object.values(served);
const jain = sum(shares) ** 2 / (shares.length * sum(shares.map((share) => share ** 2)));
const third = Math.ceil(memory.length / 3);
const mean = (of: readonly number[]): number => Math.round(sum(of) / of.length);
console.log(
  `tokens by key ${JSON.stringify(served)}, Jain's index ${jain.toFixed(3)}; ${trained.one.length + trained.two.length} jobs`,
);
console.log(
  `memory of the server, by thirds of the time: ${[0, 1, 2].map((i) => mean(memory.slice(i * third, (i + 1) * third))).join(", ")} MiB`,
);
if (jain < 0.95) faults.push(`the keys were not served alike: Jain's index ${jain.toFixed(3)}`);
for (const fault of faults) console.log(fault);
process.exit(faults.length === 0 ? 0 : 1);
