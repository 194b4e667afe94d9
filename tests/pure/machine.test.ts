import { describe, expect, test } from "bun:test";
import { availableParallelism, totalmem } from "node:os";
import { memory, processor, requireProcessor, usableCores } from "../../src/base/machine.ts";

const MIB = 2 ** 20;
const files = (table: Record<string, string>) => (path: string) => table[path];
const meminfo = { "/proc/meminfo": `MemTotal: 9 kB\nMemAvailable:   ${100 * 1024} kB\nBuffers: 1 kB\n` };

describe("memory", () => {
  test("without a container is the machine's", () => {
    const found = memory(files({ ...meminfo, "/proc/self/cgroup": "0::/\n" }));
    expect(found).toEqual({ totalBytes: totalmem(), availableBytes: 100 * MIB, limitBytes: null });
  });

  test("in a control group of version 2 is what the tightest group above leaves", () => {
    const found = memory(
      files({
        ...meminfo,
        "/proc/self/cgroup": "0::/pod/app\n",
        "/sys/fs/cgroup/pod/app/memory.max": "max\n",
        "/sys/fs/cgroup/pod/memory.max": `${64 * MIB}\n`,
        "/sys/fs/cgroup/pod/memory.current": `${50 * MIB}\n`,
        // a cache that would be given up
        "/sys/fs/cgroup/pod/memory.stat": `anon 5\ninactive_file ${20 * MIB}\nactive_file 7\n`,
      }),
    );
    expect(found).toEqual({ totalBytes: 64 * MIB, availableBytes: 34 * MIB, limitBytes: 64 * MIB });
  });

  test("in a control group of version 1, also where the path is the host's", () => {
    const found = memory(
      files({
        ...meminfo,
        "/proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/docker/abc\n0::/\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": `${32 * MIB}\n`,
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": `${40 * MIB}\n`, // over its limit for a moment
      }),
    );
    expect(found).toEqual({ totalBytes: 32 * MIB, availableBytes: 0, limitBytes: 32 * MIB });
  });

  test("with the limit that version 1 has for none is the machine's", () => {
    const none = {
      "/proc/self/cgroup": "3:memory:/\n",
      "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    };
    expect(memory(files({ ...meminfo, ...none }))).toMatchObject({ availableBytes: 100 * MIB, limitBytes: null });
  });

  test("here is some, and no more than there is", () => {
    const { totalBytes, availableBytes } = memory();
    expect(availableBytes).toBeGreaterThan(0);
    expect(availableBytes).toBeLessThanOrEqual(totalBytes);
  });
});

describe("cores", () => {
  const all = availableParallelism();
  const v2 = (max: string) => files({ "/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/cpu.max": max });

  test("are those of the machine, without a quota", () => {
    expect(usableCores(files({}))).toBe(all);
    expect(usableCores(v2("max 100000\n"))).toBe(all);
  });

  test("are the quota's, rounded up, and at least one", () => {
    expect(usableCores(v2("50000 100000\n"))).toBe(1);
    expect(usableCores(v2(`${all * 100000 - 50000} 100000\n`))).toBe(all);
    const v1 = { "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n" };
    expect(usableCores(files({ "/proc/self/cgroup": "1:cpu:/\n", ...v1 }))).toBe(1);
    expect(usableCores(files({ "/proc/self/cgroup": "1:cpu:/\n", ...v1, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n" }))).toBe(
      all,
    );
  });
});

describe("a processor", () => {
  const flags = "fpu avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";
  const cpuinfo = (text: string) => files({ "/proc/cpuinfo": `processor : 0\nflags\t\t: ${text}\nbugs : fma\n` });

  test("that has what the kernels need will do", () => {
    expect(requireProcessor(cpuinfo(flags))).toMatchObject({ missing: [], avx512: false });
    expect(processor(cpuinfo(`${flags} avx512f`)).avx512).toBe(true);
  });

  test("that a process has too few addresses for is refused, with the limit", () => {
    const limited = (limit: string) =>
      files({
        "/proc/cpuinfo": `processor : 0\nflags\t\t: ${flags}\n`,
        "/proc/self/limits": `Limit  Soft Limit  Hard Limit  Units\nMax address space         ${limit}           unlimited            bytes     \nMax file locks  1  1  locks\n`,
      });
    for (const enough of ["unlimited", `${4 * 2 ** 30}`, `${2.75 * 2 ** 30}`]) requireProcessor(limited(enough));
    expect(() => requireProcessor(limited(`${2 ** 31}`))).toThrow(
      "the address space of a process is limited to 2.00 GiB; mlora needs 2.75 GiB, and the model's memory on top",
    );
  });

  test("that multiplies in bf16 has all of AVX-512 that it is done by", () => {
    const all = `${flags} avx512f avx512bw avx512dq avx512vl avx512_bf16`;
    expect(processor(cpuinfo(all)).missingBf16).toEqual([]);
    expect(processor(cpuinfo(all.replace("avx512dq ", ""))).missingBf16).toEqual(["avx512dq"]);
    expect(processor(cpuinfo(`${flags} avx512f avx512bw avx512dq avx512vl`)).missingBf16).toEqual(["avx512_bf16"]);
  });

  test("prefers bf16 where it has AMX for it, or is of AMD", () => {
    const all = `${flags} avx512f avx512bw avx512dq avx512vl avx512_bf16`;
    const prefers = (vendor: string, of: string) =>
      processor(files({ "/proc/cpuinfo": `processor : 0\nvendor_id\t: ${vendor}\nflags\t\t: ${of}\n` })).prefersBf16;
    expect(prefers("AuthenticAMD", all)).toBe(true);
    expect(prefers("AuthenticAMD", all.replace("avx512_bf16", ""))).toBe(false);
    expect(prefers("GenuineIntel", all)).toBe(false);
    expect(prefers("GenuineIntel", `${all} amx_tile amx_bf16`)).toBe(true);
  });

  test("of which nothing can be read is not said to lack anything", () => {
    expect(() => requireProcessor(files({}))).toThrow(
      expect.objectContaining({
        code: "machine.files",
        message: "/proc/cpuinfo cannot be read, which says what the processor can do",
      }),
    );
  });

  test("that lacks some is refused, by what it lacks", () => {
    const old = cpuinfo("fpu avx xsave");
    expect(processor(old).missing).toEqual(["avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"]);
    expect(() => requireProcessor(old)).toThrow("lacks avx2, bmi1, bmi2, f16c, fma, abm, movbe");
  });
});
