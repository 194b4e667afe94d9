// Which kernels a recipe launches, found on a machine without a GPU (scripts/kernels --list).

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { kernelsFor } from "../../scripts/kernels-for.ts";
import type { KernelRow } from "../../src/device/cuda/manifest.ts";
import { titleOf } from "../../src/device/cuda/variants.ts";
import { kernelRows } from "../helpers/kernel-rows.ts";
import { sums, Workplace } from "../helpers/program.ts";

const ROWS = kernelRows();
const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const recipeOf = (adapters: string, run = "", model = "") =>
  place.project(
    `[model]\npath = ${JSON.stringify(place.model)}\n${model}\n[run]\noutput = "out"\n${run}\n[defaults]\nepochs = 9\n${adapters}`,
    { "rows.jsonl": sums(30) },
  );
const adapter = (name: string, rest: string) => `[[adapter]]\nname = "${name}"\ndata = "rows.jsonl"\n${rest}\n`;
const HOPPER = { major: 9, minor: 0 };
const AMPERE = { major: 8, minor: 0 };

/** Constants of the rows of a kernel, those that are named. */
const constants = (rows: readonly KernelRow[], kernel: string, ...names: readonly string[]) =>
  rows.filter(({ name }) => name === kernel).map((row) => names.map((name) => row.constants[name]).join(" "));

test("are those of the GPU's kind, of the adapters' ranks, and of what they target", async () => {
  const recipe = recipeOf(adapter("a", 'rank = 4\ntargets = ["q_proj"]') + adapter("b", 'rank = 20\ntargets = ["o_proj"]'));
  for (const [capability, kind, arch] of [
    [HOPPER, "tma", "sm_90a"],
    [AMPERE, "ptr", "sm_80"],
  ] as const) {
    const rows = await kernelsFor(ROWS, recipe, capability);
    for (const row of rows) expect(row.kinds, titleOf(row)).toContain(kind);
    expect(rows.find(({ name }) => name === "linear_forward")!.arch).toBe(arch);
    // q, k and v of rank 4 are 48 columns together, o of rank 20 is 32.
    expect(constants(rows, "lora_down", "CB")).toEqual(["32", "64"]);
    expect(constants(rows, "lora_up_grad", "RB")).toEqual(["16", "32"]);
    // Without an adapter: the head, down and gate with up; the residual follows o and down.
    expect(constants(rows, "linear_forward", "LORA", "BIAS", "RESIDUAL", "RB", "WHOLE").toSorted()).toEqual(
      ["0 0 0 16 1", "0 0 1 16 1", "1 0 1 64 1", "1 0 0 32 0"].toSorted(),
    );
    expect(constants(rows, "adamw_step", "COPY")).toEqual(["1"]);
  }
});

test("hold what a narrow adapter launches without a wide one, and next to it", async () => {
  const of = (...ranks: readonly number[]) =>
    kernelsFor(
      ROWS,
      recipeOf(ranks.map((rank) => adapter(`r${rank}`, `rank = ${rank}\ntargets = ["o_proj"]`)).join("")),
      HOPPER,
    );
  const both = await of(8, 256);
  expect(constants(both, "linear_forward", "LORA", "RB", "WIDE")).toEqual(expect.arrayContaining(["1 16 0", "1 64 1"]));
  expect(constants(both, "lora_up_grad", "RB")).toEqual(["16", "32", "64"]);
  for (const row of [...(await of(8)), ...(await of(256))]) expect(both, titleOf(row)).toContain(row);
});

test("hold also what is launched once an adapter trains alone, however the run ends", async () => {
  const both = adapter("a", 'targets = ["o_proj"]') + adapter("b", 'targets = ["o_proj"]\nmethod = "dora"');
  const rows = await kernelsFor(ROWS, recipeOf(both), HOPPER);
  const products = constants(rows, "linear_forward", "LORA", "RESIDUAL");
  expect(products).toContain("1 0"); // DoRA's, bare
  expect(products).toContain("1 1"); // LoRA's
  expect(rows.map(({ name }) => name)).toEqual(expect.arrayContaining(["dora_norm", "dora_forward", "dora_backward"]));
  const alone = await kernelsFor(ROWS, recipeOf(adapter("b", 'targets = ["o_proj"]\nmethod = "dora"')), HOPPER);
  for (const row of alone) expect(rows, titleOf(row)).toContain(row);
});

test("are those of how the base is held", async () => {
  const one = adapter("a", 'targets = ["o_proj"]');
  const names = async (precision: string, capability: typeof HOPPER) =>
    (await kernelsFor(ROWS, recipeOf(one, "", `precision = "${precision}"`), capability)).map(({ name }) => name);
  expect(await names("nf4", AMPERE)).toEqual(
    expect.arrayContaining(["nf4_quantise", "nf4_mean", "nf4_nest", "nf4_dequantise"]),
  );
  expect(await names("fp8", HOPPER)).toEqual(expect.arrayContaining(["fp8_quantise", "turn", "fp8_forward", "fp8_backward"]));
  await expect(names("nf4-fp8", HOPPER)).rejects.toThrow("[32, 32]: nf4-fp8 needs multiples of [16, 64]");
  await expect(names("fp8", AMPERE)).rejects.toThrow("cannot hold the base model in fp8");
});

test("the command refuses what the run would refuse, and a GPU that mlora does not run on", async () => {
  const script = join(import.meta.dir, "..", "..", "scripts", "kernels-for.ts");
  const run = async (...args: readonly string[]) => {
    const stdin = new Blob([JSON.stringify({ format: 2, kernels: ROWS })]);
    const child = Bun.spawn([process.execPath, script, ...args], { stdin, stdout: "pipe", stderr: "pipe" });
    return [await child.exited, await child.stdout.text(), await child.stderr.text()] as const;
  };
  const good = recipeOf(adapter("a", 'targets = ["o_proj"]'));
  const [code, out] = await run(good, "--gpu", "9.0");
  expect([code, out]).toEqual([0, expect.stringMatching(/^[0-9a-f]{64} linear_forward bf16 sm_90a /m)]);
  expect(await run(good, "--gpu", "7.5")).toEqual([2, "", expect.stringContaining("--gpu is '7.5'")]);
  expect(await run(recipeOf(adapter("a", "rank = 0")), "--gpu", "9.0")).toEqual([2, "", expect.stringContaining("rank")]);
  expect(await run(good, "--gpus", "9.0")).toEqual([2, "", expect.stringContaining("usage")]);
});
