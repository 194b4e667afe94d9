// scripts/bench/peers: which commands a case is, what becomes of what they print, and the tables of their rows.

import { describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CASES, type Case, commandOf, PROGRAMS } from "../../scripts/bench/compared/cases.ts";
import { measureCase, type Options, resultOfCommand } from "../../scripts/bench/compared/measure.ts";
import { formatRow, HEAD, parseRows, type Row, resultOf } from "../../scripts/bench/compared/results.ts";
import { siteOf } from "../../scripts/bench/compared/sites.ts";
import { measuredTables, placed, readmeTables } from "../../scripts/bench/compared/tables.ts";
import { withRow } from "../../scripts/bench/table.ts";

const tools = { mlora: ["mlora"], before: ["old", "mlora"], python: ["python3"], seconds: 7 };
const caseOf = (name: string): Case => CASES.find((of) => of.name === name)!;
const aRow = (more: Partial<Row>): Row => ({
  ...{ date: "2026-11-30 12:00", commit: "abc", machine: "NVIDIA H200", case: "q, k, v, o", program: "mlora", version: "v1" },
  ...{ unit: "tokens/s", value: 22000, range: "", rounds: 1, gib: 25.9, joules: 31.5, error: "" },
  ...more,
});

describe("cases of scripts/bench/peers", () => {
  test("ask every program for the same work", () => {
    for (const of of CASES)
      for (const program of PROGRAMS) {
        const words = commandOf(of, program, tools)?.join(" ");
        if (words === undefined || of.own === null) continue;
        for (const key of ["shape", "rows", "length", "rank", "targets", "sequences", "new-tokens", "prompt-tokens"])
          if (key in of.own) expect(words, `${of.name}, ${program}`).toContain(` --${key} ${of.own[key]}`);
      }
  });

  test("are measured by the build before with the flags of this one, and by peers that have them", () => {
    const of = caseOf("nf4");
    const own = commandOf(of, "mlora", tools)!;
    expect(own).toEqual(expect.arrayContaining(["--precision", "nf4", "--seconds", "7", "--json"]));
    expect(commandOf(of, "before", tools)).toEqual(["old", "mlora", ...own.slice(1)]);
    expect(commandOf(of, "before", { ...tools, before: null })).toBeNull();
    expect(commandOf(of, "PEFT", tools)).toBeNull();
    expect(commandOf(of, "Unsloth", tools)!.join(" ")).toMatch(/^python3 -B .*peer_unsloth\.py .*--precision nf4 /);
    expect(commandOf(caseOf("full recomputation"), "PEFT", tools)).toContain("--checkpointing");
    expect(commandOf(caseOf("all linears"), "PEFT", tools)).toContain("--compile");
  });

  test("have names of their own, and ask only for what there is", () => {
    expect(new Set(CASES.map(({ name }) => name)).size).toBe(CASES.length);
    for (const { asked } of CASES)
      for (const { ofCase } of asked) if (ofCase !== undefined) expect(CASES.map(({ name }) => name)).toContain(ofCase);
  });
});

describe("what a command has printed", () => {
  const of = caseOf("q, k, v, o");
  const found = (printed: object | string) => resultOf(of, typeof printed === "string" ? printed : JSON.stringify(printed));

  test("is the last line's value, with memory, joules and versions where it has them", () => {
    const line = { tokens_per_s: 18711.4, device_bytes: 2 ** 30, peft: "0.21.0", torch: "2.11", device: "cuda" };
    expect(found(`compiling\n${JSON.stringify(line)}\n`)).toEqual({
      ...{ value: 18711.4, bytes: 2 ** 30, joules: null, device: null, version: "peft 0.21.0, torch 2.11" },
    });
    expect(found({ tokens_per_s: 1, joules_per_1000_tokens: 30, device: "NVIDIA H200" })).toMatchObject({
      ...{ bytes: null, joules: 30, device: "NVIDIA H200" },
    });
  });

  test.each([
    ["", "no JSON"],
    ["Traceback", "no JSON: Traceback"],
    [{ error: "no module" }, "no module"],
    [{ ms: 3 }, "reports no tokens_per_s"],
    [{ tokens_per_s: null }, "reports no tokens_per_s"],
  ])("is an error where it is no measurement: %p", (printed, error) => {
    expect(found(printed)).toEqual({ error: expect.stringContaining(error) });
  });

  test("of a CPU is the process's memory, of generation with one sequence the time of a pass", () => {
    expect(resultOf(caseOf("CPU, 1 adapter"), '{"tokens_per_s": 5, "peak_rss_bytes": 7, "device_bytes": 9}')).toMatchObject({
      bytes: 7,
    });
    expect(resultOf(caseOf("one sequence"), '{"tokens_per_s": 500, "pass_ms": 1.9}')).toMatchObject({ value: 1.9 });
  });
});

describe("a call", () => {
  const sh = (script: string) => ["sh", "-c", script];
  const printing = (tokens: number) => sh(`echo noise; echo '{"tokens_per_s": ${tokens}, "device": "A GPU"}'`);
  const options = (more: Partial<Options>): Options => ({
    ...{ programs: PROGRAMS, rounds: 1, limit: 60, environment: () => ({}), hindered: () => null, versions: { mlora: "v2" } },
    ...{ about: { date: "2026-11-30 12:00", commit: "abc" }, machine: () => "here", say: () => undefined },
    tools: { mlora: printing(220), before: printing(200), python: printing(100), seconds: 1 },
    ...more,
  });

  test("has a row for each program, of one machine", async () => {
    const rows = await measureCase(caseOf("q, k, v, o"), options({}));
    expect(rows.map(({ program, value, machine, version }) => [program, value, machine, version])).toEqual([
      ["mlora", 220, "A GPU", "v2"],
      ["before", 200, "A GPU", ""],
      ["PEFT", 100, "A GPU", ""],
      ["Unsloth", 100, "A GPU", ""],
    ]);
  });

  test("takes the median of its rounds, in which programs take turns", async () => {
    const folder = mkdtempSync(join(tmpdir(), "peers-test-"));
    try {
      // Each says its name, and gives more tokens from time to time.
      const counting = (name: string) =>
        sh(`echo ${name} >>${folder}/log; echo "{\\"tokens_per_s\\": $(grep -c ${name} ${folder}/log)}"`);
      const tools = { mlora: counting("new"), before: counting("old"), python: ["false"], seconds: 1 };
      const rows = await measureCase(caseOf("fp8"), options({ tools, rounds: 3 }));
      expect(rows.map(({ program, value, range, rounds }) => [program, value, range, rounds])).toEqual([
        ["mlora", 2, "1 to 3", 3],
        ["before", 2, "1 to 3", 3],
      ]);
      expect((await Bun.file(join(folder, "log")).text()).trim().split("\n")).toEqual([
        "new",
        "old",
        "old",
        "new",
        "new",
        "old",
      ]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("names what cannot run with its error, and measures the others", async () => {
    const python = sh("echo 'ModuleNotFoundError: no unsloth' >&2; exit 3");
    const before = sh("exit 4");
    const hindered = (program: string) => (program === "PEFT" ? "pip found no wheel" : null);
    const tools = { mlora: printing(220), before, python, seconds: 1 };
    const rows = await measureCase(caseOf("q, k, v, o"), options({ tools, hindered, rounds: 2 }));
    expect(rows.map(({ program, value, error }) => [program, value, error])).toEqual([
      ["mlora", 220, ""],
      ["before", null, "it ended with 4: "],
      ["PEFT", null, "pip found no wheel"],
      ["Unsloth", null, "it ended with 3: ModuleNotFoundError: no unsloth"],
    ]);
    expect(rows[0]!.rounds).toBe(2);
  });

  test("ends what takes too long", async () => {
    const found = await resultOfCommand(caseOf("fp8"), sh("sleep 600"), 0.1, {});
    expect(found).toEqual({ error: "it took longer than 0.1 s" });
  });

  test("gives each program its own environment", async () => {
    const python = sh(`echo "{\\"tokens_per_s\\": 1, \\"torch\\": \\"$PYTHONPATH\\"}"`);
    const environment = (program: string): Record<string, string> => (program === "Unsloth" ? { PYTHONPATH: "/its/own" } : {});
    const tools = { mlora: printing(2), before: null, python, seconds: 1 };
    const rows = await measureCase(caseOf("q, k, v, o"), options({ tools, environment }));
    expect(rows.map(({ program, version }) => [program, version.includes("/its/own")])).toEqual([
      ["mlora", false],
      ["PEFT", false],
      ["Unsloth", true],
    ]);
  });
});

describe("packages of a peer", () => {
  test("come from a folder as it is, from a tar, and a reason is given where pip has none", () => {
    const folder = mkdtempSync(join(tmpdir(), "peers-site-"));
    try {
      mkdirSync(join(folder, "site", "unsloth"), { recursive: true });
      writeFileSync(join(folder, "site", "unsloth", "__init__.py"), "");
      expect(siteOf(join(folder, "site"), ["python3"])).toBe(join(folder, "site"));
      Bun.spawnSync(["tar", "--create", "--file", join(folder, "site.tar"), "--directory", join(folder, "site"), "."]);
      const unpacked = siteOf(join(folder, "site.tar"), ["python3"]);
      expect(Bun.spawnSync(["ls", join(unpacked, "unsloth")]).stdout.toString()).toBe("__init__.py\n");
      rmSync(unpacked, { recursive: true });
      writeFileSync(join(folder, "site", "broken-1.0-py3-none-any.whl"), "no wheel");
      expect(() => siteOf(join(folder, "site"), ["sh", "-c", "echo no wheel >&2; exit 1"])).toThrow(/ended with 1: no wheel$/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe("the history of scripts/bench/peers", () => {
  test("is read as it was written", () => {
    const rows = [aRow({}), aRow({ program: "Unsloth", value: null, gib: null, joules: null, error: 'no "unsloth", at all' })];
    expect(parseRows(`${[HEAD, ...rows.map(formatRow)].join("\n")}\n`)).toEqual(rows);
    expect(() => parseRows(`${HEAD}\n${formatRow(aRow({})).replace("22000", "fast")}\n`)).toThrow("line 2: expected a number");
  });

  const call = (date: string, own: number) => [
    aRow({ date, value: own }),
    aRow({ date, program: "before", value: own / 1.1 }),
    aRow({ date, program: "PEFT", value: 17_876, gib: 35.7, version: "peft 0.21" }),
    aRow({ date, program: "Unsloth", value: 18_000, gib: 28.7 }),
  ];

  test("makes the README's table of the newest call of each machine and case, next to the best peer", () => {
    const rows = [...call("2026-11-30 12:00", 23_400), ...call("2026-11-29 12:00", 22_000)];
    const start = aRow({ case: "start", unit: "s", value: 3.5, gib: null });
    const table = readmeTables([...rows, start, aRow({ machine: "Another", value: 9 })]);
    expect(table.split("\n\n")).toHaveLength(2);
    expect(table.split("\n").slice(0, 4)).toEqual([
      "| NVIDIA H200 | unit | mlora | PEFT, every layer compiled | Unsloth | ratio | measured |",
      "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
      `| q, k, v, o: ${caseOf("q, k, v, o").about} | tokens/s | 23,400 (25.9) | 17,876 (35.7) | 18,000 (28.7) | 1.30 | 2026-11-30 |`,
      `| start: ${caseOf("start").about} | s | 3.5 |  |  |  | 2026-11-30 |`,
    ]);
  });

  test("has what the newest call lacks of the newest other one, marked, and as a ratio to mlora's value there", () => {
    const peerless = [aRow({ date: "2026-11-30 15:00", value: 19_000 })];
    const compiled = aRow({ date: "2026-11-30 15:00", program: "PEFT", value: 15_000, gib: 35 });
    const without = (date: string) => aRow({ date, program: "Unsloth", value: 30_000 }); // mlora: nothing to compare
    const older = [
      without("2026-11-30 14:00"),
      without("2026-11-30 16:00"),
      ...call("2026-11-30 12:00", 23_400),
      ...call("2026-11-29 12:00", 40_000),
    ];
    const rows = [...peerless, compiled, ...older];
    const [table, note] = readmeTables(rows).split("\n\n");
    expect(table!.split("\n")[2]).toEndWith("| 19,000 (25.9) | 15,000 (35.0) | 18,000 (28.7) † | 1.27 | 2026-11-30 |");
    expect(note).toStartWith("†: of another call");
    const measured = measuredTables(rows);
    expect(measured).toContain("| 19,000 (25.9) | 21,273 (25.9) † | 15,000 (35.0) | 18,000 (28.7) † |");
    expect(measured).toContain("1.100 of the build before (asked 1.08); 1.300 of Unsloth (asked 1.27)");
    expect(readmeTables(call("2026-11-30 12:00", 23_400))).not.toContain("†");
  });

  test("says what is asked and what came of it, of one call alone, and what failed", () => {
    const rows = call("2026-11-30 12:00", 23_400);
    const failing = rows.map((row) => (row.program === "PEFT" ? { ...row, value: null, gib: null, error: "no torch" } : row));
    const others = [
      aRow({ case: "fp8", value: 35_100 }),
      aRow({ case: "nf4", value: 20_000, date: "2026-11-29 08:00" }),
      aRow({ case: "start", unit: "s", value: 5, gib: null }),
    ];
    const table = measuredTables([...failing, ...others]);
    expect(table).toContain("1.100 of the build before (asked 1.08); 1.300 of Unsloth (asked 1.27)");
    expect(table).toContain("1.500 of own q, k, v, o (asked 1.6)");
    expect(table).toContain("5 (asked at most 4)");
    expect(table).toContain("- PEFT, every layer compiled, q, k, v, o: no torch");
    expect(table).toContain("| fails |");
    expect(table.split("\n").find((line) => line.startsWith("| nf4"))).not.toContain("asked"); // another call's own bf16
  });

  test("takes the place of what was between its marks", () => {
    const text = "# A\n\n<!-- table: scripts/bench/peers -->\nold\n<!-- end of table -->\n\nrest\n";
    expect(placed(text, "| new |")).toBe(
      "# A\n\n<!-- table: scripts/bench/peers -->\n\n| new |\n\n<!-- end of table -->\n\nrest\n",
    );
    expect(() => placed("# A\n", "| new |")).toThrow("expected <!-- table");
  });
});

describe("a row of a table of measurements", () => {
  const head = "# A\n\nWords.\n\n| a | b |\n| --- | ---: |\n";

  test("follows the last one of its own table, whatever tables the page has", () => {
    const page = `${head}| 1 | 2 |\n\nMore.\n\n| c |\n| --- |\n| 3 |\n`;
    expect(withRow(page, head, "| 4 | 5 |\n")).toBe(`${head}| 1 | 2 |\n| 4 | 5 |\n\nMore.\n\n| c |\n| --- |\n| 3 |\n`);
    expect(withRow(head, head, "| 4 | 5 |\n")).toBe(`${head}| 4 | 5 |\n`);
    expect(() => withRow("# B\n", head, "| 4 | 5 |\n")).toThrow("no table with the columns");
  });
});
