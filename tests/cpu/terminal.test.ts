// What is foreign reaches a terminal visibly only: the program with hostile names, templates, rows and errors.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { jsonText, visible } from "../../src/base/terminal.ts";
import { openProgress } from "../../src/cli/progress.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { PROGRAM, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

/** Clears the screen, sets the title, moves, in 7 and 8 bits; deletes; turns the direction of text. */
const HOSTILE = "\x1b[2Jx\x1b]0;title\x07\x9b31my\b\r\x7f\u202ez\u2066w\t";
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const RAW = /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/;

const recipe = (train: string, more = "") => `[model]
path = "../model"
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "a"
data = { train = ${JSON.stringify(train).replaceAll("\x7f", "\\u007f")} }
steps = 1
${more}`;
const row = (of: object) => `${JSON.stringify(of)}\n`;
const answer = { prompt: `p${HOSTILE}`, completion: `c${HOSTILE}` };
const toml = (text: string) => JSON.stringify(text).replaceAll("\x7f", "\\u007f");

test("controls are shown by their escapes, once, and JSON keeps its meaning", () => {
  const shown = visible(HOSTILE);
  expect(shown).toBe(String.raw`\x1b[2Jx\x1b]0;title\x07\x9b31my\x08\r\x7f\u202ez\u2066w\t`);
  expect(visible(shown)).toBe(shown);
  for (let code = 0; code < 0x10000; code++) {
    const char = String.fromCharCode(code);
    expect(RAW.test(visible(char)), `${code}`).toBe(false);
    if (!RAW.test(char)) expect(visible(char)).toBe(char);
    const json = jsonText({ [char]: char });
    if (RAW.test(json) || JSON.parse(json)[char] !== char) throw new Error(`${code}: ${json}`);
  }
});

const named = (folder: string) => {
  mkdirSync(join(place.root, folder), { recursive: true });
  return folder;
};
/** Each is a command over a project, and what its output holds. */
const CASES: readonly { readonly name: string; readonly args: () => readonly string[]; readonly shows: string }[] = [
  { name: "a command's name", args: () => [HOSTILE], shows: "there is no command" },
  { name: "a flag", args: () => ["ps", `--x${HOSTILE}`], shows: "error[cli.usage]" },
  { name: "a recipe's path", args: () => ["run", `no${HOSTILE}.toml`], shows: "error[" },
  { name: "a recipe's text", args: () => ["plan", place.project(`[model\n${HOSTILE}`)], shows: "error[" },
  { name: "a key", args: () => ["plan", place.project(recipe("r", `${toml(`k${HOSTILE}`)} = 1\n`))], shows: "error[" },
  {
    name: "an adapter's name",
    args: () => ["data", place.project(recipe("r.jsonl"), { "r.jsonl": row(answer) }), HOSTILE],
    shows: "has no adapter",
  },
  {
    name: "a file of rows that is not there",
    args: () => ["run", place.project(recipe(`no${HOSTILE}.jsonl`))],
    shows: "error[",
  },
  {
    name: "a row that is no JSON",
    args: () => ["run", place.project(recipe("r.jsonl"), { "r.jsonl": `${HOSTILE}\n` })],
    shows: "error[",
  },
  {
    name: "a row of unknown keys",
    args: () => ["plan", place.project(recipe("r.jsonl"), { "r.jsonl": row({ [HOSTILE]: HOSTILE }) })],
    shows: "error[",
  },
  {
    name: "a role",
    args: () => [
      "run",
      place.project(recipe("r.jsonl"), { "r.jsonl": row({ messages: [{ role: HOSTILE, content: HOSTILE }] }) }),
    ],
    shows: String.raw`\x9b31my`,
  },
  {
    name: "a template that raises",
    args: () => {
      const text = `{{ raise_exception(${JSON.stringify(HOSTILE)}) }}`;
      const rows = row({
        messages: [
          { role: "user", content: "u" },
          { role: "assistant", content: "a" },
        ],
      });
      return ["run", place.project(recipe("r.jsonl", 'chat_template = "t.jinja"\n'), { "r.jsonl": rows, "t.jinja": text })];
    },
    shows: String.raw`\x9b31my`,
  },
  {
    name: "rows",
    args: () => ["data", place.project(recipe(`r${HOSTILE}.jsonl`), { [`r${HOSTILE}.jsonl`]: row(answer) })],
    shows: String.raw`\x1b[2J`,
  },
  {
    name: "tokens",
    args: () => ["data", place.project(recipe("r.jsonl"), { "r.jsonl": row(answer) }), "--ids", "--row", "1"],
    shows: "weight",
  },
  {
    name: "rows as JSON",
    args: () => ["data", place.project(recipe(`r${HOSTILE}.jsonl`), { [`r${HOSTILE}.jsonl`]: row(answer) }), "--json"],
    shows: String.raw`\u009b`,
  },
  {
    name: "a plan",
    args: () => ["plan", place.project(recipe("r.jsonl"), { "r.jsonl": row(answer) }), "--output", `out${HOSTILE}`],
    shows: String.raw`\x1b[2J`,
  },
  {
    name: "a plan as JSON",
    args: () => ["plan", place.project(recipe("r.jsonl"), { "r.jsonl": row(answer) }), "--output", `out${HOSTILE}`, "--json"],
    shows: String.raw`\u009b`,
  },
  {
    name: "a run",
    args: () => ["run", place.project(recipe("r.jsonl"), { "r.jsonl": row(answer) }), "--output", `ran${HOSTILE}`],
    shows: String.raw`\x1b[2J`,
  },
  { name: "a run's id", args: () => ["stop", HOSTILE], shows: "there is no run" },
  { name: "changes of a fork", args: () => ["fork", "r", "a", "b", "--set", HOSTILE], shows: "error[" },
  {
    name: "an adapter's folder",
    args: () => ["generate", "--adapter", named(`e${HOSTILE}`), "--prompt", "p"],
    shows: "error[",
  },
  { name: "an export", args: () => ["export", named(`e${HOSTILE}`)], shows: "error[" },
  { name: "a server", args: () => ["stage", "--nats", `nats://${HOSTILE}`, "--run", "r"], shows: "error[" },
];

describe("no command sends a raw control", () => {
  for (const { name, args, shows } of CASES)
    test(name, async () => {
      const { out, err } = await place.mlora(...args());
      expect(err).not.toContain("error[bug]");
      expect(out + err).toContain(shows);
      expect((out + err).match(RAW)).toBeNull();
    });
});

/** Runs the program on a terminal; returns all that it sent there. */
async function onTerminal(...args: readonly string[]): Promise<string> {
  const decoder = new TextDecoder();
  let sent = "";
  const child = Bun.spawn([...PROGRAM, ...args], {
    cwd: place.root,
    env: { ...process.env, NO_COLOR: "1", MLORA_CACHE: join(place.root, "cache") },
    terminal: {
      cols: 80,
      rows: 24,
      data: (_, bytes) => {
        sent += decoder.decode(bytes, { stream: true });
      },
    },
  });
  await child.exited;
  child.terminal?.close();
  return sent.replaceAll("\r\n", "\n"); // the terminal's own line breaks
}

test("generated text reaches a pipe as it is and a terminal visibly", async () => {
  const args = ["generate", place.model, "--raw", "--prompt", "a", "--device", "cpu", "--temperature", "20", "--seed", "2"];
  const { out } = await place.mlora(...args);
  expect(out).toMatch(RAW);
  const sent = await onTerminal(...args);
  expect(sent.match(RAW)).toBeNull();
  expect(sent).toContain(visible(out).trim().slice(0, 40));
});

test("colours of rows are the program's own", async () => {
  const path = place.project(recipe("r.jsonl"), { "r.jsonl": row({ prompt: "\x1b[31mred", completion: "\x1b[32mgreen" }) });
  const { out } = await place.start(["data", path], { FORCE_COLOR: "1" }).ended;
  expect(out).toContain(String.raw`\x1b[31mred`);
  expect(out).toContain(`\x1b[32m${String.raw`\x1b[32mgreen`}`);
});

test("ps lists a hostile run visibly", async () => {
  const output = join(place.root, `listed${HOSTILE}`);
  const path = place.project(recipe("r.jsonl"), { "r.jsonl": row(answer) });
  writeFileSync(path, readFileSync(path, "utf8").replace("steps = 1", "steps = 100000"));
  const running = place.start(["run", path, "--output", output, "--stages", "1"]);
  const deadline = Date.now() + 60_000;
  let listed = "";
  while (!listed.includes("listed") && Date.now() < deadline) listed = (await place.mlora("ps")).out;
  const json = (await place.mlora("ps", "--json")).out;
  running.kill("SIGKILL");
  await running.ended;
  expect(listed).toContain(String.raw`listed\x1b[2J`);
  expect(listed.match(RAW)).toBeNull();
  expect(json.match(RAW)).toBeNull();
  expect(JSON.parse(json).map((run: { output: string }) => run.output)).toContain(output);
});

test("progress shows names, notices and failures visibly, with bars and without", () => {
  for (const isTTY of [true, false]) {
    const plan = {
      adapters: [{ name: `a${HOSTILE}`, index: 0, steps: 10, tokens: 100, recipe: { objective: { name: "sft" } } }],
    } as unknown as Plan;
    let drawn = "";
    const write = (text: string) => {
      drawn += text;
      return true;
    };
    const stream = { isTTY, rows: 24, columns: 200, write, on: () => undefined } as unknown as NodeJS.WriteStream;
    using progress = openProgress(plan, stream);
    const hostile = { adapter: `a${HOSTILE}`, index: 0 };
    progress.report({ type: "notice", ...hostile, text: HOSTILE });
    progress.report({ type: "failed", ...hostile, message: HOSTILE });
    progress.report({ type: "saved", ...hostile, step: 1, folder: HOSTILE });
    progress[Symbol.dispose]();
    expect(drawn).toContain(visible(HOSTILE));
    for (const foreign of ["\x1b[2J", "\x1b]0;", "\x9b", "\x7f", "\u202e", "\u2066", "\b"])
      expect(drawn).not.toContain(foreign);
  }
});
