// TensorBoard's event files: TFRecords, each with the checksums of its length and of its bytes, that hold protocol buffers of
// the message Event (tensorflow/core/util/event.proto).

import { range } from "../base/shape.ts";

/** CRC-32C (Castagnoli), reflected. */
const POLYNOMIAL = 0x82f63b78;
const TABLE = Uint32Array.from(range(256), (byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
  return crc;
});

export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** As TFRecords have it: a checksum of bytes that hold checksums would be weak. */
const masked = (bytes: Uint8Array): number => {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
};

/** A TFRecord: its length in 8 bytes, that length's checksum, the bytes, their checksum. */
function tfRecord(payload: Uint8Array): Uint8Array {
  const record = new Uint8Array(payload.length + 16);
  const view = new DataView(record.buffer);
  view.setBigUint64(0, BigInt(payload.length), true);
  view.setUint32(8, masked(record.subarray(0, 8)), true);
  record.set(payload, 12);
  view.setUint32(12 + payload.length, masked(payload), true);
  return record;
}

/** Fields of a protocol buffer, each with its tag. */
type Field = readonly number[] | Uint8Array;

/** Of a whole number from 0 to 2^53. */
function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
  bytes.push(rest);
  return bytes;
}
const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];
const tag = (field: number, wire: number): number => (field << 3) | wire;
const whole = (field: number, value: number): Field => [tag(field, VARINT), ...varint(value)];
const double = (field: number, value: number): Field => [
  tag(field, FIXED64),
  ...new Uint8Array(new Float64Array([value]).buffer),
];
const float = (field: number, value: number): Field => [
  tag(field, FIXED32),
  ...new Uint8Array(new Float32Array([value]).buffer),
];
const bytes = (field: number, value: Uint8Array): Field =>
  Buffer.concat([Uint8Array.from([tag(field, BYTES), ...varint(value.length)]), value]);
const message = (fields: readonly Field[]): Uint8Array => Buffer.concat(fields.map((field) => Uint8Array.from(field)));
const text = (field: number, value: string): Field => bytes(field, new TextEncoder().encode(value));

/** Seconds since 1970. */
type At = { readonly wallTime: number };
export type Scalars = Readonly<Record<string, number>>;

const event = ({ wallTime }: At, fields: readonly Field[]): Uint8Array => tfRecord(message([double(1, wallTime), ...fields]));

/** The first record of a file. */
export const versionRecord = (at: At): Uint8Array => event(at, [text(3, "brain.Event:2")]);

/** The run resumes here: readers forget what earlier files have of this step and of later ones. */
export const startRecord = (at: At, step: number): Uint8Array => event(at, [whole(2, step), bytes(7, message([whole(1, 1)]))]);

/** Numbers of a step, by their tags. */
export const scalarsRecord = (at: At, step: number, scalars: Scalars): Uint8Array => {
  const values = Object.entries(scalars).map(([name, value]) => bytes(1, message([text(1, name), float(2, value)])));
  return event(at, [whole(2, step), bytes(5, message(values))]);
};
