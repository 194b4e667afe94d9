// Templates against transformers and Jinja2 themselves (tests/golden/jinja/make.py), and their bounds.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseDay, strftimeNow, Template, TemplateError } from "../../src/data/jinja.ts";
import { parseJson } from "../../src/data/json.ts";

const GOLDEN = join(import.meta.dir, "../golden/jinja");
const read = (name: string): string => readFileSync(join(GOLDEN, name), "utf8");
const strftime_now = strftimeNow(parseDay("2024-07-26")!, () => {});

/** The text, or null where the template, or what it was given, is refused. */
function rendered(text: string, variables: Record<string, unknown>): string | null {
  try {
    return new Template(text).render({ strftime_now, ...variables });
  } catch (error) {
    if (error instanceof TemplateError) return null;
    throw error;
  }
}

const faultOf = (text: string, variables: Record<string, unknown> = {}): string => {
  try {
    new Template(text).render(variables);
  } catch (error) {
    expect(error).toBeInstanceOf(TemplateError);
    return (error as Error).message;
  }
  return "";
};

describe("as transformers renders it", () => {
  const templates: Record<string, string> = JSON.parse(
    new TextDecoder().decode(Bun.gunzipSync(readFileSync(join(GOLDEN, "templates.json.gz")))),
  );
  const hashes: Record<string, (string | null)[]> = JSON.parse(read("renderings.json"));
  const rows = read("conversations.jsonl").trimEnd().split("\n");
  const specials = { bos_token: "<s>", eos_token: "</s>", pad_token: "<pad>", unk_token: "<unk>" };
  const hash = (text: string | null) =>
    text === null ? null : new Bun.CryptoHasher("sha256").update(text).digest("hex").slice(0, 12);

  test("there are templates of more than 25 families and 40 conversations", () => {
    expect(Object.keys(templates)).toEqual(Object.keys(hashes));
    expect(new Set(Object.keys(templates).map((name) => name.replace(/_training$|_v\d$/, ""))).size).toBeGreaterThan(25);
    expect(rows.length).toBeGreaterThanOrEqual(40);
  });

  test.each(Object.entries(templates))("%s", (name, text) => {
    const given = { ...specials, tools: null, documents: null, add_generation_prompt: false };
    const found = rows.map((row) => hash(rendered(text, { ...given, ...(parseJson(row) as object) })));
    expect(found).toEqual(hashes[name]!);
    expect(found.filter((one) => one !== null).length).toBeGreaterThan(5);
  });
});

test("small templates, each with one thing that a template may write", () => {
  const variables = parseJson(read("snippet-variables.json")) as Record<string, unknown>;
  const snippets: [string, string | null][] = JSON.parse(read("snippets.json"));
  expect(snippets.filter(([, text]) => text !== null).length).toBeGreaterThan(250);
  for (const [text, wanted] of snippets) expect([text, rendered(text, variables)]).toEqual([text, wanted]);
});

describe("what is refused", () => {
  test.each([
    ["a\nb\n{% include 'x' %}", "line 3: the tag 'include' is not supported"],
    ["{% for x in y %}\n{% endif %}", "line 2: unknown tag 'endif'"],
    ["\n{{ x | pprint }}", "line 2: the filter 'pprint' is unknown or not supported"],
    ["{{ x is nice }}", "line 1: unknown test 'nice'"],
    ["{% if x %}", "line 1: expected 'elif' or 'else' or 'endif', found the template's end"],
    ["{% break %}", "line 1: 'break' stands outside of a loop"],
    ["{{ 'a' | map('upper') }}", "a generator cannot be printed: Python writes an address of its memory"],
    ["{{ x.append(1) }}", "list.append() is refused: templates must not change what they are given (as in transformers)"],
    ["{{ ('a' | safe) + '<' }}", "'+' is not possible between 'Markup' and 'str'"],
    ["{{ raise_exception('roles must alternate') }}", "roles must alternate"],
    ["{{ strftime_now('%Q') }}", "'strftime_now' is undefined"],
  ])("%s", (text, message) => {
    expect(faultOf(text, { x: [] })).toBe(message);
  });

  test("nesting that is too deep, when it is compiled and when it is rendered", () => {
    expect(faultOf(`{{ ${"(".repeat(100_000)}1${")".repeat(100_000)} }}`)).toContain("nested too deeply");
    expect(faultOf("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")).toContain("calls itself too often");
  });

  // Each of these would take hours, or more memory than there is.
  test.each([
    [
      "loops",
      "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    ],
    ["filters", "{% for a in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}"],
    [
      "characters",
      "{% set ns = namespace(x='🙂a') %}{% for a in range(24) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{% for a in range(99999) %}{{ ns.x | length }}{% endfor %}",
    ],
    ["text that doubles", "{% set ns = namespace(x='ab') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"],
    ["lists that double", "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"],
    ["output", "{% set x = 'a' * 1000000 %}{% for a in range(99999) %}{{ x }}{% endfor %}"],
    ["repetition", "{{ 'ab' * 10 ** 12 }}"],
    ["width", "{{ '%999999999999d' % 1 }}"],
    ["powers", "{{ 9 ** (9 ** 9) }}"],
    ["products", "{% set ns = namespace(x=3) %}{% for a in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}"],
    ["ranges", "{{ range(10 ** 15) | list | length }}"],
    ["replacement", "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}"],
    [
      "nested values",
      "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    ],
    [
      "nested JSON",
      "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ],
    [
      "comparison",
      "{% set ns = namespace(x=[1], y=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    ],
  ])(
    "work without end: %s",
    (_, text) => {
      expect(faultOf(text)).toMatch(/more than \d+ (steps|characters|bits)|is too long/);
    },
    180_000,
  );

  test("the bound is of one rendering, not of all", () => {
    const template = new Template("{% for a in range(90000) %}x{% endfor %}");
    for (let i = 0; i < 40; i++) expect(template.render({}).length).toBe(90_000);
  });
});

test("days are read as templates' users write them, and written as Python writes them", () => {
  for (const text of ["26 Jul 2024", "26 July 2024", "July 26, 2024", "2024-07-26"])
    expect(parseDay(text)?.toISOString()).toBe("2024-07-26T00:00:00.000Z");
  for (const text of ["", "today", "31 Feb 2024", "26/07/2024", "2024-13-01"]) expect(parseDay(text)).toBeNull();
});
