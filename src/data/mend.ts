// Where @huggingface/tokenizers 0.2.0 reads a tokenizer.json in another way than the original (Rust) tokenizers do: the same
// thing is said in words that both read alike, or refused. Each case below made other ids; tests/golden compares the rest.

type Json = Record<string, unknown>;

/** GPT-2's pre-tokenizer. As a Split its \s is Unicode's White_Space; the package's own regex takes JavaScript's \s. */
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/** What the package does for a Split: every match is a piece of its own, or is left out. */
const BEHAVIOURS = ["Isolated", "Removed"];

/** Rewrites a parsed tokenizer.json in place. Throws an Error that says what cannot be read rightly. */
export function mendTokenizer(json: Json): void {
  const model = json["model"] as Json | undefined;
  if (model && model["type"] === undefined && Array.isArray(model["merges"])) model["type"] = "BPE"; // as files of 2020 leave it out
  if (model?.["type"] !== "BPE") throw new Error(`its model is ${JSON.stringify(model?.["type"])}; supported is "BPE"`);
  json["pre_tokenizer"] = mendPreTokenizer(json["pre_tokenizer"]);
}

function mendPreTokenizer(part: unknown): unknown {
  if (typeof part !== "object" || part === null) return part;
  const node = part as Json;
  switch (node["type"]) {
    case "Sequence":
      return { ...node, pretokenizers: ((node["pretokenizers"] ?? []) as unknown[]).map(mendPreTokenizer) };
    case "Digits": // the package: 0-9; the original: all numerals, so "½" as well
      return isolate(node["individual_digits"] === true ? "\\p{N}" : "\\p{N}+");
    case "ByteLevel":
      if (node["use_regex"] === false || node["add_prefix_space"] === true) return node;
      return sequence(isolate(GPT2), { ...node, use_regex: false });
    case "Metaspace": // the package never splits
      return node["split"] === false ? node : sequence(node, isolate("▁[^▁]*|[^▁]+"));
    case "Split":
      if (!BEHAVIOURS.includes(String(node["behavior"])))
        throw new Error(
          `its pre-tokenizer splits by ${JSON.stringify(node["behavior"])}; supported are ${BEHAVIOURS.join(", ")}`,
        );
      return node;
    default:
      return node;
  }
}

const isolate = (regex: string): Json => ({ type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false });
const sequence = (...pretokenizers: Json[]): Json => ({ type: "Sequence", pretokenizers });
