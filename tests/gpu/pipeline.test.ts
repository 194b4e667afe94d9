// A pipeline whose stages are processes on one GPU, or on several: the same bytes as one process, activations by CUDA IPC.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { checkpointsIn } from "../../src/files/checkpoint.ts";
import { until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, leftOf, longer, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(5);
afterAll(() => place[Symbol.dispose]());

const outputOf = (recipe: string) => join(recipe, "..", "out");

type Environment = Readonly<Record<string, string>>;
/** For processes that are to share a GPU where there are several. */
const ONE_GPU = { CUDA_VISIBLE_DEVICES: "0" };

async function expectSame(
  adapters: readonly number[],
  precision: string,
  stages: number,
  link: string,
  why: RegExp,
  environment: Environment = {},
): Promise<void> {
  const text = unlike(adapters, "cuda").replace('path = "../model"', `path = "../model"\nprecision = "${precision}"`);
  const [one, several] = [place.project(text, SUMS), place.project(text, SUMS)];
  const alone = await place.mlora("run", one, "--stages", "1");
  expect(alone.code, alone.err).toBe(0);
  const { code, err } = await place.start(["run", several, "--stages", `${stages}`, "--link", link], environment).ended;
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

/** A run whose stages are killed in turn while it goes comes to what an undisturbed one does. */
async function expectToSurvive(stages: number, kills: number, environment: Environment = {}): Promise<void> {
  const adapters = [0, 3, 6];
  const text = longer(unlike(adapters, "cuda", "checkpoint = { steps = 4 }\nrestarts = 100"), 40);
  const [disturbed, undisturbed] = [place.project(text, SUMS), place.project(text, SUMS)];
  const run = place.start(["run", disturbed, "--stages", `${stages}`], environment);
  const alive = () => childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage --orders"));
  const kept = () => adapters.flatMap((i) => checkpointsIn(join(outputOf(disturbed), "checkpoints", `a${i}`))).join();
  for (let kill = 0; kill < kills; kill++) {
    const before = kept();
    await until("another checkpoint", 150_000, () => alive().length === stages && kept() !== before);
    process.kill(alive()[kill % stages]!, "SIGKILL");
  }
  const { code, err } = await run.ended;
  expect([code, err.match(/^error.*/gm)]).toEqual([0, null]);
  expect(err.match(/the stages are started again/g)?.length).toBe(kills);
  const one = await place.mlora("run", undisturbed, "--stages", "1");
  expect(one.code, one.err).toBe(0);
  for (const i of adapters) expect(leftOf(outputOf(disturbed), `a${i}`)).toEqual(leftOf(outputOf(undisturbed), `a${i}`));
}

/** A run with room for two of its adapters on the devices exports what a run with room for all does. */
async function expectTurns(environment: Environment = {}): Promise<void> {
  const adapters = [0, 2, 3, 4, 5, 6];
  const of = (more: string) => place.project(longer(unlike(adapters, "cuda", more), 3), SUMS);
  const [tight, roomy] = [of("resident_adapters = 2"), of("")];
  const turns = await place.start(["run", tight, "--stages", "2"], environment).ended;
  expect(turns.code, turns.err).toBe(0);
  const one = await place.mlora("run", roomy, "--stages", "1");
  expect(one.code, one.err).toBe(0);
  for (const i of adapters) expect(leftOf(outputOf(tight), `a${i}`)).toEqual(leftOf(outputOf(roomy), `a${i}`));
}

/** A run without restarts ends where a stage is killed, and the same command continues it to the same bytes. */
async function expectToContinue(environment: Environment = {}): Promise<void> {
  const adapters = [0, 3, 6];
  const text = longer(unlike(adapters, "cuda", "checkpoint = { steps = 4 }\nrestarts = 0"), 20);
  const [killed, undisturbed] = [place.project(text, SUMS), place.project(text, SUMS)];
  const run = place.start(["run", killed, "--stages", "2"], environment);
  const kept = () => adapters.flatMap((i) => checkpointsIn(join(outputOf(killed), "checkpoints", `a${i}`))).length;
  const alive = () => childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage --orders"));
  await until("a checkpoint of each adapter", 150_000, () => alive().length === 2 && kept() >= adapters.length);
  process.kill(alive()[1]!, "SIGKILL");
  const ended = await run.ended;
  expect(ended.code, ended.err).toBe(1);
  expect(ended.err).toMatch(/^error\[.*stage 1/m);
  const again = await place.start(["run", killed, "--stages", "2.5,2.5"], environment).ended;
  expect(again.code, again.err).toBe(0);
  const one = await place.mlora("run", undisturbed, "--stages", "1");
  expect(one.code, one.err).toBe(0);
  for (const i of adapters) expect(leftOf(outputOf(killed), `a${i}`)).toEqual(leftOf(outputOf(undisturbed), `a${i}`));
}

needs("gpu")("stages that share a GPU", () => {
  test("two of them are killed, and the run comes to the same", () => expectToSurvive(2, 2, ONE_GPU), 120_000);
  test("one is killed, the run ends, and continues on another cut", () => expectToContinue(ONE_GPU), 120_000);
  test("adapters take turns", () => expectTurns(ONE_GPU), 120_000);

  test.each(cases)(
    "%p stages in %s by the link %s: losses, evaluations and weights as one process",
    async (stages, precision, link) => {
      const why = link === "auto" ? / by ipc: both use one GPU/ : new RegExp(` by ${link}: `);
      await expectSame([0, 3, 5, 6], precision, stages, link, why, ONE_GPU);
    },
  );
});

needs("gpu", 2)("stages on GPUs of their own", () => {
  test("two of them are killed, and the run comes to the same", () => expectToSurvive(2, 2), 120_000);
  test("one is killed, the run ends, and continues on another cut", () => expectToContinue(), 120_000);
  test("adapters take turns", () => expectTurns(), 120_000);

  test.each([...cases, [2, "bf16", "nccl"] as const])(
    "%p stages in %s by the link %s: losses, evaluations and weights as one GPU",
    async (stages, precision, link) => {
      const why = link === "auto" ? / by ipc: / : new RegExp(` by ${link}: `);
      await expectSame([0, 3, 5, 6], precision, stages, link, why);
    },
  );
});
