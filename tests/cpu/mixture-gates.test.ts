// What Qwen's mixtures compute next to experts: the gate of an expert that all tokens pass, and columns sorted by part.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { Arena } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Tensor } from "../../src/device/device.ts";
import { type Parts, regroup } from "../../src/ops/regroup.ts";
import { tokengateBackward, tokengateForward } from "../../src/ops/tokengate.ts";

const device = new CpuDevice(3);
const random = (rng: Rng, size: number) => Float32Array.from({ length: size }, () => rng.normal());

function put(arena: Arena, values: Float32Array, ...shape: number[]): Tensor {
  const tensor = arena.tensor("f32", ...shape);
  device.write(tensor, values);
  return tensor;
}
const read = async (tensor: Tensor) => new Float32Array((await device.read(tensor)).buffer);

test("rows times the gate of their token, and the gradients, of which one is added", async () => {
  using arena = new Arena(device, 1 << 20, "a test");
  const [M, H] = [37, 20];
  const rng = new Rng(3);
  const [x, gate, residual, dy, begun] = range(5).map(() => random(rng, M * H)) as Float32Array[];
  const weight = random(rng, H);
  const shape = [M, H] as const;
  const args = { x: put(arena, x!, ...shape), gate: put(arena, gate!, ...shape), weight: put(arena, weight, 1, H) };
  const y = arena.tensor("f32", ...shape);
  tokengateForward(device, { ...args, residual: put(arena, residual!, ...shape), y });
  const [dx, dgate] = [put(arena, dy!, ...shape), put(arena, begun!, ...shape)];
  tokengateBackward(device, { ...args, dy: dx, dx, dgate });
  const [gotY, gotX, gotGate] = [await read(y), await read(dx), await read(dgate)];
  for (const m of range(M)) {
    const at = (of: Float32Array) => of.subarray(m * H, (m + 1) * H);
    const dot = (a: Float32Array, b: Float32Array) => sum([...a].map((value, i) => value * b[i]!));
    const s = 1 / (1 + Math.exp(-dot(at(gate!), weight)));
    const d = s * (1 - s) * dot(at(dy!), at(x!));
    for (const i of range(H)) {
      expect(Math.abs(at(gotY)[i]! - at(residual!)[i]! - s * at(x!)[i]!)).toBeLessThan(1e-5);
      expect(Math.abs(at(gotX)[i]! - s * at(dy!)[i]!)).toBeLessThan(1e-5);
      expect(Math.abs(at(gotGate)[i]! - at(begun!)[i]! - d * weight[i]!)).toBeLessThan(1e-5);
    }
  }
});

test("columns by group are sorted by part, and back", async () => {
  using arena = new Arena(device, 1 << 20, "a test");
  for (const [groups, parts] of [
    [3, [2, 2, 5, 4]],
    [4, [3, 1, 0, 0]],
  ] as const satisfies readonly (readonly [number, Parts])[]) {
    const [M, W] = [5, groups * sum(parts)];
    const whole = range(M * W).map((i) => i + 1);
    const want = range(M).flatMap((m) =>
      parts.flatMap((size, part) =>
        range(groups).flatMap((group) => {
          const first = m * W + group * sum(parts) + sum(parts.slice(0, part));
          return whole.slice(first, first + size);
        }),
      ),
    );
    const [to, again] = [arena.tensor("f32", M, W), arena.tensor("f32", M, W)];
    regroup(device, { from: put(arena, Float32Array.from(whole), M, W), to, groups, parts, isBack: false });
    expect([...(await read(to))]).toEqual(want);
    regroup(device, { from: to, to: again, groups, parts, isBack: true });
    expect([...(await read(again))]).toEqual(whole);
  }
});
