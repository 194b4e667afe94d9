// The live page: signs in by the key of its link, follows the events, and draws what has changed once a frame at most.

import type { ControlAsked, RowsAnswer, SpansAnswer } from "../wire.ts";
import { Answers } from "./answers.ts";
import { Chart } from "./chart.ts";
import { Colours, setTheme } from "./colours.ts";
import { Details } from "./details.ts";
import { confirm } from "./dialogs.ts";
import { card, choice, h, setAttribute, setText } from "./dom.ts";
import { Gantt } from "./gantt.ts";
import { Model } from "./model.ts";
import { Memory, Notices, Tiles } from "./panels.ts";
import { keepKey, Refused, Server, takeKey } from "./server.ts";
import { Table } from "./table.ts";

const root = document.getElementById("root")!;
/** Between attempts to connect, in ms. */
const [FIRST_MS, LAST_MS] = [500, 10_000];
const MODELS_MS = 5000;
const MESSAGE_MS = 8000;

type Theme = "auto" | "light" | "dark";
const show = (theme: Theme): void => {
  setTheme(theme === "auto" ? null : theme);
  localStorage.setItem("mlora-theme", theme);
};
const storedTheme = (localStorage.getItem("mlora-theme") ?? "auto") as Theme;
show(storedTheme);

/** The form for a key, where the link has none or a wrong one. */
function signIn(fault: string | null): void {
  const key = h("input", { id: "key", type: "password", autocomplete: "off", required: true });
  const onsubmit = (event: Event) => {
    event.preventDefault();
    keepKey(key.value.trim());
    start();
  };
  const problem = fault === null ? null : h("p", { class: "note", role: "alert" }, fault);
  const form = h(
    "form",
    { class: "card sign-in", onsubmit },
    h("h1", {}, "mlora"),
    h("label", { for: "key" }, "Key of this server"),
    key,
    problem,
    h("button", { class: "main", type: "submit" }, "Show the page"),
  );
  root.replaceChildren(form);
  key.focus();
}

function start(): void {
  const key = takeKey();
  if (key === null) signIn(null);
  else open(new Server(key));
}

function open(server: Server): void {
  const model = new Model();
  const colours = new Colours();
  const message = h("p", { class: "message", role: "status" });
  let hiding = 0;
  const say = (text: string, isError = false): void => {
    setText(message, text);
    setAttribute(message, "class", isError ? "message error" : "message");
    clearTimeout(hiding);
    hiding = setTimeout(() => setText(message, ""), MESSAGE_MS);
  };
  const failed = (error: unknown): void => say(error instanceof Error ? error.message : String(error), true);
  const control = async (asked: ControlAsked): Promise<void> => {
    try {
      say((await server.json<{ readonly message: string }>("/page/control", asked)).message);
    } catch (error) {
      failed(error);
    }
  };
  const select = (name: string): void => {
    model.change({ selected: name });
    drawAll();
    const isNarrow = matchMedia("(max-width: 1000px)").matches;
    if (isNarrow)
      details.element.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  };

  const chart = new Chart(model, colours, select);
  const table = new Table(model, colours, { select, changed: () => drawAll() });
  const rows = (name: string) => server.json<RowsAnswer>(`/page/rows?adapter=${encodeURIComponent(name)}`);
  const details = new Details(model, colours, { control, rows });
  const gantt = new Gantt(model, colours, () => server.json<SpansAnswer>("/page/spans"));
  const [tiles, memory, notices] = [new Tiles(model), new Memory(model), new Notices(model)];
  const answers = new Answers(server, failed);
  const tryCard = card("try", "Try adapters side by side", [], answers.element);
  tryCard.hidden = true;

  const title = h("h1", {}, "mlora");
  const about = h("p", { class: "quiet about" });
  const pill = h("span", { class: "pill", role: "status" });
  const button = (text: string, onclick: () => void) => h("button", { type: "button", onclick }, text);
  const pauseAll = button("Pause all", () => {
    const isPaused = (model.counts.get("paused") ?? 0) > 0 && (model.counts.get("training") ?? 0) === 0;
    void control({ action: isPaused ? "resume" : "pause", adapter: null });
  });
  const stopAll = button("Stop", async () => {
    const text = "What was begun is finished and everything is saved; the same command continues it.";
    if (await confirm("Stop the run?", text, "Stop the run")) void control({ action: "stop", adapter: null });
  });
  const share = button("Read-only link", async () => {
    try {
      const { key } = await server.json<{ readonly key: string }>("/page/link");
      const url = `${location.origin}/#key=${key}`;
      await navigator.clipboard?.writeText(url).catch(() => undefined);
      say(`A link that may only look: ${url}`);
    } catch (error) {
      failed(error);
    }
  });
  const themes = choice<Theme>(
    "Colours",
    [
      ["auto", "auto"],
      ["light", "light"],
      ["dark", "dark"],
    ],
    storedTheme,
    (theme) => {
      show(theme);
      drawAll();
    },
  );
  const mark = h("img", { src: "/page/icon.svg", alt: "", width: 30, height: 30 });
  root.replaceChildren(
    h(
      "header",
      { class: "top" },
      mark,
      h("div", { class: "names" }, h("div", {}, title, pill), about),
      h("nav", { "aria-label": "The run" }, pauseAll, stopAll, share, themes),
    ),
    message,
    h(
      "main",
      {},
      tiles.element,
      card("curves", "Curves", chart.tools, chart.element),
      details.element,
      card("adapters", "Adapters", table.tools, table.element),
      h(
        "div",
        { class: "side" },
        card("memory", "Memory by part", [], memory.element),
        card("notices", "Notices", [], notices.element),
      ),
      card("pipeline", "Pipeline", gantt.tools, gantt.element),
      tryCard,
    ),
  );

  let isConnected = false;
  const drawTop = (): void => {
    const { run } = model;
    setText(title, model.title || "mlora");
    document.title = model.title === "" ? "mlora" : `${model.title} – mlora`;
    const state = run?.state === "over" ? "over" : isConnected ? (run?.state ?? "connecting") : "connecting";
    setText(pill, state);
    setAttribute(pill, "data-state", state);
    setText(about, run ? [run.model, run.device, `mlora ${model.version}`].filter(Boolean).join(" · ") : "");
    const isPaused = (model.counts.get("paused") ?? 0) > 0 && (model.counts.get("training") ?? 0) === 0;
    setText(pauseAll, isPaused ? "Resume all" : "Pause all");
    pauseAll.hidden = !model.can("pause");
    stopAll.hidden = !model.can("stopAll");
    share.hidden = !model.can("link");
  };
  const draw = (): void => {
    chart.draw(); // first: it gives the colours
    table.draw();
    details.draw();
    tiles.draw();
    memory.draw();
    notices.draw();
    drawTop();
  };
  let frame = 0;
  /** However much comes, it is drawn once a frame; a page that is hidden has no frames. */
  function drawAll(): void {
    if (frame === 0)
      frame = requestAnimationFrame(() => {
        frame = 0;
        draw();
      });
  }

  const ended = new AbortController();
  const follow = async (): Promise<void> => {
    for (let wait = FIRST_MS; !ended.signal.aborted; wait = Math.min(LAST_MS, 2 * wait)) {
      try {
        await server.watch((event) => {
          isConnected = true;
          wait = FIRST_MS;
          if ("all" in event) {
            model.takeAll(event.all);
            gantt.element.closest<HTMLElement>("section")!.hidden = !model.can("spans");
            tryCard.hidden = !model.can("answer");
            if (model.can("answer")) void answers.refresh().catch(failed);
          } else model.take(event.change);
          drawAll();
        }, ended.signal);
      } catch (error) {
        if (error instanceof Refused && error.status === 401) {
          ended.abort();
          return signIn(error.message);
        }
      }
      isConnected = false;
      drawTop();
      if (model.run?.state === "over") return;
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  };
  setInterval(() => {
    if (model.can("answer") && isConnected && !document.hidden) void answers.refresh().catch(() => undefined);
  }, MODELS_MS);
  drawTop();
  void follow();
}

start();
