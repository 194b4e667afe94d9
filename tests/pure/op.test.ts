// What an op checks before it launches.

import { expect, test } from "bun:test";
import type { Device, Tensor } from "../../src/device/device.ts";
import { op } from "../../src/ops/op.ts";

const device = { compute: "bf16", launch: () => undefined } as unknown as Device;
const tensor = (dtype: Tensor["dtype"], ...shape: number[]): Tensor => ({ ptr: 256, dtype, shape });

const nothing = { cpu: () => undefined, cuda: () => undefined };
const call = op("any", { x: "c M K", y: "c M 2N", ids: "i32 3", s: "f32 M R" }, { known: () => ({ R: 4 }), ...nothing });
const run = (args: object) => call(device, args);
const good = { x: tensor("bf16", 5, 7), y: tensor("bf16", 5, 6), ids: tensor("i32", 3), lora: { s: tensor("f32", 5, 4) } };

test("tensors of the types and sizes that it names pass, and those that are null or not there", () => {
  run(good);
  run({ ...good, x: null, lora: null });
  run({ ...good, y: tensor("bf16", 5, 0) });
  run({ ...good, x: tensor("bf16", 9, 1), y: tensor("bf16", 9, 2), lora: { s: tensor("f32", 9, 4) } });
});

test.each([
  ["another type", { x: tensor("f32", 5, 7) }, "'x' is f32, expected bf16"],
  ["another number of dimensions", { x: tensor("bf16", 35) }, "'x' has shape [35]"],
  ["a size that another tensor has otherwise", { y: tensor("bf16", 4, 6) }, "'y' has 4 in dimension 0, expected 5"],
  ["a size that is no multiple", { y: tensor("bf16", 5, 7) }, "'y' has 7 in dimension 1, expected a multiple of 2"],
  ["a number", { ids: tensor("i32", 6) }, "'ids' has 6 in dimension 0, expected 3"],
  ["a size that follows from the arguments", { lora: { s: tensor("f32", 5, 8) } }, "'s' has 8 in dimension 1, expected 4"],
])("is refused: %s", (_, change, message) => {
  expect(() => run({ ...good, ...change })).toThrow(message);
});
