// Precisions as a user meets them: in recipes and plans, over stages, when a run resumes, and when an adapter is merged.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { processor } from "../../src/base/machine.ts";
import { until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { areKept, leftOf, longer, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(3);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");
const ADAPTERS = [0, 3, 5];

const recipe = (precision: string, more = ""): string =>
  unlike(ADAPTERS, "cpu", more).replace('path = "../model"', `path = "../model"\nprecision = "${precision}"`);
const haveCheckpoints = (path: string): boolean =>
  areKept(
    outputOf(path),
    ADAPTERS.map((i) => `a${i}`),
  );
const left = (path: string) => ADAPTERS.map((i) => leftOf(outputOf(path), `a${i}`));

async function done(precision: string, ...flags: string[]): Promise<string> {
  const path = place.project(recipe(precision), SUMS);
  const { code, err } = await place.mlora("run", path, ...flags);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return path;
}

test("a base that is bf16 in its files is held so on a CPU, which changes no number; int8 and nf4 change them, a little", async () => {
  const exact = left(await done("fp32"));
  expect(left(await done("auto"))).toEqual(exact);
  for (const [precision, most] of [
    ["int8", 0.01],
    ["nf4", 0.1],
  ] as const)
    for (const [i, { steps, weights }] of left(await done(precision)).entries()) {
      expect(weights).not.toBe(exact[i]!.weights);
      for (const [at, { loss }] of steps.entries()) {
        const off = Math.abs(Number(loss) / Number(exact[i]!.steps[at]!["loss"]) - 1);
        expect(off, `${precision}, a${i}, step ${at}`).toBeLessThan(most);
      }
    }
});

needs("bf16")("bf16 on a CPU that multiplies in it", () => {
  test("changes numbers a little, and plans say what it is", async () => {
    const exact = left(await done("fp32"));
    for (const [i, { steps, weights }] of left(await done("bf16")).entries()) {
      expect(weights).not.toBe(exact[i]!.weights);
      for (const [at, { loss }] of steps.entries())
        expect(Math.abs(Number(loss) / Number(exact[i]!.steps[at]!["loss"]) - 1), `a${i}, step ${at}`).toBeLessThan(0.01);
    }
    const { out } = await place.mlora("plan", place.project(recipe("bf16"), SUMS));
    expect(out).toContain("held as bf16, and multiplied in bf16");
  });

  test("a run that was killed comes to what an undisturbed one does", async () => {
    const text = longer(recipe("bf16", "checkpoint = { steps = 3 }"), 12);
    const [undisturbed, disturbed] = [place.project(text, SUMS), place.project(text, SUMS)];
    expect((await place.mlora("run", undisturbed)).code).toBe(0);
    const run = place.start(["run", disturbed]);
    await until("checkpoints", 150_000, () => haveCheckpoints(disturbed));
    run.kill("SIGKILL");
    await run.ended;
    const { code, err } = await place.mlora("run", disturbed);
    expect([code, code === 0 || err.includes("error[resume.finished]") ? "" : err]).toEqual([expect.any(Number), ""]);
    expect(left(disturbed)).toEqual(left(undisturbed));
  });
});

/** Starts the program where the processor seems to lack an instruction set. */
const lacking = (flag: string): readonly string[] => {
  const cpuinfo = join(place.root, `without-${flag}`);
  writeFileSync(cpuinfo, readFileSync("/proc/cpuinfo", "utf8").replaceAll(` ${flag}`, ""));
  return [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount --bind "$0" /proc/cpuinfo && exec "$@"',
    cpuinfo,
  ];
};

needs("namespaces")("on a CPU without AVX512-BF16", () => {
  test.each(["plan", "run"])("bf16 is refused by mlora %s, with what it lacks and the way out", async (command) => {
    const path = place.project(recipe("bf16"), SUMS);
    const { code, err } = await place.start([command, path], {}, lacking("avx512_bf16")).ended;
    expect([code, err]).toEqual([
      2,
      expect.stringContaining("model.precision is bf16, which a CPU multiplies in by AVX512-BF16"),
    ]);
    expect(err).toContain("lacks avx512_bf16");
    expect(err).toContain('set precision to "auto"');
    expect(existsSync(outputOf(path))).toBe(false);
  });
});

needs("nats")("over several stages", () => {
  test.each(["int8", "nf4", ...(processor().missingBf16.length === 0 ? ["bf16"] : [])])(
    "%s: losses, evaluations and weights as one process",
    async (precision) => {
      expect(left(await done(precision, "--stages", "3"))).toEqual(left(await done(precision)));
    },
  );
});

test("plans count what is held", async () => {
  const weights: number[] = [];
  for (const precision of ["fp32", "auto", "int8", "nf4"]) {
    const { out, err } = await place.mlora("plan", place.project(recipe(precision), SUMS), "--json");
    expect(err).toBe("");
    weights.push(JSON.parse(out).memory_bytes.weights);
  }
  expect(weights).toEqual(weights.toSorted((a, b) => b - a));
  expect(new Set(weights).size).toBe(4);
});

test("an unknown precision is refused with those that there are", async () => {
  const { code, err } = await place.mlora("plan", place.project(recipe("int4"), SUMS));
  expect(code).toBe(2);
  expect(err).toContain(
    'model.precision is "int4", expected "auto" or "fp32" or "bf16" or "prefer-bf16" or "int8" or "nf4" or "fp8" or "nf4-fp8"',
  );
});

test.each(["fp8", "nf4-fp8"])("%s is refused on a CPU, with what runs there", async (precision) => {
  const { code, err } = await place.mlora("plan", place.project(recipe(precision), SUMS));
  expect([code, err]).toEqual([
    2,
    expect.stringContaining(`${precision} needs an Ada or Hopper GPU, or a later one, and this is the cpu device`),
  ]);
  expect(err).toContain('set precision to "int8" or "nf4"');
});

test("a run resumes in its precision alone; one that loses nothing may change", async () => {
  const text = longer(recipe("nf4", "checkpoint = { steps = 3 }"), 200);
  const path = place.project(text, SUMS);
  const run = place.start(["run", path]);
  await until("checkpoints", 150_000, () => haveCheckpoints(path));
  run.kill("SIGKILL");
  await run.ended;
  const other = await place.mlora(
    "run",
    place.project(text.replace('"nf4"', '"int8"').replace('"out"', `"${outputOf(path)}"`), SUMS),
  );
  expect([other.code, other.err]).toEqual([2, expect.stringContaining('adapter \'a0\': precision was "nf4", is "int8"')]);
});

test("an adapter that was trained on a quantised base is merged into the weights as they were, and that is reported", async () => {
  const [packed, plain] = [await done("nf4"), await done("auto")];
  const to = (path: string) => join(path, "..", "merged");
  const [told, silent] = [packed, plain].map((path) => place.mlora("export", join(outputOf(path), "a0"), "--output", to(path)));
  const [{ code, err }, other] = [await told!, await silent!];
  expect([code, err]).toEqual([
    0,
    expect.stringMatching(/^notice: it was trained on .*model in nf4; it is merged into the weights as/m),
  ]);
  expect([other.code, other.err]).toEqual([0, expect.not.stringContaining("notice")]);
  expect(existsSync(join(to(packed), "model.safetensors"))).toBe(true);
  expect(readFileSync(join(to(packed), "model.safetensors")).length).toBe(
    readFileSync(join(to(plain), "model.safetensors")).length,
  );
});
