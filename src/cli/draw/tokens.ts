// A sequence of tokens as text that shows which of them are learned and which are cut off: in colours on a terminal, in
// brackets elsewhere.

import { visible } from "../../base/terminal.ts";

/** What becomes of a token: its loss counts, it is only read, or it lies beyond max_length. */
export type Role = "learned" | "read" | "cut";
/** Neighbouring tokens of one role, as text. */
export type Run = { readonly role: Role; readonly text: string };

/** The runs of a sequence; tokens from `kept` on are cut. `decode` turns ids into text. */
export function runsOf(
  ids: ArrayLike<number>,
  mask: ArrayLike<number>,
  kept: number,
  decode: (ids: readonly number[]) => string,
): Run[] {
  const roleOf = (i: number): Role => (i >= kept ? "cut" : mask[i] === 1 ? "learned" : "read");
  const runs: Run[] = [];
  for (let from = 0; from < ids.length; ) {
    const role = roleOf(from);
    let to = from + 1;
    while (to < ids.length && roleOf(to) === role) to++;
    runs.push({ role, text: decode(Array.from(ids).slice(from, to)) });
    from = to;
  }
  return runs;
}

const COLOURS: Readonly<Record<Role, string>> = { learned: "\x1b[32m", read: "", cut: "\x1b[2;9m" };
/** Brackets that texts hardly ever hold; what is only read has none. */
const BRACKETS: Readonly<Record<Role, readonly [string, string]>> = { learned: ["⟦", "⟧"], read: ["", ""], cut: ["⟪", "⟫"] };
const RESET = "\x1b[0m";

/** The text of the runs in lines. A colour ends with its line, so that pagers show it right. */
export function drawRuns(runs: readonly Run[], colour: boolean): string[] {
  const drawn = runs.map(({ role, text }) => {
    if (!colour) return BRACKETS[role].join(visible(text));
    const paint = COLOURS[role];
    return paint === "" ? visible(text) : visible(text).replaceAll(/[^\n]+/g, (line) => `${paint}${line}${RESET}`);
  });
  return drawn.join("").split("\n");
}

/** How learned and cut tokens are shown. */
export const legend = (colour: boolean): string =>
  colour
    ? `${COLOURS.learned}learned${RESET}, read, ${COLOURS.cut}cut off${RESET}`
    : `${BRACKETS.learned.join("learned")}, read, ${BRACKETS.cut.join("cut off")}`;
