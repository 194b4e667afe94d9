// What a chat template reads by name and what it writes, from its syntax tree: words of its comments, and of instructions that
// it writes to the model, are no reads.

import { type Body, pathOf, Template } from "./jinja.ts";

type Words = {
  /** Names of variables, attributes and items; of these all texts that stand alone: `message["name"]`, `"name" in message`. */
  readonly names: ReadonlySet<string>;
  /** Texts that it writes or compares with. */
  readonly texts: readonly string[];
  /** Whether it reads the keys of a turn as they come. */
  readonly anyKey: boolean;
  /** Whether it tells a call's arguments that are a text from those that are an object. */
  readonly tellsArguments: boolean;
};

const known = new Map<string, Words>();
/** Templates of a run are few; a server's clients may send others. */
const MOST_KNOWN = 64;

function wordsOf(template: string): Words {
  const found = known.get(template) ?? walked(new Template(template).body);
  if (known.size >= MOST_KNOWN) known.clear();
  known.set(template, found);
  return found;
}

/** A node of the tree: which parts it has depends on its type. */
type Node = { readonly type: string } & Readonly<Record<string, unknown>>;
const isNode = (value: unknown): value is Node => typeof (value as Partial<Node> | null)?.type === "string";
const isMessage = (value: unknown): boolean => isNode(value) && value.type === "name" && value["name"] === "message";

/** Filters and methods that give a turn's keys as they come. */
const OF_ANY_KEY = ["tojson", "string", "items"];

function walked(body: Body): Words {
  const names = new Set<string>();
  const texts: string[] = [];
  const found = { anyKey: false, tellsArguments: false };
  const visit = (value: unknown): void => {
    if (Array.isArray(value)) for (const item of value) visit(item);
    if (!isNode(value)) return;
    const { type, name } = value;
    if ((type === "name" || type === "attribute") && typeof name === "string") names.add(name);
    if (type === "const" && typeof value["value"] === "string") {
      names.add(value["value"]);
      texts.push(value["value"]);
    }
    if (type === "text") texts.push(String(value["text"]));
    const isOfAnyKey = (type === "filter" || type === "attribute") && OF_ANY_KEY.includes(String(name));
    if (isOfAnyKey && isMessage(type === "filter" ? value["operand"] : value["object"])) found.anyKey = true;
    if (type === "test" && (name === "string" || name === "mapping"))
      found.tellsArguments ||= pathOf(value["operand"] as Parameters<typeof pathOf>[0]).endsWith("arguments");
    for (const part of Object.values(value)) visit(part);
  };
  visit(body);
  return { names, texts, ...found };
}

/** Whether a template reads something of this name. */
export const isAsked = (name: string, template: string): boolean => wordsOf(template).names.has(name);

/** Whether it reads whatever a turn has. */
export const asksAnyKey = (template: string): boolean => wordsOf(template).anyKey;

/** Whether this stands in what it writes, or looks for in texts. */
export const hasText = (text: string, template: string): boolean => wordsOf(template).texts.some((own) => own.includes(text));

export const tellsArguments = (template: string): boolean => wordsOf(template).tellsArguments;
