// Held-out rows that are trained, too, are a notice: their loss says how well they are remembered.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { DPO, lines, rowFiles, smollm, told } from "../helpers/rows.ts";

const { fileOf, load } = rowFiles("held-out");
const row = (n: number) => ({ prompt: `question ${n}`, completion: `answer ${n} and ${n * n}` });
const rows = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => row(from + i));

test("rows of an own file that training has, too", () => {
  const own = fileOf(lines(...rows(20, 30), row(3)));
  const read = load(lines(...rows(0, 20)), { eval: [own] }, smollm);
  const notice = told(read, "held out")!;
  expect([notice.rows, notice.turns]).toEqual([1, 0]);
  expect(notice.example).toMatch(/:11: trained from .*:4$/);
  expect(told(load(lines(...rows(0, 20)), { eval: [fileOf(lines(...rows(20, 30)))] }, smollm), "held out")).toBeNull();
});

test("rows of a share that stand in the file twice, as they are counted one by one", () => {
  for (let seed = 0; seed < 20; seed++) {
    const rng = new Rng(seed);
    const all = Array.from({ length: 30 }, () => row(rng.below(25)));
    const read = load(lines(...all), { evalSplit: 0.3 }, smollm);
    const trained = new Set(read.train.map(({ ids }) => `${ids}`));
    const leaked = read.eval.filter(({ ids }) => trained.has(`${ids}`)).length;
    expect(told(read, "held out")?.rows ?? 0).toBe(leaked);
  }
});

test("of preferences by the better answer, of rows that differ in their last token not at all", () => {
  const pair = (chosen: string, rejected: string) => ({ prompt: "a", chosen, rejected });
  const heldOut = (of: object) => ({ ...DPO, eval: [fileOf(lines(of))] });
  const train = lines(pair("b c d e f g h i", "x"));
  expect(told(load(train, heldOut(pair("b c d e f g h i", "y")), smollm), "held out")?.rows).toBe(1);
  expect(told(load(train, heldOut(pair("b c d e f g h j", "x")), smollm), "held out")).toBeNull();
});
