// What a page is a page of: a run, or the jobs of one key of a server.

import type { Board } from "./board.ts";
import type { Ability, AnswerPiece, ControlAsked, RowsAnswer, SpansAnswer } from "./wire.ts";

export type Source = {
  readonly board: Board;
  /** What whoever has the key may do; a read-only link may look at rows and spans, and no more. */
  readonly abilities: readonly Ability[];
  /** Returns a sentence that says what is done. Throws RequestErrors and ApiErrors. */
  readonly control: (asked: ControlAsked) => string | Promise<string>;
  readonly rows: (adapter: string) => RowsAnswer;
  readonly spans: () => Promise<SpansAnswer>;
  /** Names that may be answered by. */
  readonly models: () => readonly { readonly name: string; readonly label: string }[];
  readonly answer: (
    asked: { readonly prompt: string; readonly models: readonly string[]; readonly maxTokens: number },
    got: (piece: AnswerPiece) => void,
    signal: AbortSignal,
  ) => Promise<void>;
};

export const VIEWER_ABILITIES: readonly Ability[] = ["rows", "spans"];
