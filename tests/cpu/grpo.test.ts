// Adapters that learn from rewards of their own answers: what they learn depends on their own data, settings and rewards alone,
// whatever else is trained, however the model is divided, and after a kill; and rewards that fail lose nothing.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { sum } from "../../src/base/shape.ts";
import { checkpointsIn } from "../../src/files/checkpoint.ts";
import { until } from "../helpers/bus.ts";
import { leftOf, SUMS, unlike, Workplace } from "../helpers/program.ts";

type Asked = { readonly prompt: string; readonly completion: string; readonly row: { readonly wanted: string } };
type Completion = { readonly adapter: string; readonly step: number; readonly row: number } & {
  readonly completion: string;
  readonly rewards: Readonly<Record<string, number | null>>;
  readonly advantage: number;
  readonly tokens: number;
};

/** Characters of the answer that are the row's, and, by another address, minus its length. */
const REWARDS: Readonly<Record<string, (of: Asked) => number | null>> = {
  share: ({ completion, row }) => [...completion].filter((one) => row.wanted.includes(one)).length / 8,
  short: ({ completion }) => (completion.includes("q") ? null : -completion.length),
};
let [place, server]: [Workplace | null, ReturnType<typeof Bun.serve> | null] = [null, null];
/** Calls that get no rewards before others do. */
let failures = 0;
/** Calls that are answered; the next is `held`, and gets no answer until `released`. */
let answered = Number.POSITIVE_INFINITY;
let [held, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
beforeAll(() => {
  place = new Workplace(2);
  server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    async fetch(request) {
      if (--answered < 0) {
        held.resolve();
        await released.promise;
      }
      if (failures > 0) {
        failures--;
        return new Response("[0]");
      }
      const asked = (await request.json()) as readonly Asked[];
      return Response.json(asked.map(REWARDS[new URL(request.url).pathname.slice(1)]!));
    },
  });
});
afterAll(() => {
  server!.stop(true);
  place![Symbol.dispose]();
});

const at = (name: string, more = "") => `{ url = "http://127.0.0.1:${server!.port}/${name}", name = "${name}"${more} }`;
const ROWS = Array.from({ length: 6 }, (_, i) => `${JSON.stringify({ prompt: `say ${i * i}`, wanted: "aeiou" })}\n`).join("");
/** Objectives that differ in all that the engine is asked for. */
const adapters = (steps: number): readonly string[] =>
  [
    `name = "g0"\ndropout = 0.1\nbatch_size = 2\nobjective = { name = "grpo", reward = ${at("share")}, generations = 4, max_new_tokens = 6 }`,
    `name = "g1"\nrank = 6\nbatch_size = 1\naccumulation = 2\nobjective = { name = "grpo", reward = [${at("share")}, ${at("short", ", weight = 0.1")}], generations = 3, max_new_tokens = 7, iterations = 2, beta = 0.1, loss = "grpo", importance_sampling_level = "sequence" }`,
    `name = "g2"\nmethod = "dora"\nbatch_size = 3\nobjective = { name = "grpo", reward = ${at("share")}, generations = 2, max_new_tokens = 5, loss = "cispo", epsilon_high = 3, scale_rewards = "batch", top_k = 40 }`,
  ].map((text) => `[[adapter]]\ndata = "prompts.jsonl"\nmax_length = 30\nlearning_rate = 2e-2\nsteps = ${steps}\n${text}\n`);
const FILES = { ...SUMS, "prompts.jsonl": ROWS };
const NAMES = ["g0", "g1", "g2"];

const head = (more = "") =>
  `[model]\npath = "../model"\n[run]\noutput = "out"\ndevice = "cpu"\ntokens_per_microbatch = 60\n${more}\n`;
const outputOf = (recipe: string) => join(recipe, "..", "out");
const answersOf = (recipe: string): readonly Completion[] =>
  readFileSync(join(outputOf(recipe), "completions.jsonl"), "utf8")
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
const left = (recipe: string, name: string) => ({
  ...leftOf(outputOf(recipe), name),
  answers: answersOf(recipe).filter(({ adapter }) => adapter === name),
});
async function run(text: string) {
  const recipe = place!.project(text, FILES);
  return { recipe, ...(await place!.mlora("run", recipe)) };
}

const STEPS = 4;
/** The recipe of a run of each of the adapters by itself. */
const alone: string[] = [];
beforeAll(async () => {
  for (const one of adapters(STEPS)) {
    const { recipe, code, err } = await run(head() + one);
    expect([code, err]).toEqual([0, expect.any(String)]);
    alone.push(recipe);
  }
});

describe("alone, with others, in stages, and killed", () => {
  const expectSame = (recipe: string) => {
    for (const [i, name] of NAMES.entries()) expect(left(recipe, name)).toEqual(left(alone[i]!, name));
  };

  test("it reports the rewards of its answers, which are those of its rows", () => {
    for (const [i, name] of NAMES.entries()) {
      const { answers, steps } = left(alone[i]!, name);
      const first = answers.filter(({ step }) => step === 1);
      expect(first.length).toBe([8, 6, 6][i]!);
      for (const { completion, rewards } of first)
        expect(rewards["share"]).toBe(REWARDS["share"]!({ prompt: "", completion, row: { wanted: "aeiou" } }));
      const total = ({ rewards }: Completion) => rewards["share"]! + 0.1 * (rewards["short"] ?? 0);
      expect(steps[0]!["reward"]).toBeCloseTo(sum(first.map(total)) / first.length, 12);
      expect(steps[0]!["completions/mean_length"]).toBe(sum(first.map(({ tokens }) => tokens)) / first.length);
      expect(new Set(first.map(({ completion }) => completion)).size).toBeGreaterThan(1); // each has a chance of its own
      expect(Math.abs(sum(first.map(({ advantage }) => advantage)))).toBeLessThan(1e-6);
    }
    const ofG1 = left(alone[1]!, "g1").steps;
    expect(ofG1[0]!["kl"]).toBe(0); // it begins as the base model
    expect(ofG1[1]!["kl"]).toBeGreaterThan(0);
    expect(new Set(left(alone[1]!, "g1").answers.map(({ step }) => step))).toEqual(new Set([1, 3]));
  });

  test("in one run with each other and with supervised ones it comes to the same bytes", async () => {
    const { recipe, code, err } = await run(unlike([0, 1], "cpu") + adapters(STEPS).join(""));
    expect([code, err]).toEqual([0, expect.any(String)]);
    expectSame(recipe);
  });

  test("so it does in two stages, with room for two adapters at once", async () => {
    const { recipe, code, err } = await run(head("stages = 2\nslots = 2") + adapters(STEPS).join(""));
    expect([code, err]).toEqual([0, expect.any(String)]);
    expectSame(recipe);
  });

  test("killed in the middle, it is resumed to the same bytes", async () => {
    const recipe = place!.project(head("checkpoint = { steps = 1 }") + adapters(STEPS).join(""), FILES);
    const isStored = (name: string) => checkpointsIn(join(outputOf(recipe), "checkpoints", name)).length > 0;
    for (const calls of [3, 7]) {
      answered = calls; // of its three adapters, the second of which asks two addresses
      [held, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
      const running = place!.start(["run", recipe]);
      await held.promise;
      if (calls > 3) await until("a checkpoint", 60_000, () => NAMES.some(isStored));
      running.kill("SIGKILL");
      expect((await running.ended).code).toBe(137);
      answered = Number.POSITIVE_INFINITY;
      released.resolve();
    }
    expect(await place!.mlora("run", recipe)).toMatchObject({ code: 0 });
    expectSame(recipe);
  });
});

describe("a reward that fails", () => {
  const one = (steps: number) => adapters(steps)[0]!;

  test("once is asked again, and what is learned is the same", async () => {
    failures = 1;
    const { recipe, code, err } = await run(head() + one(STEPS));
    expect([code, err]).toEqual([0, expect.stringContaining("expected 8 rewards, found 1; it is asked again")]);
    expect(left(recipe, "g0")).toEqual(left(alone[0]!, "g0"));
  });

  test("always stops its adapter alone, saved; the same command continues, also with more time for rewards", async () => {
    const failing = head("checkpoint = { steps = 1 }") + one(STEPS) + adapters(STEPS)[2]!;
    const recipe = place!.project(failing.replace("/share", "/other"), FILES);
    const other = { ...REWARDS };
    let answered = 0;
    (REWARDS as Record<string, unknown>)["other"] = (of: Asked) => (answered++ < 8 ? other["share"]!(of) : "none");
    const first = await place!.mlora("run", recipe);
    expect([first.code, first.err]).toEqual([1, expect.stringContaining("1 of 2 adapters failed: g0\nhint: fix what")]);
    expect(first.out).toMatch(/g0 +stopped +1 /);
    expect(first.out).toMatch(/g2 +done +4 /);
    expect(first.err).toContain('expected a number or null as reward 1, found "none"');
    (REWARDS as Record<string, unknown>)["other"] = other["share"];
    writeFileSync(recipe, readFileSync(recipe, "utf8").replace('name = "share" }', 'name = "share", seconds = 900 }'));
    expect(await place!.mlora("run", recipe)).toMatchObject({ code: 0 });
    expect(left(recipe, "g0").weights).toBe(left(alone[0]!, "g0").weights);
  });

  test("as a program is named with what it did, and one that is not there before anything begins", async () => {
    const program = (...command: readonly string[]) =>
      head() + one(1).replace(at("share"), `{ command = ${JSON.stringify(command)} }`);
    const rows = await run(program("awk", '{ n = gsub(/[aeiou]/, ""); print n / 8 }'));
    expect([rows.code, answersOf(rows.recipe).length]).toEqual([0, 8]);
    expect(await run(program("no-such-program"))).toMatchObject({
      code: 2,
      err: expect.stringContaining("there is no program"),
    });
    expect(await run(program("/etc/passwd"))).toMatchObject({
      code: 2,
      err: expect.stringContaining("'/etc/passwd' is not an executable file\nhint: make it one"),
    });
    expect(await run(program("sh", "-c", "echo 1; exit 3"))).toMatchObject({ err: expect.stringContaining("sh ended with 3") });
  });
});

test("rewards rise", async () => {
  const learning = adapters(16)[0]!
    .replace("dropout = 0.1\nbatch_size = 2", "batch_size = 4")
    .replace("learning_rate = 2e-2", 'learning_rate = 1e-2\nscheduler = "constant"')
    .replace("generations = 4", "generations = 8");
  const letters = ROWS.replaceAll("aeiou", "abcdefghijklmnopqrstuvwxyz");
  const recipe = place!.project(head() + learning, { "prompts.jsonl": letters });
  expect(await place!.mlora("run", recipe)).toMatchObject({ code: 0 });
  const rewards = left(recipe, "g0").steps.map((step) => step["reward"] as number);
  const mean = (of: readonly number[]) => sum(of) / of.length;
  expect(mean(rewards.slice(-3))).toBeGreaterThan(mean(rewards.slice(0, 3)) + 0.1);
});
