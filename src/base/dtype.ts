// Element types of tensors, in memory and in files.

export const DTYPES = ["f32", "bf16", "f16", "i32", "i64", "u8"] as const;
export type DType = (typeof DTYPES)[number];

const BYTES: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, i64: 8, u8: 1 };

/** Bytes of one element. */
export const bytesOf = (dtype: DType): number => BYTES[dtype];
