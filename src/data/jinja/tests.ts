// Jinja's tests: "x is defined" and its like.

import { Float } from "../json.ts";
import { bindArgs } from "./args.ts";
import { TemplateError } from "./lexer.ts";
import { charge } from "./limits.ts";
import { isLower, isUpper } from "./methods.ts";
import { calculate, compares } from "./operators.ts";
import {
  Attributed,
  contains,
  equal,
  Func,
  isDict,
  isFloat,
  isInt,
  isNumber,
  type Named,
  Range,
  Safe,
  Stream,
  Tuple,
  textOf,
  Undefined,
  View,
} from "./values.ts";

type Test = readonly [params: readonly string[], call: (value: unknown, other: unknown) => boolean];

const comparison = (operator: string): Test => [["a", "b"], (a, b) => compares(operator, a, b)];
const isSequence = (value: unknown): boolean =>
  typeof value === "string" ||
  Array.isArray(value) ||
  value instanceof Tuple ||
  value instanceof Range ||
  value instanceof Undefined ||
  value instanceof Safe ||
  isDict(value);
const remainder = (value: unknown, by: unknown): boolean => equal(calculate("%", value, by), 0);

const TESTS: Readonly<Record<string, Test>> = {
  boolean: [["value"], (value) => typeof value === "boolean"],
  callable: [
    ["value"],
    (value) =>
      value instanceof Func ||
      value instanceof Undefined ||
      (value instanceof Attributed && value.attribute("()") !== undefined),
  ],
  defined: [["value"], (value) => !(value instanceof Undefined)],
  divisibleby: [["value", "num"], remainder],
  escaped: [["value"], () => false],
  even: [["value"], (value) => remainder(value, 2)],
  false: [["value"], (value) => value === false],
  float: [["value"], isFloat],
  in: [["value", "seq"], (value, seq) => contains(seq, value)],
  integer: [["value"], (value) => isInt(value) && typeof value !== "boolean"],
  iterable: [
    ["value"],
    (value) => isSequence(value) || value instanceof View || value instanceof Stream || value instanceof Attributed,
  ],
  lower: [["value"], (value) => isLower(textOf(value))],
  mapping: [["value"], isDict],
  none: [["value"], (value) => value === null],
  number: [["value"], isNumber],
  odd: [["value"], (value) => equal(calculate("%", value, 2), 1)],
  sameas: [
    ["value", "other"],
    (value, other) => value === other || (value instanceof Float && other instanceof Float && value.value === other.value),
  ],
  sequence: [["value"], isSequence],
  string: [["value"], (value) => typeof value === "string" || value instanceof Safe],
  true: [["value"], (value) => value === true],
  undefined: [["value"], (value) => value instanceof Undefined],
  upper: [["value"], (value) => isUpper(textOf(value))],
  eq: comparison("=="),
  ne: comparison("!="),
  lt: comparison("<"),
  le: comparison("<="),
  gt: comparison(">"),
  ge: comparison(">="),
};
const ALIASES: Readonly<Record<string, string>> = {
  "==": "eq",
  "!=": "ne",
  "<": "lt",
  "<=": "le",
  ">": "gt",
  ">=": "ge",
  equalto: "eq",
  lessthan: "lt",
  greaterthan: "gt",
};

const known = (name: string): string => ALIASES[name] ?? name;
export const hasTest = (name: string): boolean => Object.hasOwn(TESTS, known(name));

export function runTest(name: string, value: unknown, args: readonly unknown[], named: Named): boolean {
  charge(1);
  if (!hasTest(name)) throw new TemplateError(`unknown test '${name}'`);
  const [params, call] = TESTS[known(name)]!;
  const [bound, other] = bindArgs(`the test '${name}'`, params, [value, ...args], named);
  return call(bound, other);
}
