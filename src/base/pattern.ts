// Regular expressions as Python reads them, where JavaScript reads them alike. PEFT matches modules by them; the paths of
// modules are ASCII.

export class PatternError extends Error {}

/** What the two read otherwise, or one of them alone. */
const OTHERWISE: readonly (readonly [RegExp, (found: string) => string])[] = [
  [/^\(\?(?!:|=|!|<=|<!)[^)]{0,2}/, (found) => `'${found}'`],
  [/^\\[1-9]/, (found) => `the reference '${found}'`],
  [/^\\(?![dDwWsSbBntrfv\W]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}).?/, (found) => `'${found}'`],
  [/^[*+?}]\+/, (found) => `'${found}'`],
  [/^\{,\d*\}/, (found) => `'${found}'`],
  [/^\[\^?\]/, (found) => `'${found}' at the beginning of a set`],
];

const compiled = new Map<string, RegExp>();

/**
 * `whole`: as re.fullmatch; `end`: as PEFT's patterns, `(.*\.)?(pattern)$` by re.match. Throws a PatternError that says what is
 * wrong.
 */
export function compilePattern(pattern: string, match: "whole" | "end"): RegExp {
  const key = `${match} ${pattern}`;
  const known = compiled.get(key);
  if (known) return known;
  for (let at = 0, inSet = false; at < pattern.length; at++) {
    const rest = pattern.slice(at);
    for (const [form, told] of OTHERWISE) {
      const found = form.exec(rest)?.[0];
      if (found !== undefined && (!inSet || found.startsWith("\\")))
        throw new PatternError(`${told(found)} means something else in Python, or nothing in JavaScript; write it without`);
    }
    if (rest[0] === "\\") at++;
    else if (rest[0] === "[") inSet = true;
    else if (rest[0] === "]") inSet = false;
  }
  try {
    new RegExp(pattern); // by itself, so that no parenthesis closes ours
    const made = new RegExp(match === "whole" ? `^(?:${pattern})$` : `^(?:.*\\.)?(?:${pattern})$`);
    compiled.set(key, made);
    return made;
  } catch (error) {
    throw new PatternError(`is no regular expression: ${error instanceof Error ? error.message : error}`);
  }
}
