// A device that refuses memory which it had said was free: the run is planned again with less until it fits, and comes to the
// same numbers.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { needs } from "../helpers/needs.ts";
import { leftOf, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(4);
afterAll(() => place[Symbol.dispose]());

const LIBRARY = join(place.root, "refusing.so");
/** Micro-batches that share large passes, over a base that takes no scratch, which would depend on the machine's cores. */
const text = (stages: number) =>
  unlike(ADAPTERS, "cpu", `stages = ${stages}`)
    .replace("microbatch = 60", "microbatch = 400")
    .replace('path = "../model"', 'path = "../model"\nprecision = "fp32"');
const ADAPTERS = [0, 1, 2, 3, 4, 5, 6, 7];
const outputOf = (path: string) => join(path, "..", "out");

/** A run whose every process gets that many bytes for tensors. */
const within = (bytes: number, path: string) =>
  place.start(["run", path], { LD_PRELOAD: LIBRARY, MLORA_TEST_BYTES: `${bytes}` }).ended;

needs("nats")("a run whose devices refuse memory", () => {
  let undisturbed = "";
  beforeAll(async () => {
    const source = join(import.meta.dir, "..", "helpers", "refusing.c");
    const { exitCode, stderr } = Bun.spawnSync(["gcc", "-shared", "-fPIC", "-O1", "-o", LIBRARY, source, "-ldl"]);
    expect([exitCode, `${stderr}`]).toEqual([0, ""]);
    undisturbed = place.project(text(1), SUMS);
    expect((await place.mlora("run", undisturbed)).code).toBe(0);
  });

  test.each([
    ["fewer adapters at once", 1, 2_600_000, /[2-7] of 8 adapters at once/],
    ["fewer adapters at once, and smaller passes", 1, 1_600_000, /[2-7] of 8 adapters at once, passes of at most 1\d\d tokens/],
    ["fewer adapters at once on two stages", 2, 3_000_000, /[2-7] of 8 adapters at once/],
  ])(
    "goes on with %s",
    async (_, stages, bytes, notice) => {
      const path = place.project(text(stages), SUMS);
      const { code, err } = await within(bytes, path);
      expect([code, err]).toEqual([
        0,
        expect.stringMatching(/notice: .*no memory on the cpu: .* for .*; the run is planned again with less/),
      ]);
      expect(err).toMatch(notice);
      for (const i of ADAPTERS) expect(leftOf(outputOf(path), `a${i}`)).toEqual(leftOf(outputOf(undisturbed), `a${i}`));
    },
    180_000,
  );

  test("says what it needs where nothing less will do", async () => {
    const path = place.project(text(1), SUMS);
    const { code, err } = await within(500_000, path);
    expect([code, err]).toEqual([2, expect.stringMatching(/error\[plan\.memory\]: the run needs .*, but refuses more than/)]);
  });
});
