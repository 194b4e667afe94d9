// Clients of a server that train an adapter each, step by step, by Tinker's protocol.

import { join } from "node:path";
import { range, sum } from "../../src/base/shape.ts";
import { jsonOf } from "../../tests/helpers/server.ts";
import { TinkerCaller, weightedDatum } from "../../tests/helpers/tinker.ts";

/** Where they ask, and what each trains. */
export type Client = {
  readonly url: string;
  readonly key: string;
  readonly model: string;
  readonly rank: number;
  readonly rate: number;
};
/** What an adapter learns: texts in the order of its steps. */
export type Rows = {
  readonly adapter: number;
  readonly steps: number;
  readonly rowsOfStep: number;
  readonly texts: readonly string[];
};
/** A step that has been made: when, of how many tokens, and the norm of its gradient. */
export type Finished = {
  readonly adapter: number;
  readonly step: number;
  readonly at: number;
  readonly tokens: number;
  readonly gradNorm: number;
};

/** The token of the byte tokenizer that ends a text. */
const END = 256;
const idsOf = (text: string): number[] => [...new TextEncoder().encode(text), END];

/** The texts of a step as data: the mean of all targets' losses. */
function stepOf({ texts, rowsOfStep }: Rows, step: number) {
  const all = texts.slice(rowsOfStep * step, rowsOfStep * (step + 1)).map(idsOf);
  const targets = sum(all.map(({ length }) => length - 1));
  const data = all.map((ids) =>
    weightedDatum(
      ids,
      range(ids.length - 1).map(() => 1 / targets),
    ),
  );
  return { data, tokens: targets };
}

/** Trains an adapter by this program's own client: each step's two requests are sent at once. */
export async function ownClient({ url, key, model, rank, rate }: Client, of: Rows): Promise<Finished[]> {
  const ask: ConstructorParameters<typeof TinkerCaller>[0] = (path, init = {}) =>
    fetch(`${url}${path}`, { ...init, headers: { authorization: `Bearer ${key}`, ...(init.headers as object) } });
  const caller = new TinkerCaller(ask, "one", 600_000);
  const id = await caller.model(await caller.session(), of.adapter, 0, { base: model, rank });
  const finished: Finished[] = [];
  for (const step of range(of.steps)) {
    const { data, tokens } = stepOf(of, step);
    const gradient = await caller.forwardBackward(id, 2 * step + 1, data);
    const made = await caller.step(id, 2 * step + 2, rate);
    const [found, optimized] = await Promise.all([caller.result(gradient), jsonOf(caller.result(made))]);
    if (found.headers.get("content-type") !== "application/x-protobuf") throw new Error(await found.text());
    if (optimized.error) throw new Error(optimized.error);
    const gradNorm = optimized.metrics["grad_norm:mean"];
    finished.push({ adapter: of.adapter, step: step + 1, at: performance.now(), tokens, gradNorm });
  }
  return finished;
}

/** The same by Tinker's Python client in an environment: all clients in one process, as threads of its own loop. */
export async function pythonClients(python: string, client: Client, rows: readonly Rows[]): Promise<Finished[]> {
  const data = rows.map((of) => ({ adapter: of.adapter, steps: range(of.steps).map((step) => stepOf(of, step)) }));
  const child = Bun.spawn([python, join(import.meta.dir, "serving_clients.py")], {
    stdin: new Blob([JSON.stringify({ ...client, data })]),
    stdout: "pipe",
    stderr: "inherit",
    env: { ...process.env, TINKER_TELEMETRY: "0" },
  });
  const out = await child.stdout.text();
  if ((await child.exited) !== 0) throw new Error(`${python} ended with ${child.exitCode}`);
  return out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}
