// The link through shared memory, between this process and a neighbour that is really another one.

import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Link } from "../../src/link/link.ts";
import { openLink } from "../../src/link/open.ts";
import { until } from "../helpers/bus.ts";
import type { EchoInput } from "../helpers/link/echo.ts";
import { bytesAt, contents, failure, neighbour, same, sizes, takeTensor } from "../helpers/link.ts";

const MIB = 2 ** 20;

let device: CpuDevice;
beforeEach(() => {
  device = new CpuDevice(1);
});
afterEach(() => device[Symbol.dispose]());

/** This end of a link to an echo in another process. */
async function toEcho(input: Omit<EchoInput, "kind">, signal?: AbortSignal) {
  const other = neighbour("echo", { ...input, kind: "auto" });
  const options = { device, stage: 0, neighbour: 1, kind: "shm", capacity: input.capacity, bus: null } as const;
  const { link, why } = await openLink({ ...options, channel: other.channel, ...(signal ? { signal } : {}) });
  return { other, link, why };
}

const send = (link: Link, message: number, size: number, tensor = takeTensor(device, size)(size)): Promise<void> => {
  bytesAt(tensor).set(contents(message, size));
  return link.send(`there.${message}`, tensor);
};

/** Pipes and shared memory of a process: what a link holds. */
const handles = (pid: number | "self" = "self"): string[] =>
  readdirSync(`/proc/${pid}/fd`)
    .map((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`);
      } catch {
        return "";
      }
    })
    .filter((target) => /memfd|pipe:/.test(target));

const maps = (): number => readFileSync("/proc/self/maps", "utf8").match(/memfd:mlora/g)?.length ?? 0;
const rss = (pid: number): number => {
  const [, kib] = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))!;
  return Number(kib) / 1024;
};

describe("shared memory between two processes", () => {
  test("carries messages of all sizes, taken in any order, bit for bit, both ways", async () => {
    const before = handles();
    const capacity = { slots: 3, slotBytes: 40 * MIB };
    const all = sizes(1, 60, capacity.slotBytes);
    const { other, link, why } = await toEcho({ mode: "echo", capacity, sizes: all, group: capacity.slots });
    await using _ = other;
    expect(await other.said()).toEqual({ why: "shm: it was asked for" });
    expect(why).toBe("shm: it was asked for");
    const out = takeTensor(device, capacity.slotBytes);
    const sending = (async () => {
      for (const [message, size] of all.entries()) {
        await send(link, message, size, out(size));
        bytesAt(out(size)).fill(255); // send has resolved: it may be overwritten
      }
    })();
    const into = takeTensor(device, capacity.slotBytes);
    for (const [message, size] of all.entries()) {
      await link.receive(`back.${message}`, into(size));
      expect(same(bytesAt(into(size)), contents(message, size).reverse()), `message ${message} of ${size} bytes`).toBe(true);
    }
    await sending;
    expect(await other.said()).toEqual({ done: true });
    expect(await failure(link.receive("more", into(1)))).toBe("link.closed: stage 1 has closed the link");
    expect(await failure(link.send("more", out(1)))).toBe("link.closed: stage 1 has closed the link");
    expect(await other.exited).toBe(0); // nothing is left open there
    link[Symbol.dispose]();
    // of what was there some may be gone
    const left = () => handles().filter((handle) => !before.includes(handle));
    await until("its end", 60_000, () => left().length === 0 && maps() === 0).catch(() => undefined);
    expect([left(), maps()]).toEqual([[], 0]);
  });

  test("lets no more under way than there are slots, and needs no memory for those that wait", async () => {
    const capacity = { slots: 2, slotBytes: 8 * MIB };
    const { other, link } = await toEcho({ mode: "slow", capacity, sizes: range(200).map(() => 8 * MIB), group: 1 });
    await using _ = other;
    const tensor = takeTensor(device, capacity.slotBytes)(capacity.slotBytes);
    let done = 0;
    let [mine, theirs] = [0, 0];
    const all = range(200).map((message) =>
      link.send(`there.${message}`, tensor).then(() => {
        done++;
        if (done === 20) [mine, theirs] = [rss(process.pid), rss(other.pid)];
      }),
    );
    await Bun.sleep(0);
    expect(done).toBeLessThanOrEqual(2);
    other.tell("go on");
    await Promise.all(all);
    expect(rss(process.pid) - mine).toBeLessThan(16);
    expect(rss(other.pid) - theirs).toBeLessThan(16);
    link[Symbol.dispose]();
  });

  test("that is not taken from waits, and fails when it is closed here", async () => {
    const { other, link } = await toEcho({ mode: "stuck", capacity: { slots: 2, slotBytes: 100 }, sizes: [], group: 1 });
    await using _ = other;
    await Promise.all([send(link, 0, 100), send(link, 1, 100)]);
    const waiting = [failure(send(link, 2, 100)), failure(link.receive("back.0", takeTensor(device, 1)(1)))];
    expect(await Promise.race([...waiting, Bun.sleep(100).then(() => "waits")])).toBe("waits");
    link[Symbol.dispose]();
    link[Symbol.dispose]();
    expect(await Promise.all(waiting)).toEqual(range(2).map(() => "link.closed: the link to stage 1 was closed"));
    expect(await failure(send(link, 3, 1))).toContain("link.closed");
  });

  test("fails at once on both sides of it when the neighbour is killed, with nothing left over", async () => {
    const capacity = { slots: 2, slotBytes: MIB };
    const { other, link } = await toEcho({ mode: "gone", capacity, sizes: [MIB, 5], group: 1 });
    await using _ = other;
    await Promise.all([send(link, 0, MIB), send(link, 1, 5)]);
    const waiting = failure(link.receive("back.0", takeTensor(device, 1)(1)));
    expect(await waiting).toBe("link.lost: stage 1 is gone: its process has ended, or closed the link without a word");
    expect(await other.exited).toBe(137);
    expect(await failure(send(link, 2, 1))).toContain("link.lost");
    const left = () => handles().filter((target) => target.includes("memfd"));
    await until("its end", 60_000, () => left().length === 0 && maps() === 0).catch(() => undefined);
    expect([maps(), left()]).toEqual([0, []]);
  });

  test("says what is too large, or of another size than expected, and continues", async () => {
    const capacity = { slots: 2, slotBytes: 1000 };
    const { other, link } = await toEcho({ mode: "echo", capacity, sizes: [10], group: 1 });
    await using _ = other;
    const tensor = takeTensor(device, 2000);
    expect(await failure(link.send("large", tensor(1001)))).toBe(
      "link.size: 'large' has 1001 B, and stage 1 has room for messages of 1000 B",
    );
    await send(link, 0, 10);
    expect(await failure(link.receive("back.0", tensor(12)))).toBe(
      "link.size: stage 1 sent 'back.0' with 10 bytes, and 12 bytes are expected: a tensor of [12] u8",
    );
    await link.receive("back.0", tensor(10));
    expect(same(bytesAt(tensor(10)), contents(0, 10).reverse())).toBe(true);
    link[Symbol.dispose]();
  });

  test("ends with the reason of its signal", async () => {
    const { RunError } = await import("../../src/base/errors.ts");
    const end = new AbortController();
    const capacity = { slots: 1, slotBytes: 100 };
    const { other, link } = await toEcho({ mode: "stuck", capacity, sizes: [], group: 1 }, end.signal);
    await using _ = other;
    const waiting = failure(link.receive("back.0", takeTensor(device, 1)(1)));
    end.abort(new RunError("bus.gone", "stage 1 has not been heard of"));
    expect(await waiting).toBe("bus.gone: stage 1 has not been heard of");
  });
});
