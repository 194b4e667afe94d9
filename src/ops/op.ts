// How an op is made: a kernel with the types and shapes of its tensors. Checks them, then launches.
//
// In contracts letters are sizes: M rows (tokens of a micro-batch, packed), H hidden, K input and N output features of a
// linear, G linears that share an input (1 to 3), L slots of adapters, E elements of s, T target rows, V vocabulary, D head
// dimension, Q and C query and key heads. c: the device's compute type (f32 or bf16). Arithmetic inside a kernel is f32
// throughout.
//
// A spec reads "c M 2I": element type (c: the device's compute type; w: that, or a packed weight), then a size for each
// dimension: a letter that must mean the same size in all tensors of the call, with a factor before it, or a number.

import type { DType } from "../base/dtype.ts";
import { sizeOf } from "../base/shape.ts";
import type { Device, Tensor } from "../device/device.ts";
import type { Kernel } from "../device/kernel.ts";
import { isPacked, type Weight } from "../device/packed.ts";

/** A size: a factor before the letter with this place in the alphabet, or, below 0, the factor itself. */
type Size = { readonly factor: number; readonly letter: number };
type Spec = { readonly name: string; readonly dtype: DType | "c" | "w"; readonly sizes: readonly Size[] };

const letterAt = (letter: string): number => letter.charCodeAt(0) - "A".charCodeAt(0);

function parse([name, text]: readonly [string, string]): Spec {
  const [dtype, ...sizes] = text.split(" ");
  return {
    name,
    dtype: dtype as Spec["dtype"],
    sizes: sizes.map((size) => {
      const [, factor, letter] = /^(\d*)([A-Z]?)$/.exec(size)!;
      return { factor: factor === "" ? 1 : Number(factor), letter: letter === "" ? -1 : letterAt(letter!) };
    }),
  };
}

const isTensor = (value: unknown): value is Weight => typeof value === "object" && value !== null && "ptr" in value;

/** A wrong call of an op is our bug: the message is for the developer. */
const wrong = (kernel: string, name: string, what: string): Error => new Error(`${kernel}: '${name}' ${what}`);

/** Checks a call's tensors, then launches its kernel. */
export type Op<A extends object> = ((device: Device, args: Readonly<A>) => void) & { readonly kernel: Kernel<Readonly<A>> };

type Definition<A extends object> = Omit<Kernel<Readonly<A>>, "name"> & {
  /** Sizes that follow from numbers among the arguments. */
  readonly known?: (args: Readonly<A>) => Readonly<Record<string, number>>;
};

/**
 * The op of a kernel. `specs` names the tensors of its arguments, those of its `lora` part among them; null tensors are
 * skipped.
 */
export function op<A extends object>(
  name: string,
  specs: Readonly<Record<string, string>>,
  { known, cpu, cuda }: Definition<A>,
): Op<A> {
  const parsed = Object.entries(specs).map(parse);
  // Of each letter, below 0 until one is found; kept between calls, of which a step makes thousands.
  const sizes = new Float64Array(26);
  const kernel = { name, cpu, cuda };
  const call = (device: Device, args: Readonly<A>): void => {
    const flat = args as Readonly<Record<string, unknown>>;
    const lora = flat["lora"] as Readonly<Record<string, unknown>> | null | undefined;
    sizes.fill(-1);
    if (known) for (const [letter, size] of Object.entries(known(args))) sizes[letterAt(letter)] = size;
    for (const spec of parsed) {
      const tensor = lora?.[spec.name] ?? flat[spec.name];
      if (isTensor(tensor)) check(name, spec, tensor, device.compute, sizes);
    }
    device.launch(kernel, args);
  };
  return Object.assign(call, { kernel });
}

function check(
  kernel: string,
  { name, dtype, sizes: expected }: Spec,
  tensor: Weight,
  compute: DType,
  sizes: Float64Array,
): void {
  const type = dtype === "c" || dtype === "w" ? compute : dtype;
  const held = isPacked(tensor) ? tensor.format : tensor.dtype;
  if (held !== type && !(dtype === "w" && isPacked(tensor))) throw wrong(kernel, name, `is ${held}, expected ${type}`);
  const { shape } = tensor;
  if (shape.length !== expected.length) throw wrong(kernel, name, `has shape [${shape}]`);
  for (let i = 0; i < shape.length; i++) {
    const { factor, letter } = expected[i]!;
    const size = shape[i]!;
    if (size % factor !== 0) throw wrong(kernel, name, `has ${size} in dimension ${i}, expected a multiple of ${factor}`);
    if (letter >= 0 && sizes[letter]! < 0) sizes[letter] = size / factor;
    const wanted = letter < 0 ? factor : factor * sizes[letter]!;
    if (size !== wanted) throw wrong(kernel, name, `has ${size} in dimension ${i}, expected ${wanted}`);
  }
}

// For implementations.

export const cdiv = (a: number, b: number): number => Math.ceil(a / b);

/** Size of a dimension, which specs have checked to exist. */
export function dim(tensor: Tensor, i: number): number {
  const size = tensor.shape[i];
  if (size === undefined) throw new Error(`a tensor of ${tensor.shape.length} dimensions has no dimension ${i}`);
  return size;
}

/** Elements from one row of a table to the next. */
export const strideOf = ({ shape, stride }: Tensor): number => stride ?? sizeOf(shape.slice(1));

/** 1 where an optional argument is there: GPU kernels are compiled with and without. */
export const flag = (value: unknown): 0 | 1 => (value === null ? 0 : 1);
