// The program as a person uses it: whole runs from the command line, bad requests, and interruptions.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { writeTinyModel } from "../helpers/model.ts";
import { PROGRAM } from "../helpers/program.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-cli-"));
const model = join(root, "model");
beforeAll(() => writeTinyModel(model));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const start = (args: readonly string[]) =>
  Bun.spawn([...PROGRAM, ...args], { cwd: root, stdout: "pipe", stderr: "pipe", stdin: "ignore" });

async function mlora(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const child = start(args);
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, err };
}

let made = 0;
/** Writes files into a folder of their own; returns the path of the recipe among them. */
function project(recipe: string, files: Readonly<Record<string, string>> = {}): string {
  const folder = join(root, `project-${made++}`);
  mkdirSync(folder);
  for (const [name, text] of Object.entries({ "recipe.toml": recipe, ...files })) writeFileSync(join(folder, name), text);
  return join(folder, "recipe.toml");
}

const HEAD = '[model]\npath = "../model"\n[run]\noutput = "out"\n';
const rows = (n: number) =>
  `${Array.from({ length: n }, (_, i) => JSON.stringify({ prompt: `What is ${i} + 1?`, completion: `${i + 1}` })).join("\n")}\n`;
const chats = `${[1, 2, 3]
  .map((i) =>
    JSON.stringify({
      messages: [
        { role: "user", content: `Hi ${i}` },
        { role: "assistant", content: "Hello" },
      ],
    }),
  )
  .join("\n")}\n`;
const two = (more = "") => `${HEAD}${more}
[defaults]
learning_rate = 3e-3
[[adapter]]
name = "sums"
data = { train = "rows.jsonl", split = 0.25 }
rank = 3
dropout = 0.1
steps = 6
batch_size = 3
eval_every = 2
[[adapter]]
name = "chat"
data = { train = "chat.jsonl", eval = "chat.jsonl" }
targets = ["q_proj", "down_proj"]
rank = 5
epochs = 4
accumulation = 2
batch_size = 1
`;
const data = { "rows.jsonl": rows(12), "chat.jsonl": chats };

describe("a run", () => {
  test("trains, tells, saves and verifies; the same again gives the same bytes; the folder is then taken", async () => {
    const recipe = project(two(), data);
    const { code, out, err } = await mlora("run", recipe);
    expect(err).not.toContain("error[");
    expect(code).toBe(0);
    const output = join(recipe, "..", "out");
    for (const name of ["sums", "chat"]) expect(out).toMatch(new RegExp(`^${name} +done +\\d+ `, "m"));
    const lines = readFileSync(join(output, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    const steps = lines.filter(({ type, adapter }) => type === "step" && adapter === "sums");
    expect(steps.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6]);
    for (const key of ["loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"]) expect(steps[3][key]).toBeNumber();
    expect(lines.filter(({ type, adapter }) => type === "evaluation" && adapter === "sums").map(({ step }) => step)).toEqual([
      0, 2, 4, 6,
    ]);
    expect(steps.at(-1).loss).toBeLessThan(steps[0].loss);
    const saved = readPeftAdapter(join(output, "chat"), readModelSpec(model));
    expect([saved.rank, saved.targets]).toEqual([5, ["q_proj", "down_proj"]]);
    expect(existsSync(join(output, ".mlora.lock"))).toBe(false);

    const again = await mlora("run", join(output, "recipe.toml"), "--output", join(output, "..", "again"));
    expect(again.code).toBe(0);
    for (const name of ["sums", "chat"]) {
      const bytes = (folder: string) => readFileSync(join(output, "..", folder, name, "adapter_model.safetensors"));
      expect(bytes("again").equals(bytes("out"))).toBe(true);
    }
    const taken = await mlora("run", recipe);
    expect([taken.code, taken.err]).toEqual([2, expect.stringContaining("is finished: all adapters of the recipe have ended")]);
  });

  test("is what its plan said", async () => {
    const recipe = project(two(), data);
    const plan = await mlora("plan", recipe, "--json");
    expect(plan.code).toBe(0);
    const { adapters, memory_bytes: memory } = JSON.parse(plan.out);
    expect(existsSync(join(recipe, "..", "out"))).toBe(false);
    await mlora("run", recipe);
    const lines = readFileSync(join(recipe, "..", "out", "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    for (const adapter of adapters) {
      const steps = lines.filter(({ type, adapter: name }) => type === "step" && name === adapter.name);
      expect(steps.length).toBe(adapter.steps);
      expect(steps.reduce((sum, { tokens }) => sum + tokens, 0)).toBe(adapter.tokens);
    }
    expect(memory.total).toBe(memory.weights + memory.adapters + memory.activations + memory.workspace + memory.head);
    const { out } = await mlora("plan", recipe);
    expect(out).toContain("parameters");
    expect(out).not.toContain("host memory"); // a CPU has no other
  });

  test("goes where its flag says, also where that looks like a number", async () => {
    const recipe = project(two(), data);
    for (const folder of ["0612", "1e3", "0x10"])
      for (const flag of [["--output", folder], [`--output=${folder}`]])
        expect(JSON.parse((await mlora("plan", recipe, "--json", ...flag)).out).output).toEndWith(`/${folder}`);
    for (const wrong of [["--output"], ["--output", "1", "--output", "2"]])
      expect((await mlora("plan", recipe, ...wrong)).code).toBe(2);
  });

  test("is not all that takes texts that look like numbers: a server has a name", async () => {
    const { code, err } = await mlora("serve", "nothing", "--name", "0612");
    expect([code, err]).toEqual([2, expect.stringContaining("no such folder")]);
  });

  test("takes of a CPU what was planned, and a plan says how it holds the base", async () => {
    const { code, out } = await mlora("bench", "--device", "cpu", "--steps", "1", "--rows", "1", "--length", "16", "--json");
    const { planned_bytes: planned, device_bytes: taken } = JSON.parse(out);
    expect([code, taken]).toEqual([0, planned]);
    const recipe = project(two().replace("[run]", 'precision = "int8"\n[run]'), data);
    expect((await mlora("plan", recipe)).out).toMatch(/^ {2}base model .*, held as int8$/m);
  });

  test("continues an adapter that was saved", async () => {
    const recipe = project(two(), data);
    await mlora("run", recipe);
    const saved = join(recipe, "..", "out", "sums");
    const next = project(two().replace('name = "sums"', `name = "sums"\nfrom = ${JSON.stringify(saved)}`), data);
    expect((await mlora("run", next)).code).toBe(0);
    const losses = (of: string) =>
      readFileSync(join(of, "..", "out", "metrics.jsonl"), "utf8")
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line))
        .filter(({ type, adapter }) => type === "evaluation" && adapter === "sums")
        .map(({ loss }) => loss);
    expect(losses(next)[0]).toBe(losses(recipe).at(-1));
    const wrong = project(
      two().replace('name = "sums"', `name = "sums"\nfrom = ${JSON.stringify(join(saved, "..", "chat"))}`),
      data,
    );
    const refused = await mlora("run", wrong);
    expect([refused.code, refused.err]).toEqual([2, expect.stringContaining("rank")]);
  });

  test("Ctrl-C saves what is trained, and says where", async () => {
    const recipe = project(two().replace("steps = 6", "steps = 100000").replace("epochs = 4", "epochs = 100000"), data);
    const child = start(["run", recipe]);
    const metrics = join(recipe, "..", "out", "metrics.jsonl");
    while (!existsSync(metrics) || !readFileSync(metrics, "utf8").includes('"step":3,')) await Bun.sleep(20);
    child.kill("SIGINT");
    child.kill("SIGTERM"); // a script that passes on what it got is not a second wish
    const [out, err, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    expect(code).toBe(1);
    expect(err).toContain("stopped before the end");
    expect(out).toMatch(/^sums +stopped/m);
    for (const name of ["sums", "chat"]) readPeftAdapter(join(recipe, "..", "out", name), readModelSpec(model));
  });

  test("a loss that is no number ends that adapter; the others continue", async () => {
    const recipe = project(two().replace('name = "sums"', 'name = "sums"\nlearning_rate = 1e30\nmax_grad_norm = false'), data);
    const { code, out, err } = await mlora("run", recipe);
    expect([code, err]).toEqual([1, expect.stringContaining("1 of 2 adapters failed: sums")]);
    expect(out).toMatch(/^chat +done/m);
    expect(existsSync(join(recipe, "..", "out", "sums"))).toBe(false);
  });
});

describe("a bad request is one error with its place, exit code 2, and nothing begun", () => {
  const broken = (change: (folder: string) => void): string => {
    const folder = join(root, `model-${made++}`);
    cpSync(model, folder, { recursive: true });
    change(folder);
    return HEAD.replace("../model", folder);
  };
  const one = (line: string) => `${HEAD}[[adapter]]\nname = "a"\ndata = "d.jsonl"\n${line}\n`;
  const withRow = (row: string): readonly [string, Record<string, string>] => [one(""), { "d.jsonl": `${rows(2)}${row}\n` }];
  const cases: readonly (readonly [string, () => readonly [string, Record<string, string>?], string])[] = [
    ["TOML that does not parse", () => ["[model"], "recipe.toml:1:"],
    ["an unknown key", () => [one("rnak = 1")], "recipe.toml:8:1: adapter[0].rnak is an unknown key; did you mean 'rank'?"],
    [
      "two adapters of one name",
      () => [`${one("")}[[adapter]]\nname = "a"\ndata = "d.jsonl"`],
      "'a' is the name of two adapters",
    ],
    ["a name that leaves the folder", () => [one("").replace('"a"', '"../a"')], 'found "../a"'],
    ["a name of two lines", () => [one("").replace('"a"', '"a\\n\\u001b[2J"')], 'found "a\\n\\u001b[2J"'],
    [
      "a folder with a NUL in its name",
      () => [one("").replace('"out"', '"o\\u0000t"')],
      'run.output is "o\\u0000t", expected a string without NUL characters',
    ],
    ["rows with a NUL in their file's name", () => [one("").replace("d.jsonl", "d\\u0000")], "without NUL characters"],
    [
      "a model with too many layers",
      () => [
        broken((folder) => {
          const path = join(folder, "config.json");
          writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), num_hidden_layers: 1e9 }));
        }) + one("").slice(HEAD.length),
        { "d.jsonl": rows(2) },
      ],
      "config.json: num_hidden_layers is 1000000000, expected a whole number from 1 to 4096",
    ],
    ["rank 0", () => [one("rank = 0")], "adapter[0].rank is 0, expected a whole number"],
    ["a target that the model has not", () => [one('targets = ["q_proj", "wqkv"]')], "'wqkv' is no linear layer"],
    ["no adapter to go on from", () => [one('from = "gone"')], "adapter 'a', from: it needs a folder as PEFT writes it"],
    ["no such data", () => [one("")], "d.jsonl: no such file"],
    ["an empty data file", () => [one(""), { "d.jsonl": "\n" }], "d.jsonl"],
    ["a row that is no JSON", () => withRow("{oops"), "d.jsonl:3: "],
    ["a row that lacks a field", () => withRow('{"prompt": "x"}'), "d.jsonl:3: "],
    ["an empty completion", () => withRow('{"prompt": "x", "completion": ""}'), "d.jsonl:3: "],
    ["no usable row", () => [one("max_length = 4"), { "d.jsonl": rows(2) }], "d.jsonl"],
    [
      "a model without config.json",
      () => [broken((folder) => rmSync(join(folder, "config.json"))) + one("").slice(HEAD.length)],
      "has no config.json",
    ],
    [
      "a model that is cut short",
      () => [
        broken((folder) => truncateSync(join(folder, "model.safetensors"), 5000)) + one("").slice(HEAD.length),
        { "d.jsonl": rows(2) },
      ],
      "model.safetensors: ",
    ],
    [
      "a header of 2^60 bytes",
      () => [
        broken((folder) => writeFileSync(join(folder, "model.safetensors"), Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 16))) +
          one("").slice(HEAD.length),
        { "d.jsonl": rows(2) },
      ],
      "1152921504606846976 bytes",
    ],
    [
      "no tokenizer",
      () => [broken((folder) => rmSync(join(folder, "tokenizer.json"))) + one("").slice(HEAD.length), { "d.jsonl": rows(2) }],
      "tokenizer.json",
    ],
  ];
  for (const [what, make, message] of cases)
    test(what, async () => {
      const [recipe, files] = make();
      const path = project(recipe, files);
      const { code, out, err } = await mlora("run", path);
      expect(err).toContain(message);
      expect(err.match(/^error\[/gm)?.length).toBe(1);
      expect([code, out]).toEqual([2, ""]);
      expect(existsSync(join(path, "..", "out"))).toBe(false);
    });

  test.each([
    [["run", "RECIPE", "--seed", ""], "error[cli.flag]: --seed is empty"],
    [["run", "RECIPE", "--output="], "error[cli.flag]: --output is empty"],
    [["run", "RECIPE", "--web", "", "--device", "cpu"], "error[cli.flag]: --web is empty"],
    [["plan", "RECIPE", "--price", ""], "error[cli.flag]: --price is empty"],
    [["generate", "--adapter", "", "--prompt", "x"], "error[cli.flag]: --adapter is empty"],
    [["run", ""], "error[cli.argument]: <recipe> is empty"],
    [["init", "../model", ""], "error[cli.argument]: <data> is empty"],
    [["init", "https://hub/org/name", "rows.jsonl"], "error[init.model]: https://hub/org/name is an address"],
    [["export", "RECIPE", "--output=s3://a/b"], "error[cli.flag]: --output s3://a/b is an address"],
    [["bench", "--stages", "1e99"], "error[cli.flag]: --stages is 1e+99"],
    [["bench", "--rows", "99999999999999999999"], "error[cli.flag]: --rows is 100000000000000000000"],
    [["bench", "--adapters", "1e9"], "error[cli.flag]: --adapters is 1000000000"],
    [
      ["bench", "--rows", "65536", "--length", "65536"],
      "error[cli.flag]: --adapters 1 times --rows 65536 times --length 65536 are 4,294,967,296 tokens a step",
    ],
    [["bench", "--generate", "--sequences", "1e30"], "error[cli.flag]: --sequences is 1e+30"],
    [["man", "--output=~/man"], "error[cli.flag]: --output ~/man: the shell has left the '~' as it is"],
    [["push", "", "me/x"], "error[cli.argument]: <adapter> is empty"],
    [["stop", "out", ""], "error[cli.argument]: <adapter> is empty"],
  ])("%j: a variable that is not set is neither 0 nor the current folder", async (args, message) => {
    const path = project(one(""), { "d.jsonl": rows(2) });
    const { code, out, err } = await mlora(...args.map((arg) => (arg === "RECIPE" ? path : arg)));
    expect(err).toStartWith(`${message}\nhint: `);
    expect([code, out]).toEqual([2, ""]);
    expect(existsSync(join(path, "..", "out"))).toBe(false);
  });

  test.each([
    [
      ["plan", "RECIPE", "--price", "-1"],
      "'-1' begins with '-', as flags do\nhint: write a flag's value after '=': --price=-1",
    ],
    [["plan", "RECIPE", "--price", "-.5"], "after '=': --price=-.5"],
    [["plan", "RECIPE", "--price=-1"], "error[cli.flag]: --price is -1"],
    [["generate", "--adapter", "RECIPE", "--prompt", "x"], "recipe.toml is no folder"],
    [["report", "RECIPE", "--output", "circle"], "error[cli.output]: --output circle: ELOOP"],
    [["run", "RECIPE", "--output", "~/out"], "the shell has left the '~' as it is"],
  ])("%j: a number below 0, a file for a folder, a circle of links, a home", async (args, message) => {
    const path = project(one(""), { "d.jsonl": rows(2) });
    rmSync(join(root, "circle"), { force: true });
    symlinkSync("circle", join(root, "circle"));
    const { code, out, err } = await mlora(...args.map((arg) => (arg === "RECIPE" ? path : arg)));
    expect(err).toContain(message);
    expect([code, out]).toEqual([2, ""]);
    expect(existsSync(join(root, "~"))).toBe(false);
  });

  test("no such recipe; no such command; no such option", async () => {
    expect((await mlora("run", "nowhere.toml")).code).toBe(2);
    expect((await mlora("rnu", "x")).err).toContain("did you mean 'run'?");
    expect((await mlora("plan", "x", "--jsn")).code).toBe(2);
  });
});
