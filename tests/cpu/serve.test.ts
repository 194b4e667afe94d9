// `mlora serve` as a process: what survives a kill, and what a client can do to it.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { loadRecipe } from "../../src/recipe/load.ts";
import { openSession } from "../../src/session/session.ts";
import { needs } from "../helpers/needs.ts";
import { Workplace } from "../helpers/program.ts";
import {
  chatRows,
  eventually,
  isOver,
  jobUntil,
  jsonOf,
  KEYS,
  type Started,
  serverFolder,
  startServer,
  upload,
} from "../helpers/server.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const weightsIn = (folder: string): string => readFileSync(join(folder, "adapter_model.safetensors")).toString("base64");
const create = (server: Started, body: object, headers: Record<string, string> = {}) =>
  jsonOf(server.ask("/v1/fine_tuning/jobs", { json: { model: "local/tiny", ...body }, headers }));
const allEvents = async ({ ask }: Started, id: string) =>
  (await jsonOf(ask(`/v1/fine_tuning/jobs/${id}/events?limit=1000`))).data;

test("a server that is killed again and again loses nothing, does nothing twice, and comes to the bytes of a run", async () => {
  const folder = serverFolder(place, "killed", "[jobs]\nsave_seconds = 0.1\n");
  let server = await startServer(place, folder);
  const file = await upload(server.ask, chatRows(12));
  const method = { type: "supervised", supervised: { hyperparameters: { n_epochs: 25, batch_size: 2 } } };
  const jobs = [
    await create(server, { training_file: file.id, seed: 1, method }),
    await create(server, {
      training_file: file.id,
      seed: 2,
      method,
      validation_file: (await upload(server.ask, chatRows(3, 50))).id,
    }),
  ];
  const named = { "idempotency-key": "once" };
  const asked = { training_file: file.id, method, suffix: "once" };
  const once = await create(server, asked, named);
  expect(await create(server, asked, named)).toMatchObject({ id: once.id, seed: once.seed });
  expect((await create(server, { ...asked, suffix: "other" }, named)).error.code).toBe("idempotency_key_reused");
  expect((await jsonOf(server.ask("/v1/fine_tuning/jobs"))).data.length).toBe(3);
  await server.ask(`/v1/fine_tuning/jobs/${once.id}/cancel`, { method: "POST" });
  await server.ask(`/v1/files/${file.id}`, { method: "DELETE" }); // the jobs keep theirs
  const state = join(folder, "state");
  const at = (id: string) => join(state, "jobs", id);
  await jobUntil(server.ask, jobs[0].id, (status) => status !== "validating_files");
  cpSync(at(jobs[0].id), join(place.root, "copy"), { recursive: true });
  mkdirSync(join(at(jobs[0].id), "step-9999")); // as a kill leaves weights that are no model yet, or no more
  for (const steps of [1, 40, 100]) {
    await eventually(
      async () => (await allEvents(server, jobs[0].id)).filter((of: { type: string }) => of.type === "metrics").length >= steps,
    );
    server.running.kill("SIGKILL");
    await server.running.ended;
    server = await startServer(place, folder);
  }
  for (const { id } of jobs) {
    expect((await jobUntil(server.ask, id, isOver)).status).toBe("succeeded");
    const events = await allEvents(server, id);
    const steps = events
      .filter((of: { type: string }) => of.type === "metrics")
      .map((of: { data: { step: number } }) => of.data.step);
    expect(steps.sort((a: number, b: number) => a - b)).toEqual(Array.from({ length: 150 }, (_, i) => i + 1));
    const messages = events.map((of: { message: string }) => of.message);
    expect(new Set(messages).size).toBe(messages.length);
  }
  const folders = readdirSync(at(jobs[0].id)).filter((name) => /^(model|step-)/.test(name));
  expect(folders.length).toBe(3); // the model and two checkpoints before it
  const usage = await jsonOf(server.ask("/v1/usage"));
  const done = await Promise.all(jobs.map(({ id }) => jsonOf(server.ask(`/v1/fine_tuning/jobs/${id}`))));
  expect(usage.data[0].trained_tokens).toBe(done[0].trained_tokens + done[1].trained_tokens);
  const recipe = loadRecipe(join(place.root, "copy", "recipe.toml"), { output: join(place.root, "by-run") });
  await (await openSession(recipe, { isReachable: false })).done;
  expect(weightsIn(join(at(jobs[0].id), "model"))).toBe(weightsIn(join(place.root, "by-run", jobs[0].id)));

  const second = await place.mlora("serve", place.model, "--folder", state, "--listen", "127.0.0.1:1");
  expect(second.code).toBe(2);
  expect(second.err).toContain("another server has");
  server.running.kill("SIGTERM");
  expect((await server.running.ended).code).toBe(0);
});

test("an adapter in place of the base model is named as one", async () => {
  const adapter = join(place.root, "no-model");
  mkdirSync(adapter);
  writeFileSync(join(adapter, "adapter_config.json"), "{}");
  const { code, err } = await place.mlora("serve", adapter, "--listen", "127.0.0.1:1");
  expect([code, err]).toEqual([2, expect.stringContaining("no-model is an adapter, expected a base model")]);
});

describe("one server", () => {
  const adapters = join(place.root, "adapters");
  const started = (async () => {
    mkdirSync(adapters);
    const limits =
      "[limits]\nbody_bytes = 4096\nbody_seconds = 0.5\nfile_bytes = 100000\nfiles = 4\njobs = 2\nupload_seconds = 2\n";
    return startServer(place, serverFolder(place, "limits", `${limits}[adapters]\nfolder = ${JSON.stringify(adapters)}\n`));
  })();
  const errorOf = async (response: Promise<Response>) => {
    const { status, headers } = await response;
    const body = await jsonOf(response);
    expect(Object.keys(body.error).sort()).toEqual(["code", "message", "param", "type"]);
    expect(headers.get("x-request-id")).toStartWith("req-");
    return { status, ...body.error };
  };

  test("tells what is wrong with a request, and answers the next", async () => {
    const { ask, url } = await started;
    const chat = (json: unknown) => errorOf(ask("/v1/chat/completions", { json }));
    const messages = [{ role: "user", content: "x" }];
    expect(await chat("{")).toMatchObject({ status: 400, type: "invalid_request_error" });
    expect(await chat("[".repeat(4000))).toMatchObject({ status: 400 });
    expect(await chat({ model: "local/tiny" })).toMatchObject({ status: 400, param: "messages" });
    expect(await chat({ model: "local/tiny", messages: [{ role: "robot", content: "x" }] })).toMatchObject({ status: 400 });
    expect(await chat({ model: "no", messages })).toMatchObject({ status: 404, code: "model_not_found" });
    expect(await chat({ model: "local/tiny", messages, frequency_penalty: 1 })).toMatchObject({ param: "frequency_penalty" });
    expect(await chat({ model: "local/tiny", messages, tool_choice: "required" })).toMatchObject({ param: "tool_choice" });
    for (const more of [
      { min_p: 0.1 },
      { repetition_penalty: 1.1 },
      { stop_token_ids: [3] },
      { ignore_eos: true },
      { guided_choice: ["a"] },
    ])
      expect(await chat({ model: "local/tiny", messages, ...more })).toMatchObject({ param: Object.keys(more)[0] });
    const neutral = { min_p: 0, repetition_penalty: 1, stop_token_ids: [], ignore_eos: false, guided_choice: null };
    expect(await chat({ model: "local/tiny", messages, ...neutral, stop: "" })).toMatchObject({ param: "stop" });
    expect(await chat({ model: "local/tiny", messages, metadata: { x: "y".repeat(5000) } })).toMatchObject({ status: 413 });
    expect(await errorOf(ask("/v1/nothing"))).toMatchObject({ status: 404, code: "unknown_url" });
    expect(await errorOf(ask("/v1/files", { method: "DELETE" }))).toMatchObject({ status: 405 });
    expect(await errorOf(fetch(`${url}/v1/models`))).toMatchObject({ status: 401, code: "invalid_api_key" });
    expect(await errorOf(fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${KEYS.one}x` } }))).toMatchObject({
      status: 401,
    });
    expect((await fetch(`${url}/v1/models`, { headers: { "x-api-key": KEYS.two } })).status).toBe(200);
    expect(await errorOf(ask("/v1/chat/completions", { json: "{}", headers: { "content-encoding": "gzip" } }))).toMatchObject({
      status: 415,
    });
  });

  test("bounds bodies in bytes and in time", async () => {
    const { ask, url } = await started;
    const { port } = new URL(url);
    const spoken = async (text: string): Promise<string> => {
      const { promise, resolve } = Promise.withResolvers<string>();
      let heard = "";
      const socket = connect(Number(port), "127.0.0.1", () => socket.write(text));
      socket.on("data", (data) => {
        heard += data.toString();
        if (heard.includes("}}")) resolve(heard);
      });
      socket.on("close", () => resolve(heard));
      try {
        return await promise;
      } finally {
        socket.destroy();
      }
    };
    const head = (path: string, length: number, type = "application/json") =>
      `POST ${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${KEYS.one}\r\nContent-Type: ${type}\r\nContent-Length: ${length}\r\n\r\n`;
    expect(await spoken(`${head("/v1/chat/completions", 100)}{"model":`)).toContain(" 408 ");
    expect(await spoken(head("/v1/chat/completions", 2 ** 40))).toContain(" 413 ");
    expect(await spoken(`${head("/v1/files", 2 ** 30, "multipart/form-data; boundary=x")}--x\r\n`)).toContain(" 413 ");
    expect(await errorOf(ask("/v1/files", { method: "POST", body: uploadForm("x".repeat(100_001)) }))).toMatchObject({
      status: 413,
      param: "file",
    });
    expect(await errorOf(ask("/v1/files", { method: "POST", body: "x" }))).toMatchObject({ status: 400 });
    expect((await jsonOf(ask("/v1/files"))).data).toEqual([]); // nothing of them is left
  });

  test("keeps names of files from being paths, and tenants apart", async () => {
    const { ask } = await started;
    const file = await upload(ask, chatRows(10), "../../etc/passwd");
    expect(file.filename).toBe("passwd");
    const theirs = (path: string, method = "GET") => errorOf(ask(path, { key: "two", method }));
    for (const path of [`/v1/files/${file.id}`, `/v1/files/${file.id}/content`])
      expect(await theirs(path)).toMatchObject({ status: 404 });
    expect(await theirs(`/v1/files/${file.id}`, "DELETE")).toMatchObject({ status: 404 });
    expect(await theirs("/v1/files/..%2Fstate.sqlite/content")).toMatchObject({ status: 404 });
    const job = await jsonOf(ask("/v1/fine_tuning/jobs", { json: { model: "local/tiny", training_file: file.id } }));
    for (const path of ["", "/events", "/checkpoints"])
      expect(await theirs(`/v1/fine_tuning/jobs/${job.id}${path}`)).toMatchObject({ status: 404 });
    for (const what of ["cancel", "pause", "resume"])
      expect(await theirs(`/v1/fine_tuning/jobs/${job.id}/${what}`, "POST")).toMatchObject({ status: 404 });
    const stolen = ask("/v1/fine_tuning/jobs", { key: "two", json: { model: "local/tiny", training_file: file.id } });
    expect(await errorOf(stolen)).toMatchObject({ status: 404, param: "training_file" });
    const done = await jobUntil(ask, job.id, isOver);
    expect(done.status).toBe("succeeded");
    expect(await theirs(`/v1/models/${encodeURIComponent(done.fine_tuned_model)}`)).toMatchObject({ status: 404 });
    expect(await theirs(`/v1/models/${encodeURIComponent(done.fine_tuned_model)}`, "DELETE")).toMatchObject({ status: 404 });
    for (const list of ["/v1/files", "/v1/fine_tuning/jobs"])
      expect((await jsonOf(ask(list, { key: "two" }))).data).toEqual([]);
    expect((await jsonOf(ask("/v1/models", { key: "two" }))).data.length).toBe(1);
    expect((await jsonOf(ask("/v1/usage", { key: "two" }))).data).toEqual([]);
    expect(
      await errorOf(ask("/v1/fine_tuning/jobs", { json: { model: "local/tiny", training_file: file.id, suffix: "a/b" } })),
    ).toMatchObject({
      param: "suffix",
    });
    cpSync(join((await started).folder, "state", "jobs", job.id, "model"), join(adapters, "good"), { recursive: true });
  });

  test("pauses a job and resumes it to the same bytes, and bounds jobs", async () => {
    const { ask, folder } = await started;
    const file = await upload(ask, chatRows(36));
    const body = { model: "local/tiny", training_file: file.id, seed: 5, hyperparameters: { n_epochs: 20, batch_size: 2 } };
    const jobs = [
      await jsonOf(ask("/v1/fine_tuning/jobs", { json: body })),
      await jsonOf(ask("/v1/fine_tuning/jobs", { json: body })),
    ];
    expect(await errorOf(ask("/v1/fine_tuning/jobs", { json: body }))).toMatchObject({ status: 429, type: "rate_limit_error" });
    const [{ id }, other] = jobs;
    const call = (what: string) => jsonOf(ask(`/v1/fine_tuning/jobs/${id}/${what}`, { method: "POST" }));
    expect((await call("pause")).status).toBe("paused"); // while its files are checked, or later
    expect((await call("resume")).error).toBeNull();
    await eventually(async () =>
      (await jsonOf(ask(`/v1/fine_tuning/jobs/${id}/events?limit=1`))).data[0].message.startsWith("Step "),
    );
    expect((await call("pause")).status).toBe("paused");
    expect(await errorOf(ask(`/v1/fine_tuning/jobs/${id}/pause`, { method: "POST" }))).toMatchObject({ status: 400 });
    await jobUntil(ask, other.id, isOver);
    await call("resume");
    expect((await jobUntil(ask, id, isOver)).status).toBe("succeeded");
    const modelOf = (job: string) => weightsIn(join(folder, "state", "jobs", job, "model"));
    expect(modelOf(id)).toBe(modelOf(other.id));
    await ask(`/v1/files/${file.id}`, { method: "DELETE" });
  });

  test("loads adapters of its folder and of no other", async () => {
    const { ask, folder } = await started;
    symlinkSync(join(folder, "state"), join(adapters, "away"));
    mkdirSync(join(adapters, "empty"));
    writeFileSync(join(adapters, "empty", "adapter_config.json"), "{}");
    const load = (lora_path: string, lora_name = "mine") => ask("/v1/load_lora_adapter", { json: { lora_name, lora_path } });
    for (const path of ["../limits/state", "away", "away/jobs", "/etc", "nothing", "."])
      expect(await errorOf(load(path))).toMatchObject({ status: 404, param: "lora_path" });
    expect(await errorOf(load("empty"))).toMatchObject({ status: 400 });
    expect(await errorOf(load("good", "local/tiny"))).toMatchObject({ status: 400, param: "lora_name" });
    expect(await (await load("good")).text()).toBe("Success: LoRA adapter 'mine' added successfully.");
    expect(await errorOf(load("good"))).toMatchObject({ status: 400 });
    const json = { model: "mine", prompt: "a", max_tokens: 4, temperature: 0 };
    const { text } = (await jsonOf(ask("/v1/completions", { json }))).choices[0];
    cpSync(join(adapters, "good"), join(adapters, "cut"), { recursive: true });
    truncateSync(join(adapters, "cut", "adapter_model.safetensors"), 50);
    const cut = await errorOf(
      ask("/v1/load_lora_adapter", { json: { lora_name: "mine", lora_path: "cut", load_inplace: true } }),
    );
    expect(cut).toMatchObject({ status: 400, param: "lora_path" });
    expect(cut.message).toStartWith("cut/adapter_model.safetensors: "); // nothing of the server's folders
    expect((await errorOf(load("$&/../cut", "other"))).message).toStartWith("$&/../cut/adapter_model.safetensors: ");
    expect((await jsonOf(ask("/v1/completions", { json }))).choices[0].text).toBe(text); // the one before is there again
    expect(await errorOf(ask("/v1/completions", { json, key: "two" }))).toMatchObject({ status: 404 });
    expect((await ask("/v1/unload_lora_adapter", { json: { lora_name: "mine" } })).status).toBe(200);
    expect(await errorOf(ask("/v1/completions", { json }))).toMatchObject({ status: 404 });
    expect(weightsIn(join(adapters, "good")).length).toBeGreaterThan(100); // the folder stays
  });

  test("counts what is used, and says what may be asked", async () => {
    const { ask, url } = await started;
    const { data } = await jsonOf(ask("/v1/usage"));
    expect(data.map((row: { model: string }) => row.model)).toEqual(["local/tiny", "mine"]);
    const csv = await (await ask("/v1/usage?format=csv")).text();
    expect(csv.split("\n")[0]).toBe("day,model,requests,prompt_tokens,completion_tokens,trained_tokens");
    const metrics = await (await ask("/metrics")).text();
    expect(metrics).toMatch(/mlora_requests_total\{method="POST",route="\/v1\/completions",status="200"\} 2\n/);
    expect(metrics).toContain('mlora_jobs{status="succeeded"} 3\n');
    expect((await fetch(`${url}/metrics`)).status).toBe(401);
    const document = await jsonOf(fetch(`${url}/openapi.json`));
    expect(document.paths["/v1/fine_tuning/jobs"].post.requestBody.content["application/json"].schema.required).toContain(
      "training_file",
    );
    expect(Object.keys(document.paths)).toContain("/v1/models/{name}");
  });
});

needs("openssl")("TLS", () => {
  test("a certificate is served", async () => {
    const folder = serverFolder(place, "tls", '[server]\ncertificate = "cert.pem"\ncertificate_key = "key.pem"\n');
    const made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"];
    Bun.spawnSync(["openssl", ...made, "-keyout", join(folder, "key.pem"), "-out", join(folder, "cert.pem")], {
      stderr: "ignore",
    });
    const { url, running } = await startServer(place, folder, "https");
    const trusting = { headers: { authorization: `Bearer ${KEYS.one}` }, tls: { rejectUnauthorized: false } };
    expect((await jsonOf(fetch(`${url}/v1/models`, trusting))).data[0].id).toBe("local/tiny");
    running.kill("SIGTERM");
    expect((await running.ended).code).toBe(0);
  });
});

function uploadForm(text: string): FormData {
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([text], "a.jsonl"));
  return form;
}
