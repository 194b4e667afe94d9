// The filter indent.

import { asInt, asText } from "./args.ts";
import { fits } from "./limits.ts";
import { splitLines } from "./methods.ts";
import { isTrue, textOf } from "./values.ts";

export function indent(value: unknown, width: unknown, first: unknown, blank: unknown): string {
  const by = typeof width === "string" ? width : " ".repeat(Math.max(0, asInt("indent", width)));
  const lines = splitLines(`${asText("indent", value)}\n`);
  fits(textOf(value).length + lines.length * by.length);
  const [head = "", ...rest] = lines;
  const body = isTrue(blank)
    ? lines.join(`\n${by}`)
    : [head, ...rest.map((line) => (line === "" ? line : by + line))].join("\n");
  return isTrue(first) ? by + body : body;
}
