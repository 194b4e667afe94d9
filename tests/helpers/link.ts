// Links for tests: tensors with contents that can be told apart, neighbours in processes of their own, and how to talk to them.

import { join } from "node:path";
import { hostView } from "../../ffi/memory.ts";
import { RunError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { type Channel, Queue } from "../../src/link/channel.ts";

/** Memory of a device for tensors of up to `bytes` bytes. */
export const takeTensor = (device: Device, bytes: number): ((size: number) => Tensor) => {
  const ptr = device.allocate(Math.max(bytes, 64), "a test's tensor");
  return (size) => ({ ptr, dtype: "u8", shape: [size] });
};

/** Bytes that are different for each message and at each place; `message` is any number. */
export function contents(message: number, size: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(size / 4) + 1);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i ^ (message << 8), 0x9e3779b1) + message;
  return new Uint8Array(words.buffer, 0, size);
}

export const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** What a tensor of the cpu device holds, in place. */
export const bytesAt = ({ ptr, shape: [size] }: Tensor): Uint8Array => new Uint8Array(hostView(ptr, size!));

/** Sizes as activations never have them: 1 byte, odd ones, whole pages and one off, up to `most`. */
export function sizes(seed: number, count: number, most: number): number[] {
  const rng = new Rng(seed);
  const odd = [1, 2, 3, 4095, 4096, 4097, most - 1, most];
  return Array.from({ length: count }, (_, i) => odd[i] ?? 1 + Math.floor(2 ** (rng.uniform() * Math.log2(most))));
}

type Port = {
  send(message: unknown): unknown;
};

/** A channel over the IPC of Bun; `deliver` is for what comes. */
function ipcChannel(port: Port): Channel & { deliver(message: unknown): void; lost(): void } {
  const queue = new Queue<Uint8Array>();
  return {
    send: (message) => void port.send(message),
    receive: () => queue.next(),
    deliver: (message) => queue.push(message as Uint8Array),
    lost: () => queue.end(new RunError("link.lost", "the process has ended")),
    [Symbol.dispose]: () => queue.end(new RunError("link.closed", "the channel was closed")),
  };
}

/** Runs tests/helpers/link/NAME.ts in a process of its own. Bytes that it sends are its channel's; all else is `said`. */
export function neighbour(name: string, input: unknown) {
  const said = new Queue<unknown>();
  const channel = ipcChannel({ send: (message) => child.send(message) });
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "link", `${name}.ts`)], {
    env: { ...process.env, BUN_FEATURE_FLAG_NO_ORPHANS: "1" },
    stdio: ["ignore", "inherit", "inherit"],
    serialization: "advanced",
    ipc: (message) => (message instanceof Uint8Array ? channel.deliver(message) : said.push(message)),
    onExit: () => {
      channel.lost();
      said.end(new Error(`${name} has ended`));
    },
  });
  child.send({ input });
  return {
    channel,
    pid: child.pid,
    said: () => said.next(),
    tell: (message: unknown) => child.send(message),
    exited: child.exited,
    kill: (signal: NodeJS.Signals) => child.kill(signal),
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

/** The other side of `neighbour`: what the test gave, the channel to it, and a way to say something to it. */
export async function asNeighbour<T>() {
  const channel = ipcChannel({ send: (message) => process.send!(message) });
  const told = new Queue<unknown>();
  process.on("message", (message) => (message instanceof Uint8Array ? channel.deliver(message) : told.push(message)));
  const { input } = (await told.next()) as { input: T };
  return { input, channel, told: () => told.next(), say: (message: unknown) => void process.send!(message) };
}

/** The MloraError that an act fails with, as "code: message"; throws when it does not fail. */
export async function failure(act: Promise<unknown>): Promise<string> {
  try {
    await act;
  } catch (error) {
    if (error instanceof RunError) return `${error.code}: ${error.message}`;
    throw error;
  }
  throw new Error("it did not fail");
}
