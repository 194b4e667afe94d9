// Turns a syntax tree into functions, once; rendering a row is calling them.
//
// The values and their rules are Python's (values.ts, operators.ts): the interpreter of @huggingface/jinja works with
// JavaScript's, and what those do otherwise (digits, 1.0, None, keys' order, slices, strip's argument, loop controls) reaches
// from its lexer to its every filter, so that mending it from outside would have been longer than this.

import { hasFilter, MARKS, runFilter } from "./filters.ts";
import { failAt, TemplateError } from "./lexer.ts";
import { charge } from "./limits.ts";
import { attributeOf, calculate, compares, itemOf, negate, positive, sliceOf } from "./operators.ts";
import type { Args, Body, Expr, Signature, Statement, Target } from "./parser.ts";
import { callValue, Loop, Output, Scope, setField } from "./scope.ts";
import { hasTest, runTest } from "./tests.ts";
import { DictMap, dictEntries, Func, isDict, isTrue, iterate, jsonOf, type Named, Tuple, textOf, Undefined } from "./values.ts";

/** What a field that is missing is called by; null where it may be written as nothing, as Jinja has it. */
export type Strict = (path: string, value: "missing" | "null") => TemplateError | null;

type Value = (scope: Scope) => unknown;
type Run = (scope: Scope, out: Output) => Ending;
/** How statements ended: by themselves, or by {% break %} or {% continue %}. */
type Ending = "end" | "break" | "continue";

/** Compiles statements. Throws a TemplateError for unknown filters and tests; what is returned throws one for values that do not fit. */
export function compileBody(body: Body, strict: Strict | null): Run {
  return new Compiler(strict).body(body);
}

class Compiler {
  constructor(readonly strict: Strict | null) {}

  body(statements: Body): Run {
    const runs = statements.map((statement) => this.#statement(statement));
    if (runs.length === 1) return runs[0]!;
    return (scope, out) => {
      for (const run of runs) {
        const ending = run(scope, out);
        if (ending !== "end") return ending;
      }
      return "end";
    };
  }

  #statement(statement: Statement): Run {
    switch (statement.type) {
      case "text":
        return (_, out) => {
          charge(1);
          out.write(statement.text);
          return "end";
        };
      case "print": {
        const value = this.#written(statement.value);
        return (scope, out) => {
          out.write(value(scope));
          return "end";
        };
      }
      case "if": {
        const branches = statement.branches.map(([test, body]) => [this.value(test), this.body(body)] as const);
        const otherwise = this.body(statement.otherwise);
        return (scope, out) => {
          for (const [test, run] of branches) if (isTrue(test(scope))) return run(scope, out);
          return otherwise(scope, out);
        };
      }
      case "for":
        return this.#for(statement);
      case "set": {
        const [assign, value] = [this.#assign(statement.target), this.value(statement.value)];
        return (scope) => {
          assign(scope, value(scope));
          return "end";
        };
      }
      case "set-block": {
        const [assign, run] = [this.#assign(statement.target), this.body(statement.body)];
        const filter = statement.filter ? this.#piped(statement.filter) : null;
        return (scope) => {
          const [inner, out] = [new Scope(scope), new Output()];
          const ending = run(inner, out);
          if (ending === "end") assign(scope, filter ? filter(inner, out.text) : out.text);
          return ending;
        };
      }
      case "macro": {
        const macro = this.#macro(statement.name, statement, statement.body);
        return (scope) => {
          scope.set(statement.name, macro(scope));
          return "end";
        };
      }
      case "call": {
        const caller = this.#macro("caller", statement, statement.body);
        const call = this.#call(statement.call.callee, statement.call, (scope) => ["caller", caller(scope)]);
        return (scope, out) => {
          out.write(textOf(call(scope)));
          return "end";
        };
      }
      case "filter": {
        const [run, filter] = [this.body(statement.body), this.#piped(statement.filter)];
        return (scope, out) => {
          const [inner, text] = [new Scope(scope), new Output()];
          const ending = run(inner, text);
          if (ending === "end") out.write(textOf(filter(inner, text.text)));
          return ending;
        };
      }
      case "with": {
        const sets = statement.sets.map(([target, value]) => [this.#assign(target), this.value(value)] as const);
        const run = this.body(statement.body);
        return (scope, out) => {
          const inner = new Scope(scope);
          const values = sets.map(([, value]) => value(scope));
          for (const [i, [assign]] of sets.entries()) assign(inner, values[i]);
          return run(inner, out);
        };
      }
      case "generation": {
        const run = this.body(statement.body);
        return (scope, out) => run(new Scope(scope), out);
      }
      case "break":
      case "continue":
        return () => statement.type;
    }
  }

  #for(statement: Extract<Statement, { readonly type: "for" }>): Run {
    const [assign, over] = [this.#assign(statement.target), this.#iterated(statement.over)];
    const test = statement.test && this.value(statement.test);
    const [run, otherwise] = [this.body(statement.body), this.body(statement.otherwise)];
    const named = mentions(statement.body, "loop") || statement.recursive;
    const loopOver = (all: unknown, scope: Scope, out: Output, depth: number): Ending => {
      const items = test ? iterate(all).filter((item) => kept(item, scope)) : iterate(all);
      const recurse = (inner: unknown): string => {
        const own = new Output();
        loopOver(inner, scope, own, depth + 1);
        return own.text;
      };
      const loop = named ? new Loop(items, depth, statement.recursive ? recurse : null) : null;
      let through = false; // as in Jinja: {% else %} comes also where no round got to its end
      for (const [i, item] of items.entries()) {
        charge(1);
        const inner = new Scope(scope);
        if (loop) {
          loop.at = i;
          inner.set("loop", loop);
        }
        assign(inner, item);
        const ending = run(inner, out);
        if (ending === "break") break;
        if (ending === "end") through = true;
      }
      return through ? "end" : otherwise(new Scope(scope), out);
    };
    const kept = (item: unknown, scope: Scope): boolean => {
      const inner = new Scope(scope);
      assign(inner, item);
      return isTrue(test!(inner));
    };
    return (scope, out) => loopOver(over(scope), scope, out, 0);
  }

  #assign(target: Target): (scope: Scope, value: unknown) => void {
    if (target.type === "name") return (scope, value) => scope.set(target.name, value);
    if (target.type === "field") return (scope, value) => setField(scope.get(target.name), target.field, value);
    const parts = target.items.map((item) => this.#assign(item));
    return (scope, value) => {
      const items = iterate(value);
      if (items.length !== parts.length)
        throw new TemplateError(`expected ${parts.length} values to unpack, found ${items.length}`);
      for (const [i, assign] of parts.entries()) assign(scope, items[i]);
    };
  }

  #macro(name: string, { params }: Signature, body: Body): (scope: Scope) => Func {
    const run = this.body(body);
    const all = params.map(([param, fallback]) => [param, fallback && this.value(fallback)] as const);
    const known = new Set(params.map(([param]) => param));
    const [takesArgs, takesNamed, takesCaller] = ["varargs", "kwargs", "caller"].map(
      (special) => !known.has(special) && mentions(body, special),
    );
    return (scope) =>
      new Func(name, (args, named) => {
        const inner = new Scope(scope);
        if (args.length > all.length && !takesArgs)
          throw new TemplateError(`macro '${name}' takes not more than ${all.length} argument(s)`);
        for (const [i, [param, fallback]] of all.entries()) {
          if (i < args.length && named.has(param)) throw new TemplateError(`macro '${name}' got '${param}' twice`);
          const given = i < args.length ? args[i] : named.get(param);
          inner.set(
            param,
            given !== undefined ? given : fallback ? fallback(inner) : new Undefined(`parameter '${param}' was not provided`),
          );
        }
        const more = new DictMap();
        for (const [key, value] of named)
          if (key === "caller" && takesCaller) inner.set("caller", value);
          else if (!known.has(key)) more.set(key, value);
        if (takesCaller && !named.has("caller")) inner.set("caller", new Undefined("No caller defined"));
        if (more.size > 0 && !takesNamed)
          throw new TemplateError(`macro '${name}' takes no keyword argument '${[...more.keys()][0]}'`);
        if (takesArgs) inner.set("varargs", new Tuple(args.slice(all.length)));
        if (takesNamed) inner.set("kwargs", more);
        const out = new Output();
        run(inner, out);
        return out.text;
      });
  }

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
        const [object, path] = [this.#holder(expr.object), pathOf(expr)];
        return (scope) => attributeOf(object(scope), expr.name, path);
      }
      case "item":
        return this.#item(expr);
      case "slice":
        return failAt(expr.line, "a slice among several indices is not supported");
      case "call":
        return this.#call(expr.callee, expr, null);
      case "filter": {
        if (!expr.operand) return failAt(expr.line, `the filter '${expr.name}' has nothing before it`);
        if (MARKS.includes(expr.name))
          return failAt(expr.line, `the filter '${expr.name}' is supported only last in what is printed`);
        return this.#filtered(expr, expr.operand);
      }
      case "test": {
        if (!hasTest(expr.name)) return failAt(expr.line, `unknown test '${expr.name}'`);
        const [operand, args] = [this.value(expr.operand), this.#args(expr)];
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
        const items = expr.items.map((item) => this.#written(item));
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
        const [test, then] = [this.value(expr.test), this.value(expr.then)];
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

  #item(expr: Extract<Expr, { readonly type: "item" }>): Value {
    const [object, path] = [this.#holder(expr.object), pathOf(expr)];
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

  #args({ args, named, spread, spreadNamed }: Args): (scope: Scope) => readonly [readonly unknown[], Named] {
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

  #call(callee: Expr, own: Args, extra: ((scope: Scope) => readonly [string, unknown]) | null): Value {
    const [func, args] = [this.value(callee), this.#args(own)];
    return (scope) => {
      const [values, named] = args(scope);
      return callValue(func(scope), values, extra ? new Map([...named, extra(scope)]) : named);
    };
  }

  /** A filter with its arguments; in strict templates a value that is missing passes through `default` only. */
  #filter(expr: Extract<Expr, { readonly type: "filter" }>): (scope: Scope, value: unknown) => unknown {
    const { name, operand } = expr;
    if (!hasFilter(name)) return failAt(expr.line, `the filter '${name}' is unknown or not supported`);
    const [args, check] = [this.#args(expr), operand && this.#check(operand)];
    const provides = name === "default" || name === "d";
    return (scope, value) => {
      const [values, named] = args(scope);
      if (check && provides && value === null) return runFilter(name, new Undefined("null"), values, named);
      if (check && !provides && !(name === "tojson" && value === null)) check(value);
      if (check && name === "join") for (const item of iterateList(value)) check(item);
      return runFilter(name, value, values, named);
    };
  }

  #filtered(expr: Extract<Expr, { readonly type: "filter" }>, before: Expr): Value {
    const [operand, filter] = [this.value(before), this.#filter(expr)];
    return (scope) => filter(scope, operand(scope));
  }

  /** The filters of {% filter %} and {% set %}: the innermost has no operand yet. */
  #piped(expr: Expr): (scope: Scope, text: string) => unknown {
    if (expr.type !== "filter") return failAt(expr.line, "expected a filter");
    const [filter, inner] = [this.#filter(expr), expr.operand && this.#piped(expr.operand)];
    return (scope, text) => filter(scope, inner ? inner(scope, text) : text);
  }

  /** The text of an expression that is written. */
  #written(expr: Expr): (scope: Scope) => string {
    const value =
      expr.type === "filter" && expr.operand && MARKS.includes(expr.name)
        ? this.#filtered(expr, expr.operand)
        : this.value(expr);
    const check = this.#check(expr);
    return (scope) => {
      charge(1);
      const written = value(scope);
      if (check) check(written);
      return textOf(written);
    };
  }

  #iterated(expr: Expr): Value {
    return this.#checked(expr);
  }

  /** What a field is read of: where that is missing, strict templates name it. */
  #holder(expr: Expr): Value {
    return this.#checked(expr);
  }

  #checked(expr: Expr): Value {
    const [value, check] = [this.value(expr), this.#check(expr)];
    if (!check) return value;
    return (scope) => {
      const found = value(scope);
      check(found);
      return found;
    };
  }

  /** Throws, in strict templates, for a value that is missing or null. */
  #check(expr: Expr): ((value: unknown) => void) | null {
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

/** An expression as it stands in the template, for a message: meta.title, choices[answer]. */
export function pathOf(expr: Expr): string {
  switch (expr.type) {
    case "name":
      return expr.name;
    case "const":
      return jsonOf(expr.value, {});
    case "attribute":
      return `${pathOf(expr.object)}.${expr.name}`;
    case "item":
      return `${pathOf(expr.object)}[${pathOf(expr.index)}]`;
    case "filter":
      return `${expr.operand ? pathOf(expr.operand) : ""} | ${expr.name}`;
    case "call":
      return `${pathOf(expr.callee)}(${expr.args.map(pathOf).join(", ")})`;
    default:
      return "...";
  }
}

/** Whether a name is read anywhere in a tree. */
function mentions(tree: unknown, name: string): boolean {
  if (Array.isArray(tree)) return tree.some((part) => mentions(part, name));
  if (typeof tree !== "object" || tree === null) return false;
  const { type, name: own } = tree as { type?: unknown; name?: unknown };
  if (type === "name" && own === name) return true;
  return Object.values(tree).some((part) => mentions(part, name));
}
