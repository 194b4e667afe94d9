// A server under load that is killed at seeded moments: its clients retry, nothing is lost, and nothing is done twice.
//
//   bun scripts/nightly/serve.ts [--minutes 5] [--clients 200] [--kills 20] [--adapters 50] [--seed 1] [--write]
//
// Clients of two keys, the first with four times as many: most ask an adapter each, again and again the same; one of ten trains
// by Tinker's protocol, and samples what it has trained; eight more train jobs. All that is asked for twice must come to the
// same bytes. The kills are in the first 60 % of the time; in what is left clients must be served alike, and the server's
// memory must stay. Prints what was served; fails where something is not as it must be. --write adds it to
// docs/measurements/serving.md.

import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { now, sleep } from "../../src/base/clock.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { childrenOf, Workplace } from "../../tests/helpers/program.ts";
import {
  chatRows,
  isOver,
  jsonOf,
  type KEYS,
  type Started,
  serverFolder,
  startServer,
  upload,
} from "../../tests/helpers/server.ts";
import { TinkerCaller, weightedDatum } from "../../tests/helpers/tinker.ts";
import { commit, date } from "../bench/table.ts";

type Key = keyof typeof KEYS;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "5" },
    clients: { type: "string", default: "200" },
    kills: { type: "string", default: "20" },
    adapters: { type: "string", default: "50" },
    seed: { type: "string", default: "1" },
    write: { type: "boolean", default: false },
  },
});
const rng = new Rng(Number(values.seed));
const [minutes, clients, kills, adapters] = [values.minutes, values.clients, values.kills, values.adapters].map(Number) as [
  ...[number, number, number, number],
];
/** Share of the time in which the server is killed, and how much its memory may grow after that, in MiB. */
const [KILLED, SLACK] = [0.6, 24];

using place = new Workplace(2);
const library = join(place.root, "library");
mkdirSync(library);
const folder = serverFolder(
  place,
  "server",
  `[jobs]\nsave_seconds = 0.5\n[limits]\njobs = 1000\nfiles = 100000\nrequests = 4096\n[adapters]\nfolder = "${library}"\n`,
);
let server: Started = await startServer(place, folder);
const faults: string[] = [];

// The adapters: copies of what one job trains, half of them of each key.
const first = await upload(server.ask, chatRows(12));
const asked = { model: "local/tiny", training_file: first.id, seed: 3, hyperparameters: { n_epochs: 6, batch_size: 2 } };
let made = await jsonOf(server.ask("/v1/fine_tuning/jobs", { json: asked }));
for (; !isOver(made.status); await sleep(100)) made = await jsonOf(server.ask(`/v1/fine_tuning/jobs/${made.id}`));
for (const i of range(adapters)) {
  const [name, key] = [`a${i}`, i % 2 === 0 ? "one" : "two"] as const;
  cpSync(join(folder, "state", "jobs", made.id, "model"), join(library, name), { recursive: true });
  await server.ask("/v1/load_lora_adapter", { key, json: { lora_name: name, lora_path: name } });
}

const began = now();
const end = began + 60_000 * minutes;
const isOpen = (): boolean => now() < end;
/** A server that is killed again and again serves those first that come back first. */
const calm = began + 60_000 * minutes * KILLED;

/** An answer, asked again while the server is away; null when the time is over. */
async function persist<T>(ask: () => Promise<T>): Promise<T | null> {
  for (let wait = 50; isOpen(); wait = Math.min(2000, 2 * wait))
    try {
      return await ask();
    } catch {
      await sleep(wait);
    }
  return null;
}

const call = async (key: Key, path: string, json?: unknown, headers: Record<string, string> = {}) => {
  const response = await server.ask(path, { key, headers, ...(json === undefined ? {} : { json }) });
  const body = await jsonOf(response);
  if (response.status === 429 || response.status >= 500) throw new Error(body.error.message);
  if (!response.ok) {
    faults.push(`${path}: ${body.error.message}`);
    throw new Error("refused");
  }
  return body;
};

/** What was answered to each thing that is asked again and again. */
const answered = new Map<string, string>();
function mustBeSame(what: string, answer: string): void {
  const before = answered.get(what) ?? answer;
  answered.set(what, answer);
  if (answer !== before) faults.push(`${what} was answered by ${before}, then by ${answer}`);
}

/** `calmly`: tokens since the last kill. */
type Client = { readonly key: Key; tokens: number; calmly: number; longest: number };

/** How many clients of each key ask: its adapters have as many each, as nearly as may be. */
const asking: Record<Key, number> = { one: 0, two: 0, three: 0 };
async function asks(client: Client, i: number): Promise<void> {
  const { key } = client;
  const own = range(adapters).filter((of) => (key === "one") === (of % 2 === 0));
  const body = { model: `a${own[asking[key]++ % own.length]}`, prompt: "abc", max_tokens: 8, seed: i, logprobs: 0 };
  for (let at = now(); isOpen(); at = now()) {
    const answer = await persist(() => call(key, "/v1/completions", body));
    if (!answer) return;
    client.tokens += answer.usage.completion_tokens;
    if (now() > calm) client.calmly += answer.usage.completion_tokens;
    client.longest = Math.max(client.longest, now() - at);
    mustBeSame(`seed ${i}`, JSON.stringify(answer.choices[0].logprobs.token_logprobs));
  }
}

let steps = 0;
async function trainsByStep(key: Key): Promise<void> {
  const rows = range(4).map((i) => range(12).map((at) => 1 + ((31 * i + 7 * at) % 200)));
  const data = rows.map((ids) =>
    weightedDatum(
      ids,
      range(ids.length - 1).map(() => 1 / 44),
    ),
  );
  const caller = new TinkerCaller((...of) => server.ask(...of), key, 60_000 * (1 + minutes));
  while (isOpen()) {
    const session = await caller.session();
    const model = await caller.model(session, 5);
    const results: string[] = [];
    for (let step = 0; step < 4 && isOpen(); step++) {
      const ids = [await caller.forwardBackward(model, 2 * step + 1, data), await caller.step(model, 2 * step + 2, 3e-3)];
      for (const id of ids) results.push(await caller.bytes(id));
      mustBeSame(`step ${step + 1} of Tinker's`, results.join(" "));
      steps++;
    }
    if (results.length < 8) return;
    const saving = { model_id: model, seq_id: 9, sampling_session_seq_id: 0, kind: "snapshot" };
    const saved = await jsonOf(caller.post("save_weights_for_sampler", saving));
    const { sampling_session_id } = await jsonOf(caller.result(saved.request_id));
    const prompt = { chunks: [{ type: "encoded_text", tokens: [97, 98, 99] }] };
    const sampling = { sampling_session_id, seq_id: 0, num_samples: 2, prompt, sampling_params: { max_tokens: 8, seed: 4 } };
    mustBeSame("Tinker's sample", await caller.bytes((await jsonOf(caller.post("asample", sampling))).request_id));
    await caller.post(`sessions/${session}/finish`, {});
  }
}

const jobs: Record<Key, number> = { one: 1, two: 0, three: 0 };
async function trainsJobs(key: Key, i: number): Promise<void> {
  const file = await persist(async () => {
    const { id } = await upload(server.ask, chatRows(12), "rows.jsonl", key);
    if (!id) throw new Error("refused");
    return id as string;
  });
  for (let n = 0; file && isOpen(); n++) {
    const name = { "idempotency-key": `${i} ${n}` };
    let job = await persist(() => call(key, "/v1/fine_tuning/jobs", { ...asked, training_file: file }, name));
    if (!job) return;
    jobs[key]++;
    for (; !isOver(job.status) && isOpen(); await sleep(200))
      job = (await persist(() => call(key, `/v1/fine_tuning/jobs/${job.id}`))) ?? job;
    if (job.status === "failed") faults.push(`${job.id} failed: ${job.error.message}`);
    if (job.status !== "succeeded") continue;
    const events = (await persist(() => call(key, `/v1/fine_tuning/jobs/${job.id}/events?limit=1000`)))?.data ?? [];
    const made = events.filter((of: { type: string }) => of.type === "metrics").length;
    if (events.length > 0 && made !== 36) faults.push(`${job.id} has ${made} steps in its events, expected 36`);
  }
}

type Memory = { readonly at: number; readonly server: number; readonly stage: number };
const memory: Memory[] = [];
const waits: number[] = [];
const rssOf = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1024;
const watches = async (): Promise<void> => {
  for (; isOpen(); await sleep(1000)) {
    const at = now();
    const isThere = await server.ask("/metrics").then(
      async (response) => (await response.text()) !== "",
      () => false,
    );
    if (!isThere) continue;
    waits.push(now() - at);
    const { pid } = server.running;
    try {
      memory.push({ at, server: rssOf(pid), stage: sum(childrenOf(pid).map(rssOf)) });
    } catch {
      // it was killed meanwhile
    }
  }
};

let killed = 0;
const kill = async (): Promise<void> => {
  const moments = range(kills)
    .map(() => began + 60_000 * minutes * (0.05 + (KILLED - 0.05) * rng.uniform()))
    .sort((a, b) => a - b);
  for (const moment of moments) {
    await sleep(Math.max(0, moment - now()));
    if (!isOpen()) return;
    server.running.kill("SIGKILL");
    await server.running.ended;
    killed++;
    server = await startServer(place, folder);
  }
};

const all = range(clients).map((i): Client => ({ key: i % 5 === 4 ? "two" : "one", tokens: 0, calmly: 0, longest: 0 }));
const isTrainer = (i: number): boolean => i % 10 === 8 || i % 50 === 49;
const askers = all.filter((_, i) => !isTrainer(i));
const lastKill = kill();
await Promise.all([
  ...all.map((client, i) => (isTrainer(i) ? trainsByStep(client.key) : asks(client, i))),
  ...range(8).map((i) => trainsJobs(i % 2 === 0 ? "one" : "two", i)),
  ...[watches(), lastKill],
]);

for (const key of ["one", "two"] as const) {
  const { data } = await jsonOf(server.ask("/v1/fine_tuning/jobs?limit=1000", { key }));
  if (data.length !== jobs[key]) faults.push(`key ${key} has ${data.length} jobs, and asked for ${jobs[key]}`);
}
server.running.kill("SIGTERM");
const { err, code } = await server.running.ended;
if (code !== 0) faults.push(`the server ended with ${code}`);
faults.push(...err.split("\n").filter((line) => line.includes('"event":"error"')));
const jobsFolder = join(folder, "state", "jobs");
const models = readdirSync(jobsFolder).map((id) => join(jobsFolder, id, "model", "adapter_model.safetensors"));
const bytes = new Set(models.filter(existsSync).map((path) => Bun.hash(readFileSync(path))));
if (bytes.size !== 1) faults.push(`jobs of the same rows and seed came to ${bytes.size} different adapters`);

/** Jain's index of fairness: 1 where all are served alike. */
const jain = (shares: readonly number[]): number => sum(shares) ** 2 / (shares.length * sum(shares.map((of) => of ** 2)));
type Served = "tokens" | "calmly";
const tokensOf = (key: Key, of: Served = "tokens"): number[] =>
  askers.filter((client) => client.key === key).map((client) => client[of]);
const fairness = (of: Served) => {
  const [one, two] = [tokensOf("one", of), tokensOf("two", of)];
  return { keys: jain([sum(one), sum(two)]), one: jain(one), two: jain(two) };
};
const [fair, whole] = [fairness("calmly"), fairness("tokens")];
for (const [name, index] of Object.entries(fair)) if (!(index >= 0.95)) faults.push(`Jain's index of ${name} is ${index}`);
const fairText = ({ keys, one, two }: typeof fair) =>
  `of the keys ${keys.toFixed(3)}, of the clients of each ${one.toFixed(3)} and ${two.toFixed(3)}`;
const last = memory.filter(({ at }) => at > calm + 6000 * minutes);
const median = (of: readonly number[]): number => Math.round([...of].sort((a, b) => a - b)[of.length >> 1] ?? 0);
const third = Math.ceil(last.length / 3);
const thirds = (of: "server" | "stage") =>
  range(3).map((i) => median(last.slice(i * third, (i + 1) * third).map((at) => at[of])));
for (const of of ["server", "stage"] as const) {
  const [before, , after] = thirds(of) as [number, number, number];
  if (after - before > SLACK) faults.push(`the memory of the ${of} grew from ${before} to ${after} MiB`);
}
const seconds = (ms: number): string => (ms / 1000).toFixed(1);
const lines = [
  `tokens of ${askers.length} clients that ask: ${sum(tokensOf("one"))} of the key of ${tokensOf("one").length}, ${sum(tokensOf("two"))} of the key of ${tokensOf("two").length}; the longest wait for an answer ${seconds(Math.max(...askers.map(({ longest }) => longest)))} s`,
  `Jain's index after the kills: ${fairText(fair)}; of the whole time: ${fairText(whole)}`,
  `${jobs.one + jobs.two} jobs, ${steps} steps of ${all.length - askers.length} clients of Tinker's protocol`,
  `memory after the kills, by thirds: server ${thirds("server").join(", ")} MiB, stage ${thirds("stage").join(", ")} MiB`,
  `/metrics: median ${seconds(median(waits))} s, longest ${seconds(Math.max(...waits))} s`,
  `faults: ${faults.length}${faults.map((fault) => `; ${fault.slice(0, 100)}`).join("")}`,
];
const [{ model: processor = "?" } = {}] = (await import("node:os")).cpus();
const text = `${minutes} min, ${clients} clients, ${adapters} adapters, ${killed} kills, ${processor.replace(/ \d.*$/, "")}, 2 cores, load ${(await import("node:os")).loadavg()[1]!.toFixed(0)}`;
console.log([text, ...lines, ...faults].join("\n"));
if (values.write) {
  const file = join(import.meta.dir, "..", "..", "docs", "measurements", "serving.md");
  const head = `# Serving under load

Of \`bun scripts/nightly/serve.ts --write\`: a server of a tiny model on CPUs, asked and trained by clients of two keys, and killed (SIGKILL) at random
moments in the first 60 % of the time; clients repeat what has no answer. What is asked for twice must come to the same bytes, and every job is made once; what is not so is a fault.
`;
  const before = existsSync(file) ? readFileSync(file, "utf8") : head;
  writeFileSync(file, `${before}\n${date()} UTC, ${commit}: ${text}.\n\n${lines.map((line) => `- ${line}\n`).join("")}`);
}
process.exit(faults.length === 0 ? 0 : 1);
