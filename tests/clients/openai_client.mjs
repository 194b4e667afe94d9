// npm's openai against a server: upload, train, watch, sample, delete. Prints "ok".

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, url, key, otherKey, model] = process.argv.slice(2);
const { default: OpenAI, toFile } = createRequire(join(folder, "package.json"))("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const other = new OpenAI({ baseURL: `${url}/v1`, apiKey: otherKey, maxRetries: 0 });

const lines = Array.from({ length: 10 }, (_, i) => {
  const messages = [
    { role: "user", content: `${i} + 2?` },
    { role: "assistant", content: `${i + 2} \u{1f600}` },
  ];
  return `${JSON.stringify({ messages })}\n`;
}).join("");
const file = await client.files.create({ file: await toFile(Buffer.from(lines), "Zeilen \u00fc.jsonl"), purpose: "fine-tune" });
assert.equal(file.filename, "Zeilen \u00fc.jsonl");
assert.equal(file.bytes, Buffer.byteLength(lines));
assert.equal(await (await client.files.content(file.id)).text(), lines);
await assert.rejects(other.files.retrieve(file.id), OpenAI.NotFoundError);

let job = await client.fineTuning.jobs.create({ model, training_file: file.id, suffix: "npm", seed: 1 });
assert.equal(job.hyperparameters.n_epochs, 10); // "auto" of ten rows
for (const end = Date.now() + 60_000; !/^(succeeded|failed)$/.test(job.status); ) {
  assert.ok(Date.now() < end, job.status);
  await new Promise((resolve) => setTimeout(resolve, 50));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.status, "succeeded", JSON.stringify(job.error));
const events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 7 })) events.push(event);
assert.equal(events.filter(({ type }) => type === "metrics").length, 100);
assert.equal(new Set(events.map(({ id }) => id)).size, events.length);
const checkpoints = [];
for await (const of of client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 })) checkpoints.push(of.step_number);
assert.deepEqual(checkpoints, [100, 90, 80]); // the last epochs

const ask = { model: job.fine_tuned_model, messages: [{ role: "user", content: "3 + 2?" }], temperature: 0, max_tokens: 12 };
const whole = await client.chat.completions.create(ask);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) text += chunk.choices[0].delta.content ?? "";
assert.equal(text, whole.choices[0].message.content);
const models = [];
for await (const of of client.models.list()) models.push(of.id);
assert.ok(models.includes(job.fine_tuned_model));
await assert.rejects(other.chat.completions.create(ask), (error) => error.code === "model_not_found" && error.status === 404);
await assert.rejects(client.chat.completions.create({ ...ask, stop: "" }), OpenAI.BadRequestError);
assert.equal((await client.models.delete(job.fine_tuned_model)).deleted, true);
await assert.rejects(client.models.retrieve(job.fine_tuned_model), OpenAI.NotFoundError);
assert.equal((await client.files.delete(file.id)).deleted, true);
process.stdout.write("ok\n");
