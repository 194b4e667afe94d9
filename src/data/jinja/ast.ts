// The syntax tree of a template.

import type { Float } from "../json.ts";
import { jsonOf } from "./values.ts";

export type Args = {
  readonly args: readonly Expr[];
  readonly named: readonly (readonly [string, Expr])[];
  readonly spread: Expr | null;
  readonly spreadNamed: Expr | null;
};
export type Operand = readonly [operator: string, right: Expr];

export type Expr = { readonly line: number } & (
  | { readonly type: "const"; readonly value: string | number | bigint | Float | boolean | null }
  | { readonly type: "name"; readonly name: string }
  | { readonly type: "list" | "tuple"; readonly items: readonly Expr[] }
  | { readonly type: "dict"; readonly entries: readonly (readonly [Expr, Expr])[] }
  | { readonly type: "attribute"; readonly object: Expr; readonly name: string }
  | { readonly type: "item"; readonly object: Expr; readonly index: Expr }
  | { readonly type: "slice"; readonly parts: readonly [Expr | null, Expr | null, Expr | null] }
  | ({ readonly type: "call"; readonly callee: Expr } & Args)
  | ({ readonly type: "filter"; readonly operand: Expr | null; readonly name: string } & Args)
  | ({ readonly type: "test"; readonly operand: Expr; readonly name: string } & Args)
  | { readonly type: "not" | "negative" | "positive"; readonly operand: Expr }
  | { readonly type: "and" | "or"; readonly left: Expr; readonly right: Expr }
  | { readonly type: "math"; readonly operator: string; readonly left: Expr; readonly right: Expr }
  | { readonly type: "concat"; readonly items: readonly Expr[] }
  | { readonly type: "compare"; readonly left: Expr; readonly operands: readonly Operand[] }
  | { readonly type: "condition"; readonly test: Expr; readonly value: Expr; readonly otherwise: Expr | null }
);
type Kind<T extends Expr["type"]> = Extract<Expr, { readonly type: T }>;

export type Target =
  | { readonly type: "name"; readonly name: string }
  | { readonly type: "field"; readonly name: string; readonly field: string }
  | { readonly type: "tuple"; readonly items: readonly Target[] };

export type Signature = { readonly params: readonly (readonly [name: string, fallback: Expr | null])[] };

export type Statement = { readonly line: number } & (
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "print"; readonly value: Expr }
  | { readonly type: "if"; readonly branches: readonly (readonly [Expr, Body])[]; readonly otherwise: Body }
  | {
      readonly type: "for";
      readonly target: Target;
      readonly over: Expr;
      readonly test: Expr | null;
      readonly recursive: boolean;
      readonly body: Body;
      readonly otherwise: Body;
    }
  | { readonly type: "set"; readonly target: Target; readonly value: Expr }
  | { readonly type: "set-block"; readonly target: Target; readonly filter: Expr | null; readonly body: Body }
  | ({ readonly type: "macro"; readonly name: string; readonly body: Body } & Signature)
  | ({ readonly type: "call"; readonly call: Kind<"call">; readonly body: Body } & Signature)
  | { readonly type: "filter"; readonly filter: Expr; readonly body: Body }
  | { readonly type: "with"; readonly sets: readonly (readonly [Target, Expr])[]; readonly body: Body }
  | { readonly type: "generation"; readonly body: Body }
  | { readonly type: "break" | "continue" }
);
export type Body = readonly Statement[];

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
export function mentions(tree: unknown, name: string): boolean {
  if (Array.isArray(tree)) return tree.some((part) => mentions(part, name));
  if (typeof tree !== "object" || tree === null) return false;
  const { type, name: own } = tree as { type?: unknown; name?: unknown };
  if (type === "name" && own === name) return true;
  return Object.values(tree).some((part) => mentions(part, name));
}
