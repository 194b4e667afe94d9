// A real model says what it says under transformers, alone and with a PEFT adapter, and merged.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { needs } from "../helpers/needs.ts";
import { PROGRAM } from "../helpers/program.ts";
import { greedy, SMOLLM, writeGoldenAdapter } from "../helpers/smollm.ts";

needs("model")("SmolLM2", () => {
  const root = mkdtempSync(join(tmpdir(), "mlora-smollm-"));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  const [adapter, prompts] = [join(root, "adapter"), join(root, "prompts.jsonl")];
  beforeAll(() => {
    mkdirSync(adapter);
    writeGoldenAdapter(adapter, readModelSpec(SMOLLM));
    writeFileSync(prompts, greedy.rows.map(({ prompt }) => `${JSON.stringify({ prompt })}\n`).join(""));
  });

  const mlora = async (...args: string[]) => {
    const child = Bun.spawn([...PROGRAM, ...args], { stdout: "pipe", stderr: "pipe" });
    const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    expect(code, err).toBe(0);
    return out;
  };
  const said = async (...args: string[]) => {
    const flags = [
      "--prompts",
      prompts,
      "--max-new-tokens",
      `${greedy.new}`,
      "--device",
      "cpu",
      "--precision",
      "fp32",
      "--json",
    ];
    const lines = (await mlora("generate", ...args, ...flags)).trim().split("\n");
    return lines.map(
      (line) =>
        JSON.parse(line) as {
          readonly adapter: string;
          readonly prompt: string;
          readonly text: string;
          readonly tokens: number;
          readonly end: string;
        },
    );
  };
  /** As `generate` shows tokens: without the one that ends. */
  const shown = (ids: readonly number[]) => ({
    text: loadTokenizer(SMOLLM).decode(ids.filter((id) => id !== 2)),
    tokens: ids.length,
  });
  const told = (lines: Awaited<ReturnType<typeof said>>) => lines.map(({ text, tokens }) => ({ text, tokens }));

  test("the golden's choices are far from being others", () => {
    for (const row of greedy.rows) expect(Math.min(row.base_margin, row.adapted_margin)).toBeGreaterThan(1e-3);
    expect(greedy.rows.filter((row) => `${row.base}` !== `${row.adapted}`).length).toBeGreaterThanOrEqual(2);
  });

  test("says what transformers' generate does, with and without a PEFT adapter", async () => {
    const lines = await said("--adapter", adapter, "--adapter", "base", SMOLLM);
    const [adapted, base] = [lines.slice(0, greedy.rows.length), lines.slice(greedy.rows.length)];
    expect(base.map(({ prompt }) => prompt)).toEqual(greedy.rows.map(({ ids }) => loadTokenizer(SMOLLM).decode(ids)));
    expect(told(base)).toEqual(greedy.rows.map((row) => shown(row.base)));
    expect(told(adapted)).toEqual(greedy.rows.map((row) => shown(row.adapted)));
  });

  test("merged, it says the same", async () => {
    const merged = join(root, "merged");
    await mlora("export", adapter, "--output", merged, "--dtype", "fp32");
    expect(told(await said(merged))).toEqual(greedy.rows.map((row) => shown(row.adapted)));
  });
});
