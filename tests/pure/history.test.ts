import { describe, expect, test } from "bun:test";
import { changes, formatRow, HEAD, parseRows, type Row, refusal } from "../../scripts/bench/history/rows.ts";

const aRow = (more: Partial<Row> = {}): Row => ({
  date: "2026-11-29 12:00",
  commit: "1234567",
  machine: 'AMD "EPYC", 2 cores',
  shape: "smollm2-135m",
  settings: "1 x 4 x 64, rank 16",
  rounds: 3,
  tokens_per_s: 300,
  range: "290 to 310",
  device_mib: 800,
  rss_mib: 900,
  against: "",
  ratio: null,
  ...more,
});
const textOf = (rows: readonly Row[]) => `${[HEAD, ...rows.map(formatRow)].join("\n")}\n`;

describe("the history of benchmarks", () => {
  test("is read as it was written, with commas and quotes", () => {
    const rows = [aRow(), aRow({ ratio: 1.02, against: "main, built" })];
    expect(parseRows(textOf(rows))).toEqual(rows);
    expect(parseRows(textOf([]))).toEqual([]);
  });

  test.each([
    ["date\n", /^line 1: expected date,commit/],
    [`${textOf([aRow()])}a,b\n`, /^line 3: expected 12 cells, found 2/],
    [textOf([aRow()]).replace(",300,", ",fast,"), /^line 2: expected a number in tokens_per_s, found 'fast'/],
  ])("damaged, names its line: %#", (text, message) => {
    expect(() => parseRows(text)).toThrow(message);
  });

  test("compares with the row before of the same machine, shape and settings", () => {
    const rows = [aRow(), aRow({ machine: "H200", tokens_per_s: 9000 }), aRow({ tokens_per_s: 270, rss_mib: 990 })];
    const [cpu, gpu] = changes(rows);
    expect([cpu!.speed, cpu!.memory].map((x) => x?.toFixed(6))).toEqual(["-0.100000", "0.100000"]);
    expect([gpu!.before, gpu!.speed, gpu!.memory]).toEqual([null, null, null]);
  });

  test("takes the speed from the build of the same call, where there is one", () => {
    const [change] = changes([aRow(), aRow({ tokens_per_s: 30, ratio: 0.99, against: "main" })]);
    expect(change!.speed).toBeCloseTo(-0.01, 9);
  });

  test("refuses what is slower or larger by more than the tolerance, and nothing else", () => {
    const change = (speed: number | null, memory: number | null) => ({ now: aRow(), before: null, speed, memory });
    expect(refusal(change(-0.06, 0), 0.05)).toBe("slower by 6.0 %, 5.0 % allowed");
    expect(refusal(change(0.2, 0.06), 0.05)).toBe("more memory by 6.0 %, 5.0 % allowed");
    for (const fine of [change(-0.04, 0.04), change(0.5, -0.5), change(null, null)]) expect(refusal(fine, 0.05)).toBeNull();
  });
});
