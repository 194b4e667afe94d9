// A sequence of tokens as text that shows which of them are learned and which are cut off: in colours on a terminal, in
// brackets elsewhere.

import { visible } from "../../base/terminal.ts";
import type { Role, Run } from "../../session/preparation/data-description.ts";

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
