// Adapters that learn from rewards of their own answers, which a server of the test gives: what they learn depends on their own
// data, settings and rewards alone, whatever else is trained, however the model is divided, and after a kill.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { sum } from "../../src/base/shape.ts";
import { checkpointsIn } from "../../src/files/checkpoint.ts";
import { until } from "./bus.ts";
import { leftOf, SUMS, unlike, Workplace } from "./program.ts";

export type Asked = { readonly prompt: string; readonly completion: string; readonly row: { readonly wanted: string } };
export type Completion = { readonly adapter: string; readonly step: number; readonly row: number } & {
  readonly completion: string;
  readonly rewards: Readonly<Record<string, number | null>>;
  readonly advantage: number;
  readonly tokens: number;
};

/** The adapters' names, and the steps that each makes. */
export const NAMES = ["g0", "g1", "g2"];
export const STEPS = 4;
export const ROWS = Array.from(
  { length: 6 },
  (_, i) => `${JSON.stringify({ prompt: `say ${i * i}`, wanted: "aeiou" })}\n`,
).join("");
const FILES = { ...SUMS, "prompts.jsonl": ROWS };
const outputOf = (recipe: string) => join(recipe, "..", "out");

/** A place for runs on a device, and a server that says what their answers are worth. */
export class RewardedPlace implements Disposable {
  /** By the address's name: characters of the answer that are the row's, and minus its length. */
  readonly rewards: Record<string, (of: Asked) => unknown> = {
    share: ({ completion, row }) => [...completion].filter((one) => row.wanted.includes(one)).length / 8,
    short: ({ completion }) => (completion.includes("q") ? null : -completion.length),
  };
  readonly place = new Workplace(2);
  /** Calls that get no rewards before others do. */
  failures = 0;
  /** Calls that are answered; the next is `held`, and gets no answer until `released`. */
  answered = Number.POSITIVE_INFINITY;
  held = Promise.withResolvers<void>();
  released = Promise.withResolvers<void>();
  readonly #server: Bun.Server<undefined>;

  constructor(
    private readonly device: "cpu" | "cuda",
    private readonly precision = "auto",
  ) {
    this.#server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: (request) => this.#answer(request) });
  }

  async #answer(request: Request): Promise<Response> {
    if (--this.answered < 0) {
      this.held.resolve();
      await this.released.promise;
    }
    if (this.failures > 0) {
      this.failures--;
      return new Response("[0]");
    }
    const asked = (await request.json()) as readonly Asked[];
    return Response.json(asked.map(this.rewards[new URL(request.url).pathname.slice(1)]!));
  }

  /** A reward of a recipe. */
  at(name: string, more = ""): string {
    return `{ url = "http://127.0.0.1:${this.#server.port}/${name}", name = "${name}"${more} }`;
  }

  /** Adapters whose objectives differ in all that the engine is asked for. */
  adapters(steps: number): readonly string[] {
    const [share, short] = [this.at("share"), this.at("short", ", weight = 0.1")];
    return [
      `name = "g0"\ndropout = 0.1\nbatch_size = 2\nobjective = { name = "grpo", reward = ${share}, generations = 4, max_new_tokens = 6 }`,
      `name = "g1"\nrank = 6\nbatch_size = 1\naccumulation = 2\nobjective = { name = "grpo", reward = [${share}, ${short}], generations = 3, max_new_tokens = 7, iterations = 2, beta = 0.1, temperature = 1.3, loss = "grpo", importance_sampling_level = "sequence" }`,
      `name = "g2"\nmethod = "dora"\nbatch_size = 3\nobjective = { name = "grpo", reward = ${share}, generations = 2, max_new_tokens = 5, temperature = 0.7, loss = "cispo", epsilon_high = 3, scale_rewards = "batch", top_k = 40 }`,
    ].map((text) => `[[adapter]]\ndata = "prompts.jsonl"\nmax_length = 30\nlearning_rate = 2e-2\nsteps = ${steps}\n${text}\n`);
  }

  head(more = ""): string {
    return `[model]\npath = "../model"\nprecision = "${this.precision}"\n[run]\noutput = "out"\ndevice = "${this.device}"\ntokens_per_microbatch = 60\n${more}\n`;
  }

  /** The same next to supervised adapters. */
  crowd(more = ""): string {
    return unlike([0, 1], this.device, more).replace('path = "../model"', `path = "../model"\nprecision = "${this.precision}"`);
  }

  project(text: string, files: Readonly<Record<string, string>> = FILES): string {
    return this.place.project(text, files);
  }

  async run(text: string) {
    const recipe = this.project(text);
    return { recipe, ...(await this.place.mlora("run", recipe)) };
  }

  /** Of a run that ends well. */
  async done(text: string): Promise<string> {
    const { recipe, code, err } = await this.run(text);
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    return recipe;
  }

  answers(recipe: string): readonly Completion[] {
    return readFileSync(join(outputOf(recipe), "completions.jsonl"), "utf8")
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line));
  }

  left(recipe: string, name: string) {
    return {
      ...leftOf(outputOf(recipe), name),
      answers: this.answers(recipe).filter(({ adapter }) => adapter === name),
    };
  }

  [Symbol.dispose](): void {
    this.#server.stop(true);
    this.place[Symbol.dispose]();
  }
}

/** Declares the tests of what must be the same; `alone` are runs of each adapter by itself, made before. */
export function learnsAlike(on: () => RewardedPlace, alone: () => readonly string[], stages: number): void {
  const expectSame = (recipe: string) => {
    for (const [i, name] of NAMES.entries()) expect(on().left(recipe, name)).toEqual(on().left(alone()[i]!, name));
  };
  const all = () => on().adapters(STEPS).join("");

  test("it reports the rewards of its answers, which are those of its rows", () => {
    for (const [i, name] of NAMES.entries()) {
      const { answers, steps } = on().left(alone()[i]!, name);
      const first = answers.filter(({ step }) => step === 1);
      expect(first.length).toBe([8, 6, 6][i]!);
      for (const { completion, rewards } of first)
        expect<unknown>(rewards["share"]).toBe(on().rewards["share"]!({ prompt: "", completion, row: { wanted: "aeiou" } }));
      const total = ({ rewards }: Completion) => rewards["share"]! + 0.1 * (rewards["short"] ?? 0);
      expect(steps[0]!["reward"]).toBeCloseTo(sum(first.map(total)) / first.length, 12);
      expect(steps[0]!["completions/mean_length"]).toBe(sum(first.map(({ tokens }) => tokens)) / first.length);
      expect(new Set(first.map(({ completion }) => completion)).size).toBeGreaterThan(1); // each has a chance of its own
      expect(Math.abs(sum(first.map(({ advantage }) => advantage)))).toBeLessThan(1e-6);
    }
    const ofG1 = on().left(alone()[1]!, "g1").steps;
    expect(ofG1[0]!["kl"]).toBe(0); // it begins as the base model
    expect(ofG1[1]!["kl"]).toBeGreaterThan(0);
    expect(
      new Set(
        on()
          .left(alone()[1]!, "g1")
          .answers.map(({ step }) => step),
      ),
    ).toEqual(new Set([1, 3]));
  });

  test("in one run with each other and with supervised ones it comes to the same bytes", async () => {
    expectSame(await on().done(on().crowd() + all()));
  });

  test("so it does with room for one adapter in memory, where adapters take turns", async () => {
    expectSame(await on().done(on().head("resident_adapters = 1") + all()));
  });

  if (stages > 1)
    test("so it does in two stages, with room for two adapters at once", async () => {
      expectSame(await on().done(on().head("stages = 2\nslots = 2") + all()));
    });

  test("killed in the middle, it is resumed to the same bytes", async () => {
    const of = on();
    const recipe = of.project(of.head("checkpoint = { steps = 1 }") + all());
    const isStored = (name: string) => checkpointsIn(join(outputOf(recipe), "checkpoints", name)).length > 0;
    for (const calls of [3, 7]) {
      of.answered = calls; // of its three adapters, the second of which asks two addresses
      [of.held, of.released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
      const running = of.place.start(["run", recipe]);
      await of.held.promise;
      if (calls > 3) await until("a checkpoint", 60_000, () => NAMES.some(isStored));
      running.kill("SIGKILL");
      expect((await running.ended).code).toBe(137);
      of.answered = Number.POSITIVE_INFINITY;
      of.released.resolve();
    }
    expect(await of.place.mlora("run", recipe)).toMatchObject({ code: 0 });
    expectSame(recipe);
  });
}

/** Declares that answers become better. */
export function rewardsRise(on: () => RewardedPlace): void {
  test("rewards rise", async () => {
    const learning = on()
      .adapters(30)[0]!
      .replace("dropout = 0.1\nbatch_size = 2", "batch_size = 4")
      .replace("learning_rate = 2e-2", 'learning_rate = 1e-2\nscheduler = "constant"')
      .replace("generations = 4", "generations = 8");
    const letters = ROWS.replaceAll("aeiou", "abcdefghijklmnopqrstuvwxyz");
    const recipe = on().project(on().head() + learning, { "prompts.jsonl": letters });
    expect(await on().place.mlora("run", recipe)).toMatchObject({ code: 0 });
    const rewards = on()
      .left(recipe, "g0")
      .steps.map((step) => step["reward"] as number);
    const mean = (of: readonly number[]) => sum(of) / of.length;
    expect(mean(rewards.slice(-5))).toBeGreaterThan(mean(rewards.slice(0, 5)) + 0.08); // the least of six seeds is 0.16
  });
}
