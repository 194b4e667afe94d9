// TensorBoard's event files: TFRecords, each with the checksums of its length and of its bytes, that hold protocol buffers of
// the message Event (tensorflow/core/util/event.proto).

import { Message } from "../base/protobuf.ts";
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

/** Seconds since 1970. */
type At = { readonly wallTime: number };
export type Scalars = Readonly<Record<string, number>>;

const event = ({ wallTime }: At, fill: (event: Message) => Message): Uint8Array =>
  tfRecord(fill(new Message().double(1, wallTime)).done());

/** The first record of a file. */
export const versionRecord = (at: At): Uint8Array => event(at, (of) => of.text(3, "brain.Event:2"));

/** The run resumes here: readers forget what earlier files have of this step and of later ones. */
export const startRecord = (at: At, step: number): Uint8Array =>
  event(at, (of) => of.int(2, step, true).message(7, new Message().int(1, 1)));

/** Numbers of a step, by their tags. */
export const scalarsRecord = (at: At, step: number, scalars: Scalars): Uint8Array => {
  const summary = new Message();
  for (const [name, value] of Object.entries(scalars)) summary.message(1, new Message().text(1, name).float(2, value));
  return event(at, (of) => of.int(2, step, true).message(5, summary));
};
