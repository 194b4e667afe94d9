// Jobs that learn from rewards: of a recipe, and by OpenAI's method reinforcement; what they come to, and what is refused.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { until } from "../helpers/bus.ts";
import { Workplace } from "../helpers/program.ts";
import { isOver, jobUntil, jsonOf, KEYS, type Started, serverFolder, startServer, upload } from "../helpers/server.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
let server: Started | null = null;
const ask: Started["ask"] = (...of) => server!.ask(...of);
const COMMAND = ["awk", '{ n = gsub(/[aeiou]/, ""); print n / 8 }'];
let folder = "";
beforeAll(async () => {
  const more = `[rewards.vowels]\ncommand = ${JSON.stringify(COMMAND)}\n[reinforcement]\ngenerations = 4\nmax_new_tokens = 6\n`;
  folder = serverFolder(place, "server", `${more}[jobs]\nsave_seconds = 0\n`);
  server = await startServer(place, folder);
});

const weightsIn = (at: string) => readFileSync(join(at, "adapter_model.safetensors")).toString("base64");
const GRADER = {
  ...{ type: "text_similarity", name: "near", evaluation_metric: "fuzzy_match" },
  ...{ input: "{{sample.output_text}}", reference: "{{item.answer}}" },
};
const prompts = (count: number): string =>
  Array.from({ length: count }, (_, i) => {
    return `${JSON.stringify({ messages: [{ role: "user", content: `say ${i * i}` }], answer: "aeiou" })}\n`;
  }).join("");

const RECIPE = `[model]
path = "../model"
[run]
output = "out"
device = "cpu"
[defaults]
data = "prompts.jsonl"
max_length = 60
learning_rate = 1e-2
steps = 4
[[adapter]]
name = "graded"
rank = 3
dropout = 0.1
batch_size = 2
accumulation = 2
objective = { name = "grpo", reward = { grader = ${JSON.stringify(GRADER).replaceAll('":', '" = ')} }, generations = 3, max_new_tokens = 7, iterations = 2, beta = 0.1, temperature = 1.2 }
[[adapter]]
name = "vowels"
rank = 4
batch_size = 2
objective = { name = "grpo", reward = [{ name = "vowels", weight = 2, command = ${JSON.stringify(COMMAND)} }, { name = "near", grader = ${JSON.stringify(GRADER).replaceAll('":', '" = ')} }], generations = 4, max_new_tokens = 5 }
`;

test("jobs of a recipe come to the bytes of its run: by a grader, and by a reward that the server has by its name", async () => {
  const path = place.project(RECIPE, { "prompts.jsonl": prompts(12) });
  const keyFile = join(place.root, "key");
  writeFileSync(keyFile, `${KEYS.one}\n`, { mode: 0o600 });
  const flags = ["--server", server!.url, "--key-file", keyFile];
  const [run, submitted] = await Promise.all([place.mlora("run", path), place.mlora("submit", path, "--watch", ...flags)]);
  expect([run.code, run.code === 0 ? "" : run.err]).toEqual([0, ""]);
  expect([submitted.code, submitted.err]).toEqual([
    0,
    expect.stringContaining("vowels: the reward 'vowels' is the server's own"),
  ]);
  expect(submitted.err).toMatch(/graded: Step 4\/4: training loss=-?[\d.]+, mean reward=\d/);
  for (const name of ["graded", "vowels"]) {
    const to = join(place.root, `fetched-${name}`);
    expect(await place.mlora("jobs", "fetch", name, "--output", to, ...flags)).toMatchObject({ code: 0, err: "" });
    expect(weightsIn(to), name).toBe(weightsIn(join(path, "..", "out", name)));
  }
  const { data } = await jsonOf(ask("/v1/fine_tuning/jobs"));
  expect(data.map((job: { method: { type: string } }) => job.method.type)).toEqual(["reinforcement", "reinforcement"]);

  const unnamed = place.project(RECIPE.replace('name = "vowels", weight = 2, ', ""), { "prompts.jsonl": prompts(12) });
  const { code, err } = await place.mlora("submit", unnamed, ...flags);
  expect([code, err]).toEqual([2, expect.stringContaining("give it the `name` of one that the server has")]);
});

const job = (grader: unknown, more: object = {}, hyperparameters: object = {}) => ({
  ...{ model: "local/tiny", seed: 5, ...more },
  method: { type: "reinforcement", reinforcement: { grader, hyperparameters } },
});

test("a job with a grader is paused, killed and continued to the bytes of its recipe's run", async () => {
  const file = await upload(ask, prompts(12));
  const asked = job(GRADER, { training_file: file.id }, { n_epochs: 2, batch_size: 4, compute_multiplier: 1.5 });
  const made = await jsonOf(ask("/v1/fine_tuning/jobs", { json: asked }));
  expect(made.method.reinforcement).toEqual({
    grader: GRADER,
    hyperparameters: { n_epochs: 2, batch_size: 4, learning_rate_multiplier: 1, compute_multiplier: 1.5 },
  });
  const events = async () => (await jsonOf(ask(`/v1/fine_tuning/jobs/${made.id}/events?limit=100`))).data;
  const steps = async () => (await events()).filter((event: { type: string }) => event.type === "metrics").length;
  await until("a step", 60_000, async () => (await steps()) > 0);
  await ask(`/v1/fine_tuning/jobs/${made.id}/pause`, { method: "POST" });
  const folders = [join(folder, "state", "jobs", made.id), join(place.root, "copy")] as const;
  cpSync(...folders, { recursive: true });
  server!.running.kill("SIGKILL");
  await server!.running.ended;
  server = await startServer(place, folder);
  await ask(`/v1/fine_tuning/jobs/${made.id}/resume`, { method: "POST" });
  const done = await jobUntil(ask, made.id, isOver);
  expect([done.status, await steps()]).toEqual(["succeeded", 6]);
  const recipe = readFileSync(join(folders[1], "recipe.toml"), "utf8").replaceAll(folders[0], folders[1]);
  writeFileSync(join(folders[1], "recipe.toml"), recipe);
  expect(await place.mlora("run", join(folders[1], "recipe.toml"), "--output", join(place.root, "by-run"))).toMatchObject({
    code: 0,
  });
  expect(weightsIn(join(folders[0], "model"))).toBe(weightsIn(join(place.root, "by-run", made.id)));
  const csv = await (await ask(`/v1/files/${done.result_files[0]}/content`)).text();
  expect(csv).toMatch(/^step,train_loss,train_mean_reward\n1,-?[\d.e-]+,[\d.]+\n/);
});

test("what is not served is refused by name", async () => {
  const file = await upload(ask, prompts(12));
  const create = async (body: object) => {
    const response = await ask("/v1/fine_tuning/jobs", { json: { training_file: file.id, ...body } });
    return [response.status, (await jsonOf(response)).error?.message];
  };
  const refused: readonly (readonly [object, string])[] = [
    [job({ type: "python", name: "p", source: "import os" }), "'python' would run a client's program at the server"],
    [job({ type: "score_model", name: "p", model: "m", input: [] }), "'score_model' asks another model"],
    [job({ ...GRADER, evaluation_metric: "cosine" }), "'method.reinforcement.grader.evaluation_metric'"],
    [job({ ...GRADER, input: "{{sample.output_json.a}}" }), "has a template of other things"],
    [
      job({ type: "multi", name: "m", graders: { a: { type: "python", name: "p", source: "" } }, calculate_output: "a" }),
      "'python'",
    ],
    [job({ type: "multi", name: "m", graders: { a: GRADER }, calculate_output: "a + b" }), "the name 'b', which no grader has"],
    [job({ type: "sum" }), "has the type 'sum', expected one of string_check, text_similarity, multi"],
    [job(GRADER, { validation_file: file.id }), "A validation file is not served"],
    [job(GRADER, {}, { eval_samples: 3 }), "'eval_samples' is of a validation file"],
    [job(GRADER, {}, { reasoning_effort: "high" }), 'is not "default"'],
    [{ model: "local/tiny", method: { type: "reinforcement" } }, "needs a grader"],
  ];
  for (const [body, text] of refused) expect(await create(body)).toEqual([400, expect.stringContaining(text)]);

  const rows = [...prompts(11).trim().split("\n"), '{"messages": [{"role": "user", "content": "x"}]}'];
  rows[2] = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "answer": "z"}';
  const bad = await upload(ask, `${rows.join("\n")}\n`);
  const { id } = await jsonOf(ask("/v1/fine_tuning/jobs", { json: { ...job(GRADER), training_file: bad.id } }));
  const failed = await jobUntil(ask, id, isOver);
  expect(failed.error.message).toBe(
    "line 3: ends with the message of the assistant that is to be learned: leave it out; line 12: has no 'answer', which the grader reads",
  );

  const recipe = (reward: unknown) =>
    ask("/v1/fine_tuning/recipe_jobs", {
      json: {
        ...{ name: "a", train: [file.id], precision: "auto", tokens_per_microbatch: null },
        adapter: { steps: 1, max_length: 60, objective: { name: "grpo", reward, max_new_tokens: 4 } },
      },
    });
  for (const [reward, text] of [
    [{ command: ["touch", "/tmp/x"] }, "'objective.reward.command' is not served"],
    [{ name: "vowels", command: ["touch", "/tmp/x"] }, "'objective.reward.command' is not served"],
    [{ url: "http://127.0.0.1:1/" }, "'objective.reward.url' is not served"],
    [[{ name: "vowels" }, { name: "other" }], 'The server has no reward "other": name one of vowels'],
    [{ name: "__proto__" }, "The server has no reward"],
    ["vowels", "The server has no reward"],
    [{ grader: { type: "python", name: "p", source: "" } }, "grader"],
  ] as const) {
    const response = await recipe(reward);
    expect([response.status, (await jsonOf(response)).error.message]).toEqual([400, expect.stringContaining(text)]);
  }
});
