// Values of a recipe that TOML can say and a run cannot use: lists and dates in the place of tables, numbers that f32 lacks.

import { describe, expect, test } from "bun:test";
import { parseRecipe } from "../../src/recipe/load.ts";
import { adapter, HEAD, refused } from "../helpers/recipe-text.ts";

describe("refused with its place", () => {
  const LISTS = [
    ["notify", "{ command, url, on, below }"],
    ["checkpoint", "false or { steps, minutes, keep }"],
  ] as const;
  for (const [key, what] of LISTS)
    for (const [value, shown] of [
      ["[]", "a list"],
      ["[1]", "a list"],
      ["1979-05-27", "1979-05-27"],
      ["07:32:00.5", "07:32:00.500"],
    ])
      test(`${value} where the run's ${key} is a table`, () => {
        const { lines } = refused(`${HEAD}${key} = ${value}\n${adapter()}`);
        expect(lines).toEqual([`/here/r.toml:5:1: run.${key} is ${shown}, expected ${what}`]);
      });

  const TABLES = ["columns", "chat_template_kwargs", "sweep", "template", "metrics", "halving", "rank_pattern", "objective"];
  for (const key of [...TABLES, "alpha_pattern", "trainable_tokens"])
    for (const value of key === "trainable_tokens" ? ["1979-05-27"] : ["[]", '["dpo"]', "1979-05-27"])
      test(`${value} where an adapter's ${key} is a table`, () => {
        const { lines } = refused(HEAD + adapter(`${key} = ${value}`));
        expect(lines).toHaveLength(1);
        const shown = value.startsWith("[") ? "a list" : value;
        expect(lines[0]).toStartWith(`/here/r.toml:8:1: adapter[0].${key} is ${shown}, expected `);
      });

  test("brackets that are doubled, or not", () => {
    expect(refused(`${HEAD}[[defaults]]\nrank = 1\n${adapter()}`).lines).toEqual([
      "/here/r.toml:5:1: defaults is a list, expected a table",
    ]);
    expect(refused(HEAD + adapter().replace("[[adapter]]", "[adapter]")).lines[0]).toEndWith(
      "adapter is a table: write [[adapter]]",
    );
  });

  const SINGLE = ["learning_rate", "alpha", "eps", "weight_decay", "max_grad_norm", "lora_plus_ratio", "min_delta"];
  for (const key of SINGLE)
    for (const value of ["1e-320", "1e-46", "3.5e38", "1e308"])
      test(`${key} = ${value}, which f32 makes 0 or infinity`, () => {
        const { lines } = refused(HEAD + adapter(`${key} = ${value}`));
        expect(lines).toHaveLength(1);
        expect(lines[0]).toStartWith(`/here/r.toml:8:1: adapter[0].${key} is `);
        expect(lines[0]).toContain("as f32 holds it");
      });

  const HELD = 'data = { train = "d", split = 0.5 }\neval_every = 2';
  const IDLE: readonly (readonly [string, string, string])[] = [
    ["a delta without patience", "min_delta = 0.1", "min_delta is for patience, which is not given"],
    ["a goal of no metric", `${HELD}\nmetrics = { command = ["true"], goal = "min" }`, "metrics has a goal and no best"],
    ["each turn's thoughts in preferences", 'objective = "dpo"\nthoughts = "every-turn"', 'thoughts is "every-turn"'],
    [
      "prompts that are learned, where answers are the adapter's own",
      'objective = { name = "grpo", reward = { command = ["true"] } }\ntrain_on = "all"',
      'train_on is "all", and grpo learns its own answers alone',
    ],
  ];
  for (const [what, keys, fault] of IDLE)
    test(`keys that would do nothing: ${what}`, () => {
      const own = keys.includes("data =") ? adapter(keys).replace(/data = "[^"]*"\n/, "") : adapter(keys);
      expect(refused(HEAD + own).lines).toEqual([expect.stringContaining(fault)]);
    });

  test("keys that would do nothing for any adapter", () => {
    const patient = adapter(`${HELD}\npatience = 1`).replace(/data = "[^"]*"\n/, "");
    expect(refused(`${HEAD}[defaults]\nmin_delta = 0.1\n${adapter()}`).lines).toEqual([
      expect.stringContaining("defaults.min_delta is for patience, which no adapter has"),
    ]);
    expect(refused(`${HEAD}notify = { url = "https://a.b/c", below = 1 }\n${adapter()}`).lines).toEqual([
      expect.stringContaining("run.notify has below, a held-out loss, and no adapter has held-out rows"),
    ]);
    const text = `${HEAD}[defaults]\nmin_delta = 0.1\n${adapter().replace(/name = "[^"]*"/, 'name = "other"')}${patient}`;
    const { adapters } = parseRecipe(text, "/here/r.toml");
    expect(adapters.map(({ minDelta }) => minDelta)).toEqual([0, 0.1]); // the copy of a recipe is read again
  });

  test("numbers at the ends of f32 are taken", () => {
    const { adapters } = parseRecipe(`${HEAD}${adapter("learning_rate = 1.2e-38\nmax_grad_norm = 3.4e38")}`, "/here/r.toml");
    expect(adapters[0]!.optimizer).toMatchObject({ learningRate: 1.2e-38, maxGradNorm: 3.4e38 });
  });

  test("warm-up of parts of a step, and epochs without an end", () => {
    for (const value of ["2.5", "1.5", "1e9999", "-0.1"])
      expect(refused(HEAD + adapter(`warmup = ${value}`)).lines[0]).toContain("a share below 1 or a whole number of steps");
    expect(refused(HEAD + adapter("epochs = 1e30")).lines[0]).toEndWith("expected a number above 0, up to 1000000000");
  });
});
