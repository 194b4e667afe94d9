// What links decide and how they fix losses, without a device and without a bus.

import { describe, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { BulkSender, bulkReceiver, type Head, type Publish, readHead, writeHead } from "../../src/link/bulk.ts";
import { choose, type Offer } from "../../src/link/choose.ts";
import type { LinkKind } from "../../src/link/link.ts";

const cpu: Offer = {
  wanted: "auto",
  host: "a",
  compute: "f32",
  gpu: null,
  nccl: null,
  ncclMissing: null,
  bus: true,
  capacity: { slots: 2, slotBytes: 100 },
};
const gpu = (uuid: string, reaches: readonly string[] = []): Offer => ({
  ...cpu,
  compute: "bf16",
  gpu: { uuid, reaches },
  ncclMissing: "cannot open libnccl.so.2",
});
const elsewhere = { host: "b" };
const nccl = { nccl: 22803, ncclMissing: null };

describe("the choice of a link", () => {
  const cases: readonly (readonly [string, Offer, Offer, readonly LinkKind[]])[] = [
    ["cpus of one machine", cpu, cpu, ["shm", "nats"]],
    ["cpus of two machines", cpu, { ...cpu, ...elsewhere }, ["nats"]],
    ["one GPU", gpu("x"), gpu("x"), ["ipc", "shm", "nats"]],
    ["one GPU, with NCCL", { ...gpu("x"), ...nccl }, { ...gpu("x"), ...nccl }, ["ipc", "shm", "nats"]],
    ["two GPUs that reach each other", gpu("x", ["y"]), gpu("y", ["x"]), ["ipc", "shm", "nats"]],
    ["two GPUs, one way only", gpu("x", ["y"]), gpu("y"), ["shm", "nats"]],
    ["two GPUs with NCCL", { ...gpu("x"), ...nccl }, { ...gpu("y"), ...nccl }, ["nccl", "shm", "nats"]],
    ["two machines with NCCL", { ...gpu("x"), ...nccl }, { ...gpu("y"), ...nccl, ...elsewhere }, ["nccl", "nats"]],
    ["two NCCLs", { ...gpu("x"), ...nccl }, { ...gpu("y"), ...nccl, nccl: 22700, ...elsewhere }, ["nats"]],
    ["two machines, GPUs of one name", gpu("x"), { ...gpu("x"), ...elsewhere }, ["nats"]],
    ["no bus", { ...cpu, bus: false }, cpu, ["shm"]],
  ];
  for (const [name, a, b, kinds] of cases)
    test(`${name}: ${kinds}`, () => {
      for (const [x, y] of [
        [a, b],
        [b, a],
      ] as const) {
        const { candidates, against } = choose(x, y);
        expect(candidates.map(({ kind }) => kind)).toEqual([...kinds]);
        expect(candidates.length + against.length).toBe(5);
        for (const { why } of against) expect(why).not.toBe("");
      }
    });

  test("a kind that was asked for is taken alone, or refused with its reason", () => {
    expect(choose({ ...cpu, wanted: "nats" }, cpu).candidates).toEqual([{ kind: "nats", why: "it was asked for" }]);
    const refusal = (a: Offer, b: Offer): string => {
      try {
        choose(a, b);
      } catch (error) {
        if (error instanceof RequestError) return `${error.code}: ${error.message}`;
      }
      throw new Error("not refused");
    };
    expect(refusal({ ...gpu("x"), wanted: "nccl" }, gpu("y"))).toBe(
      "link.kind: the link 'nccl' cannot work: nccl: cannot open libnccl.so.2",
    );
    expect(refusal(cpu, { ...cpu, ...elsewhere, wanted: "shm" })).toContain("they are on different machines");
    expect(refusal({ ...cpu, wanted: "shm" }, { ...cpu, wanted: "nats" })).toContain("'shm', its neighbour 'nats'");
    expect(refusal(cpu, { ...cpu, bus: false, ...elsewhere })).toContain("no link between two stages works");
    expect(refusal(cpu, { ...gpu("x") })).toContain("one stage computes in f32, its neighbour in bf16");
  });
});

/** Two ends and the wires between them, which lose, repeat and reorder what `fate` says. */
function wires(fate: (rng: Rng) => "lose" | "twice" | "late" | "keep", seed: number) {
  const rng = new Rng(seed);
  const slots = range(3).map(() => new Uint8Array(5 * 2 ** 20));
  const there = new Map<number, number>();
  const onTheWay: { to: "receiver" | "sender"; head: Head; bytes: Uint8Array }[] = [];
  const wire =
    (to: "receiver" | "sender"): Publish =>
    (head, bytes) => {
      const what = fate(rng);
      if (what === "lose") return;
      const piece = { to, head: readHead(writeHead(head))!, bytes: bytes.slice() };
      if (what === "late") onTheWay.splice(rng.below(onTheWay.length + 1), 0, piece);
      else onTheWay.push(piece);
      if (what === "twice") onTheWay.push(piece);
    };
  const sender = new BulkSender(2 ** 18, wire("receiver"));
  const arrived = (slot: number, end: number) => void there.set(slot, end);
  const receive = bulkReceiver({ slots, publish: wire("sender"), arrived, sender });
  const back = bulkReceiver({ slots: [], publish: () => {}, arrived: () => {}, sender });
  /** Delivers what is on the way; true while something came. */
  const step = async (): Promise<boolean> => {
    const piece = onTheWay.shift();
    if (piece) (piece.to === "receiver" ? receive : back)(piece.head, piece.bytes);
    await Promise.resolve();
    await Promise.resolve();
    return piece !== undefined;
  };
  return { sender, slots, there, step };
}

describe("large messages over a wire that loses", () => {
  for (const seed of range(20))
    test(`arrive whole and in order (${seed})`, async () => {
      const fate = (rng: Rng) => (["lose", "twice", "late", "keep", "keep", "keep", "keep"] as const)[rng.below(7)]!;
      const { sender, slots, there, step } = wires(fate, seed);
      const rng = new Rng(seed, 1);
      const sent = slots.map((slot) => {
        const bytes = new Uint8Array(1 + rng.below(slot.length));
        for (let i = 0; i < bytes.length; i += 997) bytes[i] = rng.bits();
        return bytes;
      });
      for (const [slot, bytes] of sent.entries()) {
        const cut = rng.below(bytes.length);
        if (cut > 0) sender.send({ slot, at: 0, bytes: bytes.subarray(0, cut) });
        sender.send({ slot, at: cut, bytes: bytes.subarray(cut) });
      }
      let settled = false;
      void sender.window.settled().then(() => {
        settled = true;
      });
      for (let round = 0; !settled; round++) {
        while (await step());
        sender.window.ask();
        if (round > 1000) throw new Error("it never arrives");
      }
      for (const [slot, bytes] of sent.entries()) {
        expect(there.get(slot)).toBe(bytes.length);
        expect(Buffer.compare(slots[slot]!.subarray(0, bytes.length), bytes)).toBe(0);
      }
    });

  test("no more than a window is under way, and nothing is sent again while nothing is known to be lost", async () => {
    let [pieces, bytes] = [0, 0];
    const sender = new BulkSender(2 ** 20, (_, part) => {
      pieces++;
      bytes += part.length;
    });
    sender.send({ slot: 0, at: 0, bytes: new Uint8Array(100 * 2 ** 20) });
    expect([pieces, bytes]).toEqual([8, 8 * 2 ** 20]);
    sender.window.acknowledge(3, 0);
    sender.window.acknowledge(3, 0);
    expect(pieces).toBe(11);
    sender.window.acknowledge(99, 0); // what was never sent cannot have arrived
    sender.window.acknowledge(4, 7); // nor was this asked
    expect(pieces).toBe(11);
  });

  test("an invalid head is not read", () => {
    for (const token of ["", "part", "part-1-2", "part-x-0-0", "part--1-0-0", "part-1.5-0-0", "other-1-2-3", "last-1e9-0-0"])
      expect(readHead(token)).toBeNull();
  });
});
