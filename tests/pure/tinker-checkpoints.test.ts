// Weights that clients of Tinker's save by a name: what takes their place, and when they are gone.

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Database } from "../../src/serve/store.ts";
import { Checkpoints } from "../../src/serve/tinker/checkpoints.ts";
import { TinkerStore } from "../../src/serve/tinker/store.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-tinker-checkpoints-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Files as the engine leaves them; nothing here reads what is in them. */
const write = async (_: string, folder: string): Promise<void> => {
  mkdirSync(folder);
  writeFileSync(join(folder, "weights"), "some");
};

test("weights that others replace go when these are in the tables, and not before; a name is free when it has expired", async () => {
  using db = new Database(join(root, "state"));
  const store = new TinkerStore(db);
  store.addSession("one", "s", { user_metadata: null, display_name: null });
  const asked = { rank: 4, seed: 1, attention: true, mlp: true, from: null, user_metadata: null };
  store.addModel({ id: "m", tenant: "one", session: "s", asked });
  const engine = { save: write, saveState: write };
  const weights = new Checkpoints(store, engine as never, null as never, join(root, "weights"), 1e6);
  const save = (overwrite: boolean) => weights.save(store.knownModel("m")!, "train-1", "weights", "a", { overwrite });
  const stored = () => store.knownCheckpoint("m", "weights", "a");

  const first = await save(false);
  db.together(first.add);
  expect(save(false)).rejects.toThrow("already");
  const second = await save(true);
  const failing = () => {
    second.add();
    throw new Error("the disk is full");
  };
  expect(() => db.together(failing)).toThrow("full");
  await Promise.resolve();
  expect([stored()!.folder, existsSync(first.row.folder)]).toEqual([first.row.folder, true]);
  db.together(second.add);
  await Promise.resolve();
  expect([stored()!.folder, existsSync(first.row.folder)]).toEqual([second.row.folder, false]);

  store.setExpiry(stored()!, 1);
  expect(stored()).toBeNull();
  const third = await save(false);
  db.together(third.add);
  await Promise.resolve();
  expect([stored()!.folder, existsSync(second.row.folder)]).toEqual([third.row.folder, false]);
});
