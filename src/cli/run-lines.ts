// What `mlora run` writes to stderr: the session's events as lines, and the progress of adapters while they train.

import { layersText } from "../base/layers.ts";
import { writeStderr } from "../base/terminal.ts";
import { counted, shortPath } from "../base/units.ts";
import type { EventOf, SessionEvent } from "../session/events/events.ts";
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
    const lines = linesOf(event);
    if (event.type === "reading") {
      if (!progress || !process.stderr.isTTY) reading.progress(event); // bars have the terminal
    } else if (progress && lines === null) progress.report(event);
    else {
      close();
      for (const line of lines ?? (event.type === "notice" ? [`notice: ${event.text}`] : [])) writeStderr(`${line}\n`);
    }
    if (event.type === "opened")
      progress = openProgress(event, process.stderr, (name) => event.adapters.some((of) => of.isEnded && of.name === name));
  };
  return { print, [Symbol.dispose]: close };
}

/** Null for events of the training, which its progress shows. */
function linesOf(event: SessionEvent): string[] | null {
  switch (event.type) {
    case "invitation":
      return invitation(event);
    case "continued": {
      const where = event.adapters.map(({ name, status, step, steps }) =>
        status === null ? `${name} at step ${step} of ${steps}` : `${name} is ${status}`,
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
      return [
        `  ${event.slots} of ${counted(event.adapters, "adapter")} at once, passes of at most ${counted(event.rows, "token")}`,
      ];
    default:
      return null;
  }
}

function invitation({ missing, url, run, keyFile }: EventOf<"invitation">): string[] {
  const how = keyFile === null ? "start, with the same MLORA_RUN_KEY," : `copy ${keyFile} (its key) there, and start`;
  return [
    `waiting for ${counted(missing, "stage")}: on each machine, ${how}`,
    `  mlora stage --nats ${url} --run ${run}${keyFile === null ? "" : " --key FILE"}`,
  ];
}

function accepted({ run, model, device, adapters, slots, notices, paused }: EventOf<"accepted">): string[] {
  const [stay, they] = paused.length === 1 ? ["stays", "it"] : ["stay", "them"];
  return [
    `${counted(adapters.length, "adapter")} on ${shortPath(model)}, ${device}`,
    ...(slots < adapters.length ? [`  ${slots} of them train at once, the others wait for one to end`] : []),
    ...notices.map((notice) => `notice: ${notice}`),
    ...(paused.length > 0
      ? [`notice: ${paused.join(", ")} ${stay} paused, as before: mlora resume ${run} resumes ${they}`]
      : []),
  ];
}

/** The place of a stage, and its link to the next. */
function stageLine({ host, device, link, ...layers }: EventOf<"opened">["stages"][number], stage: number): string {
  const next = link === null ? "" : `; to stage ${stage + 1} by ${link}`;
  return `  stage ${stage}: layers ${layersText(layers)} on ${host === "" ? "" : `${host}, `}${device}${next}`;
}

function reopening({ cause }: EventOf<"reopening">): string {
  if (cause.why === "capacity") return "the stages are opened again, with room for the adapters that came";
  if (cause.why === "rows") return `notice: ${cause.message}; training begins anew when all rows are read`;
  if (cause.why === "memory") return `notice: ${cause.message}; the run is planned again with less`;
  return `notice: ${cause.message}; the stages are started again, ${cause.restart} of at most ${cause.restarts} times`;
}
