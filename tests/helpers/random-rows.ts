// Rows that no one would write by hand: fields of every form, roles that are known and not, nulls, numbers, lists and objects
// where texts are expected. Every text is of words that occur nowhere else, so that a test can look for what became of them.

import type { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";

export type RandomRow = { readonly fields: Record<string, unknown>; readonly text: string };

const EDGES = ["", "", "", "\n", " ", "\n\n", "    ", "\t"];
const ROLES = [
  "user",
  "assistant",
  "system",
  "tool",
  "User",
  "human",
  "gpt",
  "function",
  "developer",
  "observation",
  "",
  7,
  null,
];
const JUNK: readonly unknown[] = [null, true, 0, 1.5, 1234567890123456, [], {}, ["x"], { a: { b: null } }, "", " "];

/** One row a seed. */
export class RowMaker {
  #words = 0;
  constructor(readonly rng: Rng) {}

  #one<T>(of: readonly T[]): T {
    return of[this.rng.below(of.length)]!;
  }
  #chance(segment: number): boolean {
    return this.rng.uniform() < segment;
  }

  /** Words that are nowhere else, with white space around them that templates may trim. */
  text(): string {
    const words = range(1 + this.rng.below(4)).map(() => `w${this.#words++}q`);
    return `${this.#one(EDGES)}${words.join(this.#one([" ", "\n", "  ", "\n    "]))}${this.#one(EDGES)}`;
  }

  #content(): unknown {
    if (this.#chance(0.03)) return this.#one(JUNK);
    if (this.#chance(0.06)) return [{ type: "text", text: this.text() }];
    if (this.#chance(0.1)) return `<think>\n${this.text()}\n</think>\n\n${this.text()}`;
    return this.text();
  }

  #arguments(depth = 0): unknown {
    const value = () =>
      this.#chance(0.3) && depth < 2 ? this.#arguments(depth + 1) : this.#one([this.text(), 3, 1.25, null, true]);
    return Object.fromEntries(range(1 + this.rng.below(3)).map((i) => [this.#one([`k${i}`, `${10 - i}`]), value()]));
  }

  #turn(role: unknown): Record<string, unknown> {
    const turn: Record<string, unknown> = { role, content: this.#content() };
    if (role === "assistant") {
      if (this.#chance(0.15)) turn[this.#one(["reasoning_content", "reasoning", "thinking"])] = this.text();
      if (this.#chance(0.15)) {
        const call = this.#arguments();
        turn["tool_calls"] = [
          { type: "function", function: { name: "call", arguments: this.#chance(0.3) ? JSON.stringify(call) : call } },
        ];
        if (this.#chance(0.7)) turn["content"] = this.#one(["", null]);
      }
      if (this.#chance(0.05)) turn["weight"] = this.#one([0, 1, 0.5, "0"]);
      if (this.#chance(0.05)) turn["train"] = this.#one([true, false, "no"]);
    }
    if (this.#chance(0.05)) turn[this.#one(["name", "tool_calls", "extra"])] = this.#one([null, this.text()]);
    return turn;
  }

  /** Mostly what trainers expect: a system turn or none, then a user and the assistant in turns. */
  #turns(): unknown {
    if (this.#chance(0.02)) return this.#one(JUNK);
    const turns = this.#chance(0.3) ? [this.#turn("system")] : [];
    for (const _ of range(1 + this.rng.below(3))) {
      turns.push(this.#turn("user"), this.#turn("assistant"));
      if (this.#chance(0.1)) turns.push({ role: "tool", content: this.text() }, this.#turn("assistant"));
    }
    if (this.#chance(0.1)) turns.push(this.#turn("user"));
    if (this.#chance(0.1)) turns[this.rng.below(turns.length)] = this.#turn(this.#one(ROLES));
    if (this.#chance(0.02)) turns[this.rng.below(turns.length)] = this.#one(JUNK) as never;
    return turns;
  }

  row(form: "single" | "paired" | "labelled"): RandomRow {
    const fields: Record<string, unknown> = {};
    const answer = () => (this.#chance(0.5) ? this.#content() : [this.#turn("assistant")]);
    const prompt = () => (this.#chance(0.5) ? this.text() : this.#chance(0.9) ? [this.#turn("user")] : this.#turns());
    if (form === "single" && this.#chance(0.7))
      fields[this.#one(["messages", "messages", "messages", "conversations"])] = this.#turns();
    else {
      fields["prompt"] = prompt();
      if (form === "paired") Object.assign(fields, { chosen: answer(), rejected: answer() });
      else fields["completion"] = answer();
      if (form === "labelled") fields["label"] = this.#chance(0.95) ? this.#chance(0.5) : this.#one(JUNK);
    }
    if (this.#chance(0.15))
      fields["tools"] = this.#one<unknown>([
        [],
        null,
        [{ type: "function", function: { name: "call", description: this.text(), parameters: this.#arguments() } }],
        JSON.stringify([{ type: "function", function: { name: "call", parameters: {} } }]),
        this.#one(JUNK),
      ]);
    if (this.#chance(0.1))
      fields["chat_template_kwargs"] = this.#one<unknown>([{ enable_thinking: false }, { enable_thinking: true }, null, 3]);
    if (this.#chance(0.05)) fields["system"] = this.#content();
    if (this.#chance(0.05)) fields["source"] = this.#one(JUNK);
    return { fields, text: JSON.stringify(fields) };
  }
}
