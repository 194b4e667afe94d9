// A live page with synthetic adapters, behind the real routes.

import { openRunPage, pagePlace } from "../../src/serve/run-page.ts";
import { Board } from "../../src/web/board.ts";
import type { Source } from "../../src/web/source.ts";
import type { ControlAsked, RunState } from "../../src/web/wire.ts";

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
