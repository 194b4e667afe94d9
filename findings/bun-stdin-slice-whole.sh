#!/usr/bin/env bash
# Bun 1.4.4 gives a process the whole of a file as its standard input where Bun.spawn's stdin is a slice of Bun.file.
#
# The slice read by text() or bytes() is right, and a Blob of these bytes as stdin, too. So what should compress, hash or send a part of a file does so with all of it, without a word.
# Needs npm. Exits 0 as long as that is as seen on 2026-11-30.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent --no-progress bun@1.4.4 >/dev/null

printf 'abcdefghij' >letters.txt
cat >slice.ts <<'T'
const slice = Bun.file("letters.txt").slice(6);
const through = (stdin: Blob) => Bun.spawn(["cat"], { stdin, stdout: "pipe" }).stdout.text();
console.log(`read: ${await slice.text()}, as a Blob: ${await through(new Blob([await slice.bytes()]))}, as it is: ${await through(slice)}`);
T
node_modules/.bin/bun slice.ts | tee got.txt
echo "read: ghij, as a Blob: ghij, as it is: abcdefghij" | diff - got.txt
echo "as described"
