// Graders of answers as OpenAI's jobs have them, of those kinds that need no program and no other model: a comparison of
// texts, how alike two texts are, and formulas of these. Texts are templates over the row (`{{item.answer}}`) and the answer
// (`{{sample.output_text}}`).

import * as v from "valibot";
import { expected, oneOf, text } from "../base/check.ts";
import { FormulaFault, formulaOf, type Values } from "./formula.ts";
import { SIMILARITIES, type Similarity, TooLong } from "./similarity.ts";

const OUTPUT = "sample.output_text";
const REFERENCE = /\{\{\s*(.*?)\s*\}\}/g;
const OF_ITEM = /^item(?:\.[\w-]+)+$/;
const MOST_GRADERS = 16;
/** Of a template; and characters of what it comes to. */
const [MOST_PATHS, MOST_TEXT] = [32, 1 << 20];

/** What a template reads, by its paths. */
const pathsOf = (template: string): string[] => [...template.matchAll(REFERENCE)].map(([, path]) => path!);

const template = v.pipe(
  text,
  v.maxLength(1 << 16, "has more than 65536 characters"),
  v.check((of) => pathsOf(of).length <= MOST_PATHS, `reads more than ${MOST_PATHS} things`),
  v.check(
    (of) => pathsOf(of).every((path) => path === OUTPUT || OF_ITEM.test(path)),
    `has a template of other things than {{${OUTPUT}}} and {{item.COLUMN}}`,
  ),
);
const name = v.pipe(text, v.maxLength(64, "has more than 64 characters"));

const OPERATIONS = {
  eq: (input: string, reference: string) => input === reference,
  ne: (input: string, reference: string) => input !== reference,
  like: (input: string, reference: string) => input.includes(reference),
  ilike: (input: string, reference: string) => input.toLowerCase().includes(reference.toLowerCase()),
};

const stringCheck = v.strictObject({
  ...{ type: v.literal("string_check"), name, input: template, reference: template },
  operation: oneOf(...(Object.keys(OPERATIONS) as (keyof typeof OPERATIONS)[])),
});
const textSimilarity = v.strictObject({
  ...{ type: v.literal("text_similarity"), name, input: template, reference: template },
  evaluation_metric: oneOf(...(Object.keys(SIMILARITIES) as Similarity[])),
});
const single = v.variant("type", [stringCheck, textSimilarity], expected("string_check or text_similarity"));
const multi = v.pipe(
  v.strictObject({
    ...{ type: v.literal("multi"), name },
    graders: v.pipe(
      v.record(v.pipe(v.string(), v.regex(/^[A-Za-z_]\w{0,63}$/, expected("letters, digits and '_'"))), single),
      v.check((of) => Object.keys(of).length > 0, "is empty"),
      v.check((of) => Object.keys(of).length <= MOST_GRADERS, `has more than ${MOST_GRADERS} graders`),
    ),
    calculate_output: v.pipe(text, v.maxLength(1024, "has more than 1024 characters")),
  }),
  v.rawCheck(({ dataset, addIssue }) => {
    if (!dataset.typed) return;
    const { graders, calculate_output } = dataset.value;
    const wrong = formulaFault(calculate_output, Object.keys(graders));
    if (wrong !== null) addIssue({ message: wrong });
  }),
);

function formulaFault(formula: string, known: readonly string[]): string | null {
  try {
    const unknown = [...formulaOf(formula).names].find((name) => !known.includes(name));
    return unknown === undefined ? null : `has in calculate_output the name '${unknown}', which no grader has`;
  } catch (error) {
    if (error instanceof FormulaFault) return `has a formula in calculate_output that ${error.message}`;
    throw error;
  }
}

/** By their types. */
export const GRADERS = { string_check: stringCheck, text_similarity: textSimilarity, multi };
/** A grader as a recipe and a job have it. */
export const graderSchema = v.union(
  Object.values(GRADERS) as [typeof stringCheck, typeof textSimilarity, typeof multi],
  expected("a grader of the type string_check, text_similarity or multi"),
);
export type Grader = v.InferOutput<typeof graderSchema>;
type Single = v.InferOutput<typeof single>;

/** The columns of a row that a grader reads, as paths. */
export function columnsOf(grader: Grader): string[] {
  const all: readonly Single[] = grader.type === "multi" ? Object.values(grader.graders) : [grader];
  const paths = all.flatMap(({ input, reference }) => [...pathsOf(input), ...pathsOf(reference)]);
  return [...new Set(paths.filter((path) => path !== OUTPUT).map((path) => path.slice("item.".length)))];
}

/** `jsonOf`: what of the row is no text, as JSON with the digits that the row has. */
export type Graded = {
  readonly item: unknown;
  readonly output: string;
  readonly jsonOf: (value: unknown) => string;
};

/**
 * The grade of an answer to a row that has the grader's columns, and those that it is made of. A formula may come to a number
 * that is not finite. Throws TooLong.
 */
export function gradesOf(grader: Grader, of: Graded): { readonly grade: number; readonly parts: Values } {
  if (grader.type !== "multi") return { grade: singleGrade(grader, of), parts: {} };
  const parts = Object.fromEntries(Object.entries(grader.graders).map(([name, one]) => [name, singleGrade(one, of)]));
  return { grade: formulaOf(grader.calculate_output).value(parts), parts };
}

export { TooLong } from "./similarity.ts";

function singleGrade(grader: Single, of: Graded): number {
  const [input, reference] = [rendered(grader.input, of), rendered(grader.reference, of)];
  if (grader.type === "string_check") return Number(OPERATIONS[grader.operation](input, reference));
  return SIMILARITIES[grader.evaluation_metric](input, reference);
}

/** Texts as they are, all else as JSON. Throws TooLong. */
function rendered(text: string, { item, output, jsonOf }: Graded): string {
  let length = 0;
  const made = text.replaceAll(REFERENCE, (_, path: string) => {
    const value = path === OUTPUT ? output : columnAt(item, path.slice("item.".length));
    const shown = typeof value === "string" ? value : jsonOf(value);
    length += shown.length;
    if (length > MOST_TEXT) throw new TooLong(`a text of more than ${MOST_TEXT} characters`);
    return shown;
  });
  return made;
}

/** What a row has at a path; undefined where it has nothing. */
export function columnAt(item: unknown, path: string): unknown {
  let found = item;
  for (const key of path.split(".")) {
    if (typeof found !== "object" || found === null || !Object.hasOwn(found, key)) return undefined;
    found = (found as Readonly<Record<string, unknown>>)[key];
  }
  return found;
}
