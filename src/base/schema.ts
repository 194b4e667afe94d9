// Types of schemas, and the schemas of what programs write to each other.

import * as v from "valibot";

/** Readonly all through; typed arrays stay as they are. */
export type Readable<T> = T extends ArrayBufferView ? T : T extends object ? { readonly [K in keyof T]: Readable<T[K]> } : T;

/** What a schema gives. A structure has its type from here, so that it is written once. */
export type Output<S extends v.GenericSchema> = Readable<v.InferOutput<S>>;

/** A schema whose own type is too long to be written down. */
export type SchemaOf<T> = v.GenericSchema<unknown, T>;

export const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
export const natural = v.pipe(count, v.minValue(1));
export const real = v.number();
/** A finite number or NaN. */
export const realOrNaN = v.union([real, v.nan()]);
/** Of whatever memory, as the plain names of their types say. */
export const floats: v.GenericSchema<Float32Array> = v.instance(Float32Array);
export const bytes: v.GenericSchema<Uint8Array> = v.instance(Uint8Array);
export const ints: v.GenericSchema<Int32Array> = v.instance(Int32Array);
