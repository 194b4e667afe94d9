// Types of elements that safetensors files may have, also those that nothing here computes with.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileFingerprint } from "../../src/files/fingerprint.ts";
import { openSafetensors } from "../../src/files/safetensors.ts";
import { refused } from "../helpers/refused.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-types-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A file with this header, and as many bytes after it. */
function fileOf(header: object, bytes: number): string {
  const path = join(root, "types.safetensors");
  const json = new TextEncoder().encode(JSON.stringify(header));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(json.length), true);
  writeFileSync(path, Buffer.concat([new Uint8Array(length.buffer), json, new Uint8Array(bytes)]));
  return path;
}

test("what is no file is refused: a pipe is not waited for", () => {
  const path = join(root, "pipe.safetensors");
  expect(Bun.spawnSync(["mkfifo", path]).exitCode).toBe(0);
  for (const [place, what] of [
    [path, "it is no regular file"],
    ["/dev/zero", "it is no regular file"],
    [root, "it is a folder"],
  ] as const) {
    expect(refused(() => openSafetensors(place))).toMatchObject({ code: "safetensors.file", message: `${place}: ${what}` });
    expect(() => fileFingerprint(place)).toThrow(what);
  }
});

/** Bits of an element. */
const BITS = {
  ...{ F4: 4, F6_E2M3: 6, F6_E3M2: 6, BOOL: 8, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8 },
  ...{ F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8, I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32 },
  ...{ I64: 64, U64: 64, F64: 64, C64: 64 },
};
const OWN: Readonly<Record<string, string>> = { F32: "f32", F16: "f16", BF16: "bf16", I32: "i32", I64: "i64", U8: "u8" };

test("all types of safetensors 0.8 have their sizes", () => {
  let at = 0;
  const header = Object.fromEntries(
    Object.entries(BITS).map(([dtype, bits]) => {
      const begin = at;
      at += bits; // eight elements
      return [dtype, { dtype, shape: [2, 4], data_offsets: [begin, at] }];
    }),
  );
  using file = openSafetensors(fileOf(header, at));
  expect([...file.tensors].map(([name, { bytes, dtype }]) => [name, bytes, dtype])).toEqual(
    Object.entries(BITS).map(([type, bits]) => [type, bits, OWN[type] ?? null]),
  );
});

test("a tensor has whole bytes", () => {
  const path = fileOf({ a: { dtype: "F4", shape: [3], data_offsets: [0, 1] } }, 1);
  expect(refused(() => openSafetensors(path)).message).toContain("F4 [3], needs 1.5 bytes and has 1");
});
