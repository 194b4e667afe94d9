// Sealed frames: opened once, on their subject, with their key; all else is dropped.

import { expect, test } from "bun:test";
import { inheritedEnvironment } from "../../src/base/env.ts";
import { Rng } from "../../src/base/rng.ts";
import { newRunKey, opener, SEAL_BYTES, sealer } from "../../src/bus/seal.ts";

const [key, subject] = [newRunKey(), "mlora.tonight.stage.0"];
const message = new TextEncoder().encode("a row of somebody's data");

test("a frame is opened to its message, and shows nothing of it", () => {
  const [write, read] = [sealer(key), opener(key)];
  for (const size of [0, 1, 255, 2 ** 20]) {
    const bytes = new Uint8Array(size).fill(7);
    const frame = write(subject, bytes);
    expect(frame.length).toBe(size + SEAL_BYTES);
    expect(Buffer.compare(read(subject, frame)!, bytes)).toBe(0);
  }
  expect(Buffer.from(write(subject, message)).includes("data")).toBe(false);
});

test("a frame is heard once, in its order, and a message that is sent again is another frame", () => {
  const [write, read] = [sealer(key), opener(key)];
  const [first, second, again] = [write(subject, message), write(subject, message), write(subject, message)];
  expect(read(subject, second)).not.toBeNull();
  for (const old of [first, second]) expect(read(subject, old)).toBeNull();
  expect(read(subject, again)).not.toBeNull();
});

test("no byte can be changed, no other subject or key be used, nothing be cut off", () => {
  const frame = sealer(key)(subject, message);
  const rng = new Rng(1);
  for (let i = 0; i < frame.length; i++) {
    const forged = Buffer.from(frame);
    forged[i]! ^= 1 + Math.floor(rng.uniform() * 255);
    expect(opener(key)(subject, forged), `byte ${i}`).toBeNull();
    expect(opener(key)(subject, frame.subarray(0, i)), `${i} bytes`).toBeNull();
  }
  expect(opener(key)("mlora.tonight.stage.1", frame)).toBeNull();
  expect(opener(newRunKey())(subject, frame)).toBeNull();
  expect(opener(key)(subject, frame)).not.toBeNull();
});

test("of more senders than it remembers none is heard twice, and those that continue are heard on", () => {
  const read = opener(key);
  const steady = sealer(key);
  const recorded: Uint8Array[] = [];
  for (let i = 0; i < 2_000; i++) {
    const frame = sealer(key)(subject, message);
    recorded.push(frame);
    expect(read(subject, frame)).not.toBeNull();
    expect(read(subject, steady(subject, message))).not.toBeNull();
    if (i % 500 === 0) Bun.sleepSync(2); // senders begin at different times
  }
  for (const frame of recorded) expect(read(subject, frame)).toBeNull();
});

test("a child inherits nothing that has its runtime or its loader run other code", () => {
  const bad = { BUN_OPTIONS: "--preload x", BUN_BE_BUN: "1", NODE_OPTIONS: "-r x", LD_PRELOAD: "x.so", LD_AUDIT: "x.so" };
  const own = { HOME: "/home/a", CUDA_VISIBLE_DEVICES: "1", MLORA_CACHE: "/c" };
  expect(inheritedEnvironment({ ...bad, ...own, LD_LIBRARY_PATH: "/tmp:.::/nowhere" })).toEqual(own);
});
