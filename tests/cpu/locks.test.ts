// A run has its output folder to itself: another is refused with the owner's name, whatever moment it comes at; what a dead one
// left is no lock.

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { until } from "../helpers/bus.ts";
import { leftOf, longer, metrics, type Running, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(1);
afterAll(() => place[Symbol.dispose]());

/** Of a test of many starts, and of one thing that is waited for, next to a busy neighbour. */
const LIMIT = 240_000;
const WAIT = 60_000;
const outputOf = (path: string) => join(path, "..", "out");
const lockOf = (path: string) => join(outputOf(path), ".mlora.lock");
const short = unlike([2], "cpu");
const long = longer(short, 20_000);

async function trains(path: string): Promise<void> {
  const file = join(outputOf(path), "metrics.jsonl");
  await until("steps", WAIT, () => existsSync(file) && metrics(outputOf(path), "step").length > 2);
}

describe("two runs in one output folder", () => {
  test(
    "the second is refused by the first one's process, and changes nothing of it",
    async () => {
      const text = longer(unlike([0, 1], "cpu"), 60);
      const [alone, path] = [place.project(text, SUMS), place.project(text, SUMS)];
      const [, first] = [await place.mlora("run", alone), place.start(["run", path])];
      await trains(path);
      first.kill("SIGSTOP"); // or it could end before all have been refused
      for (const flags of [[], ["--resume"], ["--seed", "5"]]) {
        const { code, out, err } = await place.mlora("run", path, ...flags);
        expect([code, out, err]).toEqual([
          2,
          "",
          expect.stringContaining(`error[output.locked]: ${outputOf(path)} is in use by`),
        ]);
        expect(err).toContain(`another mlora, process ${first.pid}\nhint: wait for it, or choose another output`);
      }
      first.kill("SIGCONT");
      expect((await first.ended).code).toBe(0);
      for (const name of ["a0", "a1"]) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(alone), name));
      expect(readdirSync(outputOf(path)).sort()).toEqual(readdirSync(outputOf(alone)).sort());
    },
    LIMIT,
  );

  test.each([
    ["an empty folder", false],
    ["a folder with a dead run's lock", true],
  ] as const)(
    "six that begin at once in %s: one trains, five are refused by a process that was there",
    async (_, stale) => {
      const path = place.project(long, SUMS);
      for (const round of [1, 2]) {
        if (stale) {
          mkdirSync(outputOf(path), { recursive: true });
          writeFileSync(lockOf(path), await deadLock());
        }
        const runs = Array.from({ length: 6 }, () => place.start(["run", path]));
        const ended = new Set<Running>();
        for (const run of runs) void run.ended.then(() => ended.add(run));
        await until("five to be refused", WAIT, () => ended.size >= 5);
        const [winner] = runs.filter((run) => !ended.has(run));
        expect(winner, `round ${round}`).toBeDefined();
        await trains(path);
        for (const run of ended) {
          const { code, err } = await run.ended;
          expect([code, err]).toEqual([2, expect.stringContaining("is in use by another mlora, process ")]);
          expect(runs.map(({ pid }) => pid)).toContain(Number(/process (\d+)/.exec(err)![1]));
        }
        winner!.kill("SIGINT");
        expect((await winner!.ended).code).toBe(1);
        const steps = metrics(outputOf(path), "step").map(({ step }) => step as number);
        expect(steps).toEqual([...steps.keys()].map((i) => i + 1)); // no other wrote
        expect(readdirSync(outputOf(path)).filter((name) => name.startsWith(".mlora.lock"))).toEqual([]);
      }
    },
    LIMIT,
  );

  test(
    "of processes that try at the same millisecond one has it, also where a dead one's lock is to be broken",
    async () => {
      const folders = Array.from({ length: 30 }, (_, i) => join(place.root, `claim-${i}`));
      const lock = await deadLock();
      for (const [i, folder] of folders.entries())
        if (i % 3 > 0) {
          mkdirSync(folder);
          writeFileSync(join(folder, ".mlora.lock"), lock);
          // the process that was about to break it died, too
          if (i % 3 === 2) writeFileSync(join(folder, ".mlora.lock.stale"), lock);
        }
      const begin = `${Date.now() + 1500}`;
      const helper = join(import.meta.dir, "..", "helpers", "claim.ts");
      const through = join(place.root, "through");
      mkdirSync(through);
      const claims = Array.from({ length: 4 }, async () => {
        const child = Bun.spawn([process.execPath, helper, begin, "40", "4", through, ...folders], { stdout: "pipe" });
        return JSON.parse(await child.stdout.text()) as string[];
      });
      const all = await Promise.all(claims);
      for (const [i, folder] of folders.entries()) {
        expect(all.map((came) => came[i]!).sort()).toEqual(["output.locked", "output.locked", "output.locked", "taken"]);
        expect(readdirSync(folder)).toEqual([]);
      }
    },
    LIMIT,
  );
});

/** The lock that a run leaves which is killed. */
async function deadLock(): Promise<string> {
  const path = place.project(long, SUMS);
  const run = place.start(["run", path]);
  await trains(path);
  run.kill("SIGKILL");
  await run.ended;
  return readFileSync(lockOf(path), "utf8");
}

describe("a lock of", () => {
  /** What becomes of a run where this lock lies, and of the lock. */
  async function where(lock: string) {
    const path = place.project(short, SUMS);
    mkdirSync(outputOf(path));
    writeFileSync(lockOf(path), lock);
    const { code, err } = await place.mlora("run", path);
    return { code, err, left: existsSync(lockOf(path)) ? readFileSync(lockOf(path), "utf8") : null };
  }
  const ours = async () => /^(\d+) (\d+) (\S+) (\S+)\n$/.exec(await deadLock())!.slice(1) as [string, string, string, string];
  const startOf = (pid: number) => readFileSync(`/proc/${pid}/stat`, "utf8").split(" ")[21]!;

  test(
    "nobody any more is taken away",
    async () => {
      const [pid, start, boot, host] = await ours();
      await using other = Bun.spawn(["sleep", "60"]);
      // The child ends when its parent is sleep, which does not wait for it; a shell would.
      const child = 'until [ "$(cat /proc/$$/comm)" = sleep ]; do :; done';
      const zombie = Bun.spawn(["sh", "-c", `(${child}) & echo $!; exec sleep 60`], { stdout: "pipe" });
      await using _ = zombie;
      const { value } = await zombie.stdout.getReader().read();
      const dead = Number(new TextDecoder().decode(value));
      await until("the zombie", WAIT, () => readFileSync(`/proc/${dead}/stat`, "utf8").includes(") Z "));
      for (const lock of [
        `${pid} ${start} ${boot} ${host}\n`, // a dead process
        `${other.pid} ${start} ${boot} ${host}\n`, // its number is another's now
        `${dead} ${startOf(dead)} ${boot} ${host}\n`, // it has ended, and its parent has not asked how
        `${other.pid} ${startOf(other.pid)} 01234567-89ab-cdef-0123-456789abcdef ${host}\n`, // another boot of this machine
        "",
        `${other.pid} ${startOf(other.pid)}`, // cut off
        `0 0 ${boot} ${host}\n`, // the process group of whoever asks
        `-1 ${start} ${boot} ${host}\n`, // all processes
        "\0\xff garbage\n".repeat(1000),
      ])
        expect([lock.slice(0, 100), await where(lock)]).toEqual([
          lock.slice(0, 100),
          { code: 0, err: expect.anything(), left: null },
        ]);
    },
    LIMIT,
  );

  test("a process that runs is kept, and one on another machine, which cannot be seen from here", async () => {
    const [, , boot, host] = await ours();
    expect(host).toBe(hostname());
    await using other = Bun.spawn(["sleep", "60"]);
    const here = `${other.pid} ${startOf(other.pid)} ${boot} ${host}\n`;
    const there = `4711 815 01234567-89ab-cdef-0123-456789abcdef ${host}-2\n`;
    expect(await where(here)).toEqual({
      code: 2,
      err: expect.stringMatching(
        new RegExp(`in use by another mlora, process ${other.pid}\nhint: wait for it, or choose another output\n$`),
      ),
      left: here,
    });
    expect(await where(there)).toEqual({
      code: 2,
      err: expect.stringMatching(
        /process 4711 on .*-2\nhint: wait for it, .*; if it is gone, remove \/.*\/out\/.mlora.lock\n$/,
      ),
      left: there,
    });
  });

  test("an unknown kind is one clear error", async () => {
    const path = place.project(short, SUMS);
    mkdirSync(lockOf(path), { recursive: true });
    const { code, err } = await place.mlora("run", path);
    expect([code, err]).toEqual([
      2,
      expect.stringMatching(/^error\[output.folder\]: cannot use .*\/out\/.mlora.lock is no lock: EISDIR/),
    ]);
    expect(readdirSync(outputOf(path))).toEqual([".mlora.lock"]);
  });

  test("another run's is left alone by a run whose folder was moved away", async () => {
    const path = place.project(long, SUMS);
    const run = place.start(["run", path]);
    await trains(path);
    writeFileSync(lockOf(path), "4711 815 boot elsewhere\n");
    run.kill("SIGINT");
    expect((await run.ended).code).toBe(1);
    expect(readFileSync(lockOf(path), "utf8")).toBe("4711 815 boot elsewhere\n");
  });
});
