// Arguments of filters, tests, methods and functions, by place or by name as in Python.

import { TemplateError } from "./lexer.ts";
import { isInt, type Named, textOf, typeName, Undefined } from "./values.ts";

/** Puts arguments into the order of `params`; a name with "?" may be left out, "*" takes all that are left. */
export function bindArgs(of: string, params: readonly string[], args: readonly unknown[], named: Named): unknown[] {
  const rest = params.at(-1) === "*";
  const names = rest ? params.slice(0, -1) : params;
  if (args.length > names.length && !rest) throw new TemplateError(`${of} takes ${names.length} arguments, not ${args.length}`);
  const used = new Set<string>();
  const bound = names.map((param, i) => {
    const name = param.replace("?", "");
    if (i < args.length) return args[i];
    if (named.has(name)) used.add(name);
    else if (name === param) throw new TemplateError(`${of} lacks the argument '${name}'`);
    return named.get(name);
  });
  const unknown = [...named.keys()].find((name) => !used.has(name));
  if (unknown !== undefined) throw new TemplateError(`${of} has no argument '${unknown}', or has it twice`);
  return rest ? [...bound, ...args.slice(names.length)] : bound;
}

/** An argument that has to be a text. */
export function asText(of: string, value: unknown): string {
  if (typeof value !== "string")
    throw new TemplateError(
      `${of} takes a text, not ${value instanceof Undefined ? `what is missing: ${value.what}` : `'${typeName(value)}'`}`,
    );
  return value;
}

/** An argument that has to be a whole number. */
export function asInt(of: string, value: unknown): number {
  if (!isInt(value)) throw new TemplateError(`${of} takes a whole number, not ${textOf(typeName(value))}`);
  return Number(value);
}
