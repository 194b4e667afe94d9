// Each adapter has memory of its own: what joins and leaves moves nothing, and a plan counts it to the byte.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { GRANULARITY } from "../../src/device/device.ts";
import { NullDevice } from "../../src/device/null.ts";
import { AdapterPool } from "../../src/engine/pool/adapter-pool.ts";
import { adapterBytes, tableBytes } from "../../src/engine/pool/pool-memory.ts";
import { type Linear, linearShape } from "../../src/families/linears.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { OPTIMIZERS } from "../../src/methods/optimizers.ts";
import { placed } from "../../src/methods/placement.ts";
import { PEFT_METHODS } from "../../src/methods/registry.ts";
import { LINEARS, tinySpec } from "../helpers/tiny.ts";

/** An adapter with a method, optimizer, rank, targets and, now and then, places of its own. */
const randomAdapter = (rng: Rng, layers: number): PoolAdapter => ({
  ...randomPlaces(rng, layers),
  optimizer: OPTIMIZERS[rng.below(OPTIMIZERS.length)]!,
});

function randomPlaces(rng: Rng, layers: number): PoolAdapter {
  const rank = 1 + rng.below(rng.below(4) === 0 ? 64 : 12);
  const method = PEFT_METHODS[rng.below(PEFT_METHODS.length)]!;
  const chosen = LINEARS.filter(() => rng.below(2) === 0);
  const targets = chosen.length > 0 ? chosen : [LINEARS[rng.below(LINEARS.length)]!];
  const scale = 0.1 + rng.uniform();
  if (method !== "lora" || rng.below(4) > 0) return { rank, scale, targets, method };
  const at = () => (rng.below(3) === 0 ? null : { rank: 1 + rng.below(rank), scale: rng.uniform() + 0.1 });
  const places = placed(layers, (_, linear) => (targets.includes(linear) ? at() : null));
  return places.targets.length > 0 ? { ...places, method } : { rank, scale, targets, method };
}

test("10,000 adapters that join, leave and are copied move no other, and none costs a granule more than it needs", async () => {
  const [spec, layers, slots] = [tinySpec({ hidden: 32 }), { from: 0, to: 2 }, 24];
  const device = new NullDevice("bf16");
  const rng = new Rng(25);
  const needs = (adapter: PoolAdapter) => adapterBytes(spec, layers, adapter, device);
  const tables = tableBytes({ spec, layers, slots });
  {
    using pool = new AdapterPool(device, spec, layers, slots, []);
    const held: (PoolAdapter | null)[] = range(slots).map(() => null);
    const addressOf = new Map<number, number>();
    const taken = () => new Set(device.live.keys());
    for (let event = 0; event < 10_000; event++) {
      const [slot, kind] = [rng.below(slots), rng.below(3)];
      const source = held[rng.below(slots)];
      const next = kind === 0 ? null : kind === 1 && source ? { ...source } : randomAdapter(rng, spec.layers);
      const before = taken();
      if (next) pool.admit(slot, next);
      else pool.release(slot);
      const after = taken();
      held[slot] = next;
      const [gone, come] = [[...before].filter((at) => !after.has(at)), [...after].filter((at) => !before.has(at))];
      expect(gone).toEqual(addressOf.has(slot) ? [addressOf.get(slot)!] : []); // its own and no other
      expect(come.length).toBe(next ? 1 : 0);
      if (next) addressOf.set(slot, come[0]!);
      else addressOf.delete(slot);
      if (event % 100 > 0) continue;
      const all = held.flatMap((of) => of ?? []);
      expect(device.allocated).toBe(tables + sum(all.map(needs)));
      for (const adapter of all) expect(needs(adapter) % GRANULARITY.null).toBe(0);
    }
  }
  expect(device.live.size).toBe(0);
});

test("at rest an adapter costs less than a granule more than its tensors with their moments and copies", () => {
  const [spec, layers] = [tinySpec({ hidden: 64, intermediate: 96 }), { from: 0, to: 2 }];
  const widths = (linear: Linear) => linearShape(spec, linear).in + linearShape(spec, linear).out;
  for (const compute of ["f32", "bf16"] as const)
    for (const kind of ["cpu", "cuda"] as const)
      for (const rank of [1, 8, 77, 256]) {
        const lora = { rank, scale: 1, targets: LINEARS };
        const elements = 2 * rank * sum(LINEARS.map(widths));
        const bytes = adapterBytes(spec, layers, lora, { kind, compute });
        expect(bytes).toBeGreaterThanOrEqual(elements * (compute === "bf16" ? 14 : 12));
        const aligned = 2 * 14 * 128 * 18 + 4096; // each tensor begins at a multiple of 128 elements; tables of tensors
        expect(bytes).toBeLessThan(elements * (compute === "bf16" ? 14.2 : 12.2) + aligned + GRANULARITY[kind]);
        // A moment takes a byte, and 4 bytes for each 128: a quarter and 1/128 of 4 bytes.
        const eight = adapterBytes(spec, layers, { ...lora, optimizer: "adamw-8bit" }, { kind, compute });
        const saved = elements * 2 * 4 * (3 / 4 - 1 / 128);
        expect(bytes - eight).toBeGreaterThan(saved - 4096 - GRANULARITY[kind]);
        expect(bytes - eight).toBeLessThan(saved * 1.02 + aligned + GRANULARITY[kind]);
      }
});
