// W&B's transaction log, by the bytes that its own package writes; scripts/nightly/tracking.ts has its own program send whole
// runs.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { continueLog, historyIn, recordsOf, STEP, WandbLog } from "../../src/files/wandb.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import type { SessionEvent } from "../../src/session/events/events.ts";
import { wandb } from "../../src/session/trackers/wandb.ts";

const GOLDEN = join(import.meta.dir, "..", "golden", "wandb");
const golden: Readonly<Record<string, string>> = JSON.parse(readFileSync(join(GOLDEN, "records.json"), "utf8"));
const offline = Bun.gunzipSync(Buffer.from(JSON.parse(readFileSync(join(GOLDEN, "offline.json"), "utf8")).gzip, "base64"));
const root = mkdtempSync(join(tmpdir(), "mlora-wandb-"));
afterAll(() => rmSync(root, { recursive: true }));

const facts = {
  ...{ id: "abc123", entity: "me", project: "mlora", group: "g", name: "tickets", config: { rank: 16 } },
  ...{ began: 1_764_456_000.5, host: "example", version: "1.2.3" },
};
const hex = (bytes: Uint8Array) => [...recordsOf(bytes)].map(({ payload }) => Buffer.from(payload).toString("hex"));

describe("a run's file", () => {
  test("has the records that W&B's own classes write", () => {
    const log = new WandbLog();
    const begun = log.begin(facts);
    const rest = [log.history({ "train/loss": 0.5, [STEP]: 1 }), log.summary({ "eval/loss": Number.NaN }), log.end(true, 90.7)];
    const { header, run, step, rest: others, row, last, end } = golden;
    expect(hex(Buffer.concat([begun, ...rest]))).toEqual([header!, run!, step!, others!, row!, last!, end!]);
  });

  test("of W&B itself is read, with records of several blocks and numbers that are not finite", () => {
    const records = [...recordsOf(offline)];
    expect(records.at(-1)!.end).toBe(offline.length);
    expect(records.filter(({ payload }) => payload.length > 2 * 32_768)).toHaveLength(1);
    const rows = records.map(({ payload }) => historyIn(payload)).filter((row) => row !== null);
    expect(rows.map((row) => [row[STEP], row["train/loss"], row["eval/loss"]])).toEqual([
      [1, 1, undefined],
      [2, 0.5, undefined],
      [3, 1 / 3, undefined],
      [3, undefined, Number.NaN],
    ]);
  });

  test("is read back whole, wherever in a block a record ends", () => {
    for (const length of [0, 1, 32_000, 32_740, 32_745, 32_746, 32_747, 32_748, 32_750, 32_760, 65_500, 100_000]) {
      const long = { ...facts, config: { long: "x".repeat(length) } };
      const log = new WandbLog();
      const bytes = Buffer.concat([log.begin(long), ...range(900).map((i) => log.history({ a: i }))]);
      const found = [...recordsOf(bytes)];
      expect(found.at(-1)!.end).toBe(bytes.length);
      expect(found.flatMap(({ payload }) => historyIn(payload)?.["a"] ?? [])).toEqual(range(900));
    }
  });
});

describe("a run that is resumed", () => {
  const file = (name: string, bytes: Uint8Array) => {
    const path = join(root, name);
    writeFileSync(path, bytes);
    return path;
  };
  const begun = () => {
    const log = new WandbLog();
    const parts = [log.begin(facts)];
    for (const step of [1, 2, 3]) parts.push(log.history({ "train/loss": step, [STEP]: step }));
    parts.push(log.history({ "eval/loss": 9, [STEP]: 3 }), log.end(false, 5));
    return Buffer.concat(parts);
  };
  const kept = (last: number) => (row: Readonly<Record<string, number>>) =>
    row[STEP]! < last || (row[STEP] === last && "train/loss" in row);
  const rowsIn = (path: string) =>
    [...recordsOf(readFileSync(path))].map(({ payload }) => historyIn(payload)).filter((row) => row !== null);

  test.each([0, 1, 2, 3])("from step %d has each row once, and is the file of an undisturbed run", (last) => {
    const path = file("resumed", begun());
    const log = continueLog(path, kept(last))!;
    const parts: Uint8Array[] = [];
    for (let step = last + 1; step <= 3; step++) parts.push(log.history({ "train/loss": step, [STEP]: step }));
    parts.push(log.history({ "eval/loss": 9, [STEP]: 3 }), log.end(false, 5));
    writeFileSync(path, Buffer.concat([readFileSync(path), ...parts]));
    expect(readFileSync(path).equals(begun())).toBe(true);
  });

  test("after a kill at any byte keeps what is whole before it", () => {
    const bytes = begun();
    const ends = [...recordsOf(bytes)].map(({ end }) => end);
    for (let length = ends[1]!; length < bytes.length; length += 7) {
      const path = file("cut", bytes.subarray(0, length));
      const log = continueLog(path, () => true)!;
      const whole = ends.slice(0, -1).filter((at) => at <= length); // the end of the run goes
      expect(statSync(path).size).toBe(whole.at(-1)!);
      expect(rowsIn(path)).toHaveLength(Math.max(0, whole.length - 4));
      expect(log).not.toBeNull();
    }
  });

  test("does not take what is no file of a run for one", () => {
    for (const bytes of [new Uint8Array(), Buffer.from("something else entirely"), begun().subarray(0, 20)])
      expect(continueLog(file("none", bytes), () => true)).toBeNull();
    expect(continueLog(join(root, "missing"), () => true)).toBeNull();
  });

  test("stops at a record whose bytes are damaged", () => {
    const bytes = Buffer.from(begun());
    const ends = [...recordsOf(bytes)].map(({ end }) => end);
    bytes[ends[4]! + 12]! ^= 1;
    const path = file("damaged", bytes);
    continueLog(path, () => true);
    expect(statSync(path).size).toBe(ends[4]!);
  });
});

test("a run's settings have addresses without what may be secret in them", () => {
  const [data, reward] = ["https://host.example/rows.jsonl?key=private", "https://me:word@host.example/score?key=private"];
  const recipe = parseRecipe(
    `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "${data}"\nobjective = { name = "grpo", reward = { url = "${reward}" } }\n`,
    "/r.toml",
  );
  const output = mkdtempSync(join(root, "run-"));
  const { listener, flush } = wandb({ recipe, adapters: [] } as unknown as Plan, output, null, (text) => expect(text).toBe(""));
  listener({ type: "ended", adapter: "a", result: { status: "done" } } as unknown as SessionEvent);
  flush();
  const [file] = readdirSync(join(output, "wandb"), { recursive: true, encoding: "utf8" }).filter((name) =>
    name.endsWith(".wandb"),
  );
  const text = readFileSync(join(output, "wandb", file!), "latin1");
  for (const shown of ["https://host.example/rows.jsonl?...", "https://host.example/score?..."]) expect(text).toContain(shown);
  for (const secret of ["private", "word@"]) expect(text).not.toContain(secret);
});
