// Adapters that share too few slots: each comes to its turn, keeps its slot while it is used, and is set aside whole.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { Shares } from "../../src/session/decoding/shares.ts";
import { type Resident, resident, Slots } from "../../src/session/primitives/slots.ts";

type Thing = Resident & { readonly id: number; state: "new" | "slot" | "aside" | "moving"; calls: number };

/** Things in slots that check each other: what is not as it must be throws. */
function play({ slots = 2, bytes = 100, idleMs = 0, turnMs = 0, shares = new Shares() } = {}) {
  const held = new Map<number, Thing>();
  const options = {
    ...{ slots, bytes: [bytes], idleMs, turnMs, shares },
    fill: async (of: Thing, slot: number) => {
      if (held.has(slot) || (of.state !== "new" && of.state !== "aside")) throw new Error(`fill of ${of.id}: ${of.state}`);
      held.set(slot, of);
      of.state = "moving";
      await Bun.sleep(0);
      of.state = "slot";
    },
    setAside: async (of: Thing, slot: number) => {
      if (held.get(slot) !== of || of.state !== "slot" || of.calls > 0) throw new Error(`aside of ${of.id}: ${of.state}`);
      of.state = "moving";
      await Bun.sleep(0);
      held.delete(slot);
      of.state = "aside";
    },
  };
  const all = new Slots<Thing>(options);
  const use = (of: Thing) =>
    all.use(of, async (slot) => {
      of.calls++;
      await Bun.sleep(0);
      if (held.get(slot) !== of || of.state !== "slot") throw new Error(`use of ${of.id}: ${of.state}`);
      const room = [...held.values()].reduce((sum, { bytes: [size] }) => sum + size!, 0);
      if (room > bytes) throw new Error(`${room} bytes are taken`);
      of.calls--;
      return slot;
    });
  const leave = (of: Thing) =>
    all.leave(of, async (slot) => {
      if (held.get(slot) !== of) throw new Error(`leave of ${of.id}`);
      await Bun.sleep(0);
      held.delete(slot);
      of.state = "new";
    });
  return { all, use, leave, held };
}

const things = (count: number, size: (i: number) => number = () => 10, ownerOf: (id: number) => string = () => ""): Thing[] =>
  range(count).map((id) => ({ ...resident([size(id)], ownerOf(id)), id, state: "new", calls: 0 }));

test("many things in few slots, used, left and used again in any order", async () => {
  for (const seed of range(20)) {
    const rng = new Rng(seed);
    const { all, use, leave, held } = play({ slots: 1 + rng.below(4), bytes: 40 });
    using _all = all;
    const of = things(9, (i) => 1 + ((i * 13) % 40));
    let served = 0;
    await Promise.all(
      of.map(async (thing) => {
        for (const _ of range(25)) {
          if (rng.below(6) === 0) await leave(thing);
          else {
            const slots = await Promise.all(range(1 + rng.below(3)).map(() => use(thing)));
            served += slots.length;
          }
          if (rng.below(3) === 0) await Bun.sleep(0);
        }
      }),
    );
    expect(served).toBeGreaterThan(9 * 15);
    expect(held.size).toBeLessThanOrEqual(4);
  }
});

test("one that is used without a pause gives way after its turn", async () => {
  const { all, use } = play({ slots: 1, turnMs: 5, idleMs: 1000 });
  using _all = all;
  const [busy, other] = things(2) as [Thing, Thing];
  let isOver = false;
  // Two callers in turn: at no moment is it out of use by itself.
  const callers = range(2).map(async () => {
    while (!isOver) await use(busy);
  });
  await use(busy);
  await use(other);
  expect(other.state).toBe("slot");
  isOver = true;
  await Promise.all(callers);
});

test("an owner of many things has as many turns as one of a few, and by its weight", async () => {
  for (const weight of [1, 3]) {
    const shares = new Shares((owner) => (owner === "few" ? weight : 1));
    const { all, use } = play({ slots: 2, turnMs: 0, shares });
    using _all = all;
    const of = things(
      20,
      () => 10,
      (id) => (id < 4 ? "few" : "many"),
    );
    const turns = { few: 0, many: 0 };
    let isOver = false;
    const callers = of.map(async (thing) => {
      while (!isOver) {
        await use(thing);
        turns[thing.owner as keyof typeof turns]++;
        isOver = turns.few + turns.many >= 600;
      }
    });
    await Promise.all(callers);
    expect(turns.few / turns.many).toBeWithin(0.8 * weight, 1.25 * weight);
  }
});

test("what cannot be filled fails its own call alone", async () => {
  const slots = new Slots<Thing>({
    ...{ slots: 1, bytes: [100], idleMs: 0, turnMs: 0 },
    fill: async ({ id }) => {
      if (id === 0) throw new Error("its file is broken");
    },
    setAside: async () => undefined,
  });
  using _slots = slots;
  const [broken, whole] = things(2) as [Thing, Thing];
  const calls = await Promise.allSettled([
    slots.use(broken, async () => 1),
    slots.use(whole, async () => 2),
    slots.use(broken, async () => 3),
  ]);
  expect(calls.map(({ status }) => status)).toEqual(["rejected", "fulfilled", "rejected"]);
});
