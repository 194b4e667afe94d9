// Python writes numbers that JSON has no word for as bare words, and files of models have them: [0.0, Infinity].

/** A text, or such a word. */
const WORDS = /"(?:[^"\\]|\\.)*"|-?\b(?:Infinity|NaN)\b/g;

type Reviver = (key: string, value: unknown, context: { source?: string }) => unknown;

/** JSON.parse, which also takes these words, as transformers 5 writes them: {"__float__": "Infinity"}. */
export function parsePython(text: string, reviver?: Reviver): unknown {
  const parse = (of: string) => JSON.parse(of, reviver as (key: string, value: unknown) => unknown);
  try {
    return parse(text);
  } catch (error) {
    const tagged = text.replace(WORDS, (word) => (word.startsWith('"') ? word : `{"__float__": "${word}"}`));
    if (tagged === text) throw error;
    return parse(tagged);
  }
}
