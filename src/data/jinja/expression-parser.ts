// The grammar of expressions, as Jinja2's own parser has it.

import { floatOf } from "../json.ts";
import type { Args, Expr, Operand } from "./ast.ts";
import { failAt } from "./lexer.ts";
import { TokenReader } from "./reader.ts";

export const CONSTANTS = new Map<string, boolean | null>([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
  ["none", null],
  ["None", null],
]);
export class ExpressionParser extends TokenReader {
  protected tuple({ conditions = true, end = "" } = {}): Expr {
    const { line } = this.now;
    const items: Expr[] = [];
    let several = false;
    for (;;) {
      if (this.is("}}") || this.is("%}") || this.is(")") || (end !== "" && this.isName(end))) break;
      items.push(conditions ? this.expression() : this.or());
      if (!this.skip(",")) break;
      several = true;
    }
    if (several) return { type: "tuple", items, line };
    return items[0] ?? this.unexpected("an expression");
  }

  protected expression(): Expr {
    let { line } = this.now;
    let value = this.or();
    while (this.skipName("if")) {
      const test = this.or();
      value = { type: "condition", test, value, otherwise: this.skipName("else") ? this.expression() : null, line };
      line = this.now.line;
    }
    return value;
  }

  protected or(): Expr {
    let left = this.and();
    while (this.skipName("or")) left = { type: "or", left, right: this.and(), line: left.line };
    return left;
  }

  protected and(): Expr {
    let left = this.not();
    while (this.skipName("and")) left = { type: "and", left, right: this.not(), line: left.line };
    return left;
  }

  protected not(): Expr {
    const { line } = this.now;
    return this.skipName("not") ? { type: "not", operand: this.not(), line } : this.compare();
  }

  protected compare(): Expr {
    const left = this.sum();
    const operands: Operand[] = [];
    for (;;) {
      const { type } = this.now;
      if (["==", "!=", "<", "<=", ">", ">="].includes(type)) {
        this.at++;
        operands.push([type, this.sum()]);
      } else if (this.skipName("in")) operands.push(["in", this.sum()]);
      else if (this.isName("not") && this.ahead.type === "name" && this.ahead.value === "in") {
        this.at += 2;
        operands.push(["not in", this.sum()]);
      } else break;
    }
    return operands.length === 0 ? left : { type: "compare", left, operands, line: left.line };
  }

  protected math(operators: readonly string[], operand: () => Expr): Expr {
    let left = operand();
    while (operators.includes(this.now.type)) {
      const { type: operator, line } = this.step();
      left = { type: "math", operator, left, right: operand(), line };
    }
    return left;
  }

  protected sum(): Expr {
    return this.math(["+", "-"], () => this.concat());
  }

  protected concat(): Expr {
    const first = this.product();
    if (!this.is("~")) return first;
    const items = [first];
    while (this.skip("~")) items.push(this.product());
    return { type: "concat", items, line: first.line };
  }

  protected product(): Expr {
    return this.math(["*", "/", "//", "%"], () => this.math(["**"], () => this.unary(true)));
  }

  protected unary(filters: boolean): Expr {
    const { line } = this.now;
    let value: Expr;
    if (this.skip("-")) value = { type: "negative", operand: this.unary(false), line };
    else if (this.skip("+")) value = { type: "positive", operand: this.unary(false), line };
    else value = this.primary();
    value = this.postfix(value);
    if (!filters) return value;
    for (;;) {
      if (this.is("|")) value = this.filters(value)!;
      else if (this.isName("is")) value = this.test(value);
      else if (this.is("(")) value = this.call(value);
      else return value;
    }
  }

  protected primary(): Expr {
    const { type, value, line } = this.now;
    switch (type) {
      case "name": {
        this.at++;
        if (/^\d/.test(value)) return failAt(line, `'${value}' is no name`);
        const constant = CONSTANTS.get(value);
        return constant === undefined ? { type: "name", name: value, line } : { type: "const", value: constant, line };
      }
      case "string": {
        let text = "";
        while (this.is("string")) text += this.step().value;
        return { type: "const", value: text, line };
      }
      case "integer":
        this.at++;
        return { type: "const", value: integer(value), line };
      case "float":
        this.at++;
        return { type: "const", value: floatOf(Number(value.replaceAll("_", ""))), line };
      case "(": {
        this.at++;
        const inner: Expr = this.is(")") ? { type: "tuple", items: [], line } : this.tuple();
        this.expect(")");
        return inner;
      }
      case "[":
        return { type: "list", items: this.items("]", () => this.expression()), line };
      case "{":
        return { type: "dict", entries: this.items("}", () => this.entry()), line };
      default:
        return this.unexpected("an expression");
    }
  }

  protected entry(): readonly [Expr, Expr] {
    const key = this.expression();
    this.expect(":");
    return [key, this.expression()];
  }

  /** What stands between brackets, with commas between; a last comma is allowed. */
  protected items<T>(end: string, item: () => T): T[] {
    const items: T[] = [];
    this.at++;
    while (!this.is(end)) {
      if (items.length > 0) this.expect(",");
      if (this.is(end)) break;
      items.push(item());
    }
    this.at++;
    return items;
  }

  protected postfix(value: Expr): Expr {
    let object = value;
    for (;;) {
      const { line } = this.now;
      if (this.is("(")) object = this.call(object);
      else if (this.skip(".")) {
        const { type, value: name } = this.step();
        if (type === "name") object = { type: "attribute", object, name, line };
        else if (type === "integer")
          object = { type: "item", object, index: { type: "const", value: integer(name), line }, line };
        else return failAt(line, "expected a name or a number after '.'");
      } else if (this.is("[")) {
        const parts = this.items("]", () => this.index());
        if (parts.length === 0) return failAt(line, "expected an index between '[' and ']'");
        const index: Expr = parts.length === 1 ? parts[0]! : { type: "tuple", items: parts, line };
        object = { type: "item", object, index, line };
      } else return object;
    }
  }

  protected index(): Expr {
    const { line } = this.now;
    const first = this.is(":") ? null : this.expression();
    if (first && !this.is(":")) return first;
    const part = () => (this.skip(":") && !this.is(":") && !this.is("]") && !this.is(",") ? this.expression() : null);
    return { type: "slice", parts: [first, part(), part()], line };
  }

  protected call(callee: Expr): Expr {
    const { line } = this.now;
    return { type: "call", callee, ...this.args(), line };
  }

  protected args(): Args {
    const args: Expr[] = [];
    const named: [string, Expr][] = [];
    let [spread, spreadNamed]: (Expr | null)[] = [null, null];
    const { line } = this.now;
    this.items(")", () => {
      if (this.skip("*")) spread = this.expression();
      else if (this.skip("**")) spreadNamed = this.expression();
      else if (this.is("name") && this.ahead.type === "=") {
        const name = this.step().value;
        this.at++;
        named.push([name, this.expression()]);
      } else {
        if (named.length > 0 || spread || spreadNamed) failAt(line, "an argument without a name follows one that has one");
        args.push(this.expression());
      }
    });
    return { args, named, spread: spread ?? null, spreadNamed: spreadNamed ?? null };
  }

  protected optionalArgs(): Args {
    return this.is("(") ? this.args() : { args: [], named: [], spread: null, spreadNamed: null };
  }

  protected filters(operand: Expr | null): Expr | null {
    let value = operand;
    while (this.skip("|")) value = this.filter(value);
    return value;
  }

  protected filter(operand: Expr | null): Expr {
    const { value: name, line } = this.expect("name");
    return { type: "filter", operand, name, ...this.optionalArgs(), line };
  }

  protected test(operand: Expr): Expr {
    const { line } = this.step();
    const negated = this.skipName("not");
    const name = this.expect("name").value;
    const bare = ["name", "string", "integer", "float", "[", "{"].includes(this.now.type) && !this.isName("else", "or", "and");
    if (bare && this.isName("is")) failAt(line, "tests with 'is' cannot be chained");
    const args = bare
      ? { args: [this.postfix(this.primary())], named: [], spread: null, spreadNamed: null }
      : this.optionalArgs();
    const test: Expr = { type: "test", operand, name, ...args, line };
    return negated ? { type: "not", operand: test, line } : test;
  }
}

function integer(text: string): number | bigint {
  const value = BigInt(text.replaceAll("_", ""));
  return Number.isSafeInteger(Number(value)) ? Number(value) : value;
}
