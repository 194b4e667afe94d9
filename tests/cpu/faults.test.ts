// What goes wrong in the middle of a run: NaN and infinity, disks that fill up, folders that go away. It ends the adapter
// that it belongs to, or the run where it is the run's, with a message that says what and where; never as a bug of mlora; and
// the same command continues.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkpointsIn, readCheckpoint } from "../../src/files/checkpoint.ts";
import { readRecord } from "../../src/files/record.ts";
import { until } from "../helpers/bus.ts";
import { leaveFree, readOnly, smallDisk } from "../helpers/disk.ts";
import { needs } from "../helpers/needs.ts";
import { type Ended, leftOf, longer, metrics, type Running, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const KEPT = "checkpoint = { steps = 3 }";
/** Times the steps of the recipe: what is done to a run in its middle stops it first. */
const LENGTH = 16;
const outputOf = (path: string) => join(path, "..", "out");
const checkpoints = (path: string, name: string) => checkpointsIn(join(outputOf(path), "checkpoints", name));
const halfWritten = (path: string) =>
  readdirSync(outputOf(path), { recursive: true })
    .map(String)
    .filter((name) => /\.(tmp|part)($|\/)/.test(name));

const undisturbed = new Map<string, Promise<string>>();
/** The output of this recipe in a run that nothing happens to. */
function calm(text: string): Promise<string> {
  const run = async () => {
    const path = place.project(text, SUMS);
    expect((await place.mlora("run", path)).code).toBe(0);
    return outputOf(path);
  };
  const found = undisturbed.get(text) ?? run();
  undisturbed.set(text, found);
  return found;
}

/** `missing`: lines of metrics that the run has said to be missing. All others are those of a calm run, in their order. */
async function expectSame(path: string, text: string, names: readonly string[], missing = 0): Promise<void> {
  const output = await calm(text);
  let absent = 0;
  for (const name of names) {
    const [left, calmly] = [leftOf(outputOf(path), name), leftOf(output, name)];
    const there = (line: object) => [...left.steps, ...left.evaluations].some((other) => Bun.deepEquals(line, other));
    const all = calmly.steps.length + calmly.evaluations.length;
    const [steps, evaluations] = [calmly.steps, calmly.evaluations].map((lines) => (missing > 0 ? lines.filter(there) : lines));
    expect(left).toEqual({ weights: calmly.weights, steps: steps!, evaluations: evaluations! });
    absent += all - steps!.length - evaluations!.length;
  }
  expect(absent).toBeLessThanOrEqual(missing);
  expect(halfWritten(path)).toEqual([]);
  expect(existsSync(join(outputOf(path), ".mlora.lock"))).toBe(false);
}

/** How many lines of metrics a run says that it could not write. */
function missingIn(err: string): number {
  const said = /; its last (?:line is|([\d,]+) lines are) missing$/m.exec(err);
  return said === null ? 0 : Number(said[1]?.replaceAll(",", "") ?? 1);
}

/** It failed, and says so to a person: no trace of a program. */
function expectFailed({ code, err }: Ended, ...said: readonly (string | RegExp)[]): void {
  expect([code, err]).toEqual([1, expect.stringMatching(/^error\[/m)]);
  expect(err).not.toMatch(/^\s+at /m);
  expect(err).not.toContain("bug");
  for (const text of said) expect(err).toMatch(text);
}

/** Starts a run; stops it, until it gets SIGCONT, when something is to be seen of it. */
async function startStopped(path: string, what: string, isThere: () => boolean): Promise<Running> {
  const run = place.start(["run", path]);
  await until(what, 60_000, isThere);
  run.kill("SIGSTOP");
  await until("standing still", 60_000, () => / T /.test(readFileSync(`/proc/${run.pid}/stat`, "utf8")));
  return run;
}
/** Stops it when each of these adapters has been kept. */
const startKept = (path: string, names: readonly string[]) =>
  startStopped(path, "checkpoints", () => names.every((name) => checkpoints(path, name).length > 0));

/** The recipe with other settings of one of its adapters. */
const withThat = (text: string, name: string, settings: string): string =>
  text.replace(`name = "${name}"\n`, `name = "${name}"\n${settings}\n`);

describe("NaN and infinity", () => {
  test("end their adapter, and change no bit of those next to it or in its place after it", async () => {
    const text = unlike([1, 2, 3, 4], "cpu", "slots = 2");
    const beside = withThat(unlike([0, 1, 2, 3, 4], "cpu", "slots = 2"), "a0", "learning_rate = 1e30");
    const path = place.project(beside, SUMS);
    const ended = await place.mlora("run", path);
    expectFailed(
      ended,
      /^a0: failed: step \d: the loss is NaN and the gradient norm NaN; lower the learning rate or set max_grad_norm$/m,
      "1 of 5 adapters failed: a0",
    );
    expect(ended.out).toMatch(/^ +a0 +failed .* -$/m);
    expect(metrics(outputOf(path), "failed")).toEqual([{ type: "failed", adapter: "a0", message: expect.anything() }]);
    await expectSame(path, text, ["a1", "a2", "a3", "a4"]);
    expect(readdirSync(outputOf(path))).not.toContain("a0");
  });

  test("of the base model's own weights are said to be its own", async () => {
    const path = place.project(unlike([0, 1], "cpu").replace("../model", "damaged"), SUMS);
    const damaged = join(path, "..", "damaged");
    cpSync(join(place.root, "model"), damaged, { recursive: true, dereference: true });
    const weights = join(damaged, "model.safetensors");
    const bytes = readFileSync(weights);
    bytes.fill(0xff, bytes.length - 4); // NaN in any type of floats
    rmSync(weights);
    writeFileSync(weights, bytes);
    const ended = await place.mlora("run", path);
    expectFailed(
      ended,
      /^a0: failed: step 1: the loss is NaN .*so the base model's weights, or those of `from`, are damaged$/m,
    );
    expect(ended.err).not.toContain("lower the learning rate");
  });

  // The last step is followed by no loss that would show it.
  for (const [what, settings] of [
    ["a loss", "learning_rate = 1e30"],
    ["a weight", "learning_rate = 3e38"],
    ["a weight, with nothing held out", 'learning_rate = 3e38\ndata = "rows.jsonl"'],
  ] as const)
    test(`after the last step, ${what}: the adapter is not saved, and the run can continue`, async () => {
      const once = unlike([0, 1], "cpu").replace("steps = 6", "steps = 1").replace("eval_every = 2\n", "");
      const path = place.project(withThat(once, "a0", `${settings}\nscheduler = "constant"\nwarmup = 0`), SUMS);
      for (const goesOn of [false, true]) {
        const ended = await place.mlora("run", path);
        expectFailed(
          ended,
          /^a0: failed: .*(lower the learning rate|no finite numbers)/m,
          "1 of 2 adapters failed: a0\nhint: fix what the lines above name",
        );
        expect(ended.err.includes("a1 is done")).toBe(goesOn);
        expect(readRecord(outputOf(path)).get("a0")!.status).toBe("failed");
        expect(readdirSync(outputOf(path))).not.toContain("a0");
      }
    });

  test("at a rung of a sweep drop the adapter; the run's record can be read again", async () => {
    const sweep = `[adapter.sweep]\nlearning_rate = [1e-3, 1e30, 1e-4]\n`;
    const one = unlike([0], "cpu").replace('name = "a0"', 'name = "a0"\nscheduler = "constant"\nwarmup = 0');
    const path = place.project(`${one}halving = { rung = 1, keep = 0.6 }\n${sweep}`, SUMS);
    const { code, out } = await place.mlora("run", path);
    expect([code, out]).toEqual([0, expect.stringMatching(/dropped +1 .* -> NaN/)]);
    const again = await place.mlora("run", path);
    expect([again.code, again.err]).toEqual([2, expect.stringContaining("is finished: all adapters of the recipe have ended")]);
  });
});

const LIMIT = 180_000;

needs("disks")("a full disk", () => {
  const names = ["a0", "a1", "a3"];
  const text = longer(unlike([0, 1, 3], "cpu", KEPT), LENGTH);

  test(
    "the run's: each checkpoint that fails is told, the one before is whole, and with room the run goes on as if nothing had been",
    async () => {
      const path = place.project(text, SUMS);
      using _disk = smallDisk(outputOf(path), 4096);
      const run = await startKept(path, names);
      const ballast = join(outputOf(path), "ballast");
      let over = false;
      void run.ended.then(() => {
        over = true;
      });
      const squeeze = async (free: number, enough: () => boolean) => {
        run.kill("SIGSTOP"); // or what it writes meanwhile would count twice
        await until("standing still", 60_000, () => over || / T /.test(readFileSync(`/proc/${run.pid}/stat`, "utf8")));
        leaveFree(ballast, free);
        run.kill("SIGCONT");
        await until("what it does then", 60_000, enough);
      };
      const steps = () => metrics(outputOf(path), "step").filter(({ adapter }) => adapter === "a3").length;
      for (const before = steps(); !over && steps() < before + 20; ) {
        const made = steps();
        await squeeze(120 << 10, () => over || steps() > made); // less than a checkpoint of a3
      }
      while (!over) {
        const end = performance.now() + 50; // what it writes is seen no more
        await squeeze(0, () => over || performance.now() > end);
      }
      const ended = await run.ended;
      expectFailed(
        ended,
        /^notice: a3: step \d+ was not kept: cannot write .*a3\/step-\d+.*: ENOSPC: no space left on device/m,
        /^notice: cannot write .*\/out\/metrics.jsonl: ENOSPC: no space left on device.*; training continues/m,
        /^notice: cannot write .*\/out\/metrics.jsonl: ENOSPC.*; its last (?:line is|[\d,]+ lines are) missing$/m,
      );
      expect(halfWritten(path)).toEqual([]);
      for (const name of names) {
        expect(checkpoints(path, name)).not.toEqual([]);
        for (const folder of checkpoints(path, name)) expect(readCheckpoint(folder).progress.adapter).toBe(name);
      }
      leaveFree(ballast, 0);
      const still = await place.mlora("run", path);
      expect([still.code, still.err]).toEqual([2, expect.stringContaining("ENOSPC: no space left on device")]);
      expect(still.err).toContain("hint: make room on the disk");
      rmSync(ballast);
      const again = await place.mlora("run", path);
      expect([again.code, again.err]).toEqual([0, expect.stringMatching(/^going on with the run in .*: a0 at step [1-9]/m)]);
      await expectSame(path, text, names, missingIn(ended.err));
    },
    LIMIT,
  );

  test(
    "that holds one adapter's results ends that adapter; with room the same command saves it",
    async () => {
      const path = place.project(text, SUMS);
      const run = await startKept(path, names);
      const small = smallDisk(join(outputOf(path), "a3"), 8);
      run.kill("SIGCONT");
      try {
        const ended = await run.ended;
        expectFailed(
          ended,
          /^a3: failed: cannot write .*\/out\/a3\/adapter_model.safetensors: ENOSPC: no space left on device/m,
          "1 of 3 adapters failed: a3",
        );
        expect(ended.out).toMatch(/^ +a3 +failed .* -$/m);
        await expectSame(path, text, ["a0", "a1"]);
        expect(readdirSync(join(outputOf(path), "a3"))).toEqual([]);
      } finally {
        small[Symbol.dispose]();
      }
      const again = await place.mlora("run", path);
      expect([again.code, again.err]).toEqual([0, expect.stringMatching(/: a0 is done, a1 is done, a3 at step [1-9]/)]);
      await expectSame(path, text, names);
    },
    LIMIT,
  );

  test(
    "that holds one adapter's checkpoints is told; it is trained to its end",
    async () => {
      const path = place.project(text, SUMS);
      const run = await startKept(path, names);
      using _disk = smallDisk(join(outputOf(path), "checkpoints", "a3"), 64);
      run.kill("SIGCONT");
      const { code, err } = await run.ended;
      expect(err).toMatch(/^notice: a3: step \d+ was not kept: cannot write .*checkpoints\/a3.*: ENOSPC: no space left/m);
      expect(err).not.toMatch(/a[01]: step \d+ was not kept/);
      expect(err).toMatch(/^notice: a3: its checkpoints are still there: cannot remove .*\/checkpoints\/a3: EBUSY/m);
      expect(code).toBe(0);
      await expectSame(path, text, names);
    },
    LIMIT,
  );

  test(
    "that holds the checkpoints of one that has to leave its slot ends that one alone",
    async () => {
      const two = longer(unlike([0, 1, 3], "cpu"), LENGTH).replaceAll(
        /name = "(a[13])"\n/g,
        'name = "$1"\nhalving = { rung = 24, keep = 0.6, group = "both" }\n',
      );
      const path = place.project(two, SUMS);
      const run = await startStopped(path, "the run's folder", () => existsSync(join(outputOf(path), "metrics.jsonl")));
      using _disk = smallDisk(join(outputOf(path), "checkpoints", "a3"), 64);
      run.kill("SIGCONT");
      const ended = await run.ended;
      expectFailed(ended, /a3: failed: it had to leave its slot after step 24 and could not be kept: .*ENOSPC/);
      expect(ended.out).toMatch(/a1 +done/);
      await expectSame(path, longer(unlike([0, 1, 3], "cpu"), LENGTH), ["a0"]);
    },
    LIMIT,
  );

  test(
    "when the run begins is refused, and leaves nothing",
    async () => {
      const path = place.project(text, SUMS);
      using _disk = smallDisk(outputOf(path), 64);
      leaveFree(join(outputOf(path), "ballast"), 0);
      const { code, err } = await place.mlora("run", path);
      expect([code, err]).toEqual([2, expect.stringContaining("ENOSPC: no space left on device")]);
      expect(readdirSync(outputOf(path))).toEqual(["ballast"]);
    },
    LIMIT,
  );

  test(
    "an output that can only be read from now on ends the run, which goes on when it can be written",
    async () => {
      const path = place.project(text, SUMS);
      const run = await startKept(path, names);
      const disk = readOnly(outputOf(path));
      run.kill("SIGCONT");
      try {
        expectFailed(
          await run.ended,
          /^notice: a\d: step \d+ was not kept: cannot write .*: EROFS: read-only file system/m,
          /^a\d: failed: cannot write .*\/out\/a\d\/adapter_model.safetensors: EROFS: read-only file system/m,
          /^error\[files.write\]: cannot write .*\/out\/run.json: EROFS: read-only file system/m,
          /^hint: choose a folder on a disk that may be written$/m,
        );
      } finally {
        disk[Symbol.dispose]();
      }
      expect((await place.mlora("run", path)).code).toBe(0);
      await expectSame(path, text, names);
    },
    LIMIT,
  );
});

describe("files that go away", () => {
  test(
    "an output folder that is removed ends the run, with a message",
    async () => {
      const path = place.project(longer(unlike([0, 1], "cpu", KEPT), 400), SUMS);
      const run = await startKept(path, ["a0", "a1"]);
      rmSync(outputOf(path), { recursive: true, force: true });
      run.kill("SIGCONT");
      expectFailed(await run.ended, /^error\[files.removed\]: cannot write .*\/out\/metrics.jsonl: it was removed$/m);
      expect(readdirSync(join(path, "..")).includes("out") ? readdirSync(outputOf(path)) : []).not.toContain(".mlora.lock");
    },
    LIMIT,
  );

  test(
    "what a killed run left half written is gone when it goes on",
    async () => {
      const text = longer(unlike([0, 1], "cpu", KEPT), LENGTH);
      const path = place.project(text, SUMS);
      const run = await startKept(path, ["a0", "a1"]);
      run.kill("SIGKILL");
      await run.ended;
      for (const name of ["run.json.4711.tmp", "metrics.jsonl.4711.tmp", "a0/adapter_model.safetensors.4711.tmp"]) {
        mkdirSync(join(outputOf(path), name, ".."), { recursive: true });
        writeFileSync(join(outputOf(path), name), "half");
      }
      mkdirSync(join(outputOf(path), "checkpoints", "a0", "step-000000001.part"), { recursive: true });
      expect((await place.mlora("run", path)).code).toBe(0);
      await expectSame(path, text, ["a0", "a1"]);
    },
    LIMIT,
  );

  test(
    "a run that was killed while it wrote its first file is begun again",
    async () => {
      const text = longer(unlike([0, 1], "cpu", KEPT), LENGTH);
      const path = place.project(text, SUMS);
      mkdirSync(outputOf(path));
      writeFileSync(join(outputOf(path), ".mlora-run.json.4711.tmp"), "{");
      expect((await place.mlora("run", path)).code).toBe(0);
      await expectSame(path, text, ["a0", "a1"]);
      expect(readFileSync(join(outputOf(path), "recipe.toml"), "utf8")).toContain("[model]");
    },
    LIMIT,
  );
});
