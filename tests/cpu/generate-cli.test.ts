// `mlora generate` as a person starts it: what it says, and that a merged model says the same.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { writePeftAdapter } from "../../src/files/peft.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { ADAPTERS, factorsFor } from "../helpers/generation.ts";
import { type Ended, metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const at = (name: string) => join(place.root, name);
const spec = readModelSpec(place.model);

function writeAdapter(name: string, of: PoolAdapter, seed: number, baseModel = place.model): string {
  const { rank, targets, method, scale } = of;
  const adapter = { rank, alpha: scale * rank, dropout: 0.1, targets, method, rslora: false, baseModel };
  writePeftAdapter(at(name), spec, adapter as Parameters<typeof writePeftAdapter>[2], factorsFor(spec, of, seed));
  return at(name);
}
const folders = ADAPTERS.map((adapter, i) => writeAdapter(`adapter-${i}`, adapter, 60 + i));
const generate = (...args: string[]) => place.mlora("generate", "--device", "cpu", "--max-new-tokens", "12", ...args);

type Line = {
  readonly adapter: string;
  readonly prompt: string;
  readonly text: string;
  readonly tokens: number;
  readonly end: string;
};
const linesOf = ({ out, err, code }: Ended): Line[] => {
  expect(code, err).toBe(0);
  return out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
};
const chosen = (...names: string[]) => names.flatMap((name) => ["--adapter", name]);
const rows = (values: readonly object[]) => `${values.map((value) => JSON.stringify(value)).join("\n")}\n`;

describe("several adapters over a file of prompts", () => {
  const prompts = [
    { prompt: "a" },
    { prompt: "long ".repeat(20) },
    {
      messages: [
        { role: "system", content: "s" },
        { role: "user", content: "why?" },
      ],
    },
  ];
  const each = prompts.filter(({ prompt }) => prompt);

  test("all answer each row that names no adapter, as each does alone", async () => {
    writeFileSync(at("each.jsonl"), rows(each));
    const all = linesOf(await generate(...chosen(...folders, "base"), "--prompts", at("each.jsonl"), "--json"));
    expect(all.map(({ adapter }) => adapter)).toEqual(
      ["adapter-0", "adapter-1", "adapter-2", "base"].flatMap((name) => each.map(() => name)),
    );
    expect(new Set(all.map(({ text }) => text)).size).toBeGreaterThan(4);
    for (const name of [folders[2]!, folders[0]!])
      expect(linesOf(await generate(...chosen(name), "--prompts", at("each.jsonl"), "--json"))).toEqual(
        all.filter(({ adapter }) => name.endsWith(adapter)),
      );
    const alone = linesOf(await generate(place.model, "--prompts", at("each.jsonl"), "--json"));
    expect(alone).toEqual(all.filter(({ adapter }) => adapter === "base"));
  });

  test("a row that names one goes to it alone", async () => {
    writeFileSync(
      at("named.jsonl"),
      rows([{ prompt: "a", adapter: "adapter-1" }, { prompt: "b" }, { prompt: "c", adapter: "base" }]),
    );
    const lines = linesOf(
      await generate(...chosen(folders[0]!, folders[1]!, "base"), "--prompts", at("named.jsonl"), "--json"),
    );
    const told = lines.map(({ adapter, prompt }) => `${adapter}${/user\|>(.)/.exec(prompt)![1]}`);
    expect(told).toEqual(["adapter-0b", "adapter-1a", "adapter-1b", "baseb", "basec"]);
  });

  test("conversations that end with a user's turn are answered", async () => {
    writeFileSync(at("chat.jsonl"), rows([prompts[2]!]));
    const [line] = linesOf(await generate(place.model, "--prompts", at("chat.jsonl"), "--json"));
    expect(line!.prompt).toBe("<|system|>s<|end|><|user|>why?<|end|><|assistant|>");
  });
});

test("a merged model says what base and adapter say, token for token", async () => {
  writeFileSync(at("merge.jsonl"), rows(range(6).map((i) => ({ prompt: `prompt ${"x".repeat(11 * i)}` }))));
  for (const [i, folder] of folders.entries()) {
    const merged = at(`merged-${i}`);
    expect((await place.mlora("export", folder, "--output", merged, "--dtype", "fp32")).code).toBe(0);
    const parts = ["--prompts", at("merge.jsonl"), "--json", "--precision", "fp32"];
    const [of, by] = [linesOf(await generate(merged, ...parts)), linesOf(await generate(...chosen(folder), ...parts))];
    expect(of.map(({ text, tokens, end }) => ({ text, tokens, end }))).toEqual(
      by.map(({ text, tokens, end }) => ({ text, tokens, end })),
    );
    const base = linesOf(await generate(place.model, ...parts));
    expect(base.map(({ text }) => text)).not.toEqual(of.map(({ text }) => text));
  }
});

test("exact matches are those that the run counted", async () => {
  const recipe = place.project(
    `[model]\npath = "${place.model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[defaults]\nlearning_rate = 2e-2\nbatch_size = 4
data = { train = "rows.jsonl", eval = "rows.jsonl" }
[[adapter]]\nname = "long"\nsteps = 60\nrank = 8
[[adapter]]\nname = "short"\nsteps = 2\nmethod = "dora"\nsystem = "Be brief."\n`,
    { "rows.jsonl": sums(8) },
  );
  expect((await place.mlora("run", recipe)).code).toBe(0);
  const last = (name: string) =>
    metrics(join(recipe, "..", "out"), "evaluation").findLast(({ adapter }) => adapter === name)!["exact"];
  const ended = await generate(recipe, "--json");
  const lines = linesOf(ended) as (Line & { readonly exact: boolean })[];
  expect(lines.length).toBe(16);
  for (const name of ["long", "short"])
    expect(lines.filter(({ adapter, exact }) => adapter === name && exact).length).toBe(last(name) as number);
  expect(last("long")).toBeGreaterThan(0);
  expect(last("short")).toBeLessThan(8);
  expect(ended.err).toContain(`exactly right: long ${last("long")} of 8, short ${last("short")} of 8`);
  const people = await generate(recipe, ...chosen("short"));
  expect(people.out).toContain("--- short: <|system|>Be brief.<|end|><|user|>What is 0 + 1?");
  expect(people.out).toContain("    expected: 1<|end|>");
  const [other] = linesOf(await generate(recipe, ...chosen("short"), "--prompt", "a", "--system", "Be kind.", "--json"));
  expect(other!.prompt).toBe("<|system|>Be kind.<|end|><|user|>a<|end|><|assistant|>");
});

test("chance is the seed's", async () => {
  const args = [...chosen(folders[0]!), "--prompt", "Say", "--temperature", "1.2", "--top-p", "0.9", "--top-k", "50"];
  const said = async (seed: string, ...more: string[]) => (await generate(...args, "--seed", seed, ...more)).out;
  const once = await said("3");
  expect(await said("3")).toBe(once);
  expect(await said("4")).not.toBe(once);
  const beside = await said("3", "--adapter", "base", "--json");
  expect(`${(JSON.parse(beside.split("\n")[0]!) as Line).text}\n`).toBe(once);
});

test("a single prompt's answer is all there is on standard output", async () => {
  const { out, err, code } = await generate(place.model, "--prompt", "abc", "--raw");
  expect(code, err).toBe(0);
  const [line] = linesOf(await generate(place.model, "--prompt", "abc", "--raw", "--json"));
  expect(line!.prompt).toBe("abc");
  expect(out).toBe(`${line!.text}\n`);
  expect(err).toContain("tokens/s");
  const [zeros] = linesOf(await generate(place.model, "--prompt", "007", "--raw", "--json"));
  expect(zeros!.prompt).toBe("007");
});

test("generation ends where the model's own settings say", async () => {
  const model = at("stopping");
  cpSync(place.model, model, { recursive: true });
  const [free] = linesOf(await generate(model, "--prompt", "abc", "--raw", "--json"));
  expect(free!.tokens).toBe(12);
  writeFileSync(join(model, "generation_config.json"), JSON.stringify({ eos_token_id: range(260) }));
  const [line] = linesOf(await generate(model, "--prompt", "abc", "--raw", "--json"));
  expect(line).toMatchObject({ tokens: 1, end: "stop", text: "" });
});

describe("what is wrong is said, and nothing is begun", () => {
  writeFileSync(at("bad.jsonl"), `${rows([{ prompt: "a" }])}{"nothing": 1}\nnot json\n`);
  writeFileSync(at("stranger.jsonl"), rows([{ prompt: "a", adapter: "nobody" }]));
  writeAdapter("lost", ADAPTERS[0]!, 1, at("gone"));
  writeAdapter("elsewhere", ADAPTERS[0]!, 1, at("stopping-2"));
  cpSync(place.model, at("stopping-2"), { recursive: true });
  const recipe = '[model]\npath = "../model"\n[run]\noutput = "out"\n[[adapter]]\nname = "a"\ndata = "d"\n';
  const cases: readonly (readonly [string, readonly string[], string])[] = [
    ["no base", ["--prompt", "a"], "no base model is named"],
    ["no prompt", [place.model], "there is no prompt"],
    ["both", [place.model, "--prompt", "a", "--prompts", "b"], "were both given"],
    ["no such base", ["nowhere", "--prompt", "a"], "nowhere is no folder"],
    ["an empty prompt", [place.model, "--prompt", ""], "--prompt has an empty text"],
    ["no adapter there", [...chosen("nowhere"), "--prompt", "a"], "is no folder"],
    [
      "nobody of the recipe",
      [place.project(recipe), ...chosen("b"), "--prompt", "a"],
      "and the recipe names none 'b'\nhint: it has a",
    ],
    ["nobody yet", [place.project(recipe), ...chosen("a"), "--prompt", "a"], "the adapter 'a' is not in"],
    ["its base is gone", [...chosen("lost"), "--prompt", "a"], "gone' is no folder here"],
    ["two bases", [...chosen("elsewhere", folders[0]!), "--prompt", "a"], "was trained on"],
    ["twice", [...chosen(folders[0]!, folders[0]!), "--prompt", "a"], "was given twice"],
    ["rows", [place.model, "--prompts", at("bad.jsonl")], "bad.jsonl:2: lacks the field 'prompt'"],
    [
      "a name",
      [...chosen("base"), place.model, "--prompts", at("stranger.jsonl")],
      "stranger.jsonl:1: names the adapter 'nobody'",
    ],
    ["too long", [place.model, "--prompt", "a".repeat(300)], "tokens, the base model 256 positions"],
    ["temperature", [place.model, "--prompt", "a", "--temperature", "hot"], "--temperature is hot"],
    ["top-p", [place.model, "--prompt", "a", "--top-p", "0"], "--top-p is 0"],
    ["top-k", [place.model, "--prompt", "a", "--top-k=-1"], "--top-k is -1"],
    ["two seeds", [place.model, "--prompt", "a", "--seed", "1", "--seed", "2"], "--seed was given 2 times"],
    ["fp8", [place.model, "--prompt", "a", "--precision", "fp8"], "fp8 needs an Ada or Hopper GPU"],
  ];
  test.each(cases)("%s", async (_, args, message) => {
    const { code, out, err } = await generate(...args);
    expect(err).toContain(message);
    expect(code).toBe(2);
    expect(out).toBe("");
  });

  test("an adapter that is no finite numbers is no bug", async () => {
    const folder = writeAdapter("broken", { ...ADAPTERS[0]!, scale: 1e30 }, 1);
    const { code, err } = await generate(...chosen(folder), "--prompt", "a");
    expect(err).toContain("error[generate.numbers]");
    expect(code).toBe(1);
  });
});

test("the help tells of it", async () => {
  const { out } = await place.mlora("--help");
  expect(out).toContain("generate [base]");
  expect(readFileSync(join(import.meta.dir, "..", "..", "README.md"), "utf8")).toContain("mlora generate");
});
