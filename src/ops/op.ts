// How an op is made: the name of a kernel and the types and shapes of its tensors. Checks them, then launches.
//
// A spec reads "c M 2I": element type (c: the device's compute type; w: that, or a packed weight), then a size for each
// dimension: a letter that must mean the same size in all tensors of the call, with a factor before it, or a number.

import type { DType } from "../base/dtype.ts";
import type { Device } from "../device/device.ts";
import type { KernelName, Kernels } from "../device/kernels.ts";
import { isPacked, type Weight } from "../device/packed.ts";

type Spec = {
  readonly dtype: DType | "c" | "w";
  readonly sizes: readonly { readonly factor: number; readonly letter: string }[];
};

function parse(text: string): Spec {
  const [dtype, ...sizes] = text.split(" ");
  return {
    dtype: dtype as Spec["dtype"],
    sizes: sizes.map((size) => {
      const [, factor, letter] = /^(\d*)([A-Z]?)$/.exec(size)!;
      return { factor: factor === "" ? 1 : Number(factor), letter: letter! };
    }),
  };
}

const isTensor = (value: unknown): value is Weight => typeof value === "object" && value !== null && "ptr" in value;

/** A wrong call of an op is our bug: the message is for the developer. */
const wrong = (kernel: string, name: string, what: string): Error => new Error(`${kernel}: '${name}' ${what}`);

/**
 * The op of a kernel. `specs` names the tensors of its arguments, those of its `lora` part among them; null tensors are
 * skipped. `known` gives sizes that follow from numbers among the arguments.
 */
export function op<K extends KernelName>(
  kernel: K,
  specs: Readonly<Record<string, string>>,
  known: (args: Kernels[K]) => Readonly<Record<string, number>> = () => ({}),
): (device: Device, args: Kernels[K]) => void {
  const parsed = Object.entries(specs).map(([name, text]) => [name, parse(text)] as const);
  return (device, args) => {
    const flat = args as Readonly<Record<string, unknown>>;
    const values: Readonly<Record<string, unknown>> = { ...flat, ...(flat["lora"] as object | null | undefined) };
    const sizes: Record<string, number> = { ...known(args) };
    for (const [name, { dtype, sizes: want }] of parsed) {
      const tensor = values[name];
      if (!isTensor(tensor)) continue;
      const type = dtype === "c" || dtype === "w" ? device.compute : dtype;
      const held = isPacked(tensor) ? tensor.format : tensor.dtype;
      if (held !== type && !(dtype === "w" && isPacked(tensor))) throw wrong(kernel, name, `is ${held}, wanted ${type}`);
      if (tensor.shape.length !== want.length) throw wrong(kernel, name, `has shape [${tensor.shape}]`);
      want.forEach(({ factor, letter }, i) => {
        const size = tensor.shape[i]!;
        if (letter !== "" && sizes[letter] === undefined) sizes[letter] = size / factor;
        const unit = letter === "" ? 1 : sizes[letter]!;
        if (size !== factor * unit) throw wrong(kernel, name, `has ${size} in dimension ${i}, wanted ${factor * unit}`);
      });
    }
    device.launch(kernel, args);
  };
}
