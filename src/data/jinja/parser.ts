// The grammar of statements, as Jinja2's own parser has it, with the tags that transformers adds.

import type { Body, Expr, Signature, Statement, Target } from "./ast.ts";
import { CONSTANTS, ExpressionParser } from "./expression-parser.ts";
import { failAt, tokensOf } from "./lexer.ts";

const UNSUPPORTED = ["include", "import", "from", "extends", "block", "autoescape", "do", "trans", "debug"];

/** Throws a TemplateError that names line and construct. */
export function parseTemplate(text: string): Body {
  const parser = new Parser(tokensOf(text));
  return parser.body([]);
}

class Parser extends ExpressionParser {
  protected loops = 0;

  /** Statements up to one of the tags `ends`, whose name is the next token then. */
  body(ends: readonly string[]): Statement[] {
    const body: Statement[] = [];
    for (;;) {
      const { type, value, line } = this.now;
      if (type === "end") return ends.length === 0 ? body : this.unexpected(ends.map((end) => `'${end}'`).join(" or "));
      this.at++;
      if (type === "data") body.push({ type: "text", text: value, line });
      else if (type === "{{") {
        body.push({ type: "print", value: this.tuple(), line });
        this.expect("}}");
      } else {
        if (this.isName(...ends)) return body;
        body.push(this.statement());
        this.expect("%}");
      }
    }
  }

  /** A tag's body up to its end tag, which is taken. */
  protected block(...ends: readonly [string, ...string[]]): { readonly body: Body; readonly end: string } {
    this.skip(":");
    this.expect("%}");
    const body = this.body(ends);
    return { body, end: this.step().value };
  }

  /** A body that is a function of its own in Jinja: no loop around it can be left from within. */
  protected functionBody(end: string): Body {
    const loops = this.loops;
    this.loops = 0;
    const { body } = this.block(end);
    this.loops = loops;
    return body;
  }

  protected statement(): Statement {
    const { value: tag, line } = this.expect("name");
    switch (tag) {
      case "if":
        return this.ifTag(line);
      case "for":
        return this.forTag(line);
      case "set": {
        const target = this.target(true);
        if (this.skip("=")) return { type: "set", target, value: this.tuple(), line };
        const filter = this.filters(null);
        return { type: "set-block", target, filter, body: this.block("endset").body, line };
      }
      case "macro": {
        const name = this.expect("name").value;
        return { type: "macro", name, ...this.signature(), body: this.functionBody("endmacro"), line };
      }
      case "call": {
        const signature = this.is("(") ? this.signature() : { params: [] };
        const call = this.expression();
        if (call.type !== "call") return failAt(line, "expected a call");
        return { type: "call", ...signature, call, body: this.functionBody("endcall"), line };
      }
      case "filter": {
        const filter = this.filter(null);
        return { type: "filter", filter: this.filters(filter) ?? filter, body: this.block("endfilter").body, line };
      }
      case "with": {
        const sets: [Target, Expr][] = [];
        while (!this.is("%}")) {
          if (sets.length > 0) this.expect(",");
          const target = this.target(false);
          this.expect("=");
          sets.push([target, this.expression()]);
        }
        return { type: "with", sets, body: this.block("endwith").body, line };
      }
      case "generation":
        return { type: "generation", body: this.functionBody("endgeneration"), line };
      case "break":
      case "continue":
        return this.loops > 0 ? { type: tag, line } : failAt(line, `'${tag}' stands outside of a loop`);
      default:
        return failAt(line, UNSUPPORTED.includes(tag) ? `the tag '${tag}' is not supported` : `unknown tag '${tag}'`);
    }
  }

  protected ifTag(line: number): Statement {
    const branches: [Expr, Body][] = [];
    for (;;) {
      const test = this.tuple({ conditions: false });
      const { body, end } = this.block("elif", "else", "endif");
      branches.push([test, body]);
      if (end === "elif") continue;
      return { type: "if", branches, otherwise: end === "else" ? this.block("endif").body : [], line };
    }
  }

  protected forTag(line: number): Statement {
    const target = this.target(false);
    this.expectName("in");
    const over = this.tuple({ conditions: false, end: "recursive" });
    const test = this.skipName("if") ? this.expression() : null;
    const recursive = this.skipName("recursive");
    this.loops++;
    const { body, end } = this.block("endfor", "else");
    this.loops--;
    return {
      type: "for",
      target,
      over,
      test,
      recursive,
      body,
      otherwise: end === "else" ? this.block("endfor").body : [],
      line,
    };
  }

  protected signature(): Signature {
    const params: [string, Expr | null][] = [];
    this.expect("(");
    while (!this.is(")")) {
      if (params.length > 0) this.expect(",");
      const { value: name, line } = this.expect("name");
      const fallback = this.skip("=") ? this.expression() : null;
      if (!fallback && params.some(([, before]) => before)) failAt(line, `'${name}' has no default, but follows one that has`);
      params.push([name, fallback]);
    }
    this.step();
    return { params };
  }

  /** Where a value goes: names, with commas between them, or a namespace's field. */
  protected target(fields: boolean): Target {
    const items: Target[] = [];
    let several = false;
    do {
      if (items.length > 0 && (this.is("=") || this.isName("in"))) break;
      items.push(this.oneTarget(fields));
      several ||= this.is(",");
    } while (this.skip(","));
    return several ? { type: "tuple", items } : items[0]!;
  }

  protected oneTarget(fields: boolean): Target {
    if (this.skip("(")) {
      const target = this.target(fields);
      this.expect(")");
      return target;
    }
    const { value: name, line } = this.expect("name");
    if (CONSTANTS.has(name)) return failAt(line, `'${name}' cannot be assigned to`);
    return fields && this.skip(".") ? { type: "field", name, field: this.expect("name").value } : { type: "name", name };
  }
}
