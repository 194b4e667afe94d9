// OpenBLAS computes differently on each kind of processor. Other adapters must change nothing on any of them, so the promise is
// tried with the kernels of processors other than this one, in a process each: OpenBLAS chooses when it is opened.

import { expect, test } from "bun:test";
import { join } from "node:path";

/** Those that a processor with AVX2, which mlora needs, can run. */
const CORES = ["Haswell", "Zen", "Sandybridge", "Nehalem"];

for (const core of CORES)
  test(`other adapters change nothing with OpenBLAS's kernels for ${core}`, async () => {
    const files = ["company.test.ts", "generate.test.ts"].map((name) => join(import.meta.dir, name));
    const env = { ...process.env, MLORA_BLAS_CORE: core };
    const child = Bun.spawn([process.execPath, "test", ...files], { env, stdout: "ignore", stderr: "pipe" });
    const [said, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
    expect(code, said).toBe(0);
  }, 240_000);
