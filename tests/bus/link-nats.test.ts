// Links that are opened over a real server: the one over the bus, and the choice among all.

import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { RunError } from "../../src/base/errors.ts";
import { range } from "../../src/base/shape.ts";
import type { SealedConnection } from "../../src/bus/seal.ts";
import { newRunId } from "../../src/bus/subjects.ts";
import { type Server, startServer } from "../../src/cluster/server.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Link, LinkKind } from "../../src/link/link.ts";
import { openLink } from "../../src/link/open.ts";
import { busChannel } from "../../src/link/peer-channel.ts";
import { connect, KEY } from "../helpers/bus.ts";
import type { EchoInput } from "../helpers/link/echo.ts";
import { bytesAt, contents, failure, neighbour, same, sizes, takeTensor } from "../helpers/link.ts";
import { needs } from "../helpers/needs.ts";

const MIB = 2 ** 20;

needs("nats")("over a server", () => {
  let server: Server;
  let connection: SealedConnection;
  let device: CpuDevice;
  beforeAll(async () => {
    server = await startServer();
    connection = await connect(server.address, "test");
  });
  afterAll(async () => {
    await connection[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });
  beforeEach(() => {
    device = new CpuDevice(1);
  });
  afterEach(() => device[Symbol.dispose]());

  type Wish = { readonly mine?: "auto" | LinkKind; readonly theirs?: "auto" | LinkKind; readonly signal?: AbortSignal };
  async function toEcho(input: Omit<EchoInput, "kind">, { mine = "nats", theirs = "auto", signal }: Wish = {}) {
    const run = newRunId();
    const bus = { address: server.address, key: KEY, run };
    const other = neighbour("echo", { ...input, kind: theirs, bus });
    const channel = busChannel(connection, { run, stage: 0, neighbour: 1 }, "control");
    const options = { device, stage: 0, neighbour: 1, kind: mine, capacity: input.capacity, channel, bus };
    try {
      return { other, ...(await openLink({ ...options, ...(signal ? { signal } : {}) })) };
    } catch (error) {
      await other[Symbol.asyncDispose]();
      throw error;
    }
  }

  const send = (link: Link, message: number, size: number, tensor = takeTensor(device, size)(size)): Promise<void> => {
    bytesAt(tensor).set(contents(message, size));
    return link.send(`there.${message}`, tensor);
  };

  /** Sends all and checks what comes back; `each` is called before each message. */
  async function echo(link: Link, all: readonly number[], most: number, each: (message: number) => unknown = () => {}) {
    const [out, into] = [takeTensor(device, most), takeTensor(device, most)];
    const sending = (async () => {
      for (const [message, size] of all.entries()) {
        await each(message);
        await send(link, message, size, out(size));
        bytesAt(out(size)).fill(255); // send has resolved: it may be overwritten
      }
    })();
    for (const [message, size] of all.entries()) {
      await link.receive(`back.${message}`, into(size));
      expect(same(bytesAt(into(size)), contents(message, size).reverse()), `message ${message} of ${size} bytes`).toBe(true);
    }
    await sending;
  }

  test("the bus carries messages of all sizes, taken in any order, bit for bit, both ways", async () => {
    const capacity = { slots: 3, slotBytes: 40 * MIB };
    const all = sizes(2, 40, capacity.slotBytes);
    const { other, link, why } = await toEcho({ mode: "echo", capacity, sizes: all, group: capacity.slots });
    await using _ = other;
    expect([link.kind, why]).toEqual(["nats", "nats: it was asked for"]);
    await echo(link, all, capacity.slotBytes);
    link[Symbol.dispose]();
    expect(await other.exited).toBe(0); // nothing is left open there
  });

  test("what was sent before an end arrives, and then the end", async () => {
    const capacity = { slots: 2, slotBytes: 30 * MIB };
    const { other, link } = await toEcho({ mode: "stuck", capacity, sizes: [], group: 1 });
    await using _ = other;
    const waiting = failure(link.receive("back.0", takeTensor(device, 1)(1)));
    other.tell("go on"); // it closes the link
    expect(await waiting).toBe("link.closed: stage 1 has closed the link");
    link[Symbol.dispose]();
    const again = await toEcho({ mode: "slow", capacity, sizes: [capacity.slotBytes, 7], group: 1 });
    await using __ = again.other;
    await Promise.all([send(again.link, 0, capacity.slotBytes), send(again.link, 1, 7)]);
    again.link[Symbol.dispose](); // at once: nothing has been taken
    again.other.tell("go on");
    expect(await again.other.exited).toBe(0); // it got both
  });

  test("a sender waits while nothing is taken; all ends with the reason of the signal", async () => {
    const end = new AbortController();
    const capacity = { slots: 2, slotBytes: MIB };
    const { other, link } = await toEcho({ mode: "stuck", capacity, sizes: [], group: 1 }, { signal: end.signal });
    await using _ = other;
    await Promise.all([send(link, 0, MIB), send(link, 1, 5)]);
    const waiting = [failure(send(link, 2, 1)), failure(link.receive("back.0", takeTensor(device, 1)(1)))];
    expect(await Promise.race([...waiting, Bun.sleep(300).then(() => "waits")])).toBe("waits");
    other.kill("SIGKILL"); // the bus notices: tests/bus/bus.test.ts
    end.abort(new RunError("bus.gone", "stage 1 has not been heard of"));
    expect(await Promise.all(waiting)).toEqual(range(2).map(() => "bus.gone: stage 1 has not been heard of"));
  });

  test("a server that is gone for a moment costs nothing but time", async () => {
    const capacity = { slots: 2, slotBytes: 20 * MIB };
    const all = sizes(3, 60, capacity.slotBytes);
    const { other, link } = await toEcho({ mode: "echo", capacity, sizes: all, group: capacity.slots });
    await using _ = other;
    await echo(link, all, capacity.slotBytes, async (message) => {
      if (message !== 20 && message !== 41) return;
      const { servers, login } = server.address;
      const port = Number(new URL(servers[0]!).port);
      process.kill(server.pid, "SIGKILL");
      await server.ended;
      void (async () => {
        await Bun.sleep(message === 20 ? 300 : 1200);
        server = await startServer({ port, token: (login as { token: string }).token });
      })();
    });
    link[Symbol.dispose]();
    expect(await other.exited).toBe(0);
  }, 60_000);

  test("two processes of this machine take shared memory, and say why nothing better", async () => {
    const capacity = { slots: 2, slotBytes: MIB };
    const all = sizes(4, 30, capacity.slotBytes);
    const { other, link, why } = await toEcho({ mode: "echo", capacity, sizes: all, group: 2 }, { mine: "auto" });
    await using _ = other;
    const expected = "shm: both run on one machine (ipc: they have no GPUs; nccl: they have no GPUs)";
    expect([why, await other.said()]).toEqual([expected, { why: expected }]);
    await echo(link, all, capacity.slotBytes);
    link[Symbol.dispose]();
    expect(await other.exited).toBe(0);
  });

  test("a kind that cannot work is refused, with the reason; so are two wishes", async () => {
    const input = { mode: "echo", capacity: { slots: 1, slotBytes: 1 }, sizes: [], group: 1 } as const;
    const refusal = async (mine: LinkKind, theirs: "auto" | LinkKind = "auto") => {
      const error = await toEcho(input, { mine, theirs }).catch((error: RunError) => error);
      return error instanceof Error ? [error.code, error.message] : error;
    };
    expect(await refusal("ipc")).toEqual(["link.kind", "the link 'ipc' cannot work: ipc: they have no GPUs"]);
    expect(await refusal("local")).toEqual([
      "link.kind",
      "the link 'local' cannot work: local: the stages are processes of their own",
    ]);
    expect(await refusal("shm", "nats")).toEqual(["link.kind", "one stage is set to use the link 'shm', its neighbour 'nats'"]);
  });
});
