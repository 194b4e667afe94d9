// How fast links carry tensors between two processes.
//
//   scripts/bench/link [--kinds "shm nats"] [--device cpu] [--gpus "0 0"] [--mib 32] [--ahead 1]
//                    [--messages 40] [--rounds 5] [--write]
//   scripts/bench/link --nats URL --run ID --key KEY --receive     on one machine, and the same without --receive on the other
//
// Messages back to back, of which as many as --ahead says may be under way, then one at a time, each answered by one byte
// before the next goes: medians of the rounds with their range. Next to them how fast the device copies as many bytes within
// its memory, and by how much the two processes grew after the first round. With --nats the other process is started by hand,
// elsewhere, with the same numbers; else here, on a server of its own. --write adds the rows to docs/measurements/link.md.

import { parseArgs } from "node:util";
import { processor } from "../../src/base/machine.ts";
import { range } from "../../src/base/shape.ts";
import { type Address, parseAddress } from "../../src/bus/address.ts";
import { connectSealed, newRunKey, type RunKey, type SealedConnection } from "../../src/bus/seal.ts";
import { newRunId } from "../../src/bus/subjects.ts";
import { startServer } from "../../src/cluster/server.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { openDevice } from "../../src/device/open.ts";
import type { LinkKind } from "../../src/link/link.ts";
import { openLinkOver } from "../../src/link/open.ts";
import { tableOf } from "./table.ts";

const HEAD = `# Links between two processes

Rows of \`scripts/bench/link --write\`: GB/s, medians of the rounds with their range. "stream" is messages back to back, "single" one
at a time, each answered before the next goes; "copy" is a copy of as many bytes within the device's memory; "growth" is by how many
MiB the memory of the sender and of the receiver grew from the first round to the last.

| date (UTC) | commit | machine | kind | MiB | rounds | stream | single | copy | growth |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
`;

const { values } = parseArgs({
  options: {
    kinds: { type: "string", default: "shm nats" },
    device: { type: "string", default: "cpu" },
    gpus: { type: "string", default: "0 0" },
    mib: { type: "string", default: "32" },
    ahead: { type: "string", default: "1" },
    messages: { type: "string", default: "40" },
    rounds: { type: "string", default: "5" },
    nats: { type: "string" },
    run: { type: "string" },
    key: { type: "string" },
    receive: { type: "boolean", default: false },
    write: { type: "boolean", default: false },
    child: { type: "boolean", default: false },
  },
});
const [bytes, messages, rounds] = [Number(values.mib) * 2 ** 20, Number(values.messages), Number(values.rounds)];
const ahead = Number(values.ahead);
const keep = tableOf("link", HEAD, values.write);
const kinds = values.kinds.split(" ") as LinkKind[];
const gpus = values.gpus.split(" ").map(Number);

const rssMiB = (): number => process.memoryUsage.rss() / 2 ** 20;
const median = (numbers: readonly number[]): number => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!;
const spread = (numbers: readonly number[]): string =>
  `${median(numbers).toFixed(2)} (${Math.min(...numbers).toFixed(2)} to ${Math.max(...numbers).toFixed(2)})`;

function openBenchDevice(stage: number): Device {
  return values.device === "cuda"
    ? openDevice({ kind: "cuda", compute: "bf16", ordinal: gpus[stage]!, stagesOnHost: 1 })
    : openDevice({ kind: "cpu", compute: "f32", ordinal: 0, stagesOnHost: 1 });
}

type End = {
  readonly stage: number;
  readonly kind: LinkKind;
  readonly run: string;
  readonly connection: SealedConnection;
};

let deviceName = "";

async function open(device: Device, { stage, kind, run, connection }: End) {
  const capacity = { slots: Math.max(2, ahead), slotBytes: bytes };
  const { link } = await openLinkOver(connection, run, { device, stage, neighbour: 1 - stage, kind, capacity });
  const tensors = range(ahead).map((): Tensor => ({ ptr: device.allocate(bytes, "a message"), dtype: "u8", shape: [bytes] }));
  const tensor = tensors[0]!;
  const byte: Tensor = { ptr: device.allocate(256, "an answer"), dtype: "u8", shape: [1] };
  deviceName = device.name;
  /** Sends or receives all messages of a stream, `ahead` at a time. */
  const stream = async (pass: (tag: string, tensor: Tensor) => Promise<void>): Promise<void> => {
    const passing: Promise<void>[] = [];
    for (const message of range(messages)) {
      if (message >= ahead) await passing[message - ahead];
      passing.push(pass(`stream.${message}`, tensors[message % ahead]!)); // a tag each, as passes have
    }
    await Promise.all(passing);
  };
  return { link, tensor, byte, stream };
}

/** What the other process does for one kind. */
async function receive(end: End): Promise<void> {
  using device = openBenchDevice(end.stage);
  const { link, tensor, byte, stream } = await open(device, end);
  let [first, most] = [0, 0];
  for (const round of range(rounds)) {
    await stream((tag, into) => link.receive(tag, into));
    await link.send("answer", byte);
    for (const _ of range(messages)) {
      await link.receive("single", tensor);
      await device.idle();
      await link.send("answer", byte);
    }
    if (round === 0) first = rssMiB();
    most = Math.max(most, rssMiB());
  }
  const growth: Tensor = { ...tensor, dtype: "f32", shape: [1] };
  device.write(growth, new Float32Array([most - first]));
  await link.send("growth", growth);
  link[Symbol.dispose]();
}

async function measure(end: End): Promise<Record<"stream" | "single" | "copy", number[]> & { growth: string }> {
  using device = openBenchDevice(end.stage);
  const { link, tensor, byte, stream } = await open(device, end);
  const copyTo: Tensor = { ...tensor, ptr: device.allocate(bytes, "a copy") };
  const rates = { stream: [] as number[], single: [] as number[], copy: [] as number[] };
  const timed = async (into: number[], act: () => Promise<void>) => {
    const begin = performance.now();
    await act();
    into.push((messages * bytes) / 1e6 / (performance.now() - begin));
  };
  let [first, most] = [0, 0];
  for (const round of range(rounds)) {
    await timed(rates.stream, async () => {
      await stream((tag, from) => link.send(tag, from));
      await link.receive("answer", byte);
      await device.idle();
    });
    await timed(rates.single, async () => {
      for (const _ of range(messages)) {
        await link.send("single", tensor);
        await link.receive("answer", byte);
        await device.idle();
      }
    });
    await timed(rates.copy, async () => {
      for (const _ of range(messages)) device.copy(copyTo, tensor);
      await device.idle();
    });
    if (round === 0) first = rssMiB();
    most = Math.max(most, rssMiB());
  }
  const growth: Tensor = { ...tensor, dtype: "f32", shape: [1] };
  await link.receive("growth", growth);
  const theirs = new Float32Array((await device.read(growth)).buffer)[0]!;
  link[Symbol.dispose]();
  return { ...rates, growth: `${(most - first).toFixed(0)}, ${theirs.toFixed(0)}` };
}

async function all(address: Address, key: RunKey, run: string, child: boolean): Promise<void> {
  await using connection = await connectSealed(address, "mlora bench link", key);
  const receives = values.receive || child;
  for (const kind of kinds) {
    const end = { stage: receives ? 1 : 0, kind, run: `${run}-${kind}`, connection };
    if (receives) await receive(end);
    else report(kind, await measure(end));
  }
}

function report(kind: LinkKind, { stream, single, copy, growth }: Awaited<ReturnType<typeof measure>>): void {
  const { model, cores } = processor();
  const machine =
    values.device === "cuda" ? `${deviceName}${gpus[0] === gpus[1] ? "" : " to another"}` : `${model}, ${cores} cores`;
  keep(
    machine,
    kind,
    ahead > 1 ? `${values.mib}, ${ahead} ahead` : values.mib,
    values.rounds,
    ...[stream, single, copy].map(spread),
    growth,
  );
}

if (values.child) {
  const { address, key, run } = (await Bun.stdin.json()) as { address: Address; key: RunKey; run: string };
  await all(address, key, run, true);
} else if (values.nats !== undefined) {
  if (!values.run || !values.key) throw new Error("--nats needs --run and --key, the same for both ends");
  await all(parseAddress(values.nats), values.key, values.run, false);
} else {
  await using server = await startServer();
  const start = { address: server.address, key: newRunKey(), run: newRunId() };
  const child = Bun.spawn([process.execPath, import.meta.path, ...process.argv.slice(2), "--child"], {
    stdin: new TextEncoder().encode(JSON.stringify(start)),
    stdout: "inherit",
    stderr: "inherit",
    env: { ...process.env, BUN_FEATURE_FLAG_NO_ORPHANS: "1" },
  });
  await all(start.address, start.key, start.run, false);
  if ((await child.exited) !== 0) throw new Error("the other process failed");
}
