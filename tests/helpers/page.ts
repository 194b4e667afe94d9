// A live page with synthetic adapters, under the real routes.

import { openRunPage, pagePlace } from "../../src/serve/run-page.ts";
import { Board } from "../../src/web/board.ts";
import type { Point } from "../../src/web/curve.ts";
import type { Source } from "../../src/web/source.ts";
import type { All, ControlAsked, RunState } from "../../src/web/wire.ts";

const RUN: RunState = {
  ...{ state: "training", model: "models/Base-1B", device: "cuda (H200) in bf16", slots: 64, seconds: 754, secondsLeft: 1840 },
  tokensPerSecond: 21_400,
  stages: [0, 1].map((stage) => ({
    name: `stage ${stage}: layers ${8 * stage} to ${8 * stage + 7}`,
    memory: { weights: 1.2e9, adapters: 4e8, activations: 2.1e9, workspace: 3e8, head: stage * 5e8, links: 6e7 },
    free: 1.4e11,
  })),
};

/** Adapters `sweep-0000`, ... whose losses fall; `asked` has what was asked of them. `title` may be anything. */
export function crowd(adapters: number, points = 200, title = "crowd") {
  const asked: ControlAsked[] = [];
  const board = new Board({ title, run: () => RUN, refresh: () => undefined });
  const nameOf = (i: number) => `sweep-${`${i}`.padStart(4, "0")}`;
  const lossOf = (i: number, step: number) =>
    1 + (i % 97) / 97 + 2 * Math.exp(-step / (20 + (i % 31))) + 0.05 * Math.sin(step * (i + 1));
  let step = 0;
  const advance = () => {
    step++;
    for (let i = 0; i < adapters; i++) {
      board.step(nameOf(i), [step, lossOf(i, step), 1 + Math.cos(step + i) / 4, 100 + (i % 50)]);
      board.set(nameOf(i), { state: i % 10 === 9 ? "paused" : "training", steps: 2 * points, tokensPerSecond: 100 + (i % 50) });
    }
  };
  while (step < points) advance();
  const source: Source = {
    ...{ board, abilities: ["pause", "stop", "stopAll", "fork", "rows", "spans", "answer", "link"] },
    control: (of) => {
      asked.push(of);
      return `${of.adapter}: ${of.action}`;
    },
    rows: () => ({
      step,
      rows: [
        [
          { isLearned: false, text: "2 + 2? " },
          { isLearned: true, text: "4" },
        ],
      ],
    }),
    spans: () => Promise.resolve({ names: [], stages: [[], []] }),
    models: () => ["base", "one", "two"].map((name) => ({ name, label: name })),
    answer: async ({ prompt, models }, got) => {
      for (const model of models) got({ model, text: `${model}: ${prompt}`, end: "stop" });
    },
  };
  const page = openRunPage(source, pagePlace({ web: "127.0.0.1:0" }));
  return { page, board, asked, advance };
}

/** What a page has received, and how to wait for more. */
export type Watched = AsyncDisposable & {
  /** Adapters by name, as the last event about each had them; with all points and held-out losses that came. */
  readonly adapters: Map<string, Told>;
  readonly notices: { readonly text: string }[];
  readonly all: () => All;
  /** Reads events until it holds. Throws where it does not within a minute, or no event comes any more. */
  readonly until: (is: () => boolean) => Promise<void>;
};
type Told = Omit<All["adapters"][number], "points"> & { readonly points: Point[] };

/** Follows the events of a page. `link` is one that a run prints, or `origin/#key=...`. */
export async function watch(link: string): Promise<Watched> {
  const { origin, key } = partsOf(link);
  const response = await fetch(`${origin}/page/events`, { headers: { authorization: `Bearer ${key}` } });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  const adapters = new Map<string, Told>();
  const notices: { readonly text: string }[] = [];
  let all: All | null = null;
  let rest = "";
  const take = (block: string): void => {
    const [event, data] = block.split("\n").map((line) => line.replace(/^\w+: /, ""));
    const body = JSON.parse(data!) as All;
    if (event === "all") {
      adapters.clear();
      all = body;
    }
    notices.push(...body.notices);
    for (const { points, heldOuts, ...state } of body.adapters) {
      const known = adapters.get(state.name);
      adapters.set(state.name, {
        ...state,
        stride: known?.stride ?? state.stride,
        points: [...(known?.points ?? []), ...points],
        heldOuts: [...(known?.heldOuts ?? []), ...heldOuts],
      });
    }
  };
  const statesOf = () =>
    [...adapters.values()].map(({ name, state, step, learningRate }) => `${name} ${state} ${step} ${learningRate}`).join(", ");
  const until = async (is: () => boolean): Promise<void> => {
    for (const end = performance.now() + 60_000; !(all && is()); ) {
      if (performance.now() > end) throw new Error(`it did not come to be so within a minute: ${statesOf()}`);
      const { value, done } = await reader.read();
      if (done) throw new Error("the events have ended");
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop()!;
      for (const block of blocks) take(block);
    }
  };
  await until(() => true);
  return { adapters, notices, all: () => all!, until, [Symbol.asyncDispose]: () => reader.cancel() };
}

const partsOf = (link: string) => {
  const { origin, hash } = new URL(link);
  return { origin, key: hash.replace("#key=", "") };
};

/** Asks something of a page's server with the key of a link. */
export function askPage(link: string, path: string, json?: unknown, headers: Readonly<Record<string, string>> = {}) {
  const { origin, key } = partsOf(link);
  const body = json === undefined ? {} : { method: "POST", body: JSON.stringify(json) };
  return fetch(`${origin}${path}`, {
    ...body,
    headers: { ...(key === "" ? {} : { authorization: `Bearer ${key}` }), ...headers },
  });
}
