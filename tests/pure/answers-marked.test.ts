// Answers of random conversations, with contents that look like parts of templates, under all training templates of TRL 1.16:
// each word that these mark as generated is learned, and no other turn's word is. Only words are compared:
// tests/pure/answers-trl.test.ts says where headers and ends differ.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { renderAnswers } from "../../src/data/answers.ts";
import type { Message } from "../../src/data/format.ts";
import { Template, TemplateError } from "../../src/data/jinja.ts";
import { RowFault } from "../../src/data/jsonl.ts";

const golden = join(import.meta.dir, "../golden/jinja/templates.json.gz");
const templates: Readonly<Record<string, string>> = JSON.parse(new TextDecoder().decode(Bun.gunzipSync(readFileSync(golden))));
const families = Object.keys(templates).filter((name) => name.endsWith("_training"));

const PIECES = [
  ...["assistant", "user", "model", "yes", "0", "W1", "Thinking:", "{{ x }}", "{% endgeneration %}", "[INST]", "[/INST]"],
  ...["<|im_end|>", "<|im_start|>assistant\n", "<end_of_turn>", "<s>", "</s>", "<|eot_id|>", "<|end|>"],
  ...["<think>", "</think>", "<think>a</think>b", "\u{f8fe}1\u{f8ff}", "\u{f8fe}0\u{f8ff}", "\u{f8ff}1\u{f8ff}"],
  ...["\n", "\n\n", " ", "", "\0", "\ufeff", "\u2028", "\u00a0", "e\u0301", "\r\n", "\t"],
];

/** A word among pieces on both sides; sometimes pieces alone. */
function contentOf(rng: Rng, word: string): string {
  let text = rng.below(6) === 0 ? "" : word;
  for (let left = rng.below(4); left > 0; left--) {
    const piece = PIECES[rng.below(PIECES.length)]!;
    text = rng.below(2) ? text + piece : piece + text;
  }
  return text;
}

function conversation(rng: Rng): Message[] {
  const system = rng.below(3) === 0 ? [{ role: "system", content: contentOf(rng, "SW9") }] : [];
  const rounds = Array.from({ length: 1 + rng.below(3) }, (_, i) => {
    const thoughts = contentOf(rng, `TW${i}`);
    const more = rng.below(4) === 0 && thoughts !== "" ? { reasoning_content: thoughts, thinking: thoughts } : {};
    return [
      { role: "user", content: contentOf(rng, `UW${i}`) },
      { role: "assistant", content: contentOf(rng, `AW${i}`), ...more },
    ];
  });
  return [...system, ...rounds.flat()];
}

const user = (content: string) => ({ role: "user", content });
const said = (content: string, thoughts?: string) => ({
  ...{ role: "assistant", content },
  ...(thoughts === undefined ? {} : { reasoning_content: thoughts, thinking: thoughts }),
});
/** Turns that say nothing, the end of thoughts where there are none, marks of private use. */
const FIXED: readonly (readonly Message[])[] = [
  [user(""), said("AW0", "TW0")],
  [user("UW0"), said("AW0"), user("\n"), said("AW1", "TW1")],
  [user("UW0</think>"), said("AW0", "TW0")],
  [user(""), said("AW0a</think>b")],
  [user("UW0"), said("AW0", "TW0"), user("UW1"), said("\u{f8fe}1\u{f8ff}AW1", "\u{f8fe}0\u{f8ff}TW1")],
  [user("UW0\u{f8fe}0\u{f8ff}"), said("AW0</think>", "TW0"), user("UW1")],
];

const wordsIn = (text: string, spans: readonly { readonly from: number; readonly to: number }[]): string[] =>
  spans.flatMap(({ from, to }) => text.slice(from, to).match(/[AUTS]W\d/g) ?? []);

describe("words that a template marks are those that are learned", () => {
  test.each(families)("%s", (family) => {
    const text = templates[family]!.replace(/strftime_now\([^)]*\)/g, '"2026-01-01"');
    const compiled = new Template(text);
    const found = text.match(/<\|?[\w/]+\|?>|<｜[^｜]+｜>|\[\/?INST\]/g) ?? [];
    const specials = [...new Set([...found, "<s>", "</s>"])].filter((special) => !special.includes("think"));
    const renderer = {
      specials: specials.sort((a, b) => b.length - a.length),
      renderChat: ({ messages }: { readonly messages: readonly Message[] }, prompt: boolean) => {
        try {
          return compiled.render({ bos_token: "<s>", eos_token: "</s>", add_generation_prompt: prompt, messages });
        } catch (error) {
          throw new RowFault(String(error));
        }
      },
    };
    let compared = 0;
    const drawn = Array.from({ length: 40 }, (_, seed) => conversation(new Rng(seed)));
    for (const messages of [...FIXED, ...drawn]) {
      const unlearned = new Set<number>();
      try {
        const names = { bos_token: "<s>", eos_token: "</s>", add_generation_prompt: false };
        const whole = compiled.renderMarked({ ...names, messages });
        const { answers } = renderAnswers({ kind: "chat", messages, variables: {}, answersFrom: 0, unlearned }, renderer);
        const learned = wordsIn(whole.text, answers);
        expect(learned, JSON.stringify(messages)).toEqual(wordsIn(whole.text, whole.generated));
        compared++;
      } catch (error) {
        if (!(error instanceof RowFault || error instanceof TemplateError)) throw error;
      }
    }
    if (family !== "llava_next_training") expect(compared).toBeGreaterThan(15); // it takes lists of parts alone
  });
});
