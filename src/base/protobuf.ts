// Protocol buffers as bytes: fields of a message in the order in which they stand, and messages written field by field. What
// the fields mean is said where they are read and written.

/** The bytes are no message, or not the one that is expected. */
export class WireFault extends Error {}

/** `value`: of a whole number the unsigned 64 bits; else the field's bytes, a view. */
export type Field = { readonly number: number } & (
  | { readonly wire: "varint"; readonly value: bigint }
  | { readonly wire: "bytes" | "fixed64" | "fixed32"; readonly value: Uint8Array }
);

const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];
/** Bytes of the longest varint. */
const LONGEST = 10;

/** The fields of a message, not of those within it. Throws WireFaults. */
export function* fieldsOf(message: Uint8Array): Generator<Field> {
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let i = 0; i < LONGEST; i++) {
      if (at >= message.length) throw new WireFault("ends within a number");
      const byte = message[at++]!;
      value |= BigInt(byte & 0x7f) << BigInt(7 * i);
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new WireFault(`has a number of more than ${LONGEST} bytes`);
  };
  const take = (length: number): Uint8Array => {
    if (length > message.length - at) throw new WireFault(`ends within a field of ${length} bytes`);
    at += length;
    return message.subarray(at - length, at);
  };
  while (at < message.length) {
    const tag = varint();
    const number = Number(tag >> 3n);
    if (number < 1 || number >= 2 ** 29) throw new WireFault(`has a field of the number ${number}`);
    const wire = Number(tag & 7n);
    if (wire === VARINT) yield { number, wire: "varint", value: varint() };
    else if (wire === BYTES) {
      const length = varint();
      if (length > BigInt(message.length)) throw new WireFault(`ends within a field of ${length} bytes`);
      yield { number, wire: "bytes", value: take(Number(length)) };
    } else if (wire === FIXED64) yield { number, wire: "fixed64", value: take(8) };
    else if (wire === FIXED32) yield { number, wire: "fixed32", value: take(4) };
    else throw new WireFault(`has a field of the wire type ${wire}`);
  }
}

const view = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The bytes of a field: a message, a text or an array. Throws a WireFault. */
export function bytesIn(field: Field): Uint8Array {
  if (field.wire === "bytes") return field.value;
  throw new WireFault(`has a ${field.wire} as field ${field.number}, expected bytes`);
}

export function textIn(field: Field): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytesIn(field));
  } catch (error) {
    throw error instanceof WireFault ? error : new WireFault(`has a text that is not UTF-8 as field ${field.number}`);
  }
}

/** A signed integer of 64 bits. Throws a WireFault, also where a number cannot hold it exactly. */
export function intIn(field: Field): number {
  if (field.wire !== "varint") throw new WireFault(`has ${field.wire} as field ${field.number}, expected a whole number`);
  return exact(BigInt.asIntN(64, field.value));
}

export function doubleIn(field: Field): number {
  if (field.wire === "fixed64") return view(field.value).getFloat64(0, true);
  throw new WireFault(`has a ${field.wire} as field ${field.number}, expected a double`);
}

/** Whole numbers of a repeated field, packed or one. */
export function intsIn(field: Field): number[] {
  if (field.wire === "varint") return [intIn(field)];
  const bytes = bytesIn(field);
  const found: number[] = [];
  for (let at = 0; at < bytes.length; ) {
    let [value, shift] = [0n, 0n];
    for (;;) {
      const byte = bytes[at++];
      if (byte === undefined || shift > 63n) throw new WireFault(`ends within a number of field ${field.number}`);
      value |= BigInt(byte & 0x7f) << shift;
      shift += 7n;
      if (byte < 0x80) break;
    }
    found.push(exact(BigInt.asIntN(64, value)));
  }
  return found;
}

function exact(value: bigint): number {
  const number = Number(value);
  if (Number.isSafeInteger(number)) return number;
  throw new WireFault(`has the number ${value}`);
}

/** Little-endian numbers. Throw WireFaults where the bytes are not a multiple of their size. */
export const float32s = (bytes: Uint8Array): Float32Array => new Float32Array(aligned(bytes, 4));
export const int32s = (bytes: Uint8Array): Int32Array => new Int32Array(aligned(bytes, 4));
export const int64s = (bytes: Uint8Array): number[] => Array.from(new BigInt64Array(aligned(bytes, 8)), exact);

function aligned(bytes: Uint8Array, size: number): ArrayBuffer {
  if (bytes.length % size !== 0) throw new WireFault(`has an array of ${bytes.length} bytes, expected a multiple of ${size}`);
  return new Uint8Array(bytes).buffer; // a copy, which begins where such an array may
}

/** The bytes of an array of numbers, without a copy. */
export const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array | Int32Array | BigInt64Array): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);

/** A message that is being written; fields stand in the order of the calls. */
export class Message {
  readonly #parts: Uint8Array[] = [];

  /** A whole number of 0 or more; 0 is the default and left out, as proto3 does, unless `always`. */
  int(number: number, value: number, always = false): this {
    if (value === 0 && !always) return this;
    return this.#put(varintOf(number * 8 + VARINT), varintOf(value));
  }

  double(number: number, value: number): this {
    const bytes = new Uint8Array(8);
    view(bytes).setFloat64(0, value, true);
    return this.#put(varintOf(number * 8 + FIXED64), bytes);
  }

  float(number: number, value: number): this {
    const bytes = new Uint8Array(4);
    view(bytes).setFloat32(0, value, true);
    return this.#put(varintOf(number * 8 + FIXED32), bytes);
  }

  bytes(number: number, value: Uint8Array): this {
    return this.#put(varintOf(number * 8 + BYTES), varintOf(value.length), value);
  }

  text(number: number, value: string): this {
    return this.bytes(number, new TextEncoder().encode(value));
  }

  message(number: number, value: Message): this {
    return this.bytes(number, value.done());
  }

  /** A packed array of whole numbers of 0 or more. */
  ints(number: number, values: readonly number[]): this {
    return values.length === 0 ? this : this.bytes(number, Buffer.concat(values.map(varintOf)));
  }

  done(): Uint8Array {
    return Buffer.concat(this.#parts);
  }

  #put(...parts: Uint8Array[]): this {
    this.#parts.push(...parts);
    return this;
  }
}

function varintOf(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80);
  return Uint8Array.of(...bytes, rest);
}
