// Fields that the rows have under other names: `columns` of a recipe.

import { keysOf, objectOf } from "./json.ts";
import { type Fields, RowFault } from "./jsonl.ts";

type Columns = Readonly<Record<string, string>>;

/**
 * The row under the names of fields. A column that takes another's name takes its place. Throws a RowFault where the row lacks
 * a column, unless `isOptional` says that its field may be missing.
 */
export function renamed(row: Fields, columns: Columns, isOptional: (field: string) => boolean = () => false): Fields {
  const fields = Object.entries(columns);
  if (fields.length === 0) return row;
  const missing = fields.find(([field, column]) => !Object.hasOwn(row, column) && !isOptional(field));
  if (missing) throw new RowFault(`lacks the column '${missing[1]}' that columns.${missing[0]} names`);
  const fieldOf = new Map(fields.map(([field, column]) => [column, field]));
  const replaced = new Set(replacedColumns(row, columns));
  const kept = keysOf(row).filter((column) => !replaced.has(column));
  return objectOf(kept.map((column) => [fieldOf.get(column) ?? column, row[column]] as const));
}

/** Columns whose names others take, so that they are left out. */
export const replacedColumns = (row: Fields, columns: Columns): string[] =>
  Object.entries(columns).flatMap(([field, column]) => {
    const isLost = field !== column && Object.hasOwn(row, column) && Object.hasOwn(row, field);
    return isLost && !Object.values(columns).includes(field) ? [field] : [];
  });
