// The text of small recipes, and what is said of one that is refused.

import { RequestError } from "../../src/base/errors.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { thrown } from "./refused.ts";

export const HEAD = '[model]\npath = "base"\n[run]\noutput = "out"\n';
export const adapter = (rest = "") => `[[adapter]]\nname = "a"\ndata = "a.jsonl"\n${rest}\n`;
export const parse = (text: string, overrides = {}) => parseRecipe(text, "/here/r.toml", overrides);

/** The error's code and its lines. */
export function refused(text: string, overrides = {}): { code: string; lines: string[] } {
  const { code, message } = thrown(RequestError, () => parse(text, overrides));
  return { code, lines: message.split("\n") };
}
