// A neighbour for tests: opens its end of a link and does as it is asked there.
//
// "echo" takes messages in an order of its own within each group of `group`, checks them, and sends each back with every byte
// turned around; then closes. "stuck" takes nothing. "gone" takes `take` messages and ends without a word.
// "slow" takes all, slowly, once anything is sent to it.

import { Rng } from "../../../src/base/rng.ts";
import type { Address } from "../../../src/bus/address.ts";
import { connectSealed, type RunKey } from "../../../src/bus/seal.ts";
import { CpuDevice } from "../../../src/device/cpu.ts";
import { CudaDevice } from "../../../src/device/cuda.ts";
import type { LinkKind, Slots } from "../../../src/link/link.ts";
import { openLink } from "../../../src/link/open.ts";
import { busChannel } from "../../../src/link/peer-channel.ts";
import { asNeighbour, contents, same, takeTensor } from "../link.ts";

export type EchoInput = {
  readonly mode: "echo" | "stuck" | "gone" | "slow";
  readonly kind: "auto" | LinkKind;
  /** Where the link is opened over; left out, the IPC with the test. */
  readonly bus?: { readonly address: Address; readonly key: RunKey; readonly run: string };
  readonly capacity: Slots;
  readonly sizes: readonly number[];
  readonly group: number;
  /** On the first GPU; left out, on the cpu device. */
  readonly cuda?: boolean;
};

if (import.meta.main) {
  const { input, channel, told, say } = await asNeighbour<EchoInput>();
  const { mode, kind, capacity, sizes, group, bus = null } = input;
  const connection = bus && (await connectSealed(bus.address, "echo", bus.key));
  const control = connection ? busChannel(connection, { run: bus!.run, stage: 1, neighbour: 0 }, "control") : channel;
  using device = input.cuda ? new CudaDevice("bf16") : new CpuDevice(1);
  const { link, why } = await openLink({ device, stage: 1, neighbour: 0, kind, capacity, channel: control, bus });
  say({ why });
  const tensor = takeTensor(device, capacity.slotBytes);
  if (mode === "stuck" || mode === "slow") await told();
  const rng = new Rng(5);
  for (let from = 0; mode === "echo" && from < sizes.length; from += group) {
    const order = Array.from({ length: Math.min(group, sizes.length - from) }, (_, i) => from + i);
    rng.shuffle(order);
    for (const message of order) {
      const size = sizes[message]!;
      const into = tensor(size);
      device.zero(into);
      await link.receive(`there.${message}`, into);
      const bytes = await device.read(into);
      if (!same(bytes, contents(message, size))) throw new Error(`message ${message} of ${size} bytes came wrong`);
      device.write(into, bytes.reverse());
      await link.send(`back.${message}`, into);
      device.zero(into); // it may be overwritten
    }
  }
  if (mode === "gone") {
    for (const message of [0, 1]) await link.receive(`there.${message}`, tensor(sizes[message]!));
    process.kill(process.pid, "SIGKILL");
  }
  if (mode === "slow")
    for (const message of sizes.keys()) {
      await Bun.sleep(5);
      await link.receive(`there.${message}`, tensor(sizes[message]!));
    }
  link[Symbol.dispose]();
  say({ done: true });
  await connection?.[Symbol.asyncDispose]();
  process.disconnect!();
}
