import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { CODINGS } from "../../src/base/asset-codings.ts";
import { assetPath } from "../../src/base/assets.ts";
import { Rng } from "../../src/base/rng.ts";

const { addresses, registers } = CODINGS;
const encoded = (text: string) => new TextEncoder().encode(text);
const decoded = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

test("whatever bytes there are come back, and are left as they were", () => {
  const rng = new Rng(7);
  const code = [0xe8, 0x8d, 0x8b, 0x89, 0x05, 0x3d, 0, 0xff, 0x7f, 0x80, 1]; // all that the walk looks at, in any order
  for (let i = 0; i < 3000; i++) {
    const content = Buffer.from(Array.from({ length: rng.below(60) }, () => code[rng.below(code.length)]!));
    const before = Buffer.from(content);
    expect(Buffer.from(addresses.decode(addresses.encode(content)))).toEqual(before);
    expect(content).toEqual(before);
  }
});

test("calls of one function, and reads of one table, are the same four bytes wherever they stand", () => {
  const target = 300;
  const content = new Uint8Array(64);
  const view = new DataView(content.buffer);
  for (const [at, instruction] of [
    [3, [0xe8]],
    [17, [0x8d, 0x3d]],
    [31, [0xe8]],
    [44, [0x8b, 0x05]],
  ] as const) {
    content.set(instruction, at);
    view.setInt32(at + instruction.length, target - (at + instruction.length + 4), true);
  }
  const coded = new DataView(addresses.encode(content).buffer);
  expect([4, 19, 32, 46].map((at) => coded.getInt32(at, true))).toEqual([target, target, target, target]);
});

test("the native library comes back", () => {
  const content = readFileSync(assetPath("libmlora.so"));
  const coded = addresses.encode(content);
  expect(Buffer.from(coded).equals(content)).toBe(false);
  expect(Buffer.from(addresses.decode(coded)).equals(content)).toBe(true);
});

test("PTX that differs in its registers' numbers alone becomes the same text, and comes back", () => {
  const lines = (first: number) =>
    [0, 1, 2].map((i) => `add.f32 \t%r${first + i}, %r${first - i}, %rd${2 * i};\n@%p1 bra $L__BB0_2;\n`).join("");
  const text = `.reg .b32 %r<500>;\n${lines(100)}${lines(400)}mov.u32 %r1, %ctaid.x;\nmov.u32 %r0, %tid.x;\n}`;
  const coded = decoded(registers.encode(encoded(text)));
  expect(decoded(registers.decode(encoded(coded)))).toBe(text);
  const alike = coded.split("\n").filter((line) => line.startsWith("add"));
  expect(alike[4]).toBe(alike[1]!);
  expect(alike[5]).toBe(alike[2]!);
  expect(coded).toContain("%r<500>");
  expect(decoded(registers.encode(encoded("%a0 %a5 %a2\n%a7 %a4")))).toBe("%a0 %a10 %a4\n%a14 %a1");
});
