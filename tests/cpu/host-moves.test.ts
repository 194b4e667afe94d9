// Adapters that go to host memory and come back, to whatever place there is: what each holds is what was written there, and
// neither memory ever holds more than its room.

import { expect, test } from "bun:test";
import { hostView } from "../../ffi/memory.ts";
import { base, openNative } from "../../ffi/native.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { AdapterPool } from "../../src/engine/pool/adapter-pool.ts";
import { adapterBytes, tableBytes } from "../../src/engine/pool/pool-memory.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { PEFT_METHODS } from "../../src/methods/registry.ts";
import { until } from "../helpers/bus.ts";
import { LINEARS, tinySpec } from "../helpers/tiny.ts";

type Held = { readonly adapter: PoolAdapter; readonly bytes: number; values: Float32Array<ArrayBuffer>; isHere: boolean };

test("10,000 adapters that join, leave, wait in host memory and come back keep every bit, in the room that there is", async () => {
  const [spec, layers, slots] = [tinySpec({ hidden: 32 }), { from: 0, to: 2 }, 16];
  using device = new CpuDevice(1);
  const rng = new Rng(31);
  const randomAdapter = (): PoolAdapter => {
    const targets = LINEARS.filter(() => rng.below(2) === 0);
    const method = PEFT_METHODS[rng.below(PEFT_METHODS.length)]!;
    return {
      rank: 1 + rng.below(rng.below(3) === 0 ? 64 : 12),
      scale: 1,
      targets: targets.length > 0 ? targets : [LINEARS[0]!],
      method,
    };
  };
  const largest = adapterBytes(spec, layers, { rank: 64, targets: LINEARS, method: "dora" }, device);
  const room = { blockBytes: 3 * largest, hostBytes: 2 * largest };
  const tables = tableBytes({ spec, layers, slots });
  const pool = new AdapterPool(device, spec, layers, slots, [], room);
  const held: (Held | null)[] = range(slots).map(() => null);
  const taken = (isHere: boolean) => sum(held.map((of) => (of?.isHere === isHere ? of.bytes : 0)));
  const counts = { admit: 0, offload: 0, fetch: 0, release: 0 };
  for (let event = 0; event < 10_000; event++) {
    const slot = rng.below(slots);
    const of = held[slot]!;
    if (!of) {
      const adapter = randomAdapter();
      const bytes = adapterBytes(spec, layers, adapter, device);
      if (taken(true) + bytes > room.blockBytes) continue;
      pool.admit(slot, adapter);
      const values = Float32Array.from({ length: pool.layout(slot).size }, () => rng.uniform());
      for (const what of ["params", "v"] as const) pool.write(slot, what, values);
      held[slot] = { adapter, bytes, values, isHere: true };
      counts.admit++;
    } else {
      // Read while it may be on its way, it is what it was.
      const isLeaving = of.isHere && taken(false) + of.bytes <= room.hostBytes && rng.below(3) > 0;
      const isComing = !of.isHere && taken(true) + of.bytes <= room.blockBytes && rng.below(3) > 0;
      const moved = isLeaving ? pool.offload(slot) : isComing ? pool.fetch(slot) : null;
      const [params, m, v] = await (await pool.snapshot(slot, ["params", "m", "v"])).values;
      expect(params).toEqual(of.values);
      expect(v).toEqual(of.values);
      expect((m as Float32Array).every((value) => value === 0)).toBe(true);
      await moved;
      if (moved) of.isHere = isComing;
      if (moved) counts[isComing ? "fetch" : "offload"]++;
      else if (rng.below(2) === 0) {
        await pool.settled(slot);
        pool.release(slot);
        held[slot] = null;
        counts.release++;
      }
    }
    expect(device.allocated).toBeLessThanOrEqual(tables + room.blockBytes);
    expect(device.allocated).toBeGreaterThanOrEqual(tables + taken(true));
    expect(device.pinnedBytes).toBeLessThanOrEqual(room.hostBytes);
    expect(device.pinnedBytes).toBeGreaterThanOrEqual(taken(false));
  }
  for (const count of Object.values(counts)) expect(count).toBeGreaterThan(500);
  pool[Symbol.dispose]();
  expect([device.allocated, device.pinnedBytes]).toEqual([0, 0]);
});

test("pages that threads have the system give are zero, whatever their number, and there when it says so", async () => {
  openNative();
  for (const [bytes, threads] of [
    [1, 3],
    [4096, 16],
    [12_345, 2],
    [5 << 20, 7],
  ] as const) {
    const ptr = base.native_allocate(bytes)!;
    base.native_populate(ptr, bytes, threads);
    await until("pages", 150_000, () => base.native_is_populated(ptr) !== 0);
    const view = new Uint8Array(hostView(ptr, bytes));
    expect(view.every((byte) => byte === 0)).toBe(true);
    view.fill(7);
    expect(view.at(-1)).toBe(7);
    base.native_release(ptr);
  }
});
