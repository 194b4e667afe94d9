// Names of keys: snake_case in recipes, camelCase in the program.

export type Camel<S extends string> = S extends `${infer Head}_${infer Tail}` ? `${Head}${Capitalize<Camel<Tail>>}` : S;

export const camel = <S extends string>(key: S): Camel<S> =>
  key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()) as Camel<S>;
export const snake = (key: string): string => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** The same values under names in camelCase. */
export type CamelKeys<T> = { readonly [K in keyof T & string as Camel<K>]: T[K] };
export const camelKeys = <T extends object>(table: T): CamelKeys<T> =>
  Object.fromEntries(Object.entries(table).map(([key, value]) => [camel(key), value])) as CamelKeys<T>;
