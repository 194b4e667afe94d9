// The order of a link between GPUs, on a driver that does the work of its streams as late and as mixed up as events allow.

import { describe, expect, spyOn, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CudaMailbox } from "../../src/device/cuda/sharing.ts";
import { channelPair } from "../../src/link/channel.ts";
import { openLink } from "../../src/link/open.ts";
import { FakeGpu, World } from "../helpers/fake-cuda.ts";
import { bytesAt, contents, failure, same, sizes } from "../helpers/link.ts";

const ROOM = { slots: 2, slotBytes: 9001 };

/** Two stages that share one GPU, and a link between them. */
async function pair(seed: number) {
  const world = new World(seed);
  const gpus = [new FakeGpu(world, 7), new FakeGpu(world, 7)] as const;
  const channels = channelPair();
  const ends = await Promise.all(
    gpus.map((device, i) =>
      openLink({ device, stage: i, neighbour: 1 - i, kind: "auto", capacity: ROOM, channel: channels[i]!, bus: null }),
    ),
  );
  return { world, gpus, ends, links: ends.map(({ link }) => link) as [(typeof ends)[0]["link"], (typeof ends)[0]["link"]] };
}

describe("a link between GPUs", () => {
  test("is chosen where both stages use one GPU", async () => {
    const { ends, links, world } = await pair(1);
    expect(ends.map(({ why }) => why)).toEqual(["ipc: both use one GPU", "ipc: both use one GPU"]);
    for (const link of links) link[Symbol.dispose]();
    world[Symbol.dispose]();
  });

  for (const seed of range(24))
    test(`keeps kernels and copies in order, both ways at once (${seed})`, async () => {
      const { world, gpus, links } = await pair(seed);
      const late = seed % 2 === 1; // receivers come before or after the messages, else before
      const alike = seed % 3 === 1; // one tag and one size for all
      const all = alike ? range(60).map(() => 5000) : sizes(seed, 60, ROOM.slotBytes);
      const tagOf = (message: number): string => (alike ? "again" : `${message}`);
      const wrong: string[] = [];
      /** Sends without waiting for the copy, from two tensors in turn, each written by a kernel. */
      const sender = async (end: 0 | 1) => {
        const tensors = range(2).map(() => gpus[end].tensor(ROOM.slotBytes));
        const free: Promise<void>[] = [Promise.resolve(), Promise.resolve()];
        for (const [message, size] of all.entries()) {
          await free[message % 2];
          const tensor = tensors[message % 2]!(size);
          gpus[end].kernel(() => bytesAt(tensor).set(contents(message + 1000 * end, size)));
          free[message % 2] = links[end].send(tagOf(message), tensor);
        }
        await Promise.all(free);
      };
      /** Receives into one tensor, which a kernel checks and spoils. */
      const receiver = async (end: 0 | 1) => {
        const into = gpus[end].tensor(ROOM.slotBytes);
        const rng = new Rng(seed, end);
        for (const [message, size] of all.entries()) {
          if (late) for (const _ of range(rng.below(6))) await new Promise((resolve) => setImmediate(resolve));
          await links[end].receive(tagOf(message), into(size));
          gpus[end].kernel(() => {
            if (!same(bytesAt(into(size)), contents(message + 1000 * (1 - end), size))) wrong.push(`${message} at ${end}`);
            bytesAt(into(size)).fill(0);
          });
          world.async(3);
        }
        let done = false;
        gpus[end].kernel(() => {
          done = true;
        });
        while (!done) world.async(1);
      };
      const offered = spyOn(CudaMailbox.prototype, "put");
      await Promise.all([sender(0), receiver(1), sender(1), receiver(0)]);
      const direct = offered.mock.calls.filter(([, , to]) => to !== null).length;
      offered.mockRestore();
      if (late)
        expect(direct).toBeLessThan(2 * all.length); // some by a slot
      else expect(direct).toBeGreaterThan(0); // some straight to where they were wanted
      expect(wrong).toEqual([]);
      for (const link of links) link[Symbol.dispose]();
      expect(await failure(links[0].receive("more", gpus[0].tensor(1)(1)))).toContain("link.closed");
      world[Symbol.dispose]();
    });
});
