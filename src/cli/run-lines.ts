// What `mlora run` writes to stderr: the session's events as lines, and the progress of adapters while they train.

import { writeStderr } from "../base/terminal.ts";
import { shortPath } from "../session/prepare.ts";
import type { OpeningEvent, RunEvent, SessionEvent } from "../session/session-events.ts";
import { openProgress, type Progress } from "./progress.ts";
import { readProgress } from "./reading.ts";

/** Writes events until it is disposed, which leaves the terminal as it was. */
export function openPrinter(): Disposable & { readonly print: (event: SessionEvent) => void } {
  const reading = readProgress();
  let progress: Progress | null = null;
  const close = () => {
    reading[Symbol.dispose]();
    progress?.[Symbol.dispose]();
    progress = null;
  };
  const print = (event: SessionEvent): void => {
    if (event.type === "reading") reading.progress(event);
    else if ("values" in event) {
      if (progress) report(progress, event);
      else if (event.type === "noticed") writeStderr(`notice: ${event.values[1]}\n`);
    } else {
      close();
      for (const line of linesOf(event)) writeStderr(`${line}\n`);
      if (event.type === "opened") progress = openProgress(event.plan, process.stderr, (name) => event.ended.includes(name));
    }
  };
  return { print, [Symbol.dispose]: close };
}

function report(progress: Progress, event: RunEvent): void {
  (progress[event.type] as ((...values: unknown[]) => void) | undefined)?.(...event.values);
}

function linesOf(event: Exclude<OpeningEvent, { readonly type: "reading" }>): string[] {
  switch (event.type) {
    case "inviting":
      return invitation(event);
    case "continued": {
      const where = event.adapters.map(({ adapter, status, step, steps }) =>
        status === null ? `${adapter} at step ${step} of ${steps}` : `${adapter} is ${status}`,
      );
      return [`going on with the run in ${shortPath(event.output)}: ${where.join(", ")}`];
    }
    case "accepted":
      return accepted(event);
    case "opened":
      return event.stages.length === 1 ? [] : event.stages.map(stageLine);
    case "reopening":
      return [reopening(event)];
    case "replanned":
      return [`  ${event.slots} of ${event.adapters} adapters at once, passes of at most ${event.rows} rows`];
  }
}

type Of<T extends OpeningEvent["type"]> = Extract<OpeningEvent, { readonly type: T }>;

function invitation({ missing, url, run, keyFile }: Of<"inviting">): string[] {
  const how = keyFile === null ? "start, with the same MLORA_RUN_KEY," : `copy ${keyFile} (its key) there, and start`;
  return [
    `waiting for ${missing} ${missing === 1 ? "stage" : "stages"}: on each machine, ${how}`,
    `  mlora stage --nats ${url} --run ${run}${keyFile === null ? "" : " --key FILE"}`,
  ];
}

function accepted({ run, model, device, adapters, slots, notices, paused }: Of<"accepted">): string[] {
  const [stay, they] = paused.length === 1 ? ["stays", "it"] : ["stay", "them"];
  return [
    `${adapters.length} ${adapters.length === 1 ? "adapter" : "adapters"} on ${shortPath(model)}, ${device}`,
    ...(slots < adapters.length ? [`  ${slots} of them train at once, the others wait for one to end`] : []),
    ...notices.map((notice) => `notice: ${notice}`),
    ...(paused.length > 0
      ? [`notice: ${paused.join(", ")} ${stay} paused, as before: mlora resume ${run} has ${they} go on`]
      : []),
  ];
}

/** The place of a stage, and its link to the next. */
function stageLine({ from, to, host, device, link }: Of<"opened">["stages"][number], stage: number): string {
  const next = link === null ? "" : `; to stage ${stage + 1} by ${link}`;
  return `  stage ${stage}: layers ${from} to ${to - 1} on ${host === "" ? "" : `${host}, `}${device}${next}`;
}

function reopening(event: Of<"reopening">): string {
  if (event.why === "capacity") return "the stages are opened again, with room for the adapters that came";
  if (event.why === "memory") return `notice: ${event.message}; the run is planned again with less`;
  return `notice: ${event.message}; the stages are started again, ${event.restart} of at most ${event.restarts} times`;
}
