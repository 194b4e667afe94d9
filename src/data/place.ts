// Where each thread is that reads rows, in numbers shared with the thread that started it.

/**
 * The number of the file, the line (0 between rows), rows begun, and of the reader alone the bytes read of all files, and the
 * chunks in which rows became more or fewer.
 */
export const PLACE = { file: 0, line: 1, rows: 2, bytes: 3, uneven: 4, numbers: 5 } as const;

/** The numbers of one thread; the reader is the first. */
export const placeOfThread = (all: Float64Array, thread: number): Float64Array =>
  all.subarray(thread * PLACE.numbers, (thread + 1) * PLACE.numbers);
