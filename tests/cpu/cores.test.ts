// OpenBLAS computes differently on each kind of processor. Other adapters must change nothing on any of them, so the promise is
// tried with the kernels of processors other than this one, in a process each: OpenBLAS chooses when it is opened.
//
// Kernels differ by processor, and what they are given by the kind of layer. Every family is tried with those of Haswell, which
// most processors without AVX-512 take; with each of the others, a family of every kind of layer, and rows at all places of a
// tile.

import { expect, test } from "bun:test";
import { join } from "node:path";

/** Those that a processor with AVX2, which mlora needs, can run. */
const WHOLE = "Haswell";
const CORES = ["Zen", "Sandybridge", "Nehalem"] as const;
const EACH_KIND = ["llama", "gemma4", "mixtral", "qwen3_5", "granite_h", "lfm2"].join("|");
const PARTS = [
  `^other adapters change nothing, bit for bit (${EACH_KIND})$`,
  "^adapters in experts learn the same .* qwen3_5moe$",
  "^two stages learn what one does",
  "^(llama|mixtral|qwen3_5) a sequence's tokens are the same",
  "^bit for bit a row's logits",
];
/** How many tests the parts are: a name that has changed is not one fewer without a word. */
const TESTS = 6 + 1 + 2 + 3 + 3;
/** For one that hangs: bun's own limit is too short next to a busy neighbour. */
const LIMIT = "--timeout=180000";

const FILES = ["company.test.ts", "generate.test.ts"] as const;

/** Runs tests of files next to this one with a core's kernels; resolves to how many they were. */
async function ran(core: string, files: readonly string[], which: readonly string[] = []): Promise<number> {
  const paths = files.map((name) => join(import.meta.dir, name));
  const child = Bun.spawn([process.execPath, "test", LIMIT, ...which, ...paths], {
    env: { ...process.env, MLORA_BLAS_CORE: core },
    stdout: "ignore",
    stderr: "pipe",
  });
  const [said, code] = await Promise.all([child.stderr.text(), child.exited]);
  expect(code, said).toBe(0);
  return Number(/^ *(\d+) pass$/m.exec(said)?.[1]);
}

test.each(FILES)(`other adapters change nothing with OpenBLAS's kernels for ${WHOLE}, all of %s`, async (file) => {
  expect(await ran(WHOLE, [file])).toBeGreaterThan(TESTS);
});

test.each(CORES)("other adapters change nothing with OpenBLAS's kernels for %s", async (core) => {
  expect(await ran(core, FILES, ["-t", PARTS.join("|")])).toBe(TESTS);
});
