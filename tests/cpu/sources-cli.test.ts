// The commands with a model and data from a hub: what is trained is what a folder and files give, online and offline.

import { afterAll, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { serveHub } from "../helpers/hub-server.ts";
import { signalled } from "../helpers/middle.ts";
import { areKept, leftOf, metrics, sums, Workplace } from "../helpers/program.ts";

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

test("init takes a model and rows from a hub, and rows from an address", async () => {
  const env = hub(false);
  const init = (model: string, data: string, to: string) =>
    work.start(["init", model, data, "--output", join(work.root, to)], env).ended;
  const named = await init("hf://org/tiny", "hf://datasets/org/sums", "a.toml");
  expect([named.code, named.err]).toEqual([0, expect.any(String)]);
  const planned = await work.start(["plan", join(work.root, "a.toml")], env).ended;
  expect([planned.code, planned.out]).toEqual([0, expect.stringMatching(/^sums +16 /m)]);
  using web = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response(csv) });
  const address = `${web.url}numbers.csv`;
  const fetched = await init(work.model, address, "b.toml");
  expect([fetched.code, fetched.err]).toEqual([0, expect.any(String)]);
  expect(readFileSync(join(work.root, "b.toml"), "utf8")).toContain(`data = ${JSON.stringify(address)}`);
  const absent = await init("org/tiny", address, "c.toml");
  expect([absent.code, absent.err]).toEqual([2, expect.stringContaining("hf://org/tiny")]);
});

test("a mixed run that is killed and begun again ends as one that was not; other weights are refused", async () => {
  const text = (weight: number, epochs: number) =>
    recipe(
      '[model]\npath = "../model"',
      `{ train = [{ path = "a.jsonl", weight = ${weight} }, { path = "b.csv", weight = 1, rows = 9 }] }`,
    )
      .replace("steps = 3", `epochs = ${epochs}\nbatch_size = 1`)
      .replace("[[adapter]]", "checkpoint = { steps = 3 }\n[[adapter]]");
  const data = { "a.jsonl": sums(11), "b.csv": csv.replace("question,answer", "prompt,completion") };
  const { killed, epochs } = await signalled(
    "SIGKILL",
    (factor) => {
      const killed = work.project(text(2, 4 * factor), data);
      return { killed, epochs: 4 * factor, running: work.start(["run", killed]) };
    },
    ({ killed }) => areKept(join(killed, "..", "out"), ["sums"]),
  );
  writeFileSync(killed, text(3, epochs));
  const refused = await work.mlora("run", killed);
  expect([refused.code, refused.err]).toEqual([2, expect.any(String)]);
  expect(refused.err).toContain("data.mix");
  writeFileSync(killed, text(2, epochs));
  const again = await work.mlora("run", killed);
  expect([again.code, again.err]).toEqual([0, expect.any(String)]);
  const whole = work.project(text(2, epochs), data);
  expect((await work.mlora("run", whole)).code).toBe(0);
  const [a, b] = [whole, killed].map((path) => leftOf(join(path, "..", "out"), "sums"));
  expect(b).toEqual(a!);
});

test("a cache that cannot be written costs no run its rows; what is expanded there is not called damaged", async () => {
  const much = sums(17_000); // more than is tokenised each time
  const text = (data: string) => recipe('model = "../model"', `"${data}"`);
  const small = ["bash", "-c", 'ulimit -f 300; exec "$@"', "bash"];
  const path = work.project(text("rows.jsonl"), { "rows.jsonl": much });
  const { code, err } = await work.start(["run", path], {}, small).ended;
  expect([code, err]).toEqual([0, expect.any(String)]);
  expect(lossesOf(path)).toHaveLength(3);
  const packed = work.project(text("rows.jsonl.gz"));
  writeFileSync(join(packed, "..", "rows.jsonl.gz"), Bun.gzipSync(sums(7000)));
  const full = await work.start(["run", packed], {}, small).ended;
  expect([full.code, full.err]).toEqual([1, expect.stringMatching(/^error\[files\.write\]: cannot write .*EFBIG/)]);
  expect((await work.mlora("run", packed)).code).toBe(0);
});
