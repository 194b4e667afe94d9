// Models of a server: those that are used stay at hand, and those that others replace go when that is certain.

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { apiErrorOf, failureText } from "../../src/serve/errors.ts";
import { Models } from "../../src/serve/models.ts";
import { Database } from "../../src/serve/store.ts";
import { eventually } from "../helpers/server.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-serve-models-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Models over adapters that are names alone; `most` of them stay at hand. */
function opened(name: string, most: number) {
  const db = new Database(join(root, name));
  const there = new Set<string>();
  const engine = {
    has: (adapter: string) => there.has(adapter),
    add: async ({ adapter }: { readonly adapter: string }) => void there.add(adapter),
    remove: async (adapter: string) => void there.delete(adapter),
    plan: { spec: null },
  };
  const recipes = { ofFolder: (adapter: string) => ({ adapter }) };
  const models = new Models(db, engine as never, recipes as never, { name: "base", created_at: 0, folder: root }, most);
  const add = (of: string, text = of) => {
    const folder = join(root, `${name}-${text}`);
    mkdirSync(folder);
    return { name: of, tenant: "one", folder, parent: "base" };
  };
  return { db, models, there, add };
}

test("a model that is used stays at hand, however many others are asked for", async () => {
  const { db, models, there, add } = opened("used", 1);
  using _ = db;
  for (const name of ["a", "b", "c"]) models.add(add(name));
  const use = (name: string, work: (adapter: string | null) => Promise<unknown> = async () => undefined) =>
    models.use(models.find("one", name), work);
  await use("a", async (a) => {
    await use("b");
    await use("c");
    expect(there.has(a!)).toBe(true);
    expect(there.size).toBe(2);
  });
  await use("b");
  expect(there.size).toBe(1);
  const a = models.find("one", "a")!;
  await models.remove(a);
  expect(models.use(a, async () => undefined)).rejects.toThrow("does not exist");
});

test("a model whose name another takes goes once that is in the tables, and stays where it is not", async () => {
  const { db, models, add } = opened("replaced", 9);
  using _ = db;
  const [first, second] = [add("x", "first"), add("x", "second")];
  models.add(first);
  const failing = () => {
    models.replace(second);
    throw new Error("the disk is full");
  };
  expect(() => db.together(failing)).toThrow("full");
  await Promise.resolve();
  expect([models.find("one", "x")!.folder, existsSync(first.folder)]).toEqual([first.folder, true]);
  db.together(() => models.replace(second));
  await eventually(() => !existsSync(first.folder));
  expect([models.find("one", "x")!.folder, existsSync(first.folder)]).toEqual([second.folder, false]);
  expect(models.list("one").length).toBe(1);
});

test("what a client reads of an adapter that is gone names none of the others", () => {
  const gone = new RequestError("primitives.adapter", "there is no adapter 'model-3'", "name one of ftjob-of-another-key");
  for (const text of [apiErrorOf(gone).error.message, failureText(gone)])
    expect(text).toBe("The model is gone: it was deleted meanwhile.");
});
