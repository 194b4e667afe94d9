// Settings of an adapter as others may read them: the card of a hub, a report, a tracker of experiments.

import { shown } from "../../sources/http.ts";

/** The same values; an address in them, at any depth, is without what may be secret in it: a user, a query. */
export function withoutSecrets(value: unknown): unknown {
  if (typeof value === "string") return /^https?:\/\/\S+$/.test(value) && URL.canParse(value) ? shown(value) : value;
  if (Array.isArray(value)) return value.map(withoutSecrets);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, withoutSecrets(one)]));
}
