import { expect, test } from "bun:test";
import { readReport } from "../../scripts/junit.ts";

test("every state of a test is told apart, with its place", () => {
  const { tests } = readReport(`<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="bun test" tests="4" failures="1" skipped="1">
  <testsuite name="tests/a.test.ts" file="tests/a.test.ts">
    <testsuite name="links [needs 2 gpu, found 0]">
      <testcase name="x" classname="links [needs 2 gpu, found 0]" time="0" file="tests/a.test.ts" line="2" assertions="0">
        <skipped />
      </testcase>
    </testsuite>
    <testcase name="a &lt;b&gt; &amp;amp; &quot;c&quot; &#10;" classname="" time="0.00001" file="tests/a.test.ts" line="3" assertions="0" />
    <testcase name="bad" classname="" file="tests/a.test.ts">
      <failure type="AssertionError" message="expected&#10;2">AssertionError</failure>
    </testcase>
    <testcase name="good" classname="of &gt; many" file="tests/a.test.ts" />
  </testsuite>
</testsuites>`);
  expect(tests.map(({ state }) => state)).toEqual(["skipped", "passed", "failed", "passed"]);
  expect(tests.map(({ file }) => file)).toEqual(Array(4).fill("tests/a.test.ts"));
  expect(tests[0]!.suite).toBe("links [needs 2 gpu, found 0]");
  expect(tests[1]!.name).toBe('a <b> &amp; "c" \n');
  expect(tests[3]!.suite).toBe("of > many");
});

test("a report without tests has none", () => {
  expect(readReport('<testsuites name="bun test" tests="0"></testsuites>').tests).toEqual([]);
});
