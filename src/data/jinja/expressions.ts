// Turns expressions into functions of a scope.

import { type Args, type Expr, pathOf } from "./ast.ts";
import { hasFilter, runFilter } from "./filters.ts";
import { failAt, TemplateError } from "./lexer.ts";
import { charge } from "./limits.ts";
import { attributeOf, calculate, compares, itemOf, negate, positive, sliceOf } from "./operators.ts";
import { callValue, Output, type Scope } from "./scope.ts";
import { hasTest, runTest } from "./tests.ts";
import { DictMap, dictEntries, isDict, isTrue, iterate, type Named, Tuple, textOf, Undefined } from "./values.ts";

/** What a field that is missing is called by; null where it may be written as nothing, as Jinja has it. */
export type Strict = (path: string, value: "missing" | "null") => TemplateError | null;

export type Value = (scope: Scope) => unknown;

export class ExpressionCompiler {
  constructor(readonly strict: Strict | null) {}

  value(expr: Expr): Value {
    switch (expr.type) {
      case "const":
        return () => expr.value;
      case "name": {
        const { name } = expr;
        return (scope) => {
          const value = scope.get(name);
          return value === undefined ? new Undefined(`'${name}' is undefined`, name) : value;
        };
      }
      case "list":
      case "tuple": {
        const items = expr.items.map((item) => this.value(item));
        const all = (scope: Scope) => items.map((item) => item(scope));
        return expr.type === "list" ? all : (scope) => new Tuple(all(scope));
      }
      case "dict": {
        const entries = expr.entries.map(([key, value]) => [this.value(key), this.value(value)] as const);
        return (scope) => {
          const dict = new DictMap();
          for (const [key, value] of entries) dict.set(key(scope), value(scope));
          return dict;
        };
      }
      case "attribute": {
        const [object, path] = [this.holder(expr.object), pathOf(expr)];
        return (scope) => attributeOf(object(scope), expr.name, path);
      }
      case "item":
        return this.item(expr);
      case "slice":
        return failAt(expr.line, "a slice among several indices is not supported");
      case "call":
        return this.call(expr.callee, expr, null);
      case "filter": {
        if (!expr.operand) return failAt(expr.line, `the filter '${expr.name}' has nothing before it`);
        const [operand, filter] = [this.value(expr.operand), this.filter(expr)];
        return (scope) => filter(scope, operand(scope));
      }
      case "test": {
        if (!hasTest(expr.name)) return failAt(expr.line, `unknown test '${expr.name}'`);
        const [operand, args] = [this.value(expr.operand), this.args(expr)];
        return (scope) => {
          const value = operand(scope);
          return runTest(expr.name, value, ...args(scope));
        };
      }
      case "not": {
        const operand = this.value(expr.operand);
        return (scope) => !isTrue(operand(scope));
      }
      case "negative":
      case "positive": {
        const [operand, apply] = [this.value(expr.operand), expr.type === "negative" ? negate : positive];
        return (scope) => apply(operand(scope));
      }
      case "and":
      case "or": {
        const [left, right, stop] = [this.value(expr.left), this.value(expr.right), expr.type === "or"];
        return (scope) => {
          const value = left(scope);
          return isTrue(value) === stop ? value : right(scope);
        };
      }
      case "math": {
        const [left, right] = [this.value(expr.left), this.value(expr.right)];
        return (scope) => {
          charge(1);
          return calculate(expr.operator, left(scope), right(scope));
        };
      }
      case "concat": {
        const items = expr.items.map((item) => this.written(item));
        return (scope) => {
          const out = new Output();
          for (const item of items) out.write(item(scope));
          return out.text;
        };
      }
      case "compare": {
        const left = this.value(expr.left);
        const operands = expr.operands.map(([operator, right]) => [operator, this.value(right)] as const);
        return (scope) => {
          let value = left(scope);
          for (const [operator, right] of operands) {
            const next = right(scope);
            if (!compares(operator, value, next)) return false;
            value = next;
          }
          return true;
        };
      }
      case "condition": {
        const [test, then] = [this.value(expr.test), this.value(expr.value)];
        const otherwise = expr.otherwise && this.value(expr.otherwise);
        return (scope) => {
          if (isTrue(test(scope))) return then(scope);
          return otherwise
            ? otherwise(scope)
            : new Undefined("the inline if-expression evaluated to false and no else section was defined");
        };
      }
    }
  }

  protected item(expr: Extract<Expr, { readonly type: "item" }>): Value {
    const [object, path] = [this.holder(expr.object), pathOf(expr)];
    if (expr.index.type === "slice") {
      const bounds = expr.index.parts.map((part) => (part ? this.value(part) : () => null));
      return (scope) =>
        sliceOf(
          object(scope),
          bounds.map((bound) => bound(scope)),
        );
    }
    const index = this.value(expr.index);
    return (scope) => itemOf(object(scope), index(scope), path);
  }

  protected args({ args, named, spread, spreadNamed }: Args): (scope: Scope) => readonly [readonly unknown[], Named] {
    const values = args.map((arg) => this.value(arg));
    const all = (scope: Scope) => values.map((value) => value(scope));
    if (named.length === 0 && !spread && !spreadNamed) return (scope) => [all(scope), NONE];
    const byName = named.map(([name, arg]) => [name, this.value(arg)] as const);
    const [more, moreNamed] = [spread && this.value(spread), spreadNamed && this.value(spreadNamed)];
    return (scope) => {
      const given = new Map(byName.map(([name, value]) => [name, value(scope)] as const));
      if (moreNamed) {
        const fields = moreNamed(scope);
        if (!isDict(fields)) throw new TemplateError("what follows ** is no mapping");
        for (const [name, value] of dictEntries(fields)) given.set(textOf(name), value);
      }
      return [more ? [...all(scope), ...iterate(more(scope))] : all(scope), given];
    };
  }

  protected call(callee: Expr, own: Args, extra: ((scope: Scope) => readonly [string, unknown]) | null): Value {
    const [func, args] = [this.value(callee), this.args(own)];
    return (scope) => {
      const [values, named] = args(scope);
      return callValue(func(scope), values, extra ? new Map([...named, extra(scope)]) : named);
    };
  }

  /** A filter with its arguments; in strict templates a value that is missing passes through `default` only. */
  protected filter(expr: Extract<Expr, { readonly type: "filter" }>): (scope: Scope, value: unknown) => unknown {
    const { name, operand } = expr;
    if (!hasFilter(name)) return failAt(expr.line, `the filter '${name}' is unknown or not supported`);
    const [args, check] = [this.args(expr), operand && this.check(operand)];
    const provides = name === "default" || name === "d";
    return (scope, value) => {
      const [values, named] = args(scope);
      if (check && provides && value === null) return runFilter(name, new Undefined("null"), values, named);
      if (check && !provides && !(name === "tojson" && value === null)) check(value);
      if (check && name === "join") for (const item of iterateList(value)) check(item);
      return runFilter(name, value, values, named);
    };
  }

  /** The filters of {% filter %} and {% set %}: the innermost has no operand yet. */
  protected piped(expr: Expr): (scope: Scope, text: string) => unknown {
    if (expr.type !== "filter") return failAt(expr.line, "expected a filter");
    const [filter, inner] = [this.filter(expr), expr.operand && this.piped(expr.operand)];
    return (scope, text) => filter(scope, inner ? inner(scope, text) : text);
  }

  /** The text of an expression that is written. */
  protected written(expr: Expr): (scope: Scope) => string {
    const [value, check] = [this.value(expr), this.check(expr)];
    return (scope) => {
      charge(1);
      const written = value(scope);
      if (check) check(written);
      return textOf(written);
    };
  }

  protected iterated(expr: Expr): Value {
    return this.checked(expr);
  }

  /** What a field is read of: where that is missing, strict templates name it. */
  protected holder(expr: Expr): Value {
    return this.checked(expr);
  }

  protected checked(expr: Expr): Value {
    const [value, check] = [this.value(expr), this.check(expr)];
    if (!check) return value;
    return (scope) => {
      const found = value(scope);
      check(found);
      return found;
    };
  }

  /** Throws, in strict templates, for a value that is missing or null. */
  protected check(expr: Expr): ((value: unknown) => void) | null {
    const { strict } = this;
    if (!strict) return null;
    const path = pathOf(expr);
    return (value) => {
      if (value !== null && !(value instanceof Undefined)) return;
      const fault = strict((value instanceof Undefined ? value.path : null) ?? path, value === null ? "null" : "missing");
      if (fault) throw fault;
    };
  }
}

const NONE: Named = new Map();
const iterateList = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
