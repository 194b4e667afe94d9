// Jinja templates as transformers renders them: trim_blocks, lstrip_blocks, loop controls, {% generation %}, its own tojson,
// and Python's values (jinja/evaluate.ts says why this is an interpreter of our own). Values are what json.ts's parseJson
// makes.

import type { Body } from "./jinja/ast.ts";
import { compileBody } from "./jinja/evaluate.ts";
import type { Strict } from "./jinja/expressions.ts";
import { TemplateError } from "./jinja/lexer.ts";
import { beginSteps } from "./jinja/limits.ts";
import { parseTemplate } from "./jinja/parser.ts";
import { Output, Scope } from "./jinja/scope.ts";

/** What templates take for today, unless the conversation's `date_string` says otherwise: a run reads the same on any day. */
export const DATE = "26 Jul 2024";

export class Template {
  readonly body: Body;
  readonly #run: ReturnType<typeof compileBody>;

  /** Throws a TemplateError that names line and construct. With `strict`, what is missing or null and printed is an error. */
  constructor(text: string, strict: Strict | null = null) {
    try {
      this.body = parseTemplate(text);
      this.#run = compileBody(this.body, strict);
    } catch (error) {
      throw error instanceof RangeError ? new TemplateError("is nested too deeply") : error;
    }
  }

  /** Throws a TemplateError for values that do not fit, and for a rendering that takes too many steps or writes too much. */
  render(variables: Readonly<Record<string, unknown>>): string {
    return this.renderMarked(variables).text;
  }

  /** The same, and where in the text its {% generation %} blocks wrote; of blocks within macros and captured texts nowhere. */
  renderMarked(variables: Readonly<Record<string, unknown>>): Pick<Output, "text" | "generated"> {
    const out = new Output();
    beginSteps();
    try {
      this.#run(new Scope(null, variables), out);
    } catch (error) {
      throw error instanceof RangeError ? new TemplateError("calls itself too often, or makes too much") : error;
    }
    return out;
  }
}

export { type Body, type Expr, pathOf } from "./jinja/ast.ts";
export { parseDay, strftimeNow } from "./jinja/strftime.ts";
export { type Strict, TemplateError };
