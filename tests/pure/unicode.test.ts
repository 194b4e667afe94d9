// Every code point as the original tokenizers know it (tests/golden/tokenizers/make_unicode.py). What fails here after another
// Bun knows newer characters: name them in src/data/unicode.ts.

import { expect, test } from "bun:test";
import { asOniguruma, type NormalForm, normalForm } from "../../src/data/unicode.ts";
import golden from "../golden/tokenizers/unicode.json";

const sha256 = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest("hex");
const chars = Array.from({ length: 0x110000 }, (_, point) => point)
  .filter((point) => point < 0xd800 || point > 0xdfff)
  .map((point) => String.fromCodePoint(point));

test.each(Object.entries(golden.classes))("\\p{%s} holds the same characters", (name, hash) => {
  const regex = new RegExp(`\\p{${name}}`, "u");
  expect(
    sha256(
      chars
        .filter((char) => regex.test(asOniguruma(char)))
        .map((char) => char.codePointAt(0))
        .join(","),
    ),
  ).toBe(hash);
});

test.each(Object.entries(golden.forms))("%s changes the same characters in the same way", (form, hash) => {
  const made = chars.map((char) => normalForm(form as NormalForm, `e${char}\u0323\u0301${char}\u0301`));
  expect(sha256(made.join("\n"))).toBe(hash);
});

test("the text that a regular expression sees has the length of the text", () => {
  expect(chars.filter((char) => asOniguruma(char).length !== char.length)).toEqual([]);
});
