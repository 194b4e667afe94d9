// The text of small recipes, and what is said of one that is refused.

import { expect } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { parseRecipe } from "../../src/recipe/load.ts";

export const HEAD = '[model]\npath = "base"\n[run]\noutput = "out"\n';
export const adapter = (rest = "") => `[[adapter]]\nname = "a"\ndata = "a.jsonl"\n${rest}\n`;
export const parse = (text: string, overrides = {}) => parseRecipe(text, "/here/r.toml", overrides);

/** The error's code and its lines. */
export function refused(text: string, overrides = {}): { code: string; lines: string[] } {
  try {
    parse(text, overrides);
  } catch (error) {
    expect(error).toBeInstanceOf(RequestError);
    return { code: (error as RequestError).code, lines: (error as RequestError).message.split("\n") };
  }
  throw new Error("was accepted");
}
