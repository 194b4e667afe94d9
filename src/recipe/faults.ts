// What is wrong with a recipe by its schema, as faults with their places.

import * as v from "valibot";
import type { Path } from "./places.ts";
import { nearest } from "./suggest.ts";

/** Something wrong, and where in the recipe. */
export type Fault = { readonly path: Path; readonly message: string };

/**
 * The faults of an issue under `schema`, which is at `before`: of a choice between forms, those of the table where one is
 * given.
 */
export function faultsOf(issue: v.BaseIssue<unknown>, schema: v.GenericSchema | undefined, before: Path = []): Fault[] {
  const steps = issue.path ?? [];
  const path = [...before, ...steps.map(({ key }) => key as string | number)];
  const isList = Array.isArray(issue.input);
  const isTable = typeof issue.input === "object" && issue.input !== null && !isList && !(issue.input instanceof Date);
  const form = issue.type === "union" && (isTable || isList) ? schemaAt(schema, steps, issue.input) : undefined;
  if (form?.entries || form?.item)
    return (v.safeParse(form, issue.input).issues ?? []).flatMap((one) => faultsOf(one, form, path));
  const inner = (issue.issues ?? []).filter(({ path: deeper }) => deeper);
  if (issue.type === "union" && isTable && inner.length > 0)
    return inner.flatMap((one) => faultsOf(one, schemaAt(schema, steps, issue.input), path));
  if (issue.type !== "strict_object" || !issue.path) return [{ path, message: issue.message }];
  if (issue.expected !== "never") return [{ path, message: issue.received === "undefined" ? "is missing" : issue.message }];
  const entries = schemaAt(schema, steps.slice(0, -1), steps.at(-1)!.input)?.entries ?? {};
  return [{ path, message: unknownKey(String(path.at(-1)), Object.keys(entries)) }];
}

/** Parts of a recipe's schemas: an object's entries, an array's item, the forms of a choice, an optional schema. */
type Parts = v.GenericSchema & {
  readonly entries?: Readonly<Record<string, Parts>>;
  readonly item?: Parts;
  readonly options?: readonly Parts[];
  readonly key?: string;
  readonly literal?: unknown;
  readonly wrapped?: Parts;
};

/** The schema of `value`, which stands at the end of these steps; undefined where there is none for such a value. */
function schemaAt(schema: v.GenericSchema | undefined, steps: readonly v.IssuePathItem[], value: unknown): Parts | undefined {
  const [step, ...rest] = steps;
  if (!step) return formOf(schema as Parts, value);
  const of = formOf(schema as Parts, step.input);
  return schemaAt(of?.item ?? of?.entries?.[String(step.key)], rest, value);
}

/** The one of a schema's forms that is for such a value. */
function formOf(schema: Parts | undefined, value: unknown): Parts | undefined {
  if (schema?.wrapped) return formOf(schema.wrapped, value);
  const { type, key = "", options = [] } = schema ?? {};
  const nameOf = (of: unknown) => (of as Readonly<Record<string, unknown>>)[key];
  if (type === "variant") return options.find(({ entries }) => entries?.[key]?.literal === nameOf(value));
  if (type !== "union") return schema;
  const forms = options.map((of) => formOf(of, value)).filter((of) => (Array.isArray(value) ? of?.item : of?.entries));
  const known = (of: Parts | undefined) => Object.keys(Object(value)).filter((name) => of?.entries?.[name]).length;
  return forms.toSorted((a, b) => known(b) - known(a))[0];
}

export function unknownKey(key: string, allowed: readonly string[]): string {
  const meant = nearest(key, allowed);
  return `is an unknown key${meant ? `; did you mean '${meant}'?` : `; known are ${allowed.join(", ")}`}`;
}
