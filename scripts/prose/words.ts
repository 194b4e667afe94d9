// Words and phrases that are not used here, each with what to say in its place.

export type Rule = { readonly pattern: RegExp; readonly instead: string };

/** A space stands for any white space, line ends among it. */
const rule = (pattern: string, instead: string, flags = "gi"): Rule => ({
  pattern: new RegExp(pattern.replaceAll(" ", "\\s+"), flags),
  instead,
});

/** What may come before the pronoun of persons. */
const PEOPLE =
  "user|users|people|those|anyone|reader|readers|person|contributor|contributors|engineer|engineers|team|teams|girl";

export const RULES: readonly Rule[] = [
  // Things are not persons.
  rule(String.raw`\b(some|no|every)body\b`, "name what it is: an adapter, a stage, a process; 'none', 'all'"),
  rule(String.raw`(?<!\b(${PEOPLE}) )\bwho\b`, "'which' or 'that', or the noun"),
  rule(String.raw`\bwhom\b`, "'which', or the noun"),
  rule(String.raw`\b(is|are|be|been|was|were|not|never) told\b(?! apart)`, "'reported', 'sent' or 'notified'"),
  rule(String.raw`\bcompany\b`, "'co-batched', 'batch invariance', 'with other adapters'"),
  // One word of the field for one thing.
  rule(String.raw`\b(go|goes|going|went|gone) on\b(?! (?:to|the|a|its|with the run) )`, "'continue', 'resume' or 'proceed'"),
  rule(String.raw`\bmend(s|ed|ing)?\b`, "'fix', or 'normalise'"),
  rule(String.raw`\bwants\b`, "'expected X, found Y', or 'needs'"),
  rule(String.raw`\b(expected|is not|must be|is|as) a text\b`, "'a string'"),
  rule(String.raw`(?<!\bthere )\b(is|are) none\b`, "'is NaN', 'is not one', 'is not valid'", "g"),
  // Places that say nothing.
  rule(String.raw`\bbeside\b`, "'next to', 'with', 'concurrently with' or 'compared with'"),
  rule(String.raw`(?<!\b(lag|lags|falls?|fell) )\bbehind\b`, "'after', 'below' or 'following'"),
  // Forms that a reader stumbles over.
  rule(String.raw`\bshall\b`, "'must', 'is to', or the present tense"),
  rule(String.raw`\bso many\b`, "the number, or 'that many'"),
  rule(String.raw`\bof (ours|yours|theirs)\b`, "'our', 'your', 'their', or 'own'"),
  rule(String.raw`\blikest\b`, "'most similar'"),
];
