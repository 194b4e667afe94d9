import { describe, expect, test } from "bun:test";
import { changes, comment, type Difference, linesOf, verdictOf } from "../../scripts/bench/history/changes.ts";
import { rowsOf } from "../../scripts/bench/history/measured.ts";
import { formatRow, HEAD, parseRows, type Row } from "../../scripts/bench/history/rows.ts";

const aRow = (more: Partial<Row> = {}): Row => ({
  date: "2026-11-29 12:00",
  commit: "1234567",
  machine: 'AMD "EPYC", 2 cores',
  shape: "smollm2-135m",
  settings: "1 x 4 x 64, rank 16",
  rounds: 5,
  tokens_per_s: 300,
  range: "290 to 310",
  device_mib: 800,
  rss_mib: 900,
  against: "",
  ratio: null,
  ratio_range: "",
  versions: "mlora 0.2.0, driver 570.1",
  peer: "",
  peer_tokens_per_s: null,
  peer_ratio: null,
  peer_range: "",
  ...more,
});
const textOf = (rows: readonly Row[]) => `${[HEAD, ...rows.map(formatRow)].join("\n")}\n`;
const toPeer = (ratio: number, range: string, more: Partial<Row> = {}) =>
  aRow({ peer: "PEFT 1", peer_tokens_per_s: 200, peer_ratio: ratio, peer_range: range, ...more });

describe("the history of benchmarks", () => {
  test("is read as it was written, with commas, quotes and line breaks in what a machine is called", () => {
    const rows = [aRow(), aRow({ ratio: 1.02, against: "main, built" }), toPeer(1.2, "1.19 to 1.21")];
    expect(parseRows(textOf(rows))).toEqual(rows);
    expect(parseRows(textOf([]))).toEqual([]);
    expect(parseRows(textOf([aRow({ machine: "a\nb" })]))).toEqual([aRow({ machine: "a b" })]);
  });

  test.each([
    ["date\n", /^line 1: expected date,commit/],
    [`${textOf([aRow()])}a,b\n`, /^line 3: expected 18 cells, found 2/],
    [textOf([aRow()]).replace(",300,", ",fast,"), /^line 2: expected a number in tokens_per_s, found 'fast'/],
  ])("damaged, names its line: %#", (text, message) => {
    expect(() => parseRows(text)).toThrow(message);
  });

  /** What the last row differs in, by its verdicts. */
  const found = (...rows: readonly Row[]) =>
    changes(rows)
      .at(-1)!
      .differences.map((of) => [of.what, Number(of.change.toFixed(4)), verdictOf(of, 0.03)] as const);

  test("compares with the row before of the same machine, shape and settings", () => {
    const rows = [aRow(), aRow({ machine: "H200", tokens_per_s: 9000 }), aRow({ tokens_per_s: 270, range: "265 to 275" })];
    const [cpu, gpu] = changes(rows);
    expect(cpu!.differences.map((of) => of.what)).toEqual(["tokens/s", "memory"]);
    expect(gpu).toEqual({ now: rows[1]!, before: null, differences: [] });
    expect(found(rows[0]!, rows[2]!)).toEqual([
      ["tokens/s", -0.1, "worse"],
      ["memory", 0, "ok"],
    ]);
  });

  test("takes the build of the same call, and the peer of the same versions, before tokens/s", () => {
    const slower = { tokens_per_s: 30, range: "29 to 31" };
    const build = { ratio: 0.99, ratio_range: "0.98 to 1", against: "main" };
    expect(found(aRow(), aRow({ ...slower, ...build }))[0]).toEqual(["the build before", -0.01, "ok"]);
    const rows = [toPeer(1.2, "1.19 to 1.21"), aRow(), toPeer(1.19, "1.18 to 1.2", slower)];
    expect(found(...rows)[0]).toEqual(["the peer", -0.0083, "ok"]);
    const other = toPeer(1.1, "1.1 to 1.1", { peer: "PEFT 2", ...slower });
    expect(found(...rows, other).map(([what]) => what)).toEqual(["memory"]);
  });

  test.each([
    ["worse, where the ranges do not meet", "1.1 to 1.12", 5, "worse"],
    ["unsteady, where they do", "1.1 to 1.195", 5, "unsteady"],
    ["unsteady, of fewer rounds than show a range", "1.1 to 1.12", 2, "unsteady"],
  ])("a median that is slower by more than the tolerance is %s", (_, range, rounds, verdict) => {
    expect(found(toPeer(1.2, "1.19 to 1.21"), toPeer(1.11, range, { rounds }))[0]).toEqual([
      "the peer",
      -0.075,
      verdict as never,
    ]);
    const [low, high] = range.split(" to ").map((of) => (Number(of) / 1.19).toFixed(4));
    const build = { ratio: 0.93, ratio_range: `${low} to ${high}`, against: "main", rounds };
    expect(found(aRow(build))[0]![2]).toBe(verdict as never);
  });

  test("refuses more memory than the tolerance, and nothing that is better", () => {
    const of = (what: Difference["what"], change: number): Difference => ({ what, than: "x", change, apart: true });
    expect(verdictOf(of("memory", 0.04), 0.03)).toBe("worse");
    for (const fine of [of("memory", -0.5), of("memory", 0.02), of("the peer", 0.5), of("tokens/s", -0.02)])
      expect(verdictOf(fine, 0.03)).toBe("ok");
  });

  test("is a comment in which no name is more than text", () => {
    const hostile = { machine: "a | b <img> @all #1 [x](y)\n`c`" };
    const all = changes([toPeer(1.2, "1.19 to 1.21", hostile), toPeer(1.1, "1.09 to 1.11", hostile)]);
    const text = comment(all, 0.03);
    const row = text.split("\n").find((line) => line.startsWith("| worse"))!;
    expect(row).toContain("a \\| b \\<img\\> (at)all \\#1 \\[x\\](y) \\`c\\`: smollm2-135m");
    expect(row.replaceAll("\\|", "").split("|")).toHaveLength(8);
    expect(text).toContain("### Benchmarks: 1 of 1 worse\n");
    expect(linesOf(all[0]!, 0.03)[0]).toStartWith("WORSE");
  });
});

describe("a measurement", () => {
  const report = (ms: number) => ({
    ...{ shape: "llama2-7b", device: "NVIDIA H200", compute: "bf16", recomputation: "none", targets: ["q_proj", "o_proj"] },
    ...{ adapters: 2, rows: 4, length: 512, dropout: 0, ranks: [16, 16], ms, stages: [{ layers: 32 }] },
    ...{ device_bytes: 2 ** 30, peak_rss_bytes: 2 ** 29 },
  });
  const versions = { torch: "2.15", transformers: "5.2", peft: "0.21" };
  const head = { machine: { system: "Linux 6", python: "3.12", driver: "570.1" }, versions: { mlora: "0.2.0" } };
  const line = (program: string, round: number, of: object) => ({ case: "7b", round, program, report: of });
  const text = (...lines: readonly object[]) => `${[head, ...lines].map((of) => JSON.stringify(of)).join("\n")}\n`;
  const about = { date: "2026-11-30 02:00", commit: "abc" };

  test("is a row of medians of the rounds' ratios, in the order of rounds", () => {
    const peer = (round: number, speed: number) => line("peer", round, { tokens_per_s: speed, ...versions });
    const lines = [line("mlora", 0, report(100)), peer(0, 20480), peer(1, 10240), line("mlora", 1, report(400))];
    const [row] = rowsOf(text(...lines, line("mlora", 2, report(200)), peer(2, 20480)), about);
    expect(row).toEqual({
      ...about,
      ...{
        machine: "NVIDIA H200",
        shape: "llama2-7b",
        settings: "2 x 4 x 512, rank 16, q o, dropout 0, bf16, none, layers 32",
      },
      ...{ rounds: 3, tokens_per_s: 20480, range: "10240 to 40960", device_mib: 1024, rss_mib: 512 },
      ...{ against: "", ratio: null, ratio_range: "", versions: "mlora 0.2.0, driver 570.1, Linux 6" },
      ...{ peer: "PEFT 0.21, transformers 5.2, torch 2.15", peer_tokens_per_s: 20480, peer_ratio: 1, peer_range: "1 to 2" },
    });
  });

  test.each([
    ["{}\n", /^line 1 of the measurement: /],
    [text(), /has no rounds/],
    [text(line("mlora", 0, {})), /^line 2 of the measurement: /],
    [text(line("mlora", 0, report(Number.NaN))), /^line 2 of the measurement: /],
    [
      text(line("mlora", 0, report(1)), line("against", 0, report(1)), line("mlora", 1, report(1))),
      /^7b: the rounds of its programs/,
    ],
    [`${text(line("mlora", 0, report(1)))}{"case": "7b", "rou`, /^line 3 of the measurement: /],
  ])("that is cut off or no measurement names the line: %#", (lines, message) => {
    expect(() => rowsOf(lines, about)).toThrow(message);
  });
});
