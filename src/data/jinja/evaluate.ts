// Turns a syntax tree into functions, once; rendering a row is calling them.
//
// The values and their rules are Python's (values.ts, operators.ts): the interpreter of @huggingface/jinja works with
// JavaScript's, and what those do otherwise (digits, 1.0, None, keys' order, slices, strip's argument, loop controls) reaches
// from its lexer to its every filter, so that fixing it from outside would have been longer than this.

import { type Body, mentions, type Signature, type Statement, type Target } from "./ast.ts";
import { ExpressionCompiler, type Strict } from "./expressions.ts";
import { TemplateError } from "./lexer.ts";
import { charge } from "./limits.ts";
import { Loop, Output, Scope, setField } from "./scope.ts";
import { DictMap, Func, isTrue, iterate, Tuple, textOf, Undefined } from "./values.ts";

type Run = (scope: Scope, out: Output) => Ending;
/** How statements ended: by themselves, or by {% break %} or {% continue %}. */
type Ending = "end" | "break" | "continue";

/**
 * Compiles statements. Throws a TemplateError for unknown filters and tests; what is returned throws one for values that do not
 * fit.
 */
export function compileBody(body: Body, strict: Strict | null): Run {
  return new Compiler(strict).body(body);
}

class Compiler extends ExpressionCompiler {
  body(statements: Body): Run {
    const runs = statements.map((statement) => this.statement(statement));
    if (runs.length === 1) return runs[0]!;
    return (scope, out) => {
      for (const run of runs) {
        const ending = run(scope, out);
        if (ending !== "end") return ending;
      }
      return "end";
    };
  }

  protected statement(statement: Statement): Run {
    switch (statement.type) {
      case "text":
        return (_, out) => {
          charge(1);
          out.write(statement.text);
          return "end";
        };
      case "print": {
        const value = this.written(statement.value);
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
        return this.loop(statement);
      case "set": {
        const [assign, value] = [this.assign(statement.target), this.value(statement.value)];
        return (scope) => {
          assign(scope, value(scope));
          return "end";
        };
      }
      case "set-block": {
        const [assign, run] = [this.assign(statement.target), this.body(statement.body)];
        const filter = statement.filter ? this.piped(statement.filter) : null;
        return (scope) => {
          const [inner, out] = [new Scope(scope), new Output()];
          const ending = run(inner, out);
          if (ending === "end") assign(scope, filter ? filter(inner, out.text) : out.text);
          return ending;
        };
      }
      case "macro": {
        const macro = this.macro(statement.name, statement, statement.body);
        return (scope) => {
          scope.set(statement.name, macro(scope));
          return "end";
        };
      }
      case "call": {
        const caller = this.macro("caller", statement, statement.body);
        const call = this.call(statement.call.callee, statement.call, (scope) => ["caller", caller(scope)]);
        return (scope, out) => {
          out.write(textOf(call(scope)));
          return "end";
        };
      }
      case "filter": {
        const [run, filter] = [this.body(statement.body), this.piped(statement.filter)];
        return (scope, out) => {
          const [inner, text] = [new Scope(scope), new Output()];
          const ending = run(inner, text);
          if (ending === "end") out.write(textOf(filter(inner, text.text)));
          return ending;
        };
      }
      case "with": {
        const sets = statement.sets.map(([target, value]) => [this.assign(target), this.value(value)] as const);
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
        return (scope, out) => {
          const from = out.text.length;
          const ending = run(new Scope(scope), out);
          out.generated.push({ from, to: out.text.length });
          return ending;
        };
      }
      case "break":
      case "continue":
        return () => statement.type;
    }
  }

  protected loop(statement: Extract<Statement, { readonly type: "for" }>): Run {
    const [assign, over] = [this.assign(statement.target), this.iterated(statement.over)];
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

  protected assign(target: Target): (scope: Scope, value: unknown) => void {
    if (target.type === "name") return (scope, value) => scope.set(target.name, value);
    if (target.type === "field") return (scope, value) => setField(scope.get(target.name), target.field, value);
    const parts = target.items.map((item) => this.assign(item));
    return (scope, value) => {
      const items = iterate(value);
      if (items.length !== parts.length)
        throw new TemplateError(`expected ${parts.length} values to unpack, found ${items.length}`);
      for (const [i, assign] of parts.entries()) assign(scope, items[i]);
    };
  }

  protected macro(name: string, { params }: Signature, body: Body): (scope: Scope) => Func {
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
}
