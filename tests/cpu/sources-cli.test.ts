// The commands with a model and data from a hub: what is trained is what a folder and files give, online and offline.

import { afterAll, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { serveHub } from "../helpers/hub-server.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const work = new Workplace();
const COMMIT = "4".repeat(40);
const files = (folder: string): Record<string, Buffer> =>
  Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]));
const rows = sums(12);
const csv = `question,answer\n${rows
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line))
  .map(({ prompt, completion }) => `"${prompt}","${completion}"`)
  .join("\n")}\n`;
const server = serveHub([
  { kind: "models", repo: "org/tiny", refs: { main: COMMIT }, commits: { [COMMIT]: files(work.model) } },
  { kind: "datasets", repo: "org/sums", refs: { main: COMMIT }, commits: { [COMMIT]: { "data/train.csv": Buffer.from(csv) } } },
]);
afterAll(() => {
  server[Symbol.dispose]();
  work[Symbol.dispose]();
});

const recipe = (model: string, data: string) => `${model}
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "sums"
data = ${data}
steps = 3
rank = 4
max_length = 32
`;
const hub = (offline: boolean) => ({
  HF_ENDPOINT: server.endpoint,
  HF_HOME: join(work.root, "hf"),
  HF_HUB_OFFLINE: offline ? "1" : "",
});
const lossesOf = (path: string) => metrics(join(path, "..", "out"), "step").map(({ loss }) => loss);

test("a run from a hub makes the adapter of the same files here, and again without the network", async () => {
  const here = work.project(recipe('model = "../model"', '"rows.jsonl"'), { "rows.jsonl": rows });
  const named = 'columns = { prompt = "question", completion = "answer" }';
  const there = (n: number) => recipe('model = "org/tiny"', `{ dataset = "org/sums" }\n${named}\n# ${n}`);
  const [online, offline] = [work.project(there(1)), work.project(there(2))];
  const run = async (path: string, env: Record<string, string>) => {
    const { code, err } = await work.start(["run", path], env).ended;
    expect([code, err]).toEqual([0, expect.any(String)]);
    return lossesOf(path);
  };
  const want = await run(here, hub(true));
  expect(want).toHaveLength(3);
  expect(await run(online, hub(false))).toEqual(want);
  const asked = server.asked.length;
  expect(await run(offline, hub(true))).toEqual(want);
  expect(server.asked).toHaveLength(asked);
});
