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

  for (const address of ["https://", "https://[", "https://a b", "http://localhost:99999/x"])
    test(`notify.url = "${address}", which is no address`, () => {
      const { lines } = refused(`${HEAD}notify = { url = "${address}" }\n${adapter()}`);
      expect(lines).toEqual([`/here/r.toml:5:12: run.notify.url is "${address}", expected an https URL`]);
    });

  test("a notification of nothing", () => {
    const { lines } = refused(`${HEAD}notify = { command = ["true"], on = [] }\n${adapter()}`);
    expect(lines).toEqual(["/here/r.toml:5:32: run.notify.on is empty, and there is no below: nothing would be notified"]);
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

  const VARIABLES: readonly (readonly [string, string])[] = [
    ["{ x = 1.0 }", "chat_template_kwargs.x is the float 1.0, without a fraction"],
    ["{ a = { b = [1, 2e3] } }", "chat_template_kwargs.a.b[1] is the float 2000.0, without a fraction"],
    ["{ day = 2026-01-02 }", "chat_template_kwargs.day is a date or time"],
    ["{ at = [07:32:00] }", "chat_template_kwargs.at[0] is a date or time"],
  ];
  for (const [table, fault] of VARIABLES)
    test(`variables that a chat template prints otherwise in Python: ${table}`, () => {
      expect(refused(`${HEAD}${adapter(`chat_template_kwargs = ${table}`)}`).lines).toEqual([
        expect.stringMatching(/^.here.r.toml:8:/),
      ]);
      expect(refused(`${HEAD}${adapter(`chat_template_kwargs = ${table}`)}`).lines[0]).toContain(`adapter[0].${fault}`);
      expect(refused(`${HEAD}[defaults]\nchat_template_kwargs = ${table}\n${adapter()}`).lines).toEqual([
        expect.stringContaining(`defaults.${fault}`),
      ]);
      const swept = `[adapter.sweep]\nchat_template_kwargs = [${table}]`;
      expect(refused(HEAD + adapter(swept)).lines[0]).toContain(
        fault.replace("chat_template_kwargs", "chat_template_kwargs[0]"),
      );
    });

  test("other variables of a chat template are taken", () => {
    const table = "{ x = 1, half = 0.5, text = '1.0', on = true, list = [1, 'a'], none = nan }";
    const { adapters } = parseRecipe(HEAD + adapter(`chat_template_kwargs = ${table}\nalpha = 16.0`), "/here/r.toml");
    const none = Number.NaN;
    expect(adapters[0]!.chatVariables).toEqual({ x: 1, half: 0.5, text: "1.0", on: true, list: [1, "a"], none });
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
