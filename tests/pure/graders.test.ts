// Graders of answers: their numbers against rapidfuzz's and rouge-score's own, formulas, templates, and what is refused.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { Rng } from "../../src/base/rng.ts";
import { parseJson } from "../../src/data/json.ts";
import { FormulaFault, formulaOf } from "../../src/objectives/formula.ts";
import { columnsOf, type Grader, graderSchema, TooLong } from "../../src/objectives/graders.ts";
import { SIMILARITIES, type Similarity } from "../../src/objectives/similarity.ts";
import { gradesFor } from "../../src/session/rollouts/rewards.ts";

type Row = { readonly input: string; readonly reference: string; readonly scores: Readonly<Record<Similarity, number>> };
const GOLDEN: readonly Row[] = JSON.parse(
  readFileSync(join(import.meta.dir, "..", "golden", "graders", "graders.json"), "utf8"),
);

test("texts are as alike as rapidfuzz and rouge-score have them", () => {
  const seen = new Set<number>();
  for (const { input, reference, scores } of GOLDEN)
    for (const [name, want] of Object.entries(scores) as [Similarity, number][]) {
      expect(SIMILARITIES[name](input, reference), `${name} of '${input}' and '${reference}'`).toBeCloseTo(want, 12);
      seen.add(want);
    }
  expect(seen.size).toBeGreaterThan(50);
});

test("long texts are compared 32 places at a time as one by one, and too long ones are refused", () => {
  const rng = new Rng(9);
  const slow = (a: string, b: string): number => {
    const rows = Array.from({ length: a.length + 1 }, () => new Array<number>(b.length + 1).fill(0));
    for (let i = 1; i <= a.length; i++)
      for (let j = 1; j <= b.length; j++)
        rows[i]![j] = a[i - 1] === b[j - 1] ? rows[i - 1]![j - 1]! + 1 : Math.max(rows[i - 1]![j]!, rows[i]![j - 1]!);
    return rows[a.length]![b.length]!;
  };
  const text = () => Array.from({ length: rng.below(200) }, () => "abcd"[rng.below(4)]).join("");
  for (let i = 0; i < 100; i++) {
    const [a, b] = [text(), text()];
    const want = a.length + b.length === 0 ? 1 : (2 * slow(a, b)) / (a.length + b.length);
    expect(SIMILARITIES.fuzzy_match(a, b), `'${a}' and '${b}'`).toBe(want);
  }
  expect(() => SIMILARITIES.fuzzy_match("a".repeat(1 << 15), "a".repeat(1 << 14))).toThrow(TooLong);
  const grader = { ...check("eq"), input: "{{item.answer}}".repeat(32) } as Grader;
  expect(() => gradesFor(grader, { item: { answer: "x".repeat(1 << 16) }, output: "" })).toThrow(TooLong);
});

test("formulas are those of JavaScript, whatever they are made of", () => {
  const rng = new Rng(3);
  const values = { a: 0.5, b: -2, long_name: 3 };
  const made = (depth: number): string => {
    if (depth === 0) return ["a", "b", "long_name", "0.25", "7", "1e-2"][rng.below(6)]!;
    const [one, other] = [made(depth - 1), made(depth - 1)];
    const sums = [`${one} + ${other}`, `(${one}-${other})`, `${one}*${other}`, `(${one}) / (${other})`];
    return [...sums, `(-(${one}))`, `max(${one}, ${other})`, `abs( ${one} )`, `(${one})^2`][rng.below(8)]!;
  };
  for (let i = 0; i < 300; i++) {
    const text = made(1 + rng.below(4));
    const js = text.replaceAll("^", "**").replaceAll("max", "Math.max").replaceAll("abs", "Math.abs");
    const want = new Function(...Object.keys(values), `return ${js}`)(...Object.values(values));
    expect(formulaOf(text).value(values), text).toBe(want);
  }
  expect(formulaOf("-2 ** 2").value({})).toBe(-4);
  expect(formulaOf("2 ^ 3 ^ 2").value({})).toBe(512);
  for (const text of ["", "1 +", "(1", "1 2", "f(1)", "abs(1, 2)", "a $ b", `${"(".repeat(50)}1${")".repeat(50)}`, "min()"])
    expect(() => formulaOf(text), text).toThrow(FormulaFault);
});

const check = (operation: string, input = "{{sample.output_text}}", reference = "{{ item.answer }}") =>
  ({ type: "string_check", name: "n", input, reference, operation }) as Grader;
const item = { answer: "Seven", number: 7, deep: { list: [1, 2] }, messages: [] };

test("numbers of a row are texts with the digits that the row has", () => {
  const row = '{"float": 1.0, "whole": 1, "long": 12345678901234567890, "small": 1e-7, "list": [2.0, {"10": 1, "9": 0.5}]}';
  const shown = (column: string, text: string) =>
    gradesFor(check("eq", `{{item.${column}}}`, text), { item: parseJson(row), output: "" }).grade;
  const all = { float: "1.0", whole: "1", long: "12345678901234567890", small: "1e-07", list: '[2.0,{"10":1,"9":0.5}]' };
  for (const [column, text] of Object.entries(all)) expect(shown(column, text), column).toBe(1);
});

test("answers are compared with the columns of their rows", () => {
  const grade = (grader: Grader, output: string) => gradesFor(v.parse(graderSchema, grader), { item, output }).grade;
  expect(["eq", "ne", "like", "ilike"].map((of) => grade(check(of), "Seven"))).toEqual([1, 0, 1, 1]);
  expect(["eq", "ne", "like", "ilike"].map((of) => grade(check(of), "it is seven."))).toEqual([0, 1, 0, 1]);
  expect(grade(check("eq", "<{{sample.output_text}}>", "<{{item.number}}>"), "7")).toBe(1);
  expect(grade(check("eq", "{{item.deep.list}}", "[1,2]"), "")).toBe(1);
  expect(grade(check("eq", "{{sample.output_text}}", "{{item.answer}}"), "{{item.answer}}")).toBe(0); // it is no template
  const alike = { ...check("eq"), operation: undefined, type: "text_similarity", evaluation_metric: "rouge_1" };
  const { operation: _, ...similarity } = alike;
  const multi = {
    ...{ type: "multi", name: "m", calculate_output: "0.25 * a + 0.75 * b" },
    graders: { a: check("ilike"), b: similarity },
  } as unknown as Grader;
  expect(grade(multi, "seven or eight")).toBeCloseTo(0.25 + 0.75 * 0.5, 12);
  expect(columnsOf(multi)).toEqual(["answer"]);
});

test("what cannot be computed is refused by name", () => {
  const faults = (grader: unknown) => (v.safeParse(graderSchema, grader).issues ?? []).length > 0;
  const multi = (graders: object, calculate_output: string) => ({ type: "multi", name: "m", graders, calculate_output });
  for (const wrong of [
    check("eq", "{{sample.output_json.x}}"),
    check("eq", "{{item}}"),
    check("same"),
    check("eq", "{{item.a}}".repeat(33)),
    { ...check("eq"), name: "" },
    { ...check("eq"), more: 1 },
    { type: "text_similarity", name: "n", input: "a", reference: "b", evaluation_metric: "cosine" },
    { type: "python", name: "n", source: "def grade(): pass" },
    multi({}, "1"),
    multi({ a: check("eq") }, "a + b"),
    multi({ a: check("eq") }, "a +"),
    multi({ a: multi({ b: check("eq") }, "b") }, "a"),
  ])
    expect(faults(wrong), JSON.stringify(wrong)).toBe(true);
  expect(faults(multi({ a: check("eq") }, "min(a, 1)"))).toBe(false);
});
