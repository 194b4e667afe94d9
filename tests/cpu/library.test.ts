// What commands print is what the objects of src/session give to any program.

import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { loadRecipe } from "../../src/recipe/load.ts";
import { benchmark } from "../../src/session/benchmark/benchmark.ts";
import { benchmarkGeneration } from "../../src/session/benchmark/generation.ts";
import { answerText, isExact, prepareGeneration } from "../../src/session/generation/text-generation.ts";
import { planOf } from "../../src/session/planning/planned-run.ts";
import { describeData } from "../../src/session/preparation/data-description.ts";
import { exportModel } from "../../src/session/publishing/export-model.ts";
import { Workplace } from "../helpers/program.ts";

const work = new Workplace(2);
afterAll(() => work[Symbol.dispose]());

const rows = (...all: readonly object[]) => all.map((row) => `${JSON.stringify(row)}\n`).join("");
const recipe = work.project(
  `[model]
path = "../model"
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "sums"
data = { train = "sums.jsonl", eval = "held.jsonl" }
rank = 4
steps = 2
max_length = 24
`,
  {
    "sums.jsonl": rows({ prompt: "1 + 1 =", completion: " 2" }, { prompt: "2 + 2 =", completion: ` 4${" more".repeat(20)}` }),
    "held.jsonl": rows({ prompt: "3 + 3 =", completion: " 6" }, { prompt: "1 + 2 =", completion: " 3" }),
  },
);

/** Of a command that is to succeed: its output, read as JSON. */
async function printed(...args: readonly string[]) {
  const { code, out, err } = await work.mlora(...args, "--json");
  expect({ code, err: code === 0 ? "" : err }).toEqual({ code: 0, err: "" });
  return JSON.parse(out);
}
const plain = (value: unknown) => JSON.parse(JSON.stringify(value));

describe("as a library", () => {
  test("a planned run is the plan that the command prints", async () => {
    for (const stages of [1, 2]) {
      const planned = await planOf(loadRecipe(recipe, { stages }));
      const facts = plain(planned.facts);
      const { time, ...command } = await printed("plan", recipe, "--stages", `${stages}`);
      expect(time.seconds).toBeGreaterThan(0); // of `planned.estimate`, which depends on earlier runs
      for (const { device } of [facts, command]) delete device.freeBytes; // which changes while the test runs
      expect(facts).toEqual(command);
      expect("schedule" in facts).toBe(stages > 1);
      expect(planned.simulated.simulation.passes).toBeGreaterThan(0);
    }
  });

  test("a description of data has the rows that the command shows", async () => {
    const described = await describeData(loadRecipe(recipe), { adapter: null, row: null, isEval: false });
    const shown = described.map(({ adapter, counts, rows }) => ({ adapter: adapter.name, ...counts, rows }));
    expect(plain(shown)).toEqual(await printed("data", recipe));
    expect(described[0]!.counts).toMatchObject({ train_rows: 2, eval_rows: 2, truncated: 1 });
    const [held] = await describeData(loadRecipe(recipe), { adapter: "sums", row: 2, isEval: true });
    expect([held!.counts, held!.rows.length]).toEqual([null, 1]);
    expect(held!.rows[0]!.sequences[0]!.text.map(({ text }) => text).join("")).toContain("1 + 2 =<|end|><|assistant|> 3");
  });

  test("texts are generated as the command generates them, and a model is exported as it reports", async () => {
    const ran = await work.mlora("run", recipe);
    expect(ran.code).toBe(0);
    const sampling = { temperature: 0, topP: 1, topK: 0 };
    const generation = await prepareGeneration({ base: recipe, sampling, limit: 5, seed: 0 });
    const [seen, all] = [new Set<number>(), generation.answers];
    {
      await using opened = await generation.open();
      for await (const answer of opened.generate()) seen.add(all.indexOf(answer));
    }
    expect([...seen].sort()).toEqual([0, 1]); // the held-out rows
    const { code, out } = await work.mlora("generate", recipe, "--max-new-tokens", "5", "--json");
    expect(code).toBe(0);
    const lines = out.trim().split("\n");
    expect(all.map((of) => [answerText(of, generation.decode), of.end, isExact(of), of.ids.length])).toEqual(
      lines.map((line) => JSON.parse(line)).map(({ text, end, exact, tokens }) => [text, end, exact, tokens]),
    );

    const adapter = join(work.root, "project-0", "out", "sums");
    const { seconds: _, output: to, ...command } = await printed("export", adapter, "--output", "by-command");
    expect(to).toEndWith("by-command");
    const output = join(work.root, "by-library");
    const told: string[] = [];
    const options = {
      base: null,
      output,
      dtype: "bf16",
      mostBytes: 1e9,
      print: (line: string) => void told.push(line),
    } as const;
    expect(plain(exportModel(adapter, options))).toMatchObject({ ...command, output });
    expect(told.join("\n")).toContain("verified: all tensors read as they were computed");
  });

  test("a benchmark of generation reports what the command reports, and the same tokens", async () => {
    const sampling = { temperature: 0.8, topK: 0, topP: 0.9 };
    const of = {
      device: "cpu",
      adapters: 2,
      rank: [4, 8],
      sequences: 3,
      promptTokens: 5,
      newTokens: 4,
      targets: "qkvo",
    } as const;
    const report = await benchmarkGeneration({ ...of, sampling });
    const flags = "--device cpu --adapters 2 --rank 4,8 --sequences 3 --prompt-tokens 5 --new-tokens 4 --targets qkvo";
    const command = await printed(...`bench --generate ${flags} --temperature 0.8 --top-p 0.9`.split(" "));
    expect(Object.keys(plain(report))).toEqual(Object.keys(command));
    for (const key of ["shape", "device", "ranks", "sequences", "together", "sampling", "tokens_hash"] as const)
      expect(plain(report[key])).toEqual(command[key]);
    expect(report.tokens_per_s).toBeGreaterThan(0);
  });

  test("a benchmark reports what the command reports", async () => {
    const report = await benchmark({ device: "cpu", rows: 1, length: 16, rank: 4, steps: 1, targets: "qkvo" });
    const command = await printed(..."bench --device cpu --rows 1 --length 16 --rank 4 --steps 1 --targets qkvo".split(" "));
    expect(Object.keys(plain(report))).toEqual(Object.keys(command));
    for (const key of ["shape", "device", "adapters", "ranks", "targets", "planned_bytes", "losses"] as const)
      expect(plain(report[key])).toEqual(command[key]);
  });
});

test.each([
  ["--dropout", "1"],
  ["--dropout", "much"],
  ["--tokens", "many"],
  ["--tokens", "0"],
])("mlora bench refuses %s %s", async (flag, value) => {
  const { code, err } = await work.mlora("bench", flag, value, "--steps", "1", "--rows", "1", "--length", "16");
  expect(code).toBe(2);
  expect(err).toContain(`error[cli.flag]: ${flag} is ${value}`);
});

test.each([
  ["--generate --rows 3", "--rows was given with --generate"],
  ["--new-tokens 3", "--new-tokens was given without --generate"],
  ["--generate --sequences 0", "--sequences is 0"],
  ["--generate --top-p 2", "--top-p is 2"],
])("mlora bench refuses %s", async (flags, message) => {
  const { code, err } = await work.mlora("bench", ...flags.split(" "));
  expect([code, err]).toEqual([2, expect.stringContaining(message)]);
});
