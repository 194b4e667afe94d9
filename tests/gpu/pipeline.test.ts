// A pipeline whose stages are processes on one GPU, or on several: the same bytes as one process, activations by CUDA IPC.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { needs } from "../helpers/needs.ts";
import { leftOf, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(5);
afterAll(() => place[Symbol.dispose]());

const outputOf = (recipe: string) => join(recipe, "..", "out");

async function expectSame(
  adapters: readonly number[],
  precision: string,
  stages: number,
  link: string,
  why: RegExp,
): Promise<void> {
  const text = unlike(adapters, "cuda").replace('path = "../model"', `path = "../model"\nprecision = "${precision}"`);
  const [one, several] = [place.project(text, SUMS), place.project(text, SUMS)];
  const alone = await place.mlora("run", one, "--stages", "1");
  expect(alone.code, alone.err).toBe(0);
  const { code, err } = await place.mlora("run", several, "--stages", `${stages}`, "--link", link);
  expect(code, err).toBe(0);
  expect(err.match(/; to stage \d by .*/g)?.every((line) => why.test(line))).toBe(true);
  for (const i of adapters) expect(leftOf(outputOf(several), `a${i}`)).toEqual(leftOf(outputOf(one), `a${i}`));
}

const cases = [
  [2, "bf16", "auto"],
  [4, "bf16", "auto"],
  [2, "fp32", "auto"],
  [2, "bf16", "shm"],
  [3, "bf16", "nats"],
] as const;

needs("gpu")("stages that share a GPU", () => {
  test.each(cases)(
    "%p stages in %s by the link %s: losses, evaluations and weights as one process",
    async (stages, precision, link) => {
      const why = link === "auto" ? / by ipc: both use one GPU/ : new RegExp(` by ${link}: `);
      await expectSame([0, 3, 5, 6], precision, stages, link, why);
    },
  );
});

needs("gpu", 2)("stages on GPUs of their own", () => {
  test.each([...cases, [2, "bf16", "nccl"] as const])(
    "%p stages in %s by the link %s: losses, evaluations and weights as one GPU",
    async (stages, precision, link) => {
      const why = link === "auto" ? / by ipc: / : new RegExp(` by ${link}: `);
      await expectSame([0, 3, 5, 6], precision, stages, link, why);
    },
  );
});
