// What ends an answer is one thing to run, generate and export: where a chat template ends answers with another token than
// eos_token.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stopTokens } from "../../src/files/generation.ts";
import { metrics, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const at = (name: string) => join(place.root, name);
const [END, SYSTEM] = [256, 259];

/** The tiny model, whose template ends answers with <|end|>, as one that stops at <|system|>. */
function otherEnd(name: string, files: Readonly<Record<string, object>>): string {
  const folder = at(name);
  cpSync(place.model, folder, { recursive: true });
  for (const [file, more] of Object.entries(files)) {
    const path = join(folder, file);
    const found = file === "generation_config.json" ? {} : JSON.parse(readFileSync(path, "utf8"));
    writeFileSync(path, JSON.stringify({ ...found, ...more }));
  }
  return folder;
}
const eos = { "tokenizer_config.json": { eos_token: "<|system|>" } };
const base = otherEnd("base", { ...eos, "generation_config.json": { eos_token_id: SYSTEM, pad_token_id: 0 } });

const rows = ["a", "b"].map((prompt, i) => `${JSON.stringify({ prompt, completion: `${i + 3}` })}\n`).join("");
const recipe = (model: string, more = "") =>
  place.project(
    `[model]\npath = "${model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "x"\nsteps = 60\nrank = 8
learning_rate = 2e-2\nwarmup = 0\ndata = { train = "rows.jsonl", eval = "rows.jsonl" }\n${more}`,
    { "rows.jsonl": rows },
  );
type Line = { readonly text: string; readonly end: string; readonly tokens: number; readonly exact: boolean };

describe("an adapter of answers that end otherwise than the model's texts", () => {
  const path = recipe(base);
  const out = join(path, "..", "out");

  test("is reported by run and plan", async () => {
    const notice = "the chat template ends answers with <|end|>, at which ";
    const planned = await place.mlora("plan", path);
    expect({ code: planned.code, out: planned.out }).toEqual({ code: 0, out: expect.stringContaining(notice) });
    const { notices } = JSON.parse((await place.mlora("plan", path, "--json")).out);
    expect(notices).toEqual([expect.stringContaining(notice), expect.stringContaining("held-out rows")]);
    const ran = await place.mlora("run", path);
    expect({ code: ran.code, err: ran.err }).toEqual({ code: 0, err: expect.stringContaining(`notice: ${notice}`) });
    expect(metrics(out, "evaluation").at(-1)).toMatchObject({ exact: 2, rows: 2 });
  });

  test("ends there in generate, which counts it as the run does", async () => {
    const { code, out: said, err } = await place.mlora("generate", path, "--json", "--max-new-tokens", "12");
    expect({ code, err }).toEqual({ code: 0, err: expect.stringContaining("exactly right: x 2 of 2") });
    const lines = said
      .trim()
      .split("\n")
      .map((line): Line => JSON.parse(line));
    expect(lines.map(({ text, end, tokens, exact }) => ({ text, end, tokens, exact }))).toEqual(
      ["3", "4"].map((text) => ({ text, end: "stop", tokens: 2, exact: true })),
    );
  });

  test("makes a merged model that stops there, and at the base model's own", async () => {
    const { code, err } = await place.mlora("export", join(out, "x"), "--output", at("merged"));
    expect({ code, err }).toEqual({ code: 0, err: expect.stringContaining(`answers end with <|end|> (${END})`) });
    expect(JSON.parse(readFileSync(join(at("merged"), "generation_config.json"), "utf8"))).toEqual({
      eos_token_id: [SYSTEM, END],
      pad_token_id: 0,
    });
  });
});

test("a merged model that needs nothing new keeps its generation_config.json; one without gets config.json's tokens with the end", async () => {
  const path = recipe(base);
  expect((await place.mlora("run", path)).code).toBe(0);
  const adapter = join(path, "..", "out", "x");
  const both = otherEnd("both", { ...eos, "generation_config.json": { eos_token_id: [END, SYSTEM], top_k: 3 } });
  const none = otherEnd("none", { ...eos, "config.json": { eos_token_id: SYSTEM, bos_token_id: 257 } });
  rmSync(join(none, "generation_config.json"), { force: true });
  const merged = async (from: string, name: string) => {
    const ended = await place.mlora("export", adapter, "--base", from, "--output", at(name));
    expect(ended.code, ended.err).toBe(0);
    return { err: ended.err, config: JSON.parse(readFileSync(join(at(name), "generation_config.json"), "utf8")) };
  };
  const kept = await merged(both, "merged-both");
  expect(kept.config).toEqual({ eos_token_id: [END, SYSTEM], top_k: 3 });
  expect(kept.err).not.toContain("eos_token_id");
  expect((await merged(none, "merged-none")).config).toEqual({ bos_token_id: 257, eos_token_id: [SYSTEM, END] });
  expect(stopTokens(at("merged-none"))).toEqual([SYSTEM, END]);
});

test("a prompt whose end is another token when its completion follows is counted and told", async () => {
  const model = otherEnd("merging", {});
  const file = join(model, "tokenizer.json");
  const json = JSON.parse(readFileSync(file, "utf8"));
  json.model.merges = [["Ġ", "b"]];
  json.model.vocab["Ġb"] = 3; // in the place of a byte that no row has
  delete json.model.vocab[Object.keys(json.model.vocab).find((key) => json.model.vocab[key] === 3 && key !== "Ġb")!];
  writeFileSync(file, JSON.stringify(json));
  const path = place.project(
    `[model]\npath = "${model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "x"\nchat_template = false\ndata = "rows.jsonl"\n`,
    { "rows.jsonl": `{"prompt": "a ", "completion": "b"}\n{"prompt": "a", "completion": " b"}\n` },
  );
  const { code, out, err } = await place.mlora("plan", path, "--json");
  expect(code, err).toBe(0);
  expect(JSON.parse(out).notices).toEqual([
    expect.stringContaining("x: a prompt whose last token changes when its completion follows: 1 row"),
  ]);
});
