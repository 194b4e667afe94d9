// Requests and answers over a real server: what arrives, in which order, as which error, and what is refused.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { encode } from "@msgpack/msgpack";
import { RequestError, RunError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { VERSION } from "../../src/base/version.ts";
import { Later } from "../../src/bus/bus.ts";
import { natsBus } from "../../src/bus/coordinator.ts";
import { localBus } from "../../src/bus/local.ts";
import { PROTOCOL, writePacket } from "../../src/bus/packets.ts";
import type { SealedConnection } from "../../src/bus/seal.ts";
import { joinRun } from "../../src/bus/stage.ts";
import { newRunId, subjectsOf } from "../../src/bus/subjects.ts";
import { type Server, startServer } from "../../src/cluster/server.ts";
import { assemble, connect, handlers, JOIN, REPORT, until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";

needs("nats")("the bus over NATS", () => {
  let server: Server;
  let outsider: SealedConnection;
  beforeAll(async () => {
    server = await startServer();
    outsider = await connect(server.address, "outsider");
  });
  afterAll(async () => {
    await outsider[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  test("typed arrays of odd sizes come back bit for bit, in memory of their own", async () => {
    const kept: Float32Array[] = [];
    const stage = handlers({
      write: async ({ slot, blocks }) => {
        kept[slot] = blocks.params!;
        return null;
      },
      read: async ({ slot }) => [kept[slot]!],
    });
    await using company = await assemble(server.address, [stage]);
    const rng = new Rng(1);
    for (const [slot, size] of [0, 1, 3, 17, 255, 256, 1023, 65_537].entries()) {
      const bits = Int32Array.from({ length: size }, () => rng.bits() | 0); // NaN of all kinds, infinities, -0
      await company.bus.request(0, { type: "write", slot, blocks: { params: new Float32Array(bits.buffer) } });
      const [got] = await company.bus.request(0, { type: "read", slot, what: ["params"] });
      expect(Buffer.from(got!.buffer).equals(Buffer.from(bits.buffer))).toBe(true);
      expect([got!.byteOffset, got!.buffer.byteLength]).toEqual([0, bits.byteLength]);
    }
  });

  test("a hundred outstanding requests are handled and answered once each, in their order, one at a time", async () => {
    const handled: number[] = [];
    let atOnce = 0;
    const stage = handlers({
      backward: async ({ pass }) => {
        expect(++atOnce).toBe(1);
        await Bun.sleep(pass % 7 === 0 ? 1 : 0);
        handled.push(pass);
        atOnce--;
        return [{ loss: pass / 3, correct: pass }];
      },
    });
    await using company = await assemble(server.address, [stage, stage]);
    const answered: number[] = [];
    await Promise.all(
      range(100).map(async (pass) => {
        expect(await company.bus.request(1, { type: "backward", pass })).toEqual([{ loss: pass / 3, correct: pass }]);
        answered.push(pass);
      }),
    );
    expect(handled).toEqual(range(100));
    expect(answered).toEqual(range(100));
  });

  test("a reply that comes later lets later requests be handled and answered first, whether it is a value or a failure", async () => {
    const late = [0, 1].map(() => Promise.withResolvers<Float32Array[]>());
    const stage = () =>
      handlers({
        read: async ({ slot }) => new Later(late[slot]!.promise),
        backward: async ({ pass }) => [{ loss: pass, correct: 1 }],
      });
    await using company = await assemble(server.address, [stage()]);
    await using local = localBus([stage()], async () => undefined);
    const asked = [company.bus, local].flatMap((bus) =>
      [0, 1].map((slot) => bus.request(0, { type: "read", slot, what: ["params"] })),
    );
    const told = Promise.allSettled(asked);
    for (const bus of [company.bus, local])
      expect(await bus.request(0, { type: "backward", pass: 3 })).toEqual([{ loss: 3, correct: 1 }]);
    late[1]!.reject(new RunError("cuda.driver", "the copy failed"));
    late[0]!.resolve([new Float32Array([4, 2])]);
    const [value, failure, localValue, localFailure] = await told;
    for (const found of [value, localValue]) expect(found).toEqual({ status: "fulfilled", value: [new Float32Array([4, 2])] });
    for (const found of [failure, localFailure]) {
      expect(found!.status).toBe("rejected");
      expect((found as PromiseRejectedResult).reason.message).toContain("the copy failed");
    }
  });

  test("40 MiB go there and back in pieces, around them small requests, all in order", async () => {
    const order: string[] = [];
    let kept = new Float32Array();
    const stage = handlers({
      write: async ({ blocks }) => {
        order.push("write");
        kept = blocks.m as Float32Array<ArrayBuffer>;
        return null;
      },
      squares: async () => {
        order.push("squares");
        return [];
      },
      read: async () => {
        order.push("read");
        return [kept];
      },
    });
    await using company = await assemble(server.address, [stage]);
    const rng = new Rng(2);
    const values = Float32Array.from({ length: 10 * 2 ** 20 + 3 }, () => rng.bits());
    const { bus } = company;
    const [, , , read] = await Promise.all([
      bus.request(0, { type: "squares", adapters: [] }),
      bus.request(0, { type: "write", slot: 0, blocks: { m: values } }),
      bus.request(0, { type: "squares", adapters: [] }),
      bus.request(0, { type: "read", slot: 0, what: ["m"] }),
    ]);
    expect(order).toEqual(["squares", "write", "squares", "read"]);
    expect(Buffer.from(read[0]!.buffer).equals(Buffer.from(values.buffer))).toBe(true);
  });

  test("an error of a handler arrives with its class, code and hint, and names the stage; the next request is served", async () => {
    const errors = [new RequestError("a.b", "no", "do that"), new RunError("c.d", "broken"), new TypeError("a bug")];
    const stage = handlers({
      backward: async ({ pass }) => {
        if (errors[pass]) throw errors[pass];
        return null;
      },
    });
    await using company = await assemble(server.address, [stage, stage]);
    const [request, run, bug] = await Promise.all(
      range(3).map((pass) => company.bus.request(1, { type: "backward", pass }).catch((error) => error)),
    );
    expect(request).toBeInstanceOf(RequestError);
    expect(request).toMatchObject({ code: "a.b", hint: "do that", exit: 2 });
    expect(request.message).toMatch(/^stage 1 \(.*process \d+\): no$/);
    expect(run).toBeInstanceOf(RunError);
    expect(run).toMatchObject({ code: "c.d", exit: 1 });
    expect(bug.constructor).toBe(Error);
    expect(bug.message).toMatch(/^stage 1 .*TypeError: a bug/s);
    expect(await company.bus.request(1, { type: "backward", pass: 9 })).toBeNull();
  });

  test("a request or a reply that is not what it should be is refused, and nothing is done", async () => {
    let done = 0;
    const stage = handlers({
      read: async () => {
        done++;
        return [new Float64Array(2)] as unknown as Float32Array[];
      },
    });
    await using company = await assemble(server.address, [stage]);
    const ask = (request: object) => company.bus.request(0, request as never).catch((error) => error.message);
    expect(await ask({ type: "read", slot: 1.5, what: ["v"] })).toMatch(/^stage 0 .* the request 'read' was refused: slot: /);
    expect(await ask({ type: "write", slot: 0, blocks: { params: [1, 2] } })).toMatch(/blocks.params: /);
    expect(await ask({ type: "toString" })).toMatch(/there is no request 'toString'/);
    expect(done).toBe(0);
    expect(await ask({ type: "read", slot: 1, what: [] })).toMatch(/^stage 0 .* answered 'read' wrongly: 0: /);
    expect(done).toBe(1);
  });

  test("messages of another run, of another version, of strangers, and of no sender are refused and named", async () => {
    const refused: string[] = [];
    let handled = 0;
    const stage = handlers({
      squares: async () => {
        handled++;
        return [];
      },
    });
    await using company = await assemble(server.address, [stage], (text) => refused.push(text));
    const { run, bus } = company;
    const { coordinator, stage: stageAt, hello } = subjectsOf(run);
    const me = "m".repeat(20);
    const bye = { kind: "bye", to: me, reason: "forged" } as const;
    const cases: [string, Uint8Array, RegExp][] = [
      [stageAt(0), writePacket("another", me, bye), /it is of the run "another"/],
      [
        stageAt(0),
        encode({ v: PROTOCOL + 1, run, from: me, ...bye }),
        /speaks version 3 of the protocol, this mlora version 2/,
      ],
      [stageAt(0), writePacket(run, me, bye), new RegExp(`a message \\(bye\\) on ${stageAt(0)} from ${me} was refused`)],
      [coordinator, writePacket(run, me, bye), new RegExp(`a message \\(bye\\) on ${coordinator} from ${me} was refused`)],
      [coordinator, new Uint8Array([0xc1, 1, 2]), /3 bytes that are no message/],
      [coordinator, encode([1, 2, 3]), /v: Invalid key: Expected "v"/],
      [coordinator, encode("hello"), /Expected Object/],
      [coordinator, encode({ v: PROTOCOL, run, from: "a.b>*", ...bye }), /from: /],
      [coordinator, encode({ v: PROTOCOL, run, from: me, kind: "evil" }), /kind: /],
      [hello, encode({ v: PROTOCOL, run, from: me, kind: "hello", pid: -1 }), /version: /],
      [coordinator, new Uint8Array(100_000).fill(0x91), /are no message/], // arrays within arrays
    ];
    for (const [subject, bytes, reason] of cases) {
      outsider.publish(subject, bytes);
      await until(`${reason}`, 60_000, () => refused.some((text) => reason.test(text)));
    }
    expect(await bus.request(0, { type: "squares", adapters: [] })).toEqual([]);
    expect(handled).toBe(1);
    expect(bus.lost.aborted).toBe(false);
  });

  test("a stage of another version may not join, gets the reason, and is named when the coordinator gives up", async () => {
    const run = newRunId();
    await using connection = await connect(server.address, "coordinator");
    const gathering = natsBus(connection, run, 1, { joinMs: 4_000, refuse: () => {} }).catch((error) => error);
    const me = "m".repeat(20);
    const told: string[] = [];
    using _ = outsider.subscribe(subjectsOf(run).welcome(me), (bytes) => told.push(Buffer.from(bytes).toString("latin1")));
    const hello = {
      kind: "hello",
      version: "9.9.9",
      host: "elsewhere",
      pid: 7,
      stage: null,
      coordinator: null,
      report: REPORT,
    } as const;
    await until("an answer", 60_000, async () => {
      outsider.publish(subjectsOf(run).hello, writePacket(run, me, hello));
      await Bun.sleep(50);
      return told.length > 0;
    });
    expect(told[0]).toContain(`the stage is mlora 9.9.9, the coordinator ${VERSION}`);
    const error = await gathering;
    expect(error).toMatchObject({ code: "bus.join" });
    expect(error.message).toContain("elsewhere, process 7 may not join: the stage is mlora 9.9.9");
  });

  test("places: each once, those without a number take what is free, and a stage too many is reported", async () => {
    const run = newRunId();
    await using connection = await connect(server.address, "coordinator");
    await using open = new AsyncDisposableStack();
    const join = async (stage: number | null) => {
      const own = open.use(await connect(server.address, "stage"));
      return joinRun(own, run, { stage, report: REPORT, ...JOIN }).catch((error) => error);
    };
    const gathering = natsBus(connection, run, 3, { ...JOIN, refuse: () => {} });
    let isWelcome = false;
    using _ = outsider.subscribe(subjectsOf(run).welcome("any").replace(/any$/, "*"), () => {
      isWelcome = true;
    });
    await outsider.flush();
    const first = join(1);
    await until("its place", 60_000, () => isWelcome);
    const [a, b, c] = await Promise.all([join(null), join(null), first]);
    await using bus = await gathering;
    expect([a.stage, b.stage].sort()).toEqual([0, 2]);
    expect(c.stage).toBe(1);
    expect(bus.infos.map(({ stage }) => stage)).toEqual([0, 1, 2]);
    expect(bus.infos[0]!.report).toEqual(REPORT);
    expect(await join(null)).toMatchObject({ code: "bus.full", exit: 2 });
    expect(await join(5)).toMatchObject({ code: "bus.place" });
    expect(await join(1)).toMatchObject({ code: "bus.place", message: expect.stringContaining("stage 1 is") });
    for (const seat of [a, b, c]) await seat[Symbol.asyncDispose]();
  });

  test("waiting in vain is reported: by a stage without a coordinator, by a coordinator without stages or that is stopped", async () => {
    const run = newRunId();
    await using connection = await connect(server.address, "alone");
    const stage = await joinRun(connection, run, { stage: 0, report: REPORT, joinMs: 300 }).catch((error) => error);
    expect(stage).toMatchObject({ code: "bus.join", message: expect.stringContaining(run) });
    const coordinator = await natsBus(connection, run, 2, { joinMs: 300 }).catch((error) => error);
    expect(coordinator).toMatchObject({ code: "bus.join", message: expect.stringContaining("stages 0, 1 have not joined") });
    const stopped = await natsBus(connection, run, 2, { ...JOIN, signal: AbortSignal.abort(new RunError("x", "stop")) }).catch(
      (error) => error,
    );
    expect(stopped).toMatchObject({ code: "x" });
  });

  test("at the end stages hear that they are done; one that leaves says why", async () => {
    const company = await assemble(server.address, [handlers({}), handlers({ squares: () => new Promise(() => {}) })]);
    const pending = company.bus.request(1, { type: "squares", adapters: [] }).catch((error) => error);
    await company.seats[1]!.leave("out of memory");
    expect(await pending).toMatchObject({
      code: "bus.left",
      message: expect.stringMatching(/^stage 1 .* left the run: out of memory$/),
    });
    expect(company.bus.lost.reason).toBe(await pending);
    expect(await company.bus.request(1, { type: "squares", adapters: [] }).catch((error) => error)).toBe(await pending);
    await company.bus[Symbol.asyncDispose]();
    expect(await company.seats[0]!.ended).toBeNull();
    await company[Symbol.asyncDispose]();
  });
});
