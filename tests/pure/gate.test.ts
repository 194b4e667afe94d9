// A stage's memory is released when nothing that was begun over it is under way, and nothing begins after.

import { expect, test } from "bun:test";
import { Later, type StageHandlers } from "../../src/bus/bus.ts";
import { Gate } from "../../src/bus/gate.ts";
import { localBus } from "../../src/bus/local.ts";

type Begun = { readonly pass: number; readonly end: () => void; readonly fail: (error: Error) => void };

/** Handlers whose work ends when it is asked to; `read` replies later. */
function held() {
  const begun: Begun[] = [];
  const wait = (pass: number) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    begun.push({ pass, end: resolve, fail: reject });
    return promise;
  };
  const handlers: Partial<StageHandlers> = {
    backward: async ({ pass }) => {
      await wait(pass);
      return null;
    },
    read: async ({ slot }) => new Later(wait(slot).then(() => [new Float32Array([slot])])),
  };
  return { begun, handlers: handlers as StageHandlers };
}
const turns = async () => {
  for (let i = 0; i < 50; i++) await Promise.resolve();
};

test("a local bus closes its stages after what they compute, and refuses what waits and what comes", async () => {
  const { begun, handlers } = held();
  const order: string[] = [];
  const bus = localBus(
    [handlers],
    async () => void order.push("closed"),
    () => void order.push("interrupted"),
  );
  const asked = [1, 2, 3].map((pass) => bus.request(0, { type: "backward", pass }));
  const told = Promise.allSettled(asked);
  await turns();
  const disposed = [bus[Symbol.asyncDispose](), bus[Symbol.asyncDispose]()];
  const after = bus.request(0, { type: "backward", pass: 4 }).catch((error) => error.code);
  await turns();
  expect([order, begun.length]).toEqual([["interrupted"], 1]);
  begun[0]!.end();
  await Promise.all(disposed);
  expect(order).toEqual(["interrupted", "closed"]);
  expect((await told).map((of) => (of.status === "fulfilled" ? of.value : of.reason.code))).toEqual([
    null,
    "bus.closed",
    "bus.closed",
  ]);
  expect([await after, begun.length]).toEqual(["bus.closed", 1]);
});

test.each(["end", "fail"] as const)("a gate waits for replies that come later, those that %s", async (how) => {
  const { begun, handlers } = held();
  const gate = new Gate();
  const { read } = gate.guard(handlers);
  const found = (await read({ type: "read", slot: 5, what: ["params"] })) as Later<readonly Float32Array[]>;
  const told = Promise.allSettled([found.reply]);
  let closed = false;
  const closing = gate.close().then(() => {
    closed = true;
  });
  await turns();
  expect(closed).toBe(false);
  if (how === "end") begun[0]!.end();
  else begun[0]!.fail(new Error("the copy failed"));
  await closing;
  expect((await told)[0]!.status).toBe(how === "end" ? "fulfilled" : "rejected");
});
