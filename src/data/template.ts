// The recipe's own Jinja templates: a prompt and a completion out of any row. The model's chat template is tokenizer.ts's.
//
// Jinja writes nothing for what is not there, and "None" for null, so a misspelt field would train on half a prompt without a
// word. Here all that a template prints must be there, unless the template itself asks for it: fields of the row before it is
// rendered, and while it is, what lies inside of them.

import { RequestError, textOf } from "../base/errors.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { DATE, type Expr, parseDay, pathOf, type Strict, strftimeNow, Template, TemplateError } from "./jinja.ts";
import { clip, type Fields, RowFault } from "./jsonl.ts";

export type PairTemplates = { readonly prompt: (fields: Fields) => string; readonly completion: (fields: Fields) => string };

/**
 * Compiles both texts. Throws a RequestError, `data.template`; what is returned throws a RowFault for a row that does not fit.
 */
export function compileTemplates({ prompt, completion }: NonNullable<AdapterRecipe["template"]>): PairTemplates {
  const compiled = [compile("prompt", prompt), compile("completion", completion)] as const;
  if (compiled.every(({ fields }) => fields === 0))
    throw new RequestError(
      "data.template",
      "template writes no field of a row: all rows would be the same",
      "a field is written {{ name }}",
    );
  return { prompt: compiled[0].render, completion: compiled[1].render };
}

/** A field that is missing: the row's fault, not the template's. */
class MissingField extends TemplateError {}

/** A template, and how many fields of a row it knows of. */
function compile(name: string, text: string): { readonly render: (fields: Fields) => string; readonly fields: number } {
  let template: Template;
  let asked: ReadonlySet<string> = new Set();
  const strict: Strict = (path, value) => {
    if (value === "missing" && asked.has(path)) return null;
    return new MissingField(
      value === "null"
        ? `has null in the field '${clip(path)}' that template.${name} writes`
        : `lacks the field '${clip(path)}' that template.${name} writes`,
    );
  };
  try {
    template = new Template(text, strict);
  } catch (error) {
    throw new RequestError(
      "data.template",
      `template.${name} is no Jinja template: ${textOf(error)}`,
      "a field is written {{ name }}",
    );
  }
  const names = namesOf(template.body);
  asked = names.asked;
  const today = strftimeNow(parseDay(DATE)!, () => {});
  const render = (fields: Fields): string => {
    const missing = [...names.needed].find((field) => !Object.hasOwn(fields, field));
    if (missing !== undefined) throw new RowFault(`lacks the field '${clip(missing)}' that template.${name} writes`);
    // Only what is asked for: a field that bears the name of a function of Jinja is an error to it.
    const used = [...names.all].filter((field) => Object.hasOwn(fields, field)).map((field) => [field, fields[field]] as const);
    try {
      return template.render({ strftime_now: today, ...Object.fromEntries(used) });
    } catch (error) {
      if (error instanceof MissingField) throw new RowFault(error.message);
      if (!(error instanceof TemplateError)) throw error;
      throw new RowFault(`does not fit template.${name}: ${clip(textOf(error))}`);
    }
  };
  return { render, fields: names.all.size };
}

/** A node of the syntax tree: which parts it has depends on its type. */
type Node = { readonly type: string } & Readonly<Record<string, unknown>>;

const isNode = (value: unknown): value is Node => typeof (value as Partial<Node> | null | undefined)?.type === "string";

/** Functions of Jinja itself. */
const BUILT_IN = ["range", "dict", "namespace", "raise_exception", "strftime_now", "loop", "caller", "varargs", "kwargs"];

type Names = {
  readonly all: ReadonlySet<string>;
  /** Fields that are printed without being asked for. */
  readonly needed: ReadonlySet<string>;
  /** What the template asks for, as it is written: hint, meta.title. */
  readonly asked: ReadonlySet<string>;
};

/** Names of fields in a template. */
function namesOf(program: unknown): Names {
  const [all, asked, own] = [new Set<string>(), new Set<string>(), new Set(BUILT_IN)];
  const visit = (value: unknown, asking: boolean): void => {
    if (Array.isArray(value)) for (const item of value) visit(item, asking);
    if (!isNode(value)) return;
    if (asking && ["name", "attribute", "item"].includes(value.type)) asked.add(pathOf(value as unknown as Expr));
    if (value.type === "name") {
      all.add(String(value["name"]));
      return;
    }
    bind(value, own);
    const { reads, asks } = partsOf(value);
    for (const part of asks) visit(part, true);
    for (const part of reads) visit(part, asking);
  };
  visit(program, false);
  const fields = new Set([...all].filter((name) => !own.has(name)));
  return { all: fields, asked, needed: new Set([...fields].filter((name) => !asked.has(name))) };
}

/** The parts of a node that may hold fields: some only ask whether a field is there, and what it is. */
function partsOf(node: Node): { readonly reads: readonly unknown[]; readonly asks: readonly unknown[] } {
  const pick = (...names: readonly string[]) => names.map((name) => node[name]);
  switch (node.type) {
    case "if": {
      const branches = node["branches"] as readonly (readonly [unknown, unknown])[];
      return { reads: [...branches.map(([, body]) => body), node["otherwise"]], asks: branches.map(([test]) => test) };
    }
    case "condition":
      return { reads: pick("value", "otherwise"), asks: pick("test") };
    case "test": // "x is defined"
      return { reads: [], asks: pick("operand") };
    case "or": // "x or 'none'"
      return { reads: pick("right"), asks: pick("left") };
    case "filter": {
      const provides = node["name"] === "default" || node["name"] === "d";
      const args = pick("args", "named", "spread", "spreadNamed");
      return provides ? { reads: args, asks: pick("operand") } : { reads: [...args, node["operand"]], asks: [] };
    }
    case "for": // the filter of a loop asks
      return { reads: pick("over", "body", "otherwise"), asks: pick("test") };
    default: // targets hold names of the template's own
      return { reads: Object.keys(node).flatMap((name) => (name === "target" ? [] : [node[name]])), asks: [] };
  }
}

/** Notes the names that a statement gives: of variables, macros and their parameters. */
function bind(node: Node, own: Set<string>): void {
  const target = (value: unknown): void => {
    if (!isNode(value)) return;
    if (value.type === "name") own.add(String(value["name"]));
    for (const item of (value["items"] as readonly unknown[] | undefined) ?? []) target(item);
  };
  target(node["target"]);
  for (const [one] of (node["sets"] as readonly (readonly [unknown])[] | undefined) ?? []) target(one);
  if (node.type === "macro") own.add(String(node["name"]));
  for (const [param] of (node["params"] as readonly (readonly [string])[] | undefined) ?? []) own.add(param);
}
