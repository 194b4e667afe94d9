// All kinds, objectives and optimizers in one run on a GPU: bit for bit what each comes to alone, and in fp32 the cpu device's
// losses.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { MIXED_FILES, MIXED_NAMES, mixedRecipe } from "../helpers/mixed.ts";
import { needs } from "../helpers/needs.ts";
import { leftOf, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");

async function done(names: readonly string[], device: string, precision: string, run: object = {}): Promise<string> {
  const path = place.project(mixedRecipe(names, device, run, precision), MIXED_FILES);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return path;
}

needs("gpu")("a mixed run on the GPU", () => {
  for (const precision of ["bf16", "fp32"])
    test(`each equals its run alone, bit for bit, in ${precision}`, async () => {
      const together = await done(MIXED_NAMES, "cuda", precision);
      for (const name of MIXED_NAMES) {
        const [here, alone] = [together, await done([name], "cuda", precision)].map((path) => leftOf(outputOf(path), name));
        expect(alone, name).toEqual(here!);
        expect(Number(here!.evaluations.at(-1)!["loss"]), name).toBeLessThan(Number(here!.evaluations[0]!["loss"]));
      }
    }, 600_000);

  for (const precision of ["int8", "nf4", "fp8"])
    test(`over a base in ${precision} each equals its run with half of the others, on two stages`, async () => {
      const together = await done(MIXED_NAMES, "cuda", precision);
      for (const half of [0, 1]) {
        const names = MIXED_NAMES.filter((_, i) => i % 2 === half);
        const apart = await done(names, "cuda", precision, { stages: 2 });
        for (const name of names) expect(leftOf(outputOf(apart), name), name).toEqual(leftOf(outputOf(together), name));
      }
    }, 600_000);

  test("in fp32 the losses are the cpu device's", async () => {
    const [cpu, gpu] = [await done(MIXED_NAMES, "cpu", "fp32"), await done(MIXED_NAMES, "cuda", "fp32")];
    for (const name of MIXED_NAMES)
      for (const i of [0, 1, 2, 3]) {
        const [want, got] = [cpu, gpu].map((path) => Number(leftOf(outputOf(path), name).steps[i]!["loss"]));
        expect(Math.abs(got! - want!), `${name}, step ${i + 1}: ${got}, ${want} on the cpu`).toBeLessThan(
          1e-3 * Math.max(1, want!),
        );
      }
  }, 600_000);
});
