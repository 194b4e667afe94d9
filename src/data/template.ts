// The recipe's own Jinja templates: a prompt and a completion out of any row. The model's chat template is tokenizer.ts's.
//
// Jinja writes nothing for a name that is not there, so a misspelt field would train on half a prompt without a word. Here a
// row must have every field that a template prints, unless the template itself asks whether it is there.

import { Template } from "@huggingface/jinja";
import { RequestError, textOf } from "../base/errors.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { clip, type Fields, RowFault } from "./jsonl.ts";

export type PairTemplates = { readonly prompt: (fields: Fields) => string; readonly completion: (fields: Fields) => string };

/** Compiles both texts. Throws a RequestError, `data.template`; what is returned throws a RowFault for a row that does not fit. */
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

/** A template, and how many fields of a row it knows of. */
function compile(name: string, text: string): { readonly render: (fields: Fields) => string; readonly fields: number } {
  let template: Template;
  try {
    template = new Template(text);
  } catch (error) {
    throw new RequestError(
      "data.template",
      `template.${name} is no Jinja template: ${textOf(error)}`,
      "a field is written {{ name }}",
    );
  }
  const names = namesOf(template.parsed);
  const render = (fields: Fields): string => {
    const missing = [...names.needed].find((field) => !Object.hasOwn(fields, field));
    if (missing !== undefined) throw new RowFault(`lacks the field '${clip(missing)}' that template.${name} writes`);
    // Only what is asked for: a field that bears the name of a function of Jinja is an error to it.
    const used = [...names.all].filter((field) => Object.hasOwn(fields, field)).map((field) => [field, fields[field]] as const);
    try {
      return template.render(Object.fromEntries(used));
    } catch (error) {
      throw new RowFault(`does not fit template.${name}: ${clip(textOf(error))}`);
    }
  };
  return { render, fields: names.all.size };
}

/** A node of the syntax tree: which parts it has depends on its type. */
type Node = { readonly type: string } & Readonly<Record<string, unknown>>;

const isNode = (value: unknown): value is Node => typeof (value as Partial<Node> | null | undefined)?.type === "string";

/** Functions and constants of Jinja itself. */
const BUILT_IN = [
  "range",
  "namespace",
  "raise_exception",
  "strftime_now",
  "loop",
  "true",
  "false",
  "none",
  "True",
  "False",
  "None",
];

/** Names of fields in a template: `needed` are printed without being asked for. */
function namesOf(program: unknown): { readonly all: ReadonlySet<string>; readonly needed: ReadonlySet<string> } {
  const [all, asked, own] = [new Set<string>(), new Set<string>(), new Set(BUILT_IN)];
  const visit = (value: unknown, asking: boolean): void => {
    if (Array.isArray(value)) for (const item of value) visit(item, asking);
    if (value instanceof Map) for (const entry of value) visit(entry, asking);
    if (!isNode(value)) return;
    if (value.type === "Identifier") {
      all.add(String(value["value"]));
      if (asking) asked.add(String(value["value"]));
      return;
    }
    for (const target of BINDS[value.type] ?? []) bind(value[target], own);
    const { reads, asks } = partsOf(value);
    for (const part of asks) visit(part, true);
    for (const part of reads) visit(part, asking);
  };
  visit(program, false);
  const fields = new Set([...all].filter((name) => !own.has(name)));
  return { all: fields, needed: new Set([...fields].filter((name) => !asked.has(name))) };
}

/** Where a statement names variables of its own. */
const BINDS: Readonly<Record<string, readonly string[]>> = { For: ["loopvar"], Set: ["assignee"], Macro: ["name", "args"] };

/** The parts of a node that may hold fields: some only ask whether a field is there, and what it is. */
function partsOf(node: Node): { readonly reads: readonly unknown[]; readonly asks: readonly unknown[] } {
  const pick = (...names: readonly string[]) => names.map((name) => node[name]);
  switch (node.type) {
    case "If":
      return { reads: pick("body", "alternate"), asks: pick("test") };
    case "Ternary":
      return { reads: pick("trueExpr", "falseExpr"), asks: pick("condition") };
    case "SelectExpression":
      return { reads: pick("lhs"), asks: pick("test") };
    case "TestExpression": // "x is defined": its other side is the name of a test
      return { reads: [], asks: pick("operand") };
    case "BinaryExpression": // "x or 'none'"
      return (node["operator"] as { value?: unknown }).value === "or"
        ? { reads: pick("right"), asks: pick("left") }
        : { reads: pick("left", "right"), asks: [] };
    case "FilterExpression": {
      const filter = node["filter"] as Node;
      const name = ((filter["callee"] as Node | undefined) ?? filter)["value"];
      return name === "default"
        ? { reads: [filter["args"]], asks: pick("operand") }
        : { reads: [filter["args"], ...pick("operand")], asks: [] };
    }
    case "MemberExpression": // "x.y": y is a field of x
      return { reads: node["computed"] === true ? pick("object", "property") : pick("object"), asks: [] };
    case "KeywordArgumentExpression":
      return { reads: pick("value"), asks: [] };
    case "FilterStatement":
      return { reads: pick("body"), asks: [] };
    default: {
      const own = BINDS[node.type] ?? [];
      return { reads: Object.keys(node).flatMap((name) => (own.includes(name) ? [] : [node[name]])), asks: [] };
    }
  }
}

/** Notes the names that a template gives itself. */
function bind(target: unknown, own: Set<string>): void {
  if (Array.isArray(target)) for (const item of target) bind(item, own);
  if (!isNode(target)) return;
  if (target.type === "Identifier") own.add(String(target["value"]));
  if (target.type === "TupleLiteral") bind(target["value"], own);
  if (target.type === "KeywordArgumentExpression") bind(target["key"], own);
}
