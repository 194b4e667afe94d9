// A server over two stages: clients see what they see of one, and a stage that is killed costs nothing but the time.

import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { childrenOf, commandOf, Workplace } from "../helpers/program.ts";
import {
  chatRows,
  eventually,
  isOver,
  jobUntil,
  jsonOf,
  type Started,
  serverFolder,
  startServer,
  upload,
} from "../helpers/server.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const method = { type: "supervised", supervised: { hyperparameters: { n_epochs: 20, batch_size: 2 } } };
const foldersOf = (name: string, stages: string) =>
  serverFolder(place, name, "[jobs]\nsave_seconds = 0.1\n", `stages = ${stages}`);

/** Two jobs of two clients, at once. */
async function begin(server: Started): Promise<string[]> {
  const keys = ["one", "two"] as const;
  return await Promise.all(
    keys.map(async (key, i) => {
      const file = await upload(server.ask, chatRows(12, 20 * i), "rows.jsonl", key);
      const json = { model: "local/tiny", training_file: file.id, seed: i, method };
      return (await jsonOf(server.ask("/v1/fine_tuning/jobs", { key, json }))).id;
    }),
  );
}

/** What the jobs leave, and what their models answer. */
async function end(server: Started, ids: readonly string[]) {
  const keys = ["one", "two"] as const;
  return await Promise.all(
    keys.map(async (key, i) => {
      const asked: Started["ask"] = (path, more) => server.ask(path, { ...more, key });
      const job = await jobUntil(asked, ids[i]!, isOver);
      expect([job.status, job.error?.message ?? null]).toEqual(["succeeded", null]);
      const messages = [{ role: "user", content: `${20 * i + 3} + 1?` }];
      const json = { model: job.fine_tuned_model, messages, temperature: 0, max_tokens: 12 };
      const answer = await jsonOf(asked("/v1/chat/completions", { json }));
      const weights = readFileSync(join(server.folder, "state", "jobs", ids[i]!, "model", "adapter_model.safetensors"));
      return { weights: weights.toString("base64"), answer: answer.choices[0].message.content };
    }),
  );
}

test("two clients' jobs and their models are those of one stage, also where a stage is killed under way", async () => {
  const one = await startServer(place, foldersOf("one", "1"));
  const expected = await end(one, await begin(one));
  one.running.kill("SIGTERM");
  expect((await one.running.ended).code).toBe(0);

  let two = await startServer(place, foldersOf("two", "[1.5, 0.5]"));
  const stages = () => childrenOf(two.running.pid).filter((pid) => commandOf(pid).includes("stage --orders"));
  expect(stages().length).toBe(2);
  const ids = await begin(two);
  await eventually(async () => {
    const { data } = await jsonOf(two.ask(`/v1/fine_tuning/jobs/${ids[0]}/events?limit=1000`));
    return data.filter((of: { type: string }) => of.type === "metrics").length >= 20;
  });
  process.kill(stages()[1]!, "SIGKILL");
  const lost = await two.running.ended;
  expect(lost.code).toBe(1);
  expect(lost.err).toMatch(/^error\[.*stage 1/m);
  two = await startServer(place, two.folder);
  expect(await end(two, ids)).toEqual(expected);
  two.running.kill("SIGTERM");
  expect((await two.running.ended).code).toBe(0);
});
