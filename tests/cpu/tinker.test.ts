// Tinker's protocol: order, repeats, kills, broken messages, tenants; and the bytes of a job and of a run.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { inputLength, type Row } from "../../src/schedule/pack.ts";
import { stepsOf } from "../../src/schedule/steps.ts";
import { readRequest, specFor } from "../../src/session/preparation/prepare.ts";
import { planPrimitives } from "../../src/session/primitives/open.ts";
import { openSession } from "../../src/session/session.ts";
import { mutateBytes } from "../helpers/mutate.ts";
import { Workplace } from "../helpers/program.ts";
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
import { type Data, floats, forwardBackwardBytes, ints, TinkerCaller, weightedDatum } from "../helpers/tinker.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const random = new Rng(5);
const row = (length: number): number[] => range(length).map(() => 1 + random.below(200));
const ROWS = range(8).map(() => row(10));
const learned = (ids: readonly number[]) => weightedDatum(ids, [0, 0, ...range(ids.length - 3).map(() => 1)]);
const dataOf = (step: number): Data => range(3).map((i) => learned(ROWS[(3 * step + i) % ROWS.length]!));
const sampled = (ids: readonly number[]): Data[number] => ({
  tokens: ids.slice(0, -1),
  inputs: {
    target_tokens: ints(ids.slice(1)),
    logprobs: floats(ids.slice(1).map((id) => -(id % 7))),
    advantages: floats(ids.slice(1).map((id) => (id % 5) / 2 - 1)),
  },
});

/** Three requests a step: two parts of its rows, of two losses, and the step. */
async function step(caller: TinkerCaller, model: string, i: number): Promise<string[]> {
  const first = 3 * i + 1;
  return [
    await caller.forwardBackward(model, first, dataOf(i)),
    await caller.forwardBackward(model, first + 1, [sampled(ROWS[i % 8]!)], "ppo"),
    await caller.step(model, first + 2, 3e-3),
  ];
}

/** The results of a model that is trained by one request after the other. */
async function straight(caller: TinkerCaller, seed: number, steps: number): Promise<string[]> {
  const model = await caller.model(await caller.session(), seed);
  const results: string[] = [];
  for (const i of range(steps)) for (const id of await step(caller, model, i)) results.push(await caller.bytes(id));
  return results;
}

const errorOf = async (response: Response | Promise<Response>) => {
  const { status } = await response;
  return { status, ...(await jsonOf(response)) };
};

describe("one server", () => {
  const started: Promise<Started> = startServer(place, serverFolder(place, "one"));
  const caller = async (key?: "one" | "two") => new TinkerCaller((await started).ask, key);

  test("requests are carried out in the order of their numbers, whenever and however often they come", async () => {
    const one = await caller();
    const want = await straight(one, 3, 3);
    const model = await one.model(await one.session(), 3);
    const calls = range(3).flatMap((i) => [
      () => one.forwardBackward(model, 3 * i + 1, dataOf(i)),
      () => one.forwardBackward(model, 3 * i + 2, [sampled(ROWS[i]!)], "ppo"),
      () => one.step(model, 3 * i + 3, 3e-3),
    ]);
    const ids = new Map<number, string>();
    for (const number of [8, 4, 2, 6, 8, 5, 3, 1, 1, 7, 0, 4, 2]) {
      const id = await calls[number]!();
      expect(ids.get(number) ?? id).toBe(id);
      ids.set(number, id);
    }
    const got = await Promise.all(range(9).map((number) => one.bytes(ids.get(number)!)));
    expect(got).toEqual(want);
    expect(new Set(want).size).toBe(9);
    const again = one.sendBytes(forwardBackwardBytes(model, 1, dataOf(2)));
    expect(await errorOf(again)).toMatchObject({ status: 400, detail: expect.stringContaining("another one") });
  });

  test("what is wrong fails its future and counts as a number; none of its gradient stays", async () => {
    const one = await caller();
    const want = await straight(one, 4, 1);
    const model = await one.model(await one.session(), 4);
    const wrong = [
      await one.forwardBackward(model, 1, [...dataOf(0), weightedDatum([1, 2, 999], [1, 1])]),
      await one.forwardBackward(model, 2, dataOf(0), "no_such_loss"),
      (await jsonOf(one.post("save_weights", { model_id: model, seq_id: 3, path: "../up" }))).request_id,
      (await jsonOf(one.post("optim_step", { model_id: model, seq_id: 4, optimizer_params: { type: "muon" } }))).request_id,
      (await jsonOf(one.post("load_weights", { model_id: model, seq_id: 5, path: "tinker://x/weights/y", optimizer: true })))
        .request_id,
    ];
    for (const id of wrong) expect(await jsonOf(one.result(id))).toMatchObject({ category: "user", error: expect.any(String) });
    const right = [
      await one.forwardBackward(model, 6, dataOf(0)),
      await one.forwardBackward(model, 7, [sampled(ROWS[0]!)], "ppo"),
      await one.step(model, 8, 3e-3),
    ];
    expect(await Promise.all(right.map((id) => one.bytes(id)))).toEqual(want);
  });

  test("each broken message has one error, and the model continues", async () => {
    const one = await caller();
    const model = await one.model(await one.session(), 5);
    const rng = new Rng(9);
    let number = 0;
    for (let i = 0; i < 200; i++) {
      const whole = forwardBackwardBytes(model, number + 1, dataOf(i));
      const response = await one.sendBytes(Uint8Array.from(mutateBytes(whole, rng)));
      const body = await jsonOf(response);
      if (response.status !== 200) {
        expect([400, 404]).toContain(response.status);
        expect(body.detail.length).toBeLessThan(500);
      } else if (body.request_id === `${model}:${number + 1}`) {
        number++;
        const result = await one.result(body.request_id);
        if (result.headers.get("content-type") === "application/json") expect((await jsonOf(result)).category).toBe("user");
      }
    }
    expect((await jsonOf(one.result(await one.step(model, number + 1, 1e-3)))).metrics["grad_norm:mean"]).toBeNumber();
  });

  test("weights that are saved for a sampler are a model of OpenAI's clients; those that replace them, too", async () => {
    const one = await caller();
    const session = await one.session();
    const model = await one.model(session, 12);
    let number = 0;
    const save = async (overwrite: boolean, path?: string) => {
      const which = path === undefined ? { sampling_session_seq_id: number } : { path, overwrite };
      const body = { model_id: model, seq_id: ++number, ...which };
      return await jsonOf(one.result((await jsonOf(one.post("save_weights_for_sampler", body))).request_id));
    };
    const greedy = async (of: string) => {
      const json = { model: of, prompt: "abc", max_tokens: 12, temperature: 0, logprobs: 0 };
      return (await jsonOf((await started).ask("/v1/completions", { json }))).choices[0].logprobs.token_logprobs as number[];
    };
    const sampled = async (sampler: string) => {
      const prompt = { chunks: [{ type: "encoded_text", tokens: [97, 98, 99] }] };
      const sampling_params = { max_tokens: 12, temperature: 0, stop: [] };
      const body = { sampling_session_id: sampler, seq_id: 0, num_samples: 1, prompt, sampling_params };
      return one.bytes((await jsonOf(one.post("asample", body))).request_id);
    };
    const { path } = await save(false, "x");
    const before = await greedy(path);
    const first = (await save(false)).sampling_session_id;
    expect((await save(false, "x")).error).toContain("overwrite");
    for (const _ of range(3)) {
      await one.forwardBackward(model, ++number, dataOf(0));
      await one.bytes(await one.step(model, ++number, 3e-2));
    }
    expect((await save(true, "x")).path).toBe(path);
    const second = (await save(false)).sampling_session_id;
    const after = await greedy(path);
    expect(after).not.toEqual(before);
    expect(await sampled(second)).not.toBe(await sampled(first));
    const as = { session_id: session, sampling_session_seq_id: 90, model_path: path };
    const { sampling_session_id } = await jsonOf(one.post("create_sampling_session", as));
    expect(await sampled(sampling_session_id)).toBe(await sampled(second));
    const { data } = await jsonOf((await started).ask("/v1/models"));
    const names = data.map(({ id }: { readonly id: string }) => id).filter((id: string) => id.includes("tinker"));
    expect(names).toEqual([path]);
  });

  test("a client that saves for a sampler again, under another number, has the first one; no number is two samplers", async () => {
    const one = await caller();
    const session = await one.session();
    const model = await one.model(session, 13);
    const save = (seq_id: number, sampling_session_seq_id: number, kind = "snapshot") =>
      one.post("save_weights_for_sampler", { model_id: model, seq_id, sampling_session_seq_id, kind });
    const { request_id } = await jsonOf(save(1, 0));
    expect(await jsonOf(save(1, 1))).toMatchObject({ request_id });
    expect(await jsonOf(one.result(request_id))).toMatchObject({ sampling_session_id: `${session}:sample:0` });
    expect(await jsonOf(save(1, 2))).toMatchObject({ request_id });
    expect(await errorOf(save(1, 3, "inflight"))).toMatchObject({
      status: 400,
      detail: expect.stringContaining("another one"),
    });
    expect((await jsonOf(one.result((await jsonOf(save(2, 0))).request_id))).error).toContain("is there already");
    const base = { session_id: session, sampling_session_seq_id: 0, base_model: "local/tiny" };
    expect(await errorOf(one.post("create_sampling_session", base))).toMatchObject({ status: 400 });
  });

  test("what is another key's is not found", async () => {
    const [one, two] = [await caller(), await caller("two")];
    const session = await one.session();
    const model = await one.model(session, 6);
    const made = (await jsonOf(one.post("save_weights", { model_id: model, seq_id: 1, path: "mine" }))).request_id;
    const { path } = await jsonOf(one.result(made));
    expect(path).toBe(`tinker://${model}/weights/mine`);
    const theirs = await two.session();
    const as = { session_id: theirs, model_seq_id: 0, path, optimizer: true };
    const create = { session_id: session, model_seq_id: 1, base_model: "local/tiny", lora_config: { rank: 4 } };
    for (const [where, body] of [
      ["session_heartbeat", { session_id: session }],
      ["create_model", create],
      ["load_weights", as],
      ["get_info", { model_id: model }],
      ["optim_step", { model_id: model, seq_id: 2, adam_params: {} }],
      ["retrieve_future", { request_id: made }],
      ["weights_info", { tinker_path: path }],
      [
        "create_sampling_session",
        { session_id: theirs, sampling_session_seq_id: 0, model_path: path.replace("weights", "sampler_weights") },
      ],
      [`sessions/${session}/finish`, {}],
    ] as const)
      expect([where, (await two.post(where, body)).status]).toEqual([where, 404]);
    expect((await two.sendBytes(forwardBackwardBytes(model, 2, dataOf(0)))).status).toBe(404);
    for (const where of [`training_runs/${model}`, `training_runs/${model}/checkpoints`, `sessions/${session}`])
      expect((await two.send(where, {})).status).toBe(404);
    expect((await two.send(`training_runs/${model}/checkpoints/weights/mine`, { method: "DELETE" })).status).toBe(404);
    for (const list of ["training_runs", "checkpoints"]) expect((await jsonOf(two.send(list, {})))[list]).toEqual([]);
    // Until it is public; then it may be read, and no more.
    const at = `training_runs/${model}/checkpoints/weights/mine`;
    expect((await one.send(`${at}/publish`, { method: "POST" })).status).toBe(204);
    expect((await two.post("weights_info", { tinker_path: path })).status).toBe(200);
    expect((await jsonOf(two.result((await jsonOf(two.post("load_weights", as))).request_id))).path).toBe(path);
    expect((await two.send(at, { method: "DELETE" })).status).toBe(404);
  });

  test("a session that is finished takes nothing more, and what waited has failed", async () => {
    const one = await caller();
    const session = await one.session();
    const model = await one.model(session, 7);
    const waiting = await one.step(model, 2, 1e-3); // number 1 never comes
    const polled = one.result(waiting);
    expect((await one.post(`sessions/${session}/finish`, { reason: { type: "success" } })).status).toBe(200);
    expect(await jsonOf(polled)).toMatchObject({ category: "user", error: expect.stringContaining("over") });
    expect((await one.post("session_heartbeat", { session_id: session })).status).toBe(410);
    expect((await one.sendBytes(forwardBackwardBytes(model, 1, dataOf(0)))).status).toBe(400);
  });

  test("more models than slots: each comes to what it comes to alone", async () => {
    const one = await caller();
    const seeds = range(7); // the server has 3 slots
    const alone = await straight(one, 2, 3);
    const together = await Promise.all(seeds.map((seed) => straight(one, seed, 3)));
    expect(together[2]).toEqual(alone);
    expect(new Set(together.map(String)).size).toBe(7);
  });
});

test("a session that is silent is over, and its models are gone; keys have limits", async () => {
  const limits = "[tinker]\nsession_seconds = 3\nmodels = 2\n[limits]\ntokens_per_minute = 50\n";
  const { ask, running } = await startServer(place, serverFolder(place, "silent", limits));
  const one = new TinkerCaller(ask);
  const [silent, heard] = [await one.session(), await one.session()];
  const [gone, stays] = [await one.model(silent, 1), await one.model(heard, 2)];
  const third = { session_id: heard, model_seq_id: 1, base_model: "local/tiny", lora_config: { rank: 4 } };
  expect(await errorOf(one.post("create_model", third))).toMatchObject({
    status: 429,
    detail: expect.stringContaining("2 models"),
  });
  const sampler = { session_id: heard, sampling_session_seq_id: 0, base_model: "local/tiny" };
  const { sampling_session_id } = await jsonOf(one.post("create_sampling_session", sampler));
  const sample = (seq_id: number) => {
    const prompt = { chunks: [{ type: "encoded_text", tokens: row(10) }] };
    return one.post("asample", {
      sampling_session_id,
      seq_id,
      num_samples: 1,
      prompt,
      sampling_params: { max_tokens: 30, stop: [] },
    });
  };
  const first = await jsonOf(sample(0));
  expect((await one.result(first.request_id)).headers.get("content-type")).toBe("application/x-protobuf");
  expect(await errorOf(sample(1))).toMatchObject({ status: 429, detail: expect.stringContaining("50 tokens a minute") });
  const adapters = async () => Number(/^mlora_adapters (\d+)$/m.exec(await (await ask("/metrics")).text())![1]);
  await eventually(async () => {
    expect((await one.post("session_heartbeat", { session_id: heard })).status).toBe(200);
    return (await adapters()) === 1;
  });
  expect((await one.post("session_heartbeat", { session_id: silent })).status).toBe(410);
  expect((await one.sendBytes(forwardBackwardBytes(gone, 1, dataOf(0)))).status).toBe(400);
  await one.bytes(await one.forwardBackward(stays, 1, dataOf(0)));
  const waiting = await one.step(stays, 3, 1e-3);
  const unloaded = (await jsonOf(one.post("unload_model", { model_id: stays }))).request_id;
  expect(await jsonOf(one.result(unloaded))).toMatchObject({ model_id: stays });
  expect((await jsonOf(one.result(waiting))).error).toContain("unloaded");
  expect(await adapters()).toBe(0);
  expect((await one.sendBytes(forwardBackwardBytes(stays, 2, dataOf(0)))).status).toBe(400);
  running.kill("SIGTERM");
  expect((await running.ended).code).toBe(0);
});

test("a server that is killed again and again comes to the same results, each made once", async () => {
  const folder = serverFolder(place, "killed", "[jobs]\nsave_seconds = 0.1\n");
  let server = await startServer(place, folder);
  const steps = 9;
  const caller = new TinkerCaller(server.ask);
  const want = await straight(caller, 1, steps);
  const [session, other] = [await caller.session(), await caller.session()];
  const model = await caller.model(session, 1);
  const slow = await caller.model(other, 1);
  await step(caller, slow, 0);
  const half = await caller.model(other, 1, 1); // its gradients wait while the server is killed
  await caller.forwardBackward(half, 1, dataOf(0));
  await caller.forwardBackward(half, 2, [sampled(ROWS[0]!)], "ppo");
  const refused = { model_id: half, seq_id: 3, path: "tinker://x/weights/y", optimizer: true };
  const { error } = await jsonOf(caller.result((await jsonOf(caller.post("load_weights", refused))).request_id));
  expect(error).toContain("first request");
  const ids: string[] = [];
  for (const i of range(steps)) {
    ids.push(...(await step(caller, model, i)));
    if (i % 4 !== 2) continue;
    if (i === 6) await caller.bytes(ids.at(-1)!); // all is done; else most of it waits
    server.running.kill("SIGKILL");
    await server.running.ended;
    server = await startServer(place, folder);
    caller.ask = server.ask;
  }
  const got = await Promise.all(ids.map((id) => caller.bytes(id)));
  expect(got).toEqual(want);
  const usage = await jsonOf(server.ask("/v1/usage"));
  const { requests } = usage.data[0];
  expect(requests).toBe(2 * (2 * steps) + 4);
  expect(await caller.bytes(await caller.step(half, 4, 3e-3))).toBe(want[2]!);
  for (const i of range(steps).slice(1)) await step(caller, slow, i);
  const last = await Promise.all(range(3 * steps).map((i) => caller.bytes(`${slow}:${i + 1}`)));
  expect(last).toEqual(want);
  server.running.kill("SIGTERM");
  expect((await server.running.ended).code).toBe(0);
});

test("a model that is trained by requests has the bytes of a job and of a run with the same rows", async () => {
  const own =
    'alpha = 32\nbetas = [0.9, 0.95]\neps = 1e-12\nmax_grad_norm = false\nscheduler = "constant"\nwarmup = 0\nweight_decay = 0.01\n';
  const { ask, folder } = await startServer(place, serverFolder(place, "same", own));
  const file = await upload(ask, chatRows(12));
  const method = { type: "supervised", supervised: { hyperparameters: { n_epochs: 2, batch_size: 4 } } };
  const body = { model: "local/tiny", training_file: file.id, seed: 8, method };
  const { id } = await jsonOf(ask("/v1/fine_tuning/jobs", { json: body }));
  await jobUntil(ask, id, (status) => status !== "validating_files");
  cpSync(join(folder, "state", "jobs", id), join(place.root, "job"), { recursive: true });
  expect((await jobUntil(ask, id, isOver)).status).toBe("succeeded");
  const recipe = loadRecipe(join(place.root, "job", "recipe.toml"), { output: join(place.root, "by-run") });
  await (await openSession(recipe, { isReachable: false })).done;

  const caller = new TinkerCaller(ask);
  const model = await caller.model(await caller.session(), 8);
  const [{ train }] = (await readRequest(recipe, specFor(recipe), {})).data as unknown as [{ readonly train: readonly Row[] }];
  const work = { batchSize: 4, accumulation: 1, epochs: 2, steps: null, shuffle: true, seed: 8 };
  const { tokensPerMicrobatch } = planPrimitives(recipe);
  let number = 0;
  for (const { rows } of stepsOf({ ...work, lengths: train.map(inputLength) }, tokensPerMicrobatch, 0)) {
    const of = rows.map((at) => train[at]!);
    const targets = sum(of.map(({ mask }) => sum([...mask.subarray(1)])));
    const data = of.map(({ ids, mask }) =>
      weightedDatum(
        [...ids],
        [...mask.subarray(1)].map((is) => is / targets),
      ),
    );
    await caller.forwardBackward(model, ++number, data);
    const adam_params = { learning_rate: 3e-3, weight_decay: 0.01 };
    await caller.post("optim_step", { model_id: model, seq_id: ++number, adam_params });
  }
  const saved = await jsonOf(caller.post("save_weights_external", { model_id: model, seq_id: ++number, path: "peft" }));
  await caller.result(saved.request_id);
  const { urls } = await jsonOf(
    caller.send(`training_runs/${model}/checkpoints/external_weights/peft/external_weights_urls`, {}),
  );
  const bytes = Buffer.from(await (await fetch(urls["adapter_model.safetensors"])).arrayBuffer()).toString("base64");
  const weightsIn = (at: string) => readFileSync(join(at, "adapter_model.safetensors")).toString("base64");
  expect(weightsIn(join(folder, "state", "jobs", id, "model"))).toBe(weightsIn(join(place.root, "by-run", id)));
  expect(bytes).toBe(weightsIn(join(place.root, "by-run", id)));
});
