// Links between two processes that share a GPU: every kind that works there, and what arrives.

import { afterEach, beforeEach, expect, test } from "bun:test";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Link, LinkKind } from "../../src/link/link.ts";
import { openLink } from "../../src/link/open.ts";
import type { EchoInput } from "../helpers/link/echo.ts";
import { contents, failure, neighbour, same, sizes, takeTensor } from "../helpers/link.ts";
import { needs } from "../helpers/needs.ts";

const MIB = 2 ** 20;

needs("gpu")("two processes that share a GPU", () => {
  let device: CudaDevice;
  beforeEach(() => {
    device = new CudaDevice("bf16");
  });
  afterEach(() => device[Symbol.dispose]());

  async function toEcho(input: Omit<EchoInput, "kind" | "cuda">, kind: "auto" | LinkKind) {
    const other = neighbour("echo", { ...input, kind, cuda: true });
    const { channel } = other;
    return {
      other,
      ...(await openLink({ device, stage: 0, neighbour: 1, kind, capacity: input.capacity, channel, bus: null })),
    };
  }

  async function echo(link: Link, all: readonly number[], most: number): Promise<void> {
    const [out, into] = [takeTensor(device, most), takeTensor(device, most)];
    const sending = (async () => {
      for (const [message, size] of all.entries()) {
        device.write(out(size), contents(message, size));
        await link.send(`there.${message}`, out(size));
        device.zero(out(size)); // send has resolved: it may be overwritten
      }
    })();
    for (const [message, size] of all.entries()) {
      await link.receive(`back.${message}`, into(size));
      const got = await device.read(into(size));
      expect(same(got, contents(message, size).reverse()), `message ${message} of ${size} bytes`).toBe(true);
      device.zero(into(size));
    }
    await sending;
  }

  for (const kind of ["auto", "shm"] as const)
    test(`messages of all sizes arrive bit for bit, both ways, by ${kind}`, async () => {
      const capacity = { slots: 2, slotBytes: 40 * MIB };
      const all = sizes(6, 40, capacity.slotBytes);
      const { other, link, why } = await toEcho({ mode: "echo", capacity, sizes: all, group: capacity.slots }, kind);
      await using _ = other;
      expect(why).toBe(kind === "auto" ? "ipc: both use one GPU" : "shm: it was asked for");
      await echo(link, all, capacity.slotBytes);
      expect(await other.said()).toEqual({ why });
      expect(await other.said()).toEqual({ done: true });
      link[Symbol.dispose]();
      expect(await other.exited).toBe(0);
    });

  test("a neighbour that is killed ends the link at once, and the GPU continues", async () => {
    const capacity = { slots: 2, slotBytes: MIB };
    const { other, link } = await toEcho({ mode: "gone", capacity, sizes: [MIB, 5], group: 1 }, "ipc");
    await using _ = other;
    const tensor = takeTensor(device, MIB);
    await Promise.all([link.send("there.0", tensor(MIB)), link.send("there.1", tensor(5))]);
    expect(await failure(link.receive("back.0", tensor(1)))).toContain("link.lost: stage 1 is gone");
    device.write(tensor(100), contents(3, 100));
    expect(same(await device.read(tensor(100)), contents(3, 100))).toBe(true);
    await device.idle();
  });
});
