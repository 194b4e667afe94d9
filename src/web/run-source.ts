// The page of a run: its events as they come, its status, and its controls.

import { parse } from "smol-toml";
import { RequestError, textOf } from "../base/errors.ts";
import { count, counted, shortPath } from "../base/units.ts";
import type { SessionEvent } from "../session/events/events.ts";
import { earlierMetrics } from "../session/events/metrics.ts";
import { openTextModel, promptOf, type TextModel } from "../session/generation/text-model.ts";
import { TextStream } from "../session/generation/text-stream.ts";
import type { Session } from "../session/session.ts";
import { Board } from "./board.ts";
import { rowsAnswer, spansAnswer, stageFacts } from "./live.ts";
import type { Source } from "./source.ts";
import type { AnswerPiece, ControlAsked, RunState } from "./wire.ts";

export type RunSource = Source & {
  /** Takes the session's events, from the first on. */
  readonly take: (event: SessionEvent) => void;
  /** From here on the session is asked. */
  readonly attach: (session: Session) => void;
};

const STARTING: RunState = {
  ...{ state: "starting", model: "", device: "", slots: 0, seconds: 0, secondsLeft: null, tokensPerSecond: 0, stages: [] },
};

/** `title`: what the page is called; `output`: the run's folder, where a run that is continued has its metrics. */
export function runSource(title: string, output: string): RunSource {
  let session: Session | null = null;
  let facts = { model: "", device: "" };
  let isOver = false;
  let texts: TextModel | null = null;
  const open = (): Session => {
    if (session) return session;
    throw new RequestError("control.starting", "the run is being opened", "try again when it trains");
  };
  const board = new Board({
    title,
    run: () => {
      if (!session) return { ...STARTING, ...facts };
      const { state, slots, seconds, secondsLeft, tokensPerSecond } = session.status();
      const stages = stageFacts(session.plan);
      return { state: isOver ? "over" : state, slots, seconds, secondsLeft, tokensPerSecond, stages, ...facts };
    },
    refresh: () => {
      for (const { name, state, step, steps, loss, tokensPerSecond, secondsLeft } of session?.status().adapters ?? [])
        board.set(name, { state, step, steps, loss, tokensPerSecond, secondsLeft });
    },
  });
  return {
    board,
    abilities: ["pause", "stop", "stopAll", "fork", "rows", "spans", "answer", "link"],
    take: (event) => {
      if (event.type === "accepted") facts = { model: event.model.split("/").slice(-2).join("/"), device: event.device };
      takeEvent(board, event);
    },
    attach(of) {
      session = of;
      for (const { adapter, step, loss, gradNorm, tokensPerSecond } of earlierMetrics(output))
        if (gradNorm === null) board.heldOut(adapter, step, loss);
        else board.step(adapter, [step, loss, gradNorm, tokensPerSecond]);
      void of.done
        .catch(() => undefined)
        .finally(() => {
          isOver = true;
          board[Symbol.dispose]();
        });
    },
    control: (asked) => controlOf(open(), asked),
    rows(adapter) {
      const of = open();
      texts ??= openTextModel(of.plan.recipe.model.path);
      return rowsAnswer(of.rows(adapter), texts);
    },
    spans: async () => spansAnswer(session ? await session.spans() : [], (name) => name),
    models: () => (session?.answering().adapters ?? []).map((name) => ({ name, label: name })),
    async answer({ prompt, models, maxTokens }, got, signal) {
      const of = open();
      texts ??= openTextModel(of.plan.recipe.model.path);
      const ids = promptOf(texts, prompt);
      const { most } = of.answering();
      if (ids.length > most)
        throw new RequestError(
          "web.answer",
          `the prompt has ${counted(ids.length, "token")}; the run has room for ${count(most)}`,
          "use mlora generate with what an adapter has saved",
        );
      const asked = { texts, ids, maxTokens: Math.min(maxTokens, most - ids.length + 1), signal };
      await Promise.all([...new Set(models)].map((model) => answerBy(of, model, asked, got)));
    },
  };
}

type Asked = {
  readonly texts: TextModel;
  readonly ids: readonly number[];
  readonly maxTokens: number;
  readonly signal: AbortSignal;
};

/** The likeliest token after the others, again and again, each by the weights that the adapter has then. */
async function answerBy(
  session: Session,
  model: string,
  { texts, ids: prompt, maxTokens, signal }: Asked,
  got: (piece: AnswerPiece) => void,
): Promise<void> {
  const text = new TextStream(texts.decode, []);
  const ids = [...prompt];
  const steps: number[] = [];
  let end: "stop" | "length" | null = null;
  while (end === null && !signal.aborted) {
    const { token, step } = await session.nextToken(model, ids);
    ids.push(token);
    steps.push(step);
    if (texts.stops.has(token)) end = "stop";
    else {
      got({ model, text: text.push(token).text, end: null });
      if (ids.length - prompt.length >= maxTokens) end = "length";
    }
  }
  const [first, last] = [steps[0], steps.at(-1)];
  const note = `by the weights after step ${first === last ? first : `${first} to ${last}`}`;
  if (end !== null) got({ model, text: text.end(), end, note });
}

function takeEvent(board: Board, event: SessionEvent): void {
  switch (event.type) {
    case "accepted":
      for (const name of event.adapters) board.set(name, {});
      for (const notice of event.notices) board.notice(null, notice);
      return;
    case "opened":
      for (const { name, steps } of event.adapters) board.set(name, { steps });
      return;
    case "joined":
      board.set(event.adapter, { steps: event.steps });
      return;
    case "step": {
      const { adapter, step, steps, loss, gradNorm, learningRate, tokensPerSecond } = event;
      board.step(adapter, [step, loss, gradNorm, tokensPerSecond]);
      board.set(adapter, { steps, learningRate });
      return;
    }
    case "evaluation":
      if (event.loss !== null) board.heldOut(event.adapter, event.step, event.loss);
      return;
    case "failed":
      board.set(event.adapter, { note: event.message });
      board.notice(event.adapter, event.message, true);
      return;
    case "ended": {
      const { status, message, folder } = event.result;
      board.set(event.adapter, { state: status, note: message ?? (folder === null ? null : `saved in ${shortPath(folder)}`) });
      return;
    }
    case "notice":
      board.notice(event.adapter, event.text);
      return;
    case "reopening":
      board.notice(null, "message" in event.cause ? event.cause.message : "the stages are opened again, with more room");
      return;
    default:
      return;
  }
}

function controlOf(session: Session, asked: ControlAsked): string {
  if (asked.action !== "fork") return session[asked.action](asked.adapter);
  return session.fork({ adapter: asked.adapter, name: asked.name, changes: changesIn(asked.set) });
}

/** "learning_rate = 1e-4, steps = 500", as keys of a recipe. */
function changesIn(text: string): Record<string, unknown> {
  try {
    return parse(`all = { ${text} }`)["all"] as Record<string, unknown>;
  } catch (error) {
    throw new RequestError(
      "web.fork",
      `${text}: ${textOf(error).split("\n")[0]}`,
      "write keys as in a recipe: learning_rate = 1e-4, steps = 500",
    );
  }
}
