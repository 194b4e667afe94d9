#!/usr/bin/env bash
# Bun 1.4.4's node:zlib takes the end of the input for the end of a zstd frame, where Node 24.21.0 reports an error.
#
# createZstdDecompress gives what came of a file that is cut off, and ends without an error; createGunzip refuses the same. A
# download that broke so becomes a shorter file that looks whole.
# Needs npm. Prints what both make of half of a compressed text; fails when they agree, or do otherwise than seen on 2026-11-29.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund bun@1.4.4 node@24.21.0 >/dev/null
cat >try.mjs <<'J'
import { Readable, Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import * as zlib from "node:zlib";

const text = Buffer.from(Array.from({ length: 200_000 }, (_, i) => `row ${i}\n`).join(""));
async function read(bytes, decoder) {
  let got = 0;
  const count = (chunk, _, done) => done(void (got += chunk.length));
  try {
    await pipeline(Readable.from([bytes]), decoder, new Writable({ write: count }));
    return `${got === text.length ? "all" : "some"} bytes, no error`;
  } catch (error) {
    return error.message;
  }
}
const [zst, gz] = [zlib.zstdCompressSync(text), zlib.gzipSync(text)];
console.log(`zstd, whole: ${await read(zst, zlib.createZstdDecompress())}`);
console.log(`zstd, half: ${await read(zst.subarray(0, zst.length >> 1), zlib.createZstdDecompress())}`);
console.log(`gzip, half: ${await read(gz.subarray(0, gz.length >> 1), zlib.createGunzip())}`);
J
found="$(echo Bun && node_modules/.bin/bun try.mjs && echo Node && node_modules/node/bin/node try.mjs)"
echo "$found"
expected="Bun
zstd, whole: all bytes, no error
zstd, half: some bytes, no error
gzip, half: unexpected end of file
Node
zstd, whole: all bytes, no error
zstd, half: unexpected end of file
gzip, half: unexpected end of file"
[[ "$found" == "$expected" ]] || { echo "it has changed" && exit 1; }
