// What a mixed epoch has of each source: counted before training, for people.

import { isAddress } from "../../base/source-name.ts";
import { count, counted, shortPath } from "../../base/units.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import { mixedCounts } from "../../schedule/mix.ts";
import { inputLength, type Row } from "../../schedule/pack.ts";
import { shown } from "../../sources/http.ts";

/** Notices are on the live page, too: what follows an address may be secret. */
const sourceText = (name: string): string => (isAddress(name) ? shown(name) : shortPath(name));

export function mixNotices(
  adapters: readonly AdapterRecipe[],
  data: readonly { readonly train: readonly Row[]; readonly sizes: readonly number[] }[],
): string[] {
  const texts = adapters.flatMap(({ name, train, mix }, i) => {
    const { train: rows, sizes } = data[i]!;
    if (mix === null || sizes.includes(0)) return [];
    const counts = mixedCounts({ ...mix, sizes }, rows.map(inputLength));
    const parts = counts.map(
      (rows, source) => `${count(rows)} of the ${counted(sizes[source]!, "row")} of ${sourceText(train[source]!)}`,
    );
    return [{ name, text: `an epoch has ${parts.join(", ")}` }];
  });
  return [...Map.groupBy(texts, ({ text }) => text)].map(
    ([text, of]) => `${of[0]!.name}${of.length > 1 ? ` and ${of.length - 1} more` : ""}: ${text}`,
  );
}
