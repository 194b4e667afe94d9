import { counted } from "../base/units.ts";

// Formulas over named numbers, as OpenAI's multi graders have them: + - * / ^, parentheses, and a few functions.

const FUNCTIONS: Readonly<Record<string, (...of: number[]) => number>> = {
  ...{ min: Math.min, max: Math.max, abs: Math.abs, floor: Math.floor, ceil: Math.ceil },
  ...{ exp: Math.exp, sqrt: Math.sqrt, log: Math.log },
};
const ONE_ARGUMENT = new Set(["abs", "floor", "ceil", "exp", "sqrt", "log"]);
/** Parentheses and functions within each other, at most. */
const DEEPEST = 32;
const TOKEN = /\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|([A-Za-z_]\w*)|(\*\*|[-+*/^(),]))/y;

export type Values = Readonly<Record<string, number>>;
export type Formula = { readonly names: ReadonlySet<string>; readonly value: (of: Values) => number };
type Node = (of: Values) => number;

/** What is wrong with a formula. */
export class FormulaFault extends Error {}

/** Throws a FormulaFault. */
export function formulaOf(text: string): Formula {
  const tokens = tokensOf(text);
  const names = new Set<string>();
  let at = 0;
  const take = (...wanted: readonly string[]): string | null => (wanted.includes(tokens[at]!) ? tokens[at++]! : null);
  const expect = (wanted: string): void => {
    if (!take(wanted)) throw new FormulaFault(`expected '${wanted}', found ${shown(tokens[at])}`);
  };

  const binary = (operators: readonly string[], part: (depth: number) => Node, depth: number): Node => {
    let left = part(depth);
    for (let operator = take(...operators); operator; operator = take(...operators)) {
      const [before, right, by] = [left, part(depth), operator];
      left = (of) => applied(by, before(of), right(of));
    }
    return left;
  };
  const sums = (depth: number): Node => {
    if (depth > DEEPEST) throw new FormulaFault(`is nested more than ${DEEPEST} deep`);
    return binary(["+", "-"], products, depth);
  };
  const products = (depth: number): Node => binary(["*", "/"], signed, depth);
  const signed = (depth: number): Node => {
    if (!take("-")) return power(depth);
    const of = signed(depth + 1);
    return (values) => -of(values);
  };
  const power = (depth: number): Node => {
    const base = atom(depth);
    if (!take("^", "**")) return base;
    const exponent = signed(depth + 1);
    return (of) => base(of) ** exponent(of);
  };
  const atom = (depth: number): Node => {
    if (take("(")) {
      const of = sums(depth + 1);
      expect(")");
      return of;
    }
    const token = tokens[at++];
    if (token === undefined || !/^[\w.]/.test(token))
      throw new FormulaFault(`expected a number or a name, found ${shown(token)}`);
    if (/^[\d.]/.test(token)) return () => Number(token);
    if (!take("(")) {
      names.add(token);
      return (of) => of[token]!;
    }
    if (!Object.hasOwn(FUNCTIONS, token))
      throw new FormulaFault(`has no function '${token}'; there are ${Object.keys(FUNCTIONS).join(", ")}`);
    const all = [sums(depth + 1)];
    while (take(",")) all.push(sums(depth + 1));
    expect(")");
    if (ONE_ARGUMENT.has(token) && all.length > 1)
      throw new FormulaFault(`gives ${token} ${counted(all.length, "number")}, expected one`);
    return (of) => FUNCTIONS[token]!(...all.map((argument) => argument(of)));
  };

  const value = sums(0);
  if (at < tokens.length) throw new FormulaFault(`ends before ${shown(tokens[at])}`);
  return { names, value };
}

const shown = (token: string | undefined): string => (token === undefined ? "its end" : `'${token}'`);

function applied(operator: string, a: number, b: number): number {
  if (operator === "+") return a + b;
  if (operator === "-") return a - b;
  return operator === "*" ? a * b : a / b;
}

function tokensOf(text: string): string[] {
  const tokens: string[] = [];
  TOKEN.lastIndex = 0;
  for (let at = 0; text.slice(at).trim() !== ""; at = TOKEN.lastIndex) {
    const found = TOKEN.exec(text);
    if (!found) throw new FormulaFault(`has an unknown character in '${text.slice(at).trim().slice(0, 10)}'`);
    tokens.push(found[0].trim());
  }
  return tokens;
}
