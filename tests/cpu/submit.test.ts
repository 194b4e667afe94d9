// `mlora submit` and `mlora jobs`: a recipe at a server comes to the bytes of `mlora run`, and what cannot is refused.

import { afterAll, expect, test } from "bun:test";
import { chmodSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SUMS, sums, Workplace } from "../helpers/program.ts";
import { jobUntil, jsonOf, KEYS, serverFolder, startServer } from "../helpers/server.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const RECIPE = `[model]
path = "../model"
[run]
output = "out"
device = "cpu"
seed = 11
[defaults]
learning_rate = 3e-3
max_length = 128
[[adapter]]
name = "first"
data = { train = "rows.jsonl", split = 0.2 }
rank = 3
dropout = 0.1
scheduler = "cosine"
warmup = 2
targets = ["q_proj", "down_proj"]
batch_size = 3
steps = 9
[[adapter]]
name = "second"
data = { train = ["rows.jsonl", "more.csv"], eval = "held-out.jsonl" }
format = "prompt-completion"
rank = 8
alpha = 4
lora_plus_ratio = 4
accumulation = 2
batch_size = 2
epochs = 2
max_grad_norm = 0.2
optimizer = "sgd"
`;
const FILES = {
  ...SUMS,
  "held-out.jsonl": sums(3),
  "more.csv": `prompt,completion\n"What is 7, and 1?",8\nWhat is 8 + 1?,9\n`,
};

test("jobs of a recipe come to the bytes of its run, and are watched, paused, resumed, cancelled and fetched", async () => {
  const path = place.project(RECIPE, FILES);
  const server = await startServer(place, serverFolder(place, "server"));
  const keyFile = join(place.root, "key");
  writeFileSync(keyFile, `${KEYS.one}\n`, { mode: 0o600 });
  const flags = ["--server", server.url, "--key-file", keyFile];
  const [run, submitted] = await Promise.all([place.mlora("run", path), place.mlora("submit", path, "--watch", ...flags)]);
  expect(run.code).toBe(0);
  expect([submitted.code, submitted.err.includes("first: Step 9/9")]).toEqual([0, true]);
  for (const name of ["first", "second"]) {
    const fetched = await place.mlora("jobs", "fetch", name, "--output", join(place.root, `fetched-${name}`), ...flags);
    expect(fetched).toMatchObject({ code: 0, err: "" });
    const weights = (folder: string) => readFileSync(join(folder, "adapter_model.safetensors")).toString("base64");
    expect(weights(join(place.root, `fetched-${name}`))).toBe(weights(join(path, "..", "out", name)));
    expect(readdirSync(join(place.root, `fetched-${name}`)).sort()).toEqual(readdirSync(join(path, "..", "out", name)).sort());
  }
  const again = await place.mlora("jobs", "fetch", "first", "--output", join(place.root, "fetched-first"), ...flags);
  expect([again.code, again.err.includes("is not empty")]).toEqual([2, true]);

  const long = place.project(RECIPE.replace("steps = 9", "steps = 200000").split('[[adapter]]\nname = "second"')[0]!, FILES);
  const { out } = await place.mlora("submit", long, ...flags);
  const id = /first: (ftjob-\w+)/.exec(out)![1]!;
  await jobUntil(server.ask, id, (status) => status === "running");
  for (const [action, status] of [
    ["pause", "paused"],
    ["resume", "queued"],
    ["cancel", "cancelled"],
  ] as const)
    expect((await place.mlora("jobs", action, id, ...flags)).out).toMatch(new RegExp(`: (${status}|running)\n$`));
  const watched = await place.mlora("jobs", "watch", id, ...flags);
  expect([watched.code, watched.err.includes("first cancelled")]).toEqual([1, true]);
  const listed = await place.mlora("jobs", "--json", ...flags);
  expect(
    JSON.parse(listed.out)
      .map((job: { status: string }) => job.status)
      .sort(),
  ).toEqual(["cancelled", "succeeded", "succeeded"]);
  const ambiguous = await place.mlora("jobs", "watch", "first", ...flags);
  expect([ambiguous.code, ambiguous.err.includes("names 2 jobs")]).toEqual([2, true]);

  // Another key has none of it, and files of the server are out of reach.
  const [first] = JSON.parse(listed.out) as [{ readonly id: string }];
  const adapter = `/v1/fine_tuning/jobs/${first.id}/adapter`;
  const done = JSON.parse(listed.out).find((job: { status: string }) => job.status === "succeeded") as { readonly id: string };
  expect((await server.ask(`/v1/fine_tuning/jobs/${done.id}/adapter`, { key: "two" })).status).toBe(404);
  expect((await server.ask(adapter)).status).toBe(404); // it was cancelled
  for (const file of ["..%2Frecipe.toml", "%2Fetc%2Fpasswd", "nothing"])
    expect((await server.ask(`/v1/fine_tuning/jobs/${done.id}/adapter/${file}`)).status).toBe(404);
  expect((await server.ask(`/v1/fine_tuning/jobs/${done.id}/adapter/adapter_config.json`)).status).toBe(200);

  const file = (await jsonOf(server.ask("/v1/files"))).data[0].id as string;
  const asked = (table: object, more: object = {}) =>
    server.ask("/v1/fine_tuning/recipe_jobs", {
      json: {
        name: "a",
        adapter: { steps: 1, ...table },
        train: [file],
        precision: "auto",
        tokens_per_microbatch: null,
        ...more,
      },
    });
  const refused: readonly (readonly [object, object, string])[] = [
    [{ from: "/etc" }, {}, "'from' is not served"],
    [{ chat_template: "/etc/passwd" }, {}, "'chat_template' is a file"],
    [{ data: { train: "/etc/passwd" } }, {}, "'data.train' is not served"],
    [{ objective: { name: "dpo", reference: "/etc" } }, {}, "'objective' names a folder"],
    [{ patience: 3 }, {}, "'patience' is not served: leave it out of the recipe"],
    [{ metrics: { command: ["touch", "/tmp/x"] } }, {}, "'metrics' is not served"],
    [{ colour: 1 }, {}, "'colour' is not served"],
    [{ rank: "x" }, {}, "rank"],
    [{}, { precision: "int8" }, "model.precision is int8 in the recipe"],
    [{}, { tokens_per_microbatch: 64 }, "run.tokens_per_microbatch is 64 in the recipe"],
    [{}, { train: ["file-nothing"] }, "file-nothing"],
  ];
  for (const [table, more, text] of refused) {
    const response = await asked(table, more);
    expect([response.status < 500, (await jsonOf(response)).error.message]).toEqual([true, expect.stringContaining(text)]);
  }
  server.running.kill("SIGTERM");
  await server.running.ended;
});

test("a key that would be seen, and a recipe that cannot be sent, are refused before anything is asked", async () => {
  const path = place.project(RECIPE, FILES);
  const keyFile = join(place.root, "open-key");
  writeFileSync(keyFile, KEYS.one);
  chmodSync(keyFile, 0o644);
  const http = "http://127.0.0.1:9";
  const told = async (...args: string[]) => {
    const { code, err } = await place.mlora(...args);
    return [code, err];
  };
  expect(await told("submit", path, "--server", http, "--key-file", keyFile)).toEqual([
    2,
    expect.stringContaining("chmod 600"),
  ]);
  chmodSync(keyFile, 0o600);
  const key = ["--key-file", keyFile];
  expect(await told("submit", path, "--server", "http://example.org", ...key)).toEqual([
    2,
    expect.stringContaining("clear text"),
  ]);
  expect(await told("submit", path, ...key)).toEqual([2, expect.stringContaining("--server is missing")]);
  expect(await told("jobs", "--server", http)).toEqual([2, expect.stringContaining("there is no key")]);
  expect(await told("jobs", "remove", "x", "--server", http, ...key)).toEqual([
    2,
    expect.stringContaining("'remove' is not one of"),
  ]);
  expect(await told("jobs", "--server", http, ...key)).toEqual([1, expect.stringContaining("server.unreachable")]);
  const missing = place.project(RECIPE, { "rows.jsonl": sums(20) });
  expect(await told("submit", missing, "--server", http, ...key)).toEqual([
    2,
    expect.stringContaining("is no file of this machine"),
  ]);
});

test("answers that mlora serve never gives are one error, and no job is reported", async () => {
  const path = place.project(RECIPE, FILES);
  const keyFile = join(place.root, "other-key");
  writeFileSync(keyFile, `${KEYS.one}\n`, { mode: 0o600 });
  const answers = ["<html>no</html>", "null", "[1, 2]", '{"data": [], "has_more": true}', '{"id": 5, "data": [{"id": "x"}]}'];
  let answer = "";
  const cut = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{";
  using server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response(answer) });
  using cutting = Bun.listen({
    port: 0,
    hostname: "127.0.0.1",
    socket: { data: (socket) => void socket.end(cut) },
  });
  const refused = async (port: number, code: string) => {
    const flags = ["--server", `http://127.0.0.1:${port}`, "--key-file", keyFile];
    const ended = await Promise.all([place.mlora("submit", path, ...flags), place.mlora("jobs", ...flags)]);
    for (const { code: exit, out, err } of ended)
      expect([exit, out, err.split("\n")[0]]).toEqual([
        1,
        "",
        expect.stringContaining(`error[${code}]: http://127.0.0.1:${port}`),
      ]);
  };
  for (answer of answers) await refused(server.port!, "server.answer");
  await refused(cutting.port, "server.unreachable");
});
