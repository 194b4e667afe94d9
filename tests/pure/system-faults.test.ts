// What the system's refusal of a file call becomes: the place, the reason, the way out, and never a bug; and metrics that wait
// for room.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openAppender, syncFolder } from "../../src/base/atomic.ts";
import { MloraError, RequestError, RunError } from "../../src/base/errors.ts";
import { hintOf, readError, readHintOf, systemError, writeError } from "../../src/base/faults.ts";
import { patient } from "../../src/session/events/metrics.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-system-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const refusal = (code: string, path?: string): Error => Object.assign(new Error(`${code}: refused`), { code, path });
/** What a real call throws. */
function thrown(work: () => unknown): unknown {
  try {
    work();
  } catch (error) {
    return error;
  }
  throw new Error("it did not throw");
}

describe("a refusal of the system", () => {
  test.each([
    ["ENOSPC", "make room on the disk", undefined],
    ["EDQUOT", "make room in your quota", undefined],
    ["EROFS", "choose a folder on a disk that may be written", undefined],
    ["EACCES", "choose a folder that you may write to", "make it readable to you"],
    ["EPERM", "choose a folder that you may write to", "make it readable to you"],
    ["EMFILE", "raise the limit of open files (ulimit -n)", "raise the limit of open files (ulimit -n)"],
    [
      "ENFILE",
      "raise the machine's limit of open files (fs.file-max)",
      "raise the machine's limit of open files (fs.file-max)",
    ],
    ["ENOMEM", "free some memory", "free some memory"],
    ["EIO", "check the disk (dmesg); choose a folder on another one", "check the disk (dmesg)"],
    ["ESTALE", undefined, "mount its disk again"],
    ["ENOENT", undefined, undefined],
  ])("%s: the way out of a write and of a read", (code, write, read) => {
    const error = refusal(code);
    expect([hintOf(error), readHintOf(error)]).toEqual([write, read]);
    const [written, got] = [writeError("/some/file", error), readError("/some/file", error)];
    expect(written).toBeInstanceOf(RunError);
    expect(written).toMatchObject({
      ...{ code: "files.write", exit: 1, hint: write, cause: error },
      message: `cannot write /some/file: ${code}: refused`,
    });
    expect(got).toMatchObject({ code: "files.read", hint: read, cause: error });
    expect(got.message).toBe(`cannot read /some/file: ${code}: refused`);
  });

  test("that has been worded is read as it is", () => {
    const worded = new RequestError("data.row", "rows.jsonl:1: no row", "fix it");
    expect(readError("/some/file", worded)).toBe(worded);
  });

  test("without wording of its own is reported with its place, once, and is no bug; all else is one", () => {
    for (const code of ["ENOSPC", "ESTALE", "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EBUSY", "EFBIG"]) {
      const found = systemError(refusal(code, "/some/file"))!;
      expect(found).toMatchObject({ code: "files.system", exit: 1 });
      expect(found.message).toBe(`/some/file: ${code}: refused`);
    }
    const real = thrown(() => readFileSync(join(root, "none")));
    expect(systemError(real)!.message.split(join(root, "none")).length).toBe(2); // the message has the path already
    expect(systemError(refusal("ENOSPC"))!.hint).toBe("make room on the disk");
    expect(systemError(refusal("ESTALE"))!.hint).toBe("mount its disk again");
    expect(systemError(refusal("EFBIG"))!.hint).toContain("ulimit -f");
    expect(systemError(refusal("ELOOP"))!.hint).toContain("a link leads to itself");
    for (const bug of [
      new Error("x"),
      new TypeError("x is undefined"),
      refusal("ERR_INVALID_ARG_TYPE"),
      "ENOSPC",
      null,
      { code: "EIO" },
    ])
      expect(systemError(bug)).toBe(null);
  });
});

describe("metrics", () => {
  const notices: string[] = [];
  /** A disk of metrics that refuses while it is `full`. */
  function disk() {
    notices.length = 0;
    const state = { full: false, tried: 0, written: [] as string[] };
    const append = (line: string): void => {
      state.tried++;
      if (state.full) throw writeError("/out/metrics.jsonl", refusal("ENOSPC"));
      state.written.push(line);
    };
    return { state, ...patient(append, (text) => notices.push(text)) };
  }

  test("that cannot be written wait, are reported once, and come later, in order", () => {
    const { state, append, flush } = disk();
    append("0");
    state.full = true;
    for (const line of ["1", "2", "3"]) append(line);
    expect(state.written).toEqual(["0"]);
    expect(notices).toEqual(["cannot write /out/metrics.jsonl: ENOSPC: refused; training continues, and the lines wait"]);
    state.full = false;
    append("4");
    append("5");
    flush();
    expect(state.written).toEqual(["0", "1", "2", "3", "4", "5"]);
    expect(notices.length).toBe(1);
  });

  test("that wait are written at the end, where there is room by then", () => {
    const { state, append, flush } = disk();
    state.full = true;
    append("1");
    append("2");
    state.full = false;
    flush();
    expect(state.written).toEqual(["1", "2"]);
    expect(notices.length).toBe(1);
  });

  test("of which the first of those that wait can be written leave the others in order", () => {
    const written: string[] = [];
    let capacity = 0;
    const { append, flush } = patient(
      (line) => {
        if (capacity === 0) throw refusal("ENOSPC");
        capacity--;
        written.push(line);
      },
      (text) => notices.push(text),
    );
    for (const line of ["1", "2", "3"]) append(line);
    capacity = 2;
    append("4");
    expect(written).toEqual(["1", "2"]);
    capacity = 9;
    flush();
    expect(written).toEqual(["1", "2", "3", "4"]);
  });

  test("that never could be written are counted at the end; memory is bounded, and what is there has no gap", () => {
    const { state, append, flush } = disk();
    append("first");
    state.full = true;
    for (let i = 0; i < 100_500; i++) append(`${i}`);
    expect(state.tried).toBeLessThan(101_000); // one try for each line, not one for each that waits
    state.full = false;
    append("late");
    append("later");
    expect(state.written.length).toBe(100_001);
    expect(state.written.slice(1)).toEqual(Array.from({ length: 100_000 }, (_, i) => `${i}`));
    flush();
    expect(notices.at(-1)).toMatch(/ENOSPC: refused; its last 502 lines are missing$/);
  });

  test("of a file that was removed end the run, which has no folder any more", () => {
    const lines = patient(
      () => {
        throw new RunError("files.removed", "it was removed");
      },
      (text) => notices.push(text),
    );
    notices.length = 0;
    expect(() => lines.append("1")).toThrow("it was removed");
    expect(notices).toEqual([]);
  });

  test("with long lines come whole", () => {
    const path = join(root, "long.jsonl");
    const long = Array.from({ length: 4 }, (_, i) => JSON.stringify({ type: "failed", message: `${i}`.repeat(3 << 20) }));
    {
      using file = openAppender(path);
      let refused = 2;
      const { append, flush } = patient(
        (line) => {
          if (refused-- > 0) throw refusal("EIO");
          file.append(line);
        },
        (text) => notices.push(text),
      );
      for (const line of long) append(line);
      flush();
    }
    expect(readFileSync(path, "utf8")).toBe(`${long.join("\n")}\n`);
  });
});

describe("a folder that its file system cannot sync", () => {
  // procfs has no fsync; in a process of its own, as there is one notice in each.
  const code = (folders: readonly string[]) =>
    `import { syncFolder } from ${JSON.stringify(join(import.meta.dir, "..", "..", "src", "base", "atomic.ts"))};
     for (const folder of ${JSON.stringify(folders)}) syncFolder(folder);`;

  test("is left to it, with one notice", async () => {
    const script = join(root, "sync.ts");
    writeFileSync(script, code(["/proc", root, "/proc/self"]));
    const child = Bun.spawn([process.execPath, script], { stderr: "pipe" });
    const [err, exit] = await Promise.all([child.stderr.text(), child.exited]);
    expect([exit, err]).toEqual([
      0,
      expect.stringMatching(/^notice: \/proc cannot be synced \(E[A-Z]+: .*\): a power cut may undo the last files written\n$/),
    ]);
  });

  test("where it is no folder is reported", () => {
    expect(thrown(() => syncFolder(join(root, "none")))).toMatchObject({ code: "ENOENT" });
    expect(thrown(() => syncFolder(join(root, "none")))).not.toBeInstanceOf(MloraError);
  });
});
