import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openLibrary, openSystemLibrary } from "../../ffi/open.ts";
import { assetPath } from "../../src/base/assets.ts";
import { RunError } from "../../src/base/errors.ts";
import { thrown } from "../helpers/refused.ts";

const table = { native_threads: { args: ["i32", "i32"], returns: "i32" } } as const;
const unknown = { no_such_function: { args: [], returns: "void" } } as const;

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "mlora-ffi-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("a library", () => {
  test("gives its functions", () => {
    const { native_threads } = openLibrary(assetPath("libmlora.so"), table);
    expect(native_threads(1, 1)).toBeGreaterThanOrEqual(1);
    expect(native_threads.ptr).toBeGreaterThan(0);
  });

  test("that lacks a function is named with it", () => {
    const error = thrown(RunError, () => openLibrary(assetPath("libmlora.so"), { ...table, ...unknown }));
    expect([error.code, error.message]).toEqual([
      "ffi.symbol",
      expect.stringContaining("libmlora.so has no function 'no_such_function'"),
    ]);
  });

  test("that is not there, or is not one, is an error with the loader's reason", () => {
    const file = join(folder, "text.so");
    writeFileSync(file, "not a library");
    for (const [path, reason] of [
      [join(folder, "none.so"), "No such file"],
      [file, "invalid ELF header|file too short"],
    ] as const) {
      const error = thrown(RunError, () => openLibrary(path, table));
      expect(error.code).toBe("ffi.library");
      expect(error.message).toMatch(new RegExp(`^cannot open ${path}: (${reason})`));
    }
  });

  test("is opened by an absolute path only", () => {
    expect(thrown(RunError, () => openLibrary("ffi/build/libmlora.so", table)).code).toBe("ffi.library");
    expect(thrown(RunError, () => openSystemLibrary("./libmlora.so", table)).code).toBe("ffi.library");
    expect(thrown(RunError, () => openSystemLibrary("../libmlora.so", table)).code).toBe("ffi.library");
  });

  test("of the system is never taken from the current folder", async () => {
    copyFileSync(assetPath("libmlora.so"), join(folder, "libtrap.so.1"));
    const open = join(import.meta.dir, "../../ffi/open.ts");
    const script = `
      import { openSystemLibrary } from ${JSON.stringify(open)};
      import { dlopen } from "bun:ffi";
      const table = ${JSON.stringify(table)};
      console.log(dlopen("libtrap.so.1", table).symbols.native_threads(1, 1)); // the trap is real
      try { openSystemLibrary("libtrap.so.1", table); } catch (error) { console.log(error.code); }`;
    const child = Bun.spawn([process.execPath, "-e", script], { cwd: folder, stdout: "pipe" });
    expect(await child.stdout.text()).toBe("1\nffi.library\n");
  });
});

describe("OpenBLAS is opened as mlora needs it", () => {
  const ask = async (environment: Record<string, string>): Promise<string[]> => {
    const script = `
      import { openBlas } from ${JSON.stringify(join(import.meta.dir, "../../ffi/blas.ts"))};
      import { assetPath } from ${JSON.stringify(join(import.meta.dir, "../../src/base/assets.ts"))};
      import { readdirSync } from "node:fs";
      const before = readdirSync("/proc/self/task").length;
      const blas = openBlas(assetPath("libscipy_openblas.so"));
      console.log(blas.scipy_openblas_get_corename(), blas.scipy_openblas_get_num_threads(), readdirSync("/proc/self/task").length - before);`;
    const env = { PATH: process.env["PATH"] ?? "", ...environment };
    const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "inherit", env });
    return (await child.stdout.text()).trim().split(" ");
  };

  test("whatever another program left in the environment", async () => {
    const plain = await ask({});
    expect(plain[1]).toBe("1");
    for (const environment of [{ OPENBLAS_CORETYPE: "Nehalem" }, { OPENBLAS_NUM_THREADS: "7" }, { OMP_NUM_THREADS: "5" }])
      expect(await ask(environment)).toEqual(plain);
  });

  test("for another processor when MLORA_BLAS_CORE asks for it", async () => {
    expect((await ask({ MLORA_BLAS_CORE: "Nehalem" }))[0]).toBe("Nehalem");
  });
});
