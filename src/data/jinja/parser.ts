// The syntax tree of a template, by the grammar of Jinja2's own parser.

import { type Float, floatOf } from "../json.ts";
import { failAt, TemplateError, type Token, tokensOf } from "./lexer.ts";

export type Args = {
  readonly args: readonly Expr[];
  readonly named: readonly (readonly [string, Expr])[];
  readonly spread: Expr | null;
  readonly spreadNamed: Expr | null;
};
export type Operand = readonly [operator: string, right: Expr];

export type Expr = { readonly line: number } & (
  | { readonly type: "const"; readonly value: string | number | bigint | Float | boolean | null }
  | { readonly type: "name"; readonly name: string }
  | { readonly type: "list" | "tuple"; readonly items: readonly Expr[] }
  | { readonly type: "dict"; readonly entries: readonly (readonly [Expr, Expr])[] }
  | { readonly type: "attribute"; readonly object: Expr; readonly name: string }
  | { readonly type: "item"; readonly object: Expr; readonly index: Expr }
  | { readonly type: "slice"; readonly parts: readonly [Expr | null, Expr | null, Expr | null] }
  | ({ readonly type: "call"; readonly callee: Expr } & Args)
  | ({ readonly type: "filter"; readonly operand: Expr | null; readonly name: string } & Args)
  | ({ readonly type: "test"; readonly operand: Expr; readonly name: string } & Args)
  | { readonly type: "not" | "negative" | "positive"; readonly operand: Expr }
  | { readonly type: "and" | "or"; readonly left: Expr; readonly right: Expr }
  | { readonly type: "math"; readonly operator: string; readonly left: Expr; readonly right: Expr }
  | { readonly type: "concat"; readonly items: readonly Expr[] }
  | { readonly type: "compare"; readonly left: Expr; readonly operands: readonly Operand[] }
  | { readonly type: "condition"; readonly test: Expr; readonly then: Expr; readonly otherwise: Expr | null }
);
type Kind<T extends Expr["type"]> = Extract<Expr, { readonly type: T }>;

export type Target =
  | { readonly type: "name"; readonly name: string }
  | { readonly type: "field"; readonly name: string; readonly field: string }
  | { readonly type: "tuple"; readonly items: readonly Target[] };

export type Signature = { readonly params: readonly (readonly [name: string, fallback: Expr | null])[] };

export type Statement = { readonly line: number } & (
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "print"; readonly value: Expr }
  | { readonly type: "if"; readonly branches: readonly (readonly [Expr, Body])[]; readonly otherwise: Body }
  | {
      readonly type: "for";
      readonly target: Target;
      readonly over: Expr;
      readonly test: Expr | null;
      readonly recursive: boolean;
      readonly body: Body;
      readonly otherwise: Body;
    }
  | { readonly type: "set"; readonly target: Target; readonly value: Expr }
  | { readonly type: "set-block"; readonly target: Target; readonly filter: Expr | null; readonly body: Body }
  | ({ readonly type: "macro"; readonly name: string; readonly body: Body } & Signature)
  | ({ readonly type: "call"; readonly call: Kind<"call">; readonly body: Body } & Signature)
  | { readonly type: "filter"; readonly filter: Expr; readonly body: Body }
  | { readonly type: "with"; readonly sets: readonly (readonly [Target, Expr])[]; readonly body: Body }
  | { readonly type: "generation"; readonly body: Body }
  | { readonly type: "break" | "continue" }
);
export type Body = readonly Statement[];

const CONSTANTS = new Map<string, boolean | null>([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
  ["none", null],
  ["None", null],
]);
const UNSUPPORTED = ["include", "import", "from", "extends", "block", "autoescape", "do", "trans", "debug"];

/** Throws a TemplateError that names line and construct. */
export function parseTemplate(text: string): Body {
  const parser = new Parser(tokensOf(text));
  return parser.body([]);
}

class Parser {
  #at = 0;
  #loops = 0;
  constructor(readonly tokens: readonly Token[]) {}

  get #now(): Token {
    return this.tokens[this.#at]!;
  }
  get #next(): Token {
    return this.tokens[Math.min(this.#at + 1, this.tokens.length - 1)]!;
  }
  #step(): Token {
    const token = this.#now;
    if (token.type !== "end") this.#at++;
    return token;
  }
  #is(type: string): boolean {
    return this.#now.type === type;
  }
  #isName(...names: readonly string[]): boolean {
    return this.#is("name") && names.includes(this.#now.value);
  }
  #skip(type: string): boolean {
    if (!this.#is(type)) return false;
    this.#at++;
    return true;
  }
  #skipName(name: string): boolean {
    if (!this.#isName(name)) return false;
    this.#at++;
    return true;
  }
  #expect(type: string): Token {
    return this.#is(type) ? this.#step() : this.#unexpected(type === "name" ? "a name" : `'${type}'`);
  }
  #expectName(name: string): Token {
    return this.#isName(name) ? this.#step() : this.#unexpected(`'${name}'`);
  }
  #unexpected(wanted: string): never {
    const { type, value, line } = this.#now;
    return failAt(
      line,
      `expected ${wanted}, found ${type === "end" ? "the template's end" : `'${value.slice(0, 40).trim()}'`}`,
    );
  }

  /** Statements up to one of the tags `ends`, whose name is the next token then. */
  body(ends: readonly string[]): Statement[] {
    const body: Statement[] = [];
    for (;;) {
      const { type, value, line } = this.#now;
      if (type === "end") return ends.length === 0 ? body : this.#unexpected(ends.map((end) => `'${end}'`).join(" or "));
      this.#at++;
      if (type === "data") body.push({ type: "text", text: value, line });
      else if (type === "{{") {
        body.push({ type: "print", value: this.#tuple(), line });
        this.#expect("}}");
      } else {
        if (this.#isName(...ends)) return body;
        body.push(this.#statement());
        this.#expect("%}");
      }
    }
  }

  /** A tag's body up to its end tag, which is taken. */
  #block(...ends: readonly [string, ...string[]]): { readonly body: Body; readonly end: string } {
    this.#skip(":");
    this.#expect("%}");
    const body = this.body(ends);
    return { body, end: this.#step().value };
  }

  /** A body that is a function of its own in Jinja: no loop around it can be left from within. */
  #function(end: string): Body {
    const loops = this.#loops;
    this.#loops = 0;
    const { body } = this.#block(end);
    this.#loops = loops;
    return body;
  }

  #statement(): Statement {
    const { value: tag, line } = this.#expect("name");
    switch (tag) {
      case "if":
        return this.#if(line);
      case "for":
        return this.#for(line);
      case "set": {
        const target = this.#target(true);
        if (this.#skip("=")) return { type: "set", target, value: this.#tuple(), line };
        const filter = this.#filters(null);
        return { type: "set-block", target, filter, body: this.#block("endset").body, line };
      }
      case "macro": {
        const name = this.#expect("name").value;
        return { type: "macro", name, ...this.#signature(), body: this.#function("endmacro"), line };
      }
      case "call": {
        const signature = this.#is("(") ? this.#signature() : { params: [] };
        const call = this.#expression();
        if (call.type !== "call") return failAt(line, "expected a call");
        return { type: "call", ...signature, call, body: this.#function("endcall"), line };
      }
      case "filter": {
        const filter = this.#filter(null);
        return { type: "filter", filter: this.#filters(filter) ?? filter, body: this.#block("endfilter").body, line };
      }
      case "with": {
        const sets: [Target, Expr][] = [];
        while (!this.#is("%}")) {
          if (sets.length > 0) this.#expect(",");
          const target = this.#target(false);
          this.#expect("=");
          sets.push([target, this.#expression()]);
        }
        return { type: "with", sets, body: this.#block("endwith").body, line };
      }
      case "generation":
        return { type: "generation", body: this.#function("endgeneration"), line };
      case "break":
      case "continue":
        return this.#loops > 0 ? { type: tag, line } : failAt(line, `'${tag}' stands outside of a loop`);
      default:
        return failAt(line, UNSUPPORTED.includes(tag) ? `the tag '${tag}' is not supported` : `unknown tag '${tag}'`);
    }
  }

  #if(line: number): Statement {
    const branches: [Expr, Body][] = [];
    for (;;) {
      const test = this.#tuple({ conditions: false });
      const { body, end } = this.#block("elif", "else", "endif");
      branches.push([test, body]);
      if (end === "elif") continue;
      return { type: "if", branches, otherwise: end === "else" ? this.#block("endif").body : [], line };
    }
  }

  #for(line: number): Statement {
    const target = this.#target(false);
    this.#expectName("in");
    const over = this.#tuple({ conditions: false, end: "recursive" });
    const test = this.#skipName("if") ? this.#expression() : null;
    const recursive = this.#skipName("recursive");
    this.#loops++;
    const { body, end } = this.#block("endfor", "else");
    this.#loops--;
    return {
      type: "for",
      target,
      over,
      test,
      recursive,
      body,
      otherwise: end === "else" ? this.#block("endfor").body : [],
      line,
    };
  }

  #signature(): Signature {
    const params: [string, Expr | null][] = [];
    this.#expect("(");
    while (!this.#is(")")) {
      if (params.length > 0) this.#expect(",");
      const { value: name, line } = this.#expect("name");
      const fallback = this.#skip("=") ? this.#expression() : null;
      if (!fallback && params.some(([, before]) => before)) failAt(line, `'${name}' has no default, but follows one that has`);
      params.push([name, fallback]);
    }
    this.#step();
    return { params };
  }

  /** Where a value goes: names, with commas between them, or a namespace's field. */
  #target(fields: boolean): Target {
    const items: Target[] = [];
    let several = false;
    do {
      if (items.length > 0 && (this.#is("=") || this.#isName("in"))) break;
      items.push(this.#oneTarget(fields));
      several ||= this.#is(",");
    } while (this.#skip(","));
    return several ? { type: "tuple", items } : items[0]!;
  }

  #oneTarget(fields: boolean): Target {
    if (this.#skip("(")) {
      const target = this.#target(fields);
      this.#expect(")");
      return target;
    }
    const { value: name, line } = this.#expect("name");
    if (CONSTANTS.has(name)) return failAt(line, `'${name}' cannot be assigned to`);
    return fields && this.#skip(".") ? { type: "field", name, field: this.#expect("name").value } : { type: "name", name };
  }

  #tuple({ conditions = true, end = "" } = {}): Expr {
    const { line } = this.#now;
    const items: Expr[] = [];
    let several = false;
    for (;;) {
      if (this.#is("}}") || this.#is("%}") || this.#is(")") || (end !== "" && this.#isName(end))) break;
      items.push(conditions ? this.#expression() : this.#or());
      if (!this.#skip(",")) break;
      several = true;
    }
    if (several) return { type: "tuple", items, line };
    return items[0] ?? this.#unexpected("an expression");
  }

  #expression(): Expr {
    let { line } = this.#now;
    let value = this.#or();
    while (this.#skipName("if")) {
      const test = this.#or();
      value = { type: "condition", test, then: value, otherwise: this.#skipName("else") ? this.#expression() : null, line };
      line = this.#now.line;
    }
    return value;
  }

  #or(): Expr {
    let left = this.#and();
    while (this.#skipName("or")) left = { type: "or", left, right: this.#and(), line: left.line };
    return left;
  }

  #and(): Expr {
    let left = this.#not();
    while (this.#skipName("and")) left = { type: "and", left, right: this.#not(), line: left.line };
    return left;
  }

  #not(): Expr {
    const { line } = this.#now;
    return this.#skipName("not") ? { type: "not", operand: this.#not(), line } : this.#compare();
  }

  #compare(): Expr {
    const left = this.#sum();
    const operands: Operand[] = [];
    for (;;) {
      const { type } = this.#now;
      if (["==", "!=", "<", "<=", ">", ">="].includes(type)) {
        this.#at++;
        operands.push([type, this.#sum()]);
      } else if (this.#skipName("in")) operands.push(["in", this.#sum()]);
      else if (this.#isName("not") && this.#next.type === "name" && this.#next.value === "in") {
        this.#at += 2;
        operands.push(["not in", this.#sum()]);
      } else break;
    }
    return operands.length === 0 ? left : { type: "compare", left, operands, line: left.line };
  }

  #math(operators: readonly string[], operand: () => Expr): Expr {
    let left = operand();
    while (operators.includes(this.#now.type)) {
      const { type: operator, line } = this.#step();
      left = { type: "math", operator, left, right: operand(), line };
    }
    return left;
  }

  #sum(): Expr {
    return this.#math(["+", "-"], () => this.#concat());
  }

  #concat(): Expr {
    const first = this.#product();
    if (!this.#is("~")) return first;
    const items = [first];
    while (this.#skip("~")) items.push(this.#product());
    return { type: "concat", items, line: first.line };
  }

  #product(): Expr {
    return this.#math(["*", "/", "//", "%"], () => this.#math(["**"], () => this.#unary(true)));
  }

  #unary(filters: boolean): Expr {
    const { line } = this.#now;
    let value: Expr;
    if (this.#skip("-")) value = { type: "negative", operand: this.#unary(false), line };
    else if (this.#skip("+")) value = { type: "positive", operand: this.#unary(false), line };
    else value = this.#primary();
    value = this.#postfix(value);
    if (!filters) return value;
    for (;;) {
      if (this.#is("|")) value = this.#filters(value)!;
      else if (this.#isName("is")) value = this.#test(value);
      else if (this.#is("(")) value = this.#call(value);
      else return value;
    }
  }

  #primary(): Expr {
    const { type, value, line } = this.#now;
    switch (type) {
      case "name": {
        this.#at++;
        if (/^\d/.test(value)) return failAt(line, `'${value}' is no name`);
        const constant = CONSTANTS.get(value);
        return constant === undefined ? { type: "name", name: value, line } : { type: "const", value: constant, line };
      }
      case "string": {
        let text = "";
        while (this.#is("string")) text += this.#step().value;
        return { type: "const", value: text, line };
      }
      case "integer":
        this.#at++;
        return { type: "const", value: integer(value), line };
      case "float":
        this.#at++;
        return { type: "const", value: floatOf(Number(value.replaceAll("_", ""))), line };
      case "(": {
        this.#at++;
        const inner: Expr = this.#is(")") ? { type: "tuple", items: [], line } : this.#tuple();
        this.#expect(")");
        return inner;
      }
      case "[":
        return { type: "list", items: this.#items("]", () => this.#expression()), line };
      case "{":
        return { type: "dict", entries: this.#items("}", () => this.#entry()), line };
      default:
        return this.#unexpected("an expression");
    }
  }

  #entry(): readonly [Expr, Expr] {
    const key = this.#expression();
    this.#expect(":");
    return [key, this.#expression()];
  }

  /** What stands between brackets, with commas between; a last comma is allowed. */
  #items<T>(end: string, item: () => T): T[] {
    const items: T[] = [];
    this.#at++;
    while (!this.#is(end)) {
      if (items.length > 0) this.#expect(",");
      if (this.#is(end)) break;
      items.push(item());
    }
    this.#at++;
    return items;
  }

  #postfix(value: Expr): Expr {
    let object = value;
    for (;;) {
      const { line } = this.#now;
      if (this.#is("(")) object = this.#call(object);
      else if (this.#skip(".")) {
        const { type, value: name } = this.#step();
        if (type === "name") object = { type: "attribute", object, name, line };
        else if (type === "integer")
          object = { type: "item", object, index: { type: "const", value: integer(name), line }, line };
        else return failAt(line, "expected a name or a number after '.'");
      } else if (this.#is("[")) {
        const parts = this.#items("]", () => this.#index());
        if (parts.length === 0) return failAt(line, "expected an index between '[' and ']'");
        const index: Expr = parts.length === 1 ? parts[0]! : { type: "tuple", items: parts, line };
        object = { type: "item", object, index, line };
      } else return object;
    }
  }

  #index(): Expr {
    const { line } = this.#now;
    const first = this.#is(":") ? null : this.#expression();
    if (first && !this.#is(":")) return first;
    const part = () => (this.#skip(":") && !this.#is(":") && !this.#is("]") && !this.#is(",") ? this.#expression() : null);
    return { type: "slice", parts: [first, part(), part()], line };
  }

  #call(callee: Expr): Expr {
    const { line } = this.#now;
    return { type: "call", callee, ...this.#args(), line };
  }

  #args(): Args {
    const args: Expr[] = [];
    const named: [string, Expr][] = [];
    let [spread, spreadNamed]: (Expr | null)[] = [null, null];
    const { line } = this.#now;
    this.#items(")", () => {
      if (this.#skip("*")) spread = this.#expression();
      else if (this.#skip("**")) spreadNamed = this.#expression();
      else if (this.#is("name") && this.#next.type === "=") {
        const name = this.#step().value;
        this.#at++;
        named.push([name, this.#expression()]);
      } else {
        if (named.length > 0 || spread || spreadNamed) failAt(line, "an argument without a name follows one that has one");
        args.push(this.#expression());
      }
    });
    return { args, named, spread: spread ?? null, spreadNamed: spreadNamed ?? null };
  }

  #optionalArgs(): Args {
    return this.#is("(") ? this.#args() : { args: [], named: [], spread: null, spreadNamed: null };
  }

  #filters(operand: Expr | null): Expr | null {
    let value = operand;
    while (this.#skip("|")) value = this.#filter(value);
    return value;
  }

  #filter(operand: Expr | null): Expr {
    const { value: name, line } = this.#expect("name");
    return { type: "filter", operand, name, ...this.#optionalArgs(), line };
  }

  #test(operand: Expr): Expr {
    const { line } = this.#step();
    const negated = this.#skipName("not");
    const name = this.#expect("name").value;
    const bare =
      ["name", "string", "integer", "float", "[", "{"].includes(this.#now.type) && !this.#isName("else", "or", "and");
    if (bare && this.#isName("is")) failAt(line, "tests with 'is' cannot be chained");
    const args = bare
      ? { args: [this.#postfix(this.#primary())], named: [], spread: null, spreadNamed: null }
      : this.#optionalArgs();
    const test: Expr = { type: "test", operand, name, ...args, line };
    return negated ? { type: "not", operand: test, line } : test;
  }
}

function integer(text: string): number | bigint {
  const value = BigInt(text.replaceAll("_", ""));
  return Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

export { TemplateError };
