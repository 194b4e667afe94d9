// Stages that are opened again while a run lasts: from the same files, as often as the run makes progress, with all that
// was promised before.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkpointsIn } from "../../src/files/checkpoint.ts";
import { askOnce } from "../helpers/ask.ts";
import { until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, leftOf, longer, metrics, type Running, SUMS, unlike, Workplace } from "../helpers/program.ts";

const LIMIT = 240_000;
const WAIT = 60_000;
const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const outputOf = (path: string) => join(path, "..", "out");
const steps = (path: string, adapter: string) =>
  existsSync(join(outputOf(path), "metrics.jsonl"))
    ? metrics(outputOf(path), "step").filter((line) => line["adapter"] === adapter)
    : [];
const begun = (path: string, adapter: string, count: number) =>
  until(`${count} steps of ${adapter}`, WAIT, () => steps(path, adapter).length >= count);
const stagesOf = (run: Running): number[] => {
  try {
    return childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage --orders"));
  } catch {
    return stagesOf(run); // one of them has just ended
  }
};

/** Kills a stage, and waits until others are there. */
async function killStage(run: Running): Promise<void> {
  const [first, ...others] = stagesOf(run);
  process.kill(first!, "SIGKILL");
  await until("the other stages to end", WAIT, () => !stagesOf(run).some((pid) => [first, ...others].includes(pid)));
}

/** The end of a run that nothing happens to. */
async function undisturbed(text: string, files: Readonly<Record<string, string>> = {}): Promise<string> {
  const path = place.project(text, { ...SUMS, ...files });
  expect((await place.mlora("run", path, "--stages", "1")).code).toBe(0);
  return path;
}

/** Changes a byte in the middle of a file. */
function damage(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length >> 1]! ^= 1;
  writeFileSync(path, bytes);
}

const TWO = "stages = 2\ncheckpoint = { steps = 2 }";

needs("nats")("stages that are opened again", () => {
  test(
    "do not go on with another base model than the run began with",
    async () => {
      const text = longer(unlike([0, 1], "cpu", TWO), 2000).replace("../model", "./model");
      const path = place.project(text, SUMS);
      const model = join(path, "..", "model");
      cpSync(place.model, model, { recursive: true });
      const run = place.start(["run", path]);
      await begun(path, "a0", 5);
      damage(join(model, "model.safetensors"));
      const [stage] = stagesOf(run);
      process.kill(stage!, "SIGKILL");
      const { code, err } = await run.ended;
      expect([code, err]).toEqual([2, expect.stringContaining("the stages are started again, 1 of at most 3 times")]);
      expect(err).toMatch(
        /^error\[resume.changed\]: the base model in .*\/model was changed during the run\nhint: give the run back/m,
      );
      damage(join(model, "model.safetensors")); // as it was
      const again = place.start(["run", path]);
      await begun(path, "a0", steps(path, "a0").length + 2);
      again.kill("SIGKILL");
      await again.ended;
    },
    LIMIT,
  );

  test(
    "are given back what restarts were used up, when adapters are kept or end",
    async () => {
      const one = longer(unlike([0], "cpu", "stages = 2\nrestarts = 1\ncheckpoint = { steps = 2 }"), 20);
      const path = place.project(one, SUMS);
      const run = place.start(["run", path]);
      for (let kills = 0; kills < 3; kills++) {
        const newest = () =>
          Math.max(0, ...checkpointsIn(join(outputOf(path), "checkpoints", "a0")).map((at) => Number(/\d+$/.exec(at))));
        const before = newest();
        await until("a checkpoint", WAIT, () => newest() > before);
        await killStage(run);
      }
      const { code, err } = await run.ended;
      expect([code, err.match(/the stages are started again, 1 of at most 1 times/g)?.length]).toEqual([0, 3]);
      expect(leftOf(outputOf(path), "a0")).toEqual(leftOf(outputOf(await undisturbed(one)), "a0"));

      const none = unlike([2, 1, 0], "cpu", "stages = 2\nrestarts = 1\nslots = 1\ncheckpoint = false").replace(
        "steps = 6",
        "steps = 150",
      );
      const other = place.project(none, SUMS);
      const second = place.start(["run", other]);
      await begun(other, "a2", 1);
      await killStage(second);
      await begun(other, "a0", 3); // the two before it have ended since
      await killStage(second);
      const end = await second.ended;
      expect([end.code, end.err.match(/the stages are started again, 1 of at most 1 times/g)?.length]).toEqual([0, 2]);
    },
    LIMIT,
  );

  test(
    "make the copies that were asked for before, from the step that was told",
    async () => {
      const text = longer(unlike([0, 1], "cpu", "stages = 2\ncheckpoint = { steps = 8 }"), 30);
      const path = place.project(text, SUMS);
      const run = place.start(["run", path]);
      await begun(path, "a0", 20);
      let told: RegExpExecArray | null = null;
      let name = "";
      for (let i = 0; told === null; i++) {
        expect(i).toBeLessThan(8);
        const [stage] = await stagesWhere(run);
        process.kill(stage!, "SIGSTOP"); // no step is made from here on
        name = `bold${i}`;
        const changes = { learning_rate: 1e-2, steps: 200 };
        const said = await askOnce(place, { type: "fork", adapter: "a0", name, changes }).catch(String);
        const at = steps(path, name).length;
        if (stagesOf(run).includes(stage!)) process.kill(stage!, "SIGKILL");
        told = at === 0 ? /continues from a0, after step (\d+)/.exec(said) : null; // else the stages were opened again
      }
      const { code, err } = await run.ended;
      expect([code, err]).toEqual([0, expect.stringContaining("the stages are started again")]);
      const lines = leftOf(outputOf(path), name).steps as unknown as readonly { step: number }[];
      expect(lines[0]!.step).toBe(Number(told[1]) + 1);
      expect(lines.at(-1)!.step).toBe(200);
      expect(readFileSync(join(outputOf(path), "added.toml"), "utf8")).toContain(`name = "${name}"`);
    },
    LIMIT,
  );

  /** Stages, when there are some. */
  async function stagesWhere(run: Running): Promise<readonly number[]> {
    await until("stages", WAIT, () => stagesOf(run).length === 2);
    return stagesOf(run);
  }
});

test(
  "an adapter that begins as a part of the weights reads those that the run began with",
  async () => {
    const two = unlike([0, 2], "cpu", "slots = 1").replace("../model", "./model").replace("steps = 6", "steps = 1000000");
    const path = place.project(
      two.replace('"a2"\nrank = 1\ninit = "default"', '"a2"\nrank = 1\ninit = "pissa"').replace("dropout = 0.05\n", ""),
      SUMS,
    );
    const model = join(path, "..", "model");
    cpSync(place.model, model, { recursive: true });
    const run = place.start(["run", path]);
    await begun(path, "a0", 1);
    damage(join(model, "model.safetensors"));
    await askOnce(place, { type: "stop", adapter: "a0" }); // a2 begins
    const { code, err } = await run.ended;
    expect([code, err]).toEqual([
      2,
      expect.stringMatching(/^error\[resume.changed\]: the base model in .*\/model was changed during the run$/m),
    ]);
    expect(err).toContain("a0: saved");
  },
  LIMIT,
);

needs("nats")("an adapter that joins", () => {
  test.each(["slots = 4", 'slots = "auto"'])(
    "begins anew, whatever an earlier one of its name was kept as: %s",
    async (slots) => {
      const earlier = longer(unlike([0, 2], "cpu", "checkpoint = { steps = 8 }"), 60);
      const path = place.project(earlier, SUMS);
      const first = place.start(["run", path]);
      await until("checkpoints", WAIT, () => checkpointsIn(join(outputOf(path), "checkpoints", "a2")).length > 0);
      first.kill("SIGKILL");
      await first.ended;

      writeFileSync(path, longer(unlike([0], "cpu", `checkpoint = { steps = 8 }\n${slots}`), 60));
      const late = longer(unlike([2], "cpu"), 20).replace("learning_rate = 3e-3", "learning_rate = 4e-3");
      writeFileSync(join(path, "..", "late.toml"), late);
      const run = place.start(["run", path, "--keep-open"]); // until it has joined, however fast a0 is
      const ended = run.ended.then(({ code, err }) => [code, err]);
      await begun(path, "a0", steps(path, "a0").length + 2);
      await Promise.race([ended, until("the request", WAIT, async () => (await add(path)) === 0)]);
      await Promise.race([ended, until("the end of both", LIMIT, areDone)]);
      await askOnce(place, { type: "stop", adapter: null });
      expect(await ended).toEqual([0, expect.anything()]);
      expect(leftOf(outputOf(path), "a2")).toEqual(leftOf(outputOf(await undisturbed(late)), "a2"));
    },
    LIMIT,
  );
  /** False while it opens its stages again. */
  const areDone = async () => {
    const adapters = (await askOnce(place, { type: "status" }).catch(() => null))?.adapters ?? [];
    return ["a0", "a2"].every((name) => adapters.find((of) => of.name === name)?.state === "done");
  };
  const add = async (path: string) => (await place.mlora("add", outputOf(path), join(path, "..", "late.toml"))).code;
});

describe("the adapters that `from` and `reference` name", () => {
  const HEAD = '[model]\npath = "../model"\n[run]\noutput = "out"\ndevice = "cpu"\n';
  const rows = Array.from({ length: 12 }, (_, i) =>
    JSON.stringify({ prompt: `${i}`, chosen: `${i} yes`, rejected: `no ${i}` }),
  );
  const FILES = { ...SUMS, "pairs.jsonl": `${rows.join("\n")}\n` };
  const ONE = 'rank = 4\nalpha = 8\ntargets = ["q_proj", "down_proj"]\nlearning_rate = 3e-3\n';
  const KEYS = [
    ["from", 'data = "rows.jsonl"\nfrom = "start/a"\n'],
    ["objective.reference", 'data = "pairs.jsonl"\nobjective = { name = "dpo", reference = "start/a" }\n'],
  ] as const;

  /** A project with an adapter in the folder start/a, and a run of one that is made from it. */
  async function project(more: string, run: string): Promise<string> {
    const first = place.project(`${HEAD}[[adapter]]\nname = "a"\n${ONE}data = "rows.jsonl"\nsteps = 4\n`, FILES);
    expect((await place.mlora("run", first)).code).toBe(0);
    const path = place.project(`${HEAD}${run}[[adapter]]\nname = "b"\nsteps = 3000\n${ONE}${more}`, FILES);
    cpSync(outputOf(first), join(path, "..", "start"), { recursive: true });
    return path;
  }
  const weightsOf = (path: string) => join(path, "..", "start", "a", "adapter_model.safetensors");

  test.each(KEYS)(
    "are part of what it is made of: %s",
    async (key, more) => {
      const path = await project(more, "checkpoint = { steps = 2 }\n");
      const run = place.start(["run", path]);
      await until("a checkpoint", WAIT, () => checkpointsIn(join(outputOf(path), "checkpoints", "b")).length > 0);
      run.kill("SIGKILL");
      await run.ended;
      damage(weightsOf(path));
      const changed = await place.mlora("run", path);
      expect([changed.code, changed.err]).toEqual([
        2,
        expect.stringContaining(`  adapter 'b': the adapter that ${key} names is another\nhint: give back what was changed`),
      ]);
      damage(weightsOf(path)); // as it was
      const again = place.start(["run", path]);
      const before = steps(path, "b").length;
      await begun(path, "b", before + 1);
      again.kill("SIGKILL");
      await again.ended;
    },
    LIMIT,
  );

  needs("nats")("during the run", () => {
    test.each(KEYS)(
      "are checked when they are read again: %s",
      async (_, more) => {
        const path = await project(more, "stages = 2\ncheckpoint = false\n");
        const run = place.start(["run", path]);
        await begun(path, "b", 3);
        damage(weightsOf(path));
        process.kill(stagesOf(run)[0]!, "SIGKILL");
        const { code, err } = await run.ended;
        expect([code, err]).toEqual([
          2,
          expect.stringMatching(/^error\[resume.changed\]: the adapter in .*\/start\/a was changed during the run$/m),
        ]);
      },
      LIMIT,
    );

    test(
      "do not matter to one that has trained, when it is put back into a slot",
      async () => {
        const path = await project(KEYS[0][1], "");
        writeFileSync(path, readFileSync(path, "utf8").replace("steps = 3000", "steps = 600"));
        const run = place.start(["run", path]);
        await begun(path, "b", 2);
        await askOnce(place, { type: "pause", adapter: null });
        await until("it to be kept", WAIT, () => checkpointsIn(join(outputOf(path), "checkpoints", "b")).length > 0);
        rmSync(join(path, "..", "start"), { recursive: true });
        expect((await place.mlora("resume", outputOf(path))).code).toBe(0);
        expect([(await run.ended).code, readdirSync(outputOf(path))]).toEqual([0, expect.arrayContaining(["b"])]);
      },
      LIMIT,
    );
  });
});
