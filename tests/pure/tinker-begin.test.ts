// What a killed server has left half done of Tinker's sessions, when the next one begins.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Database } from "../../src/serve/store.ts";
import { Futures } from "../../src/serve/tinker/futures.ts";
import { Sessions } from "../../src/serve/tinker/sessions.ts";
import { TinkerStore } from "../../src/serve/tinker/store.ts";
import { Training } from "../../src/serve/tinker/training.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-tinker-begin-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

test("states that no model needs go, and a session that was ending ends", async () => {
  using db = new Database(join(root, "state"));
  const store = new TinkerStore(db);
  const asked = { rank: 4, seed: 1, attention: true, mlp: true, from: null, user_metadata: null };
  for (const session of ["open", "over"]) {
    store.addSession("one", session, { user_metadata: null, display_name: null });
    store.addModel({ id: session, tenant: "one", session, asked });
    const of = { tenant: "one", session, owner: session, seed: 1, kind: "optim_step", body: new Uint8Array() };
    for (const number of [0, 1, 2, 3, 4]) store.addRequest({ ...of, number });
    for (const number of [0, 1, 2]) store.finish(`${session}:${number}`, "", new Uint8Array(), true);
    store.saved(session, 2);
  }
  store.endSession("over");
  const folder = join(root, "states");
  const seqOf = (id: string) => `${store.knownModel(id)!.seq}`;
  const made = [`${seqOf("open")}/state-1`, `${seqOf("open")}/state-2`, `${seqOf("over")}/state-2`, "99/state-1"];
  for (const path of made) mkdirSync(join(folder, path), { recursive: true });

  const futures = new Futures(store);
  const checkpoints = { endSession: () => undefined };
  // What is open cannot be put on the stages: here only the rest is looked at.
  const engine = { has: () => false, add: () => new Promise(() => undefined) };
  const recipes = { ofTrained: () => ({}) };
  const training = new Training({ store, futures, folder, engine, recipes } as never);
  const sessions = new Sessions(store, training, checkpoints as never, 3600);
  expect(store.halfEnded()).toEqual(["over"]);
  sessions.begin();
  training.begin();
  await sessions.finish("over");
  sessions.stop();

  expect(readdirSync(folder)).toEqual([seqOf("open")]);
  expect(readdirSync(join(folder, seqOf("open")))).toEqual(["state-2"]);
  expect(store.waiting().map(({ id }) => id)).toEqual(["open:3", "open:4"]);
  expect(store.halfEnded()).toEqual([]);
  const text = await (await futures.retrieve("one", "over:3", new AbortController().signal)).text();
  expect(JSON.parse(text)).toMatchObject({ category: "user", error: expect.stringContaining("over") });
});
