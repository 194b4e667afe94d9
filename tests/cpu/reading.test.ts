// Data is read in a thread: with the same rows, while all other work continues, within limits of time and memory.

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { loadDataset } from "../../src/data/dataset.ts";
import { readData } from "../../src/data/reading.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { asker } from "../helpers/ask.ts";
import { until } from "../helpers/bus.ts";
import { filesOf, metrics, SUMS, sums, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const VOCAB = 260;
const lines = (rows: readonly object[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
const HEAD = '[model]\npath = "../model"\n[run]\noutput = "out"\ndevice = "cpu"\n[defaults]\nsteps = 1\n';
const adapter = (name: string, more: string) => `[[adapter]]\nname = "${name}"\n${more}\n`;
const read = (path: string, more: Partial<Parameters<typeof readData>[1]> = {}) =>
  readData(loadRecipe(path, {}).adapters, { model: place.model, vocab: VOCAB, ...more });
const chat = (i: number) => ({
  messages: [
    { role: "user", content: `Hi ${i}` },
    { role: "assistant", content: `Hello ${i}` },
    { role: "user", content: "And?" },
    { role: "assistant", content: "x".repeat(i) },
  ],
  unused: 1,
});

/** A tenth of a second and more for each row, below the most steps that a template may take. */
const SLOW =
  "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}" +
  "{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}";
const slowly = (name: string, template = "slow.jinja") => adapter(name, `data = "slow.jsonl"\nchat_template = "${template}"`);
const slow = { "slow.jsonl": lines(Array.from({ length: 500 }, (_, i) => chat(i + 1))), "slow.jinja": SLOW };

test("the thread reads what is read without one: rows, counts and notices, in every form", async () => {
  const path = place.project(
    HEAD +
      adapter("cut", 'data = { train = "chats.jsonl" }\nmax_length = 40') +
      adapter("turns", 'data = { train = ["chats.jsonl", "sums.jsonl"], split = 0.3 }\nthoughts = "every-turn"') +
      adapter("same", 'data = { train = ["chats.jsonl", "sums.jsonl"], split = 0.5 }\nthoughts = "every-turn"') +
      adapter("pairs", 'objective = "dpo"\ndata = { train = "pairs.jsonl", split = 0.2 }') +
      adapter("labels", 'objective = "kto"\ndata = { train = "labels.jsonl", eval = "labels.jsonl" }'),
    {
      "chats.jsonl": lines(Array.from({ length: 20 }, (_, i) => chat(i + 1))),
      "sums.jsonl": sums(9),
      "pairs.jsonl": lines(
        Array.from({ length: 9 }, (_, i) => ({ prompt: `p${i}`, chosen: `c${i}`, rejected: i === 4 ? "c4" : "r" })),
      ),
      "labels.jsonl": lines(
        Array.from({ length: 9 }, (_, i) => ({ prompt: `p${i}`, completion: `c${i}`, label: i % 3 === 0 })),
      ),
    },
  );
  const tokenizer = loadTokenizer(place.model);
  const { adapters } = loadRecipe(path, {});
  const found = await read(path);
  const alone = adapters.map((of) => loadDataset(of, tokenizer, VOCAB));
  for (const [i, { train, eval: held, counts, notices }] of alone.entries()) {
    expect(found[i]!.counts).toEqual(counts);
    expect(found[i]!.notices).toEqual(notices);
    expect([...found[i]!.train]).toEqual([...train]);
    expect([...found[i]!.eval]).toEqual([...held]);
  }
  expect(alone.every(({ train }) => train.length > 0)).toBe(true);
  expect(alone[0]!.notices.map(({ kind }) => kind)).toContain("cut");
  expect(alone[1]!.eval.length).toBeGreaterThan(2);
  expect(alone[3]!.train.every(({ other }) => other !== undefined)).toBe(true);
  expect(new Set(alone[4]!.train.map(({ label }) => label))).toEqual(new Set([true, false]));
  expect(found[1]!.train[0]!.ids.buffer).toBe(found[2]!.train[0]!.ids.buffer); // read once
});

describe("limits", () => {
  const path = () => place.project(HEAD + slowly("a"), slow);

  test("a row that takes too long is named", async () => {
    await expect(read(path(), { rowMs: 10 })).rejects.toMatchObject({
      code: "data.slow",
      message: expect.stringMatching(/slow\.jsonl:\d+: reading this row has taken more than 0.01 s$/),
    });
  });

  test("rows that take too much memory are named", async () => {
    const many = place.project(HEAD + adapter("a", 'data = "rows.jsonl"'), { "rows.jsonl": sums(20_000) });
    await expect(read(many, { mostBytes: 100_000 })).rejects.toMatchObject({
      code: "data.memory",
      message: expect.stringMatching(/rows\.jsonl:\d+: the rows up to here take [\d,]+ bytes/),
    });
  });

  test("a reading that takes too long in all says how far it is", async () => {
    await expect(read(path(), { allMs: 1_000 })).rejects.toMatchObject({
      code: "data.slow",
      message: expect.stringMatching(/^the data is not read after 1 s: \d+ rows?, \d+ bytes of [\d,]+ so far$/),
    });
  });

  test("a row that takes too much memory while it is read is named, and others are read after it", async () => {
    const rows = [
      { prompt: "short", completion: "row" },
      { prompt: "Long", completion: "word ".repeat(6 << 20) },
    ];
    const one = place.project(`${HEAD}${adapter("a", 'data = "rows.jsonl"\nmax_length = 64')}`, { "rows.jsonl": lines(rows) });
    await expect(read(one, { mostGrowth: 100 << 20 })).rejects.toMatchObject({
      code: "data.memory",
      message: expect.stringMatching(/rows\.jsonl:2: the process has grown by [\d,]+ bytes/),
    });
    const few = place.project(HEAD + adapter("a", 'data = "rows.jsonl"'), { "rows.jsonl": sums(20) });
    expect((await read(few))[0]!.counts.rows).toBe(20);
  });

  test("a reading that is aborted ends at once, with the reason, and timers continue meanwhile", async () => {
    const stop = new AbortController();
    let ticks = 0;
    const timer = setInterval(() => ticks++, 20);
    const reading = read(path(), { signal: stop.signal });
    reading.catch(() => undefined);
    await until("timers", 60_000, () => ticks > 20);
    const begun = performance.now();
    stop.abort(new Error("enough"));
    await expect(reading).rejects.toThrow("enough");
    clearInterval(timer);
    expect(performance.now() - begun).toBeLessThan(30_000); // what is left of 500 rows takes longer
  });

  test("a template without an end is its sender's error", async () => {
    const endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    const path = place.project(HEAD + slowly("a"), { ...slow, "slow.jinja": endless });
    const { code, err } = await place.mlora("run", path);
    expect([code, err]).toEqual([2, expect.stringMatching(/slow\.jsonl:1.*steps for one row/)]);
  });
});

for (const signal of ["SIGINT", "SIGTERM"] as const)
  test(`${signal} while data is read ends the run at once`, async () => {
    const path = place.project(HEAD + slowly("a"), slow);
    const run = place.start(["run", path]);
    await until("reading", 60_000, () => filesOf(run.pid).some((file) => file.endsWith("slow.jsonl")));
    const begun = performance.now();
    run.kill(signal);
    const { code, err } = await run.ended;
    expect([code, err]).toEqual([1, expect.stringContaining("error[run.stopped]: stopped before any training")]);
    expect(performance.now() - begun).toBeLessThan(30_000); // the rest takes longer
  });

test("an addition that reads for long stops neither the run nor its answers, and fails alone", async () => {
  const text = unlike([0], "cpu").replace("steps = 6", "steps = 100000");
  const endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
  const of = (name: string, template: string) =>
    `${text.slice(0, text.indexOf("[defaults]"))}${slowly(name, template)}steps = 1\n`;
  const path = place.project(text, {
    ...SUMS,
    ...slow,
    "endless.jinja": endless,
    "long.toml": of("long", "slow.jinja"),
    "endless.toml": of("endless", "endless.jinja"),
  });
  const output = join(path, "..", "out");
  const steps = () => (existsSync(join(output, "metrics.jsonl")) ? metrics(output, "step").length : 0);
  const run = place.start(["run", path]);
  await until("steps", 60_000, () => steps() > 3);

  const wrong = await place.mlora("add", output, join(path, "..", "endless.toml"));
  expect([wrong.code, wrong.err]).toEqual([2, expect.stringMatching(/the rows at .*slow\.jsonl:1.* cannot be read/)]);

  const long = place.start(["add", output, join(path, "..", "long.toml")]);
  await until("its reading", 60_000, () => filesOf(run.pid).some((file) => file.endsWith("slow.jsonl")));
  const before = steps();
  {
    await using asking = await asker(place);
    for (let i = 0; i < 3; i++) expect((await asking.ask({ type: "status" })).state).toBe("training");
  }
  const { code, out } = await place.mlora("ps", "--json");
  expect([code, JSON.parse(out)[0].state]).toEqual([0, "training"]);
  expect((await place.mlora("pause", output, "a0")).code).toBe(0);
  expect((await place.mlora("resume", output, "a0")).code).toBe(0);
  await until("more steps", 60_000, () => steps() > before + 10);
  const begun = performance.now();
  run.kill("SIGINT");
  expect((await run.ended).code).toBe(1);
  expect(performance.now() - begun).toBeLessThan(30_000); // the rest takes longer
  expect((await long.ended).code).not.toBe(0);
}, 300_000);
