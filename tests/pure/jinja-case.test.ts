// Cases of letters, and what digits and numbers are, as Python 3.11 has them. What is expected was printed by it; over all
// characters of the first three planes nothing differs but those that Unicode has changed since.

import { describe, expect, test } from "bun:test";
import { Template } from "../../src/data/jinja.ts";

const said = (expression: string, x: string) => new Template(`{{ ${expression} }}`).render({ x });

describe("str methods of letters whose cases JavaScript does not know", () => {
  test.each([
    ["ßa ǆa ﬁa ŉa", "Ssa ǅa Fia ʼNa", "Ssa ǆa ﬁa ŉa", "SSA ǄA FIA ʼNA", "ssa ǆa fia ʼna"],
    [
      "აბ ΑΣ ᾳσ \u1fb7ς",
      "აბ Ας ᾼσ \u0391\u0342\u0345ς",
      "აბ ας ᾳσ \u1fb7ς",
      "ᲐᲑ ας ΑΙΣ \u0391\u0342ΙΣ",
      "აბ ασ αισ \u03b1\u0342ισ",
    ],
    ["ᏸᎠ ꭰ ıİ ẞ ſµ", "Ᏸꭰ Ꭰ Ii̇ ẞ Sµ", "Ᏸꭰ ꭰ ıi̇ ß ſµ", "Ᏸꭰ Ꭰ Ii̇ ß SΜ", "ᏰᎠ Ꭰ ıi̇ ss sμ"],
    ["it's o'neill ǅa", "It'S O'Neill ǅa", "It's o'neill ǆa", "IT'S O'NEILL ǅA", "it's o'neill ǆa"],
    ["𐐨a 𐐀b", "𐐀a 𐐀b", "𐐀a 𐐨b", "𐐀A 𐐨B", "𐐨a 𐐨b"],
    ["", "", "", "", ""],
  ])("%s", (text, titled, capital, swapped, folded) => {
    expect(said("x.title()", text)).toBe(titled);
    expect(said("x.capitalize()", text)).toBe(capital);
    expect(said("x | capitalize", text)).toBe(capital);
    expect(said("x.swapcase()", text)).toBe(swapped);
    expect(said("x.casefold()", text)).toBe(folded);
  });

  test("the filter has upper case where the method has title case", () => {
    expect(["ßa-ǆa", "𐐨𐐀 b"].map((text) => said("x | title", text))).toEqual(["SSa-Ǆa", "𐐀𐐨 B"]);
  });
});

test.each([
  ["一二", [0, 1, 0, 1]],
  ["²", [1, 1, 0, 0]],
  ["①", [1, 1, 0, 0]],
  ["❷", [1, 1, 0, 0]],
  ["½", [0, 1, 0, 0]],
  ["Ab Cd", [0, 0, 1, 0]],
  ["ǅa", [0, 0, 1, 1]],
  ["AB", [0, 0, 0, 1]],
  ["aB", [0, 0, 0, 1]],
  ["ʰ", [0, 0, 0, 1]],
  ["Ⅷ", [0, 1, 1, 1]],
  ["ab_1", [0, 0, 0, 1]],
  ["ﹰ", [0, 0, 0, 0]],
  ["ͺa", [0, 0, 0, 0]],
])("what %s is", (text, is) => {
  const asked = ["isdigit", "isnumeric", "istitle", "isidentifier"].map((name) => said(`1 if x.${name}() else 0`, text));
  expect(asked.map(Number)).toEqual([...is]);
});

test("a character of an escaped text is one of the text that is written", () => {
  expect(said("(x | e)[1] ~ (x | safe)[-1]", "a&")).toBe("&&");
});
