// How much a template may do with one row: chat templates come from strangers, and one without an end would stop the run.

import { TemplateError } from "./lexer.ts";

/** A row of a thousand turns takes some hundred thousand steps. */
const STEPS = 5_000_000;
/** Characters of any one text. */
const LENGTH = 64 << 20;

/** What is left for the rendering that is under way; there is one at a time. */
let left = STEPS;

export const beginSteps = (): void => {
  left = STEPS;
};

/** Counts steps of work. Throws a TemplateError when too many were taken. */
export function charge(steps: number): void {
  left -= steps;
  if (left < 0)
    throw new TemplateError(`takes more than ${STEPS} steps for one row: shorten the row, or fix the template's loops`);
}

/** Checks a text that was joined, which costs nothing until it is read. */
export function grown(text: string): string {
  if (text.length > LENGTH) throw tooLong();
  return text;
}

/** Checks a text that was made anew. */
export function sized(text: string): string {
  if (text.length > LENGTH) throw tooLong();
  charge(text.length >> 6);
  return text;
}

/** Checks how long a text or list is going to be, before it is made. */
export function fits(length: number): void {
  if (!(length <= LENGTH)) throw tooLong();
  charge(length >> 6);
}

const tooLong = (): TemplateError =>
  new TemplateError(`makes a text of more than ${LENGTH} characters: shorten the row, or fix the template`);
