// Preferences on a GPU: the losses of the cpu device, and the same bytes with any others.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { needs } from "../helpers/needs.ts";
import { FILES, NAMES, recipe } from "../helpers/preferences.ts";
import { leftOf, metrics, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");

async function done(names: readonly string[], device: string, precision: string): Promise<string> {
  const text = recipe(names, "", "", device).replace('path = "../model"', `path = "../model"\nprecision = "${precision}"`);
  const path = place.project(text, FILES);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return path;
}

needs("gpu")("preferences on the GPU", () => {
  test("in fp32 the losses are the cpu device's", async () => {
    const [cpu, gpu] = [await done(NAMES, "cpu", "fp32"), await done(NAMES, "cuda", "fp32")];
    for (const name of NAMES) {
      const [there, here] = [leftOf(outputOf(cpu), name).steps, leftOf(outputOf(gpu), name).steps];
      expect(here.length).toBe(there.length);
      for (const i of [0, 1, 2, 3]) {
        const [want, got] = [Number(there[i]!["loss"]), Number(here[i]!["loss"])];
        expect(Math.abs(got - want), `${name}, step ${i + 1}: ${got}, ${want} on the cpu`).toBeLessThan(
          1e-3 * Math.max(1, want),
        );
      }
    }
  });

  test("in bf16 other adapters change nothing, and losses fall", async () => {
    const together = await done(NAMES, "cuda", "auto");
    for (const name of ["dpo", "kto", "sft"]) {
      const alone = await done([name], "cuda", "auto");
      expect(leftOf(outputOf(alone), name)).toEqual(leftOf(outputOf(together), name));
    }
    for (const name of NAMES) {
      const found = metrics(outputOf(together), "evaluation").filter((line) => line["adapter"] === name);
      expect(Number(found.at(-1)!["loss"]), name).toBeLessThan(Number(found[0]!["loss"]));
    }
  });
});
