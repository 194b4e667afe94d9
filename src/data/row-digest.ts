// The digest by which a run knows its rows again.

import type { Sample } from "./rows.ts";
import { isOfTokensAlone, walk } from "./walk.ts";

type Digested = Pick<Sample, "ids" | "mask" | "other" | "label" | "columns">;

/** Bytes that are hashed at once: a call for each of millions of rows takes longer than their bytes. */
const CHUNK = 1 << 20;

/** Arrays that are remembered. */
const VIEWS = 8;

/** Bytes that come together until they are hashed. */
class Gathered {
  readonly #hasher = new Bun.CryptoHasher("sha256");
  readonly #buffer = Buffer.alloc(CHUNK);
  #used = 0;
  /** The bytes of arrays, of which many rows lie in one. */
  readonly #views = new Map<Int32Array | Uint8Array, Buffer>();

  text(text: string): void {
    if (this.#used + 3 * text.length > CHUNK) this.#flush();
    if (3 * text.length > CHUNK) this.#hasher.update(text);
    else this.#used += this.#buffer.write(text, this.#used);
  }

  /** A count and a semicolon. */
  count(value: number): void {
    if (this.#used + 20 > CHUNK) this.#flush();
    let digits = 1;
    for (let most = 10; value >= most; most *= 10) digits++;
    for (let at = this.#used + digits - 1, left = value; at >= this.#used; at--, left = Math.floor(left / 10))
      this.#buffer[at] = 48 + (left % 10);
    this.#used += digits;
    this.#buffer[this.#used++] = 59;
  }

  /** Bytes of a part of an array. */
  bytes(of: Int32Array | Uint8Array, from: number, to: number): void {
    let view = this.#views.get(of);
    if (view === undefined) {
      if (this.#views.size === VIEWS) this.#views.clear();
      view = Buffer.from(of.buffer as ArrayBuffer, of.byteOffset, of.byteLength);
      this.#views.set(of, view);
    }
    if (this.#used + to - from > CHUNK) this.#flush();
    if (to - from > CHUNK) this.#hasher.update(view.subarray(from, to));
    else this.#used += view.copy(this.#buffer, this.#used, from, to);
  }

  digest(): string {
    this.#flush();
    return this.#hasher.digest("hex");
  }

  #flush(): void {
    this.#hasher.update(this.#buffer.subarray(0, this.#used));
    this.#used = 0;
  }
}

/** Of lists of rows: their tokens, what is learned of them, labels and columns, in order. */
export function digestOf(lists: readonly (readonly Digested[])[]): string {
  const gathered = new Gathered();
  const sequence = (ids: Int32Array, mask: Uint8Array, at: number, length: number): void => {
    gathered.count(length);
    gathered.bytes(ids, 4 * at, 4 * (at + length));
    gathered.bytes(mask, at, at + length);
  };
  for (const rows of lists) {
    gathered.count(rows.length);
    if (isOfTokensAlone(rows)) walk(rows, sequence);
    else
      for (const { ids, mask, other, label, columns } of rows) {
        sequence(ids, mask, 0, ids.length);
        if (other) sequence(other.ids, other.mask, 0, other.ids.length);
        if (label !== undefined) gathered.text(`${label};`);
        if (columns !== undefined) gathered.text(`${columns};`);
      }
  }
  return gathered.digest();
}
