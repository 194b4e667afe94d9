// Small helpers on sizes.

export const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
/** The same numbers, of four bytes each: for millions of rows. */
export const rangeOfRows = (n: number): Int32Array => {
  const rows = new Int32Array(n);
  for (let i = 0; i < n; i++) rows[i] = i;
  return rows;
};
/** As `sum`, of millions. */
export function sumOfMany(values: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i]!;
  return total;
}
export const sum = (values: Iterable<number>): number => {
  let total = 0;
  for (const value of values) total += value;
  return total;
};
/** Number of elements of a shape. */
export const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
/** `n` rounded up to a multiple of `to`. */
export const alignUp = (n: number, to: number): number => Math.ceil(n / to) * to;
/** The largest of any number of values (spreading a long list into Math.max overflows the stack); 0 for none. */
export const maxOf = (values: Iterable<number>): number => {
  let most = Number.NEGATIVE_INFINITY;
  for (const value of values) if (value > most) most = value;
  return most === Number.NEGATIVE_INFINITY ? 0 : most;
};

/** The upper of the two in the middle of an even number; NaN of none. */
export const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
};
