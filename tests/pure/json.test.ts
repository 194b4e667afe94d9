// JSON as Python reads it: digits, kinds of numbers and the order of keys.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { Float, floatOf, keysOf, keyTwice, numberText, parseJson, stringifyJson } from "../../src/data/json.ts";

/** A text in the compact form that it is written in again. */
const again = (text: string) => stringifyJson(parseJson(text));

test.each([
  "76869196581463654",
  "12345678901234567890",
  "-9007199254740993",
  '{"id":9007199254740993,"b":[100000000000000000000]}',
  "1.0",
  "-0.0",
  "[1.0,2,0.5,1e-07,1e+22,0.0]",
  '{"b":1,"10":"x","2":"y"}',
  '{"a":{"10":1,"9":{"8":1.0,"7":null}},"1":true}',
  '[{"02":1,"1":2},{}]',
  '{"__proto__":{"1":2},"0":[]}',
  `{"a":"1.0 and 12345678901234567890 and \\"7\\": x"}`,
  `${"9".repeat(500)}`,
])("%s is written as it was read", (text) => {
  expect(again(text)).toBe(text);
});

test("numbers as Python prints them", () => {
  const texts = [
    "1E3",
    "1e16",
    "123456789012345.0",
    "1234567890123456.0",
    "0.0001",
    "0.00001",
    "1.5e300",
    "5e-324",
    "-0",
    "1e5",
    "2.50",
  ];
  const wanted = [
    "1000.0",
    "1e+16",
    "123456789012345.0",
    "1234567890123456.0",
    "0.0001",
    "1e-05",
    "1.5e+300",
    "5e-324",
    "0",
    "100000.0",
    "2.5",
  ];
  expect(texts.map((text) => numberText(parseJson(text) as number))).toEqual(wanted);
});

test("what has nothing of that is what JSON.parse makes of it", () => {
  const text = '{"messages":[{"role":"user","content":"2.5 and 1e5: 12"}],"n":7,"f":2.5,"t":true,"z":null,"k1":[]}';
  expect(parseJson(text)).toEqual(JSON.parse(text));
  expect(parseJson("9007199254740991")).toBe(9007199254740991);
  expect(floatOf(2.5)).toBe(2.5);
  expect(floatOf(2)).toEqual(new Float(2));
});

test("the order of keys outlives a copy with other keys", () => {
  const { b, ...rest } = parseJson('{"b":1,"10":"x","2":"y"}') as Record<string, unknown>;
  expect(keysOf({ role: "user", ...rest })).toEqual(["10", "2", "role"]);
  expect(b).toBe(1);
});

test.each(["a", "\n", '\\"'])("a string of megabytes of %j next to a float", (unit) => {
  const text = unit.repeat(3_000_000);
  expect(parseJson(`{"n": 1.0, "text": ${JSON.stringify(text)}}`)).toEqual({ n: floatOf(1), text });
});

test("of equal keys the last one counts, in the first one's place", () => {
  expect(again('{"a":1,"b":2,"a":3.0}')).toBe('{"a":3.0,"b":2}');
});

test("a key that an object has twice is found, and none is where texts only look like keys", () => {
  const rng = new Rng(11);
  const pick = <T>(all: readonly T[]): T => all[rng.below(all.length)]!;
  const KEYS = ["a", "b", "10", "7", 'q"', "back\\", 'x":', "a\\", "", "é", '\\"', " : "];
  const TEXTS = ['"a": 1', '{"a":1,"a":2}', "\\", '\\"', '":', "", "a", '\\": ', '{"b": "a\\": 1}'];
  const spaces = () => pick(["", "", " ", "\n", " \t"]);
  let doubled: string[] = [];
  const made = (depth: number): string => {
    const kind = depth === 0 ? 2 : rng.below(4);
    if (kind === 0) return `[${Array.from({ length: rng.below(4) }, () => made(depth - 1)).join(",")}]`;
    if (kind === 2) return pick([...TEXTS.map((text) => JSON.stringify(text)), "1.0", "3", "null", "-2e3"]);
    const keys: string[] = [];
    for (let left = rng.below(5); left > 0; left--) {
      const key = pick(KEYS);
      if (keys.includes(key)) {
        if (rng.uniform() < 0.7) continue;
        doubled.push(key);
      }
      keys.push(key);
    }
    const written = (key: string) => (rng.uniform() < 0.2 ? JSON.stringify(key).replace("a", "\\u0061") : JSON.stringify(key));
    return `{${keys.map((key) => `${spaces()}${written(key)}${spaces()}:${spaces()}${made(depth - 1)}`).join(",")}}`;
  };
  let [found, clean] = [0, 0];
  for (let i = 0; i < 3000; i++) {
    doubled = [];
    const text = made(4);
    const twice = keyTwice(text, parseJson(text));
    if (doubled.length === 0) expect(twice, text).toBeNull();
    else expect(doubled, text).toContain(twice!);
    if (twice === null) clean++;
    else found++;
  }
  expect(Math.min(found, clean)).toBeGreaterThan(300);
});

describe("what is refused", () => {
  test.each(["NaN", "Infinity", '{"a": -Infinity}', "[1.0,]", "01", "1.", "{'a': 1.0}", '{"1": 2', "1.0 2", "[1e5 1]"])(
    "%s",
    (text) => {
      expect(() => parseJson(text)).toThrow(SyntaxError);
    },
  );
  test("a number beyond the range of a float", () => {
    expect(() => parseJson('{"a": 1e400}')).toThrow("1e400 is beyond the range of a float");
    expect(() => parseJson("-1e400")).toThrow("beyond");
  });
});

test("random values: the same as JSON.parse but for digits, and written back without a change", () => {
  const rng = new Rng(5);
  const pick = <T>(all: readonly T[]): T => all[Math.floor(rng.uniform() * all.length)]!;
  const scalars = [
    "1",
    "-12",
    "1.0",
    "2.5",
    "1e+22",
    "12345678901234567890",
    "true",
    "null",
    '"a\\n\\u0001\\"b"',
    '"7"',
    '"é🙂"',
    '": 1.0"',
  ];
  const keys = ["a", "b", "10", "2", "007", "x y", "1.0", "é"];
  const make = (depth: number): string => {
    const count = Math.floor(rng.uniform() * 4);
    if (depth === 0 || rng.uniform() < 0.3) return pick(scalars);
    if (rng.uniform() < 0.5) return `[${Array.from({ length: count }, () => make(depth - 1)).join(",")}]`;
    const own = keys.filter(() => rng.uniform() < 0.4).sort(() => rng.uniform() - 0.5);
    return `{${own.map((key) => `"${key}":${make(depth - 1)}`).join(",")}}`;
  };
  for (let round = 0; round < 2000; round++) {
    const text = make(4);
    expect(JSON.parse(stringifyJson(parseJson(text))!)).toEqual(JSON.parse(text));
    expect(again(text)).toBe(text.replaceAll("\\u0001", "\\u0001"));
    const spaced = text.replaceAll(/([[{,:])(?=(?:[^"]*"[^"]*")*[^"]*$)/g, "$1 \n\t");
    if (!text.includes('\\"')) expect(again(spaced)).toBe(text);
  }
});
