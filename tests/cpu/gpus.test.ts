// How a driver's answers are read, with a driver made for the purpose: most machines have none, and no real one fails on
// demand.

import { dlopen } from "bun:ffi";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { needs } from "../helpers/needs.ts";

const DRIVER = `
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static int of(const char *name) { const char *v = getenv(name); return v ? atoi(v) : 0; }
int cuInit(unsigned flags) { return flags ? 1 : of("FAKE_INIT"); }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuDeviceGetCount(int *n) { *n = of("FAKE_COUNT"); return 0; }
int cuDeviceGet(int *d, int i) { *d = i + 40; return 0; }
int cuDeviceGetName(char *name, int length, int d) { strncpy(name, d == 41 ? "NVIDIA B" : "NVIDIA A", length); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = d == 41 ? 85899345920ull : 25769803776ull; return 0; }
int cuDeviceGetAttribute(int *v, int which, int d) { *v = which == 75 ? (d == 41 ? 9 : of("FAKE_MAJOR")) : which == 76 ? (d == 41 ? 0 : of("FAKE_MINOR")) : -1; return 0; }
int cuGetErrorName(int e, const char **name) { *name = e == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : NULL; return *name ? 0 : 1; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)64; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 21474836480ull; *t = 25769803776ull; return 0; }
`;

let folder = "";
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "mlora-driver-"));
  mkdirSync(join(folder, "lib"));
  await Bun.write(join(folder, "driver.c"), DRIVER);
  const gcc = Bun.spawn([process.env["CC"] ?? "gcc", "-shared", "-fPIC", "-o", "lib/libcuda.so.1", "driver.c"], {
    cwd: folder,
  });
  expect(await gcc.exited).toBe(0);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** What a script prints in a process that finds the made-up driver, as JSON; an error as its code, message and hint. */
async function ask(imports: string, expression: string, environment: Record<string, string>): Promise<unknown> {
  const script = `
    import { ${expression.split("(")[0]} } from ${JSON.stringify(join(import.meta.dir, "../../src/device", imports))};
    try { console.log(JSON.stringify(${expression})); }
    catch (error) { console.log(JSON.stringify({ code: error.code, exit: error.exit, message: error.message, hint: error.hint })); }`;
  const env = { PATH: process.env["PATH"] ?? "", LD_LIBRARY_PATH: join(folder, "lib"), ...environment };
  const child = Bun.spawn([process.execPath, "-e", script], { cwd: folder, env, stdout: "pipe" });
  return JSON.parse(await child.stdout.text());
}

const list = (environment: Record<string, string>) => ask("cuda/gpus.ts", "listGpus()", environment);
const choose = (wanted: string, environment: Record<string, string>, precision = "auto") =>
  ask("open.ts", `chooseDevice("${wanted}", "${precision}")`, environment);

test("GPUs are reported with name, memory and compute capability", async () => {
  expect(await list({ FAKE_COUNT: "2", FAKE_MAJOR: "8", FAKE_MINOR: "6" })).toEqual({
    cuda: "12.8",
    gpus: [
      { name: "NVIDIA A", totalBytes: 24 * 2 ** 30, capability: "8.6", major: 8, minor: 6 },
      { name: "NVIDIA B", totalBytes: 80 * 2 ** 30, capability: "9.0", major: 9, minor: 0 },
    ],
  });
});

test("a driver that fails, or sees no GPU, is an error of its own", async () => {
  expect(await list({ FAKE_INIT: "803" })).toEqual({
    code: "cuda.driver",
    exit: 1,
    message: "cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    hint: "restart the machine: the driver was updated and the old one still runs",
  });
  expect(await list({ FAKE_INIT: "12345" })).toMatchObject({ message: "cuInit failed with CUresult 12345" });
  expect(await list({ FAKE_COUNT: "0" })).toMatchObject({ code: "cuda.driver", message: "the NVIDIA driver sees no GPU" });
});

test("a GPU that the kernels do not run on is refused with what it is and what is needed", async () => {
  const old = { FAKE_COUNT: "1", FAKE_MAJOR: "7", FAKE_MINOR: "5" };
  expect(await choose("cuda", old)).toMatchObject({
    code: "device.cuda",
    exit: 2,
    message: expect.stringContaining("NVIDIA A has compute capability 7.5; mlora's kernels run from 8.0 on"),
  });
  expect(await choose("auto", old)).toMatchObject({ kind: "cpu", note: expect.stringContaining("compute capability 7.5") });
});

test.each(["fp8", "nf4-fp8"])(
  "%s is refused on a GPU before Ada, with what it takes and what runs there",
  async (precision) => {
    const refused = await choose("cuda", { FAKE_COUNT: "1", FAKE_MAJOR: "8", FAKE_MINOR: "6" }, precision);
    expect(refused).toMatchObject({
      ...{ code: "device.precision", exit: 2, hint: 'set precision to "int8" or "nf4", which run on it' },
      message: expect.stringContaining(`${precision} needs compute capability 8.9 or later (Ada, Hopper)`),
    });
  },
);

test("no GPU: asked for, an error that says why; left to mlora, the cpu and the reason", async () => {
  const none = { FAKE_COUNT: "0" };
  expect(await choose("cuda", none)).toMatchObject({ code: "device.cuda", exit: 2, message: "the NVIDIA driver sees no GPU" });
  expect(await choose("auto", none)).toMatchObject({ kind: "cpu", note: "the NVIDIA driver sees no GPU" });
  expect(await choose("cpu", none)).toMatchObject({ kind: "cpu", note: null });
});

const hasDriver = (): boolean => {
  try {
    dlopen("libcuda.so.1", {}).close();
    return true;
  } catch {
    return false;
  }
};
test.skipIf(hasDriver())("without a driver the reason is that, and no message of the loader", async () => {
  const without = { LD_LIBRARY_PATH: "" };
  expect(await choose("auto", without)).toMatchObject({ kind: "cpu", note: "no NVIDIA driver (libcuda.so.1)" });
  expect(await choose("cuda", without)).toMatchObject({ code: "device.cuda", message: "no NVIDIA driver (libcuda.so.1)" });
});

needs("kernels")("a GPU that will do", () => {
  test("is taken, with the memory that others have left", async () => {
    const report = await choose("auto", { FAKE_COUNT: "1", FAKE_MAJOR: "8", FAKE_MINOR: "6" });
    expect(report).toMatchObject({ kind: "cuda", name: "NVIDIA A", compute: "bf16", rowTile: 128, totalBytes: 24 * 2 ** 30 });
    expect(report).toMatchObject({ note: "4.00 GiB of its memory are in use" });
    expect((report as { freeBytes: number }).freeBytes).toBeLessThan(20 * 2 ** 30);
  });

  test.each(["fp8", "nf4-fp8"])("takes %s from Ada on", async (precision) => {
    for (const [FAKE_MAJOR, FAKE_MINOR] of ["89", "90"].map((of) => [...of] as [string, string]))
      expect(await choose("cuda", { FAKE_COUNT: "1", FAKE_MAJOR, FAKE_MINOR }, precision)).toMatchObject({ kind: "cuda" });
  });
});
