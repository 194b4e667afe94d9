// Weights in bitsandbytes' 4 bits: codes, two to a byte, the scale of each block of them, and a JSON text that says the rest.
// The scales themselves may be codes of 8 bits in blocks with scales of their own ("nested", or double quantisation).

import * as v from "valibot";
import { textOf } from "../../base/errors.ts";
import { sizeOf } from "../../base/shape.ts";
import { counted } from "../../base/units.ts";
import { codes4Values, nf4Tables } from "../stored.ts";
import { decoder, type ModelTensor, type Nf4Parts, scratch } from "../tensor.ts";
import { bytesOfTensor, type RawTensor } from "./raw.ts";

const STATE = ".quant_state.bitsandbytes__";
const MOST_STATE = 64 << 10;
const PARTS = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] as const;
type Parts = Readonly<Partial<Record<(typeof PARTS)[number], RawTensor>>>;

const natural = v.pipe(v.number(), v.safeInteger(), v.minValue(1));
/** What is said once for a weight. Other keys change no number. */
const stateSchema = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({
    quant_type: v.literal("nf4"),
    blocksize: v.pipe(natural, v.multipleOf(2)),
    shape: v.tuple([natural, natural]),
    nested_blocksize: v.optional(natural),
    nested_offset: v.optional(v.number()),
  }),
);
type State = v.InferOutput<typeof stateSchema>;

/** Replaces the weights in 4 bits by their values, and takes what belongs to them off the list. */
export function readBitsandbytes(tensors: Map<string, ModelTensor>, raw: ReadonlyMap<string, RawTensor>): void {
  for (const [key, state] of raw) {
    const at = key.indexOf(STATE);
    if (at === -1) continue;
    const name = key.slice(0, at);
    const parts: Parts = Object.fromEntries(PARTS.map((part) => [part, raw.get(`${name}.${part}`)]));
    for (const other of [key, ...PARTS.map((part) => `${name}.${part}`)]) tensors.delete(other);
    const codes = raw.get(name);
    if (codes) tensors.set(name, tensorOf(codes, state, parts));
  }
  for (const [name, { type }] of tensors)
    if (type === "I8" && raw.has(name.replace(/weight$/, "SCB")))
      tensors.set(name, { ...tensors.get(name)!, fault: "is in the 8 bits of LLM.int8, which are not read" });
}

/** The scales of the tensor that is being read: those of all would be an eighth of the codes' size. */
let latest: { readonly of: Parts; readonly absmax: Float32Array } | null = null;

function tensorOf(codes: RawTensor, state: RawTensor, parts: Parts): ModelTensor {
  const read = readState(state);
  const broken = (shape: readonly number[], fault: string): ModelTensor => ({
    ...{ type: "nf4", dtype: "f32", shape, nf4: null, fault },
    read: () => undefined,
  });
  if (typeof read === "string") return broken(codes.shape, read);
  const { shape, blocksize } = read;
  const fault = faultOf(codes, read, parts);
  if (fault !== null) return broken(shape, fault);
  const count = sizeOf(shape);
  const book = floats(parts.quant_map!);
  const decode = decoder(count, 2, (first, some, as, into) => {
    if (latest?.of !== parts) latest = { of: parts, absmax: absmaxOf(read, parts) };
    const { absmax } = latest;
    const part = scratch(some / 2);
    codes.read(part, first / 2);
    codes4Values(part, { book, absmax, block: blocksize }, first, some, as, into);
  });
  return { type: "nf4", dtype: "f32", shape, fault: null, read: decode, nf4: keptAs(codes, read, parts, book) };
}

function readState(state: RawTensor): State | string {
  if (state.bytes > MOST_STATE) return `has a quant_state of ${counted(state.bytes, "byte")}`;
  try {
    const { success, output, issues } = v.safeParse(
      stateSchema,
      new TextDecoder("utf-8", { fatal: true }).decode(bytesOfTensor(state)),
    );
    return success ? output : `has a quant_state that is not known: ${v.getDotPath(issues[0]) ?? "JSON"}: ${issues[0].message}`;
  } catch (error) {
    return `has a quant_state that cannot be read: ${textOf(error)}`;
  }
}

/** What does not fit together, or null. */
function faultOf(codes: RawTensor, { shape, blocksize, nested_blocksize: nestedBlock }: State, parts: Parts): string | null {
  const count = sizeOf(shape);
  const blocks = Math.ceil(count / blocksize);
  const isNested = parts.nested_absmax !== undefined;
  if (count % 2 !== 0) return `has ${counted(count, "value")}, expected an even number`;
  if (isNested && nestedBlock === undefined)
    return "has nested scales, and its quant_state does not say how many values share one";
  // of any type: bnb_4bit_quant_storage packs them into wider ones
  if (codes.bytes !== count / 2) return `has ${counted(codes.bytes, "byte")} of codes, expected ${counted(count / 2, "byte")}`;
  const wanted: readonly (readonly [string, RawTensor | undefined, string, number])[] = [
    ["absmax", parts.absmax, isNested ? "U8" : "F32", blocks],
    ["quant_map", parts.quant_map, "F32", 16],
    ...(isNested
      ? ([
          ["nested_absmax", parts.nested_absmax, "F32", Math.ceil(blocks / nestedBlock!)],
          ["nested_quant_map", parts.nested_quant_map, "F32", 256],
        ] as const)
      : []),
  ];
  for (const [what, found, type, size] of wanted) {
    if (!found) return `has no ${what}`;
    if (found.type !== type || sizeOf(found.shape) !== size)
      return `has ${what} of ${sizeOf(found.shape)} ${found.type}, expected ${size} ${type}`;
  }
  return null;
}

const floats = (tensor: RawTensor): Float32Array<ArrayBuffer> => new Float32Array(bytesOfTensor(tensor).buffer);

/** The scale of each block. As bitsandbytes computes it: product and sum are each rounded. */
function absmaxOf({ nested_blocksize: block, nested_offset: offset = 0 }: State, parts: Parts): Float32Array {
  if (!parts.nested_absmax) return floats(parts.absmax!);
  const [map, scales, mean] = [floats(parts.nested_quant_map!), floats(parts.nested_absmax), Math.fround(offset)];
  return Float32Array.from(
    bytesOfTensor(parts.absmax!),
    (code, i) => Math.fround(map[code]! * scales[Math.floor(i / block!)]!) + mean,
  );
}

/** Its parts as devices hold them, where these are the very same format; null for others. */
function keptAs(codes: RawTensor, state: State, parts: Parts, book: Float32Array): Nf4Parts | null {
  if (state.blocksize !== 64 || !parts.nested_absmax || state.nested_blocksize !== 256) return null;
  const ours = nf4Tables();
  const isSame = (a: Float32Array, b: Float32Array) => a.every((value, i) => value === b[i]);
  if (!isSame(ours.book, book) || !isSame(ours.nested, floats(parts.nested_quant_map!))) return null;
  return {
    readCodes: codes.read,
    absmax: () => bytesOfTensor(parts.absmax!),
    nested: () => floats(parts.nested_absmax!),
    mean: Math.fround(state.nested_offset ?? 0),
  };
}
