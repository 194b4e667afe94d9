// The report of a run: one file that loads nothing, in which everything foreign is text, whatever the run's folder holds.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { reportPage } from "../../src/cli/report/page.ts";
import { writeRecord } from "../../src/files/record.ts";
import { reportOf } from "../../src/session/run/report.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-report-"));
beforeAll(() => mkdirSync(root, { recursive: true }));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const EVIL = `"><script>alert(1)</script><img src="https://example.org/x.png" onerror=alert(2)>&amp;'`;
const made = { settings: "s", data: "d", model: "m" };
const outcome = (name: string, status: "done" | "failed" = "done") => ({
  ...{ name, status, message: status === "failed" ? EVIL : null, steps: 100, tokens: 1234, seconds: 5, folder: null, made },
  ...{ before: { loss: 3, exact: 0, rows: 4 }, after: { loss: Number.NaN, exact: 1, rows: 4 }, firstLoss: 4, lastLoss: 1 },
});

/** A run's folder as one is left; the last adapter has not ended, and a line was cut off. */
function folderOf(
  name: string,
  adapters: number,
  steps: number,
  lossOf = (adapter: number, step: number) => adapter + 1 / step,
): string {
  const folder = join(root, name);
  mkdirSync(folder);
  const names = Array.from({ length: adapters }, (_, i) => `a${i}`);
  const tables = names.map(
    (of, i) => `[[adapter]]\nname = "${of}"\nrank = ${1 + (i % 7)}\nsystem = ${JSON.stringify(EVIL)}\ndata = "gone.jsonl"\n`,
  );
  writeFileSync(join(folder, "recipe.toml"), `[model]\npath = "model"\n[run]\noutput = "elsewhere"\n${tables.join("")}`);
  const lines = names.flatMap((adapter, i) =>
    Array.from({ length: steps }, (_, s) => {
      const of = { adapter, step: s + 1, loss: lossOf(i, s + 1) };
      return JSON.stringify({ type: "step", ...of, learning_rate: 1e-4, grad_norm: 1 });
    }),
  );
  writeFileSync(join(folder, "metrics.jsonl"), `${lines.join("\n")}\nnot json\n{"type":"step","adap`);
  writeRecord(
    folder,
    names.slice(0, -1).map((of, i) => outcome(of, i === 1 ? "failed" : "done")),
  );
  return folder;
}

type Element = { readonly tag: string; readonly attributes: Readonly<Record<string, string>> };
async function elementsOf(page: string): Promise<Element[]> {
  const found: Element[] = [];
  const rewriter = new HTMLRewriter().on("*", {
    element: ({ tagName, attributes }) => void found.push({ tag: tagName, attributes: Object.fromEntries(attributes) }),
  });
  await rewriter.transform(new Response(page)).text();
  return found;
}

describe("a page", () => {
  test("has a row and curves for each adapter, also for one that has not ended", async () => {
    const report = await reportOf(folderOf("three", 3, 50), { isPlanned: false });
    expect(report.adapters.map(({ name, outcome: of }) => [name, of?.status ?? null])).toEqual([
      ["a0", "done"],
      ["a1", "failed"],
      ["a2", null],
    ]);
    expect(report.adapters[2]!.curves.loss.at(-1)).toEqual([50, 2 + 1 / 50]);
    const elements = await elementsOf(reportPage(report));
    const rows = elements.filter(({ attributes }) => "data-id" in attributes);
    expect(rows.map(({ attributes }) => attributes["data-id"])).toEqual(["0", "1", "2"]);
    for (const id of [0, 1, 2]) {
      const curves = elements.filter(({ attributes }) => attributes["class"] === `c a${id}`);
      expect(curves.length).toBe(3); // loss, gradient norm, learning rate
      for (const { attributes } of curves) expect(attributes["d"]).toMatch(/^M[\d. L]+$/);
    }
  });

  test("loads nothing, and what is foreign stays text", async () => {
    const report = await reportOf(folderOf("evil", 3, 2), { isPlanned: false });
    const page = reportPage({ ...report, planned: EVIL });
    const elements = await elementsOf(page);
    expect(elements.filter(({ tag }) => tag === "script").length).toBe(1);
    expect(elements.filter(({ tag }) => /^(img|link|iframe|object|embed)$/.test(tag))).toEqual([]);
    for (const { attributes } of elements)
      for (const [name, value] of Object.entries(attributes)) {
        expect(name).not.toMatch(/^on/);
        if (/^(src|href|action)$/.test(name)) expect(value).toStartWith("data:");
      }
    expect(page).toContain("&lt;script&gt;alert(1)&lt;/script&gt;");
    expect(page).toContain("default-src 'none'");
  });

  test("of 1,000 adapters with 300 steps each stays readable in size", async () => {
    const report = await reportOf(folderOf("many", 1000, 300), { isPlanned: false });
    const page = reportPage(report);
    expect(page.length).toBeLessThan(6e6);
    expect((await elementsOf(page)).filter(({ attributes }) => "data-id" in attributes).length).toBe(1000);
    for (const { curves } of report.adapters) expect(curves.loss.length).toBeLessThanOrEqual(2 * 48);
  });
});

test("a thinned curve keeps the mean and the last step", async () => {
  const { adapters } = await reportOf(
    folderOf("long", 2, 20_000, (_, step) => step % 2),
    { isPlanned: false },
  );
  for (const { curves } of adapters) {
    expect(curves.loss.length).toBeLessThanOrEqual(801);
    expect(curves.loss.at(-1)![0]).toBe(20_000);
    for (const [, value] of curves.loss.slice(0, -1)) expect(value).toBeCloseTo(0.5, 6);
  }
});

test("a folder without a run is refused, and one whose data is gone is drawn without a schedule", async () => {
  expect(reportOf(join(root, "nothing"))).rejects.toThrow(/holds no run/);
  const report = await reportOf(folderOf("gone", 2, 3));
  expect(report.planned).toBeString();
  expect(reportPage(report)).toContain("The schedule cannot be drawn here: ");
});

test("settings in a report have addresses without what may be secret in them", async () => {
  const folder = folderOf("addresses", 1, 1);
  const recipe = join(folder, "recipe.toml");
  writeFileSync(recipe, readFileSync(recipe, "utf8").replace("gone.jsonl", "https://host.example/rows.jsonl?key=private"));
  const { adapters } = await reportOf(folder, { isPlanned: false });
  const settings = JSON.stringify(adapters[0]!.settings);
  expect(settings).toContain("https://host.example/rows.jsonl?...");
  expect(settings).not.toContain("private");
});
