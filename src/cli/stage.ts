// `mlora stage`: one stage of a run, in a process of its own. A coordinator on this machine starts it with its orders on
// standard input; on other machines people start it, with the run's id, its key and its NATS server, or scripts/launch, with
// both. The latter keeps standard input open: its end, before the stage has joined, means that scripts/launch is gone.

import { RequestError, RunError } from "../base/errors.ts";
import { PRECISIONS } from "../base/precision.ts";
import { writeStderr } from "../base/terminal.ts";
import { parseAddress } from "../bus/address.ts";
import { runId } from "../bus/subjects.ts";
import { keyFor } from "../cluster/keyfile.ts";
import { readStageOrders } from "../cluster/stage-orders.ts";
import { runStage, type StageProcessOptions } from "../cluster/stage-process.ts";
import { DEVICES, oneOf, wholeNumber } from "./flags.ts";

export type StageFlags = {
  readonly orders?: boolean;
  readonly nats?: string;
  readonly run?: string;
  readonly key?: string;
  readonly stage?: number;
  readonly device?: string;
  readonly precision?: string;
  readonly gpu?: number;
  readonly model?: string;
};

/** How long a stage looks for its coordinator: people start both in any order. */
const JOIN_MS = 600_000;
const CHILD_JOIN_MS = 30_000;

/** Serves until the run is over. Throws a RunError where it does not end in order. */
export const stage = async (flags: StageFlags): Promise<void> =>
  runStage(flags.orders ? await optionsFromInput(flags) : optionsFromFlags(flags));

/** Never settles. */
const NEVER = new Promise<never>(() => undefined);

async function abandonedAt(end: Promise<void>): Promise<never> {
  await end;
  throw new RunError(
    "stage.abandoned",
    "standard input ended before this stage had joined: what started it is gone",
    "keep standard input open after the settings",
  );
}

async function optionsFromInput(flags: StageFlags): Promise<StageProcessOptions> {
  const { orders, end } = await readStageOrders();
  const { address, key, stage, device } = orders;
  const join = { address, key, run: runId(orders.run) };
  if (stage === undefined || device === undefined) {
    const abandoned = abandonedAt(end);
    abandoned.catch(() => undefined); // nothing awaits it once the stage has joined
    return { ...join, ...placeFromFlags(flags), abandoned };
  }
  const precision = device.compute === "bf16" ? "bf16" : "fp32";
  const place = { stage, device: device.kind, precision, ordinal: device.ordinal, folder: null } as const;
  return { ...join, ...place, joinMs: CHILD_JOIN_MS, abandoned: NEVER, print: () => undefined };
}

function optionsFromFlags(flags: StageFlags): StageProcessOptions {
  const { nats, run, key } = flags;
  if (nats === undefined || run === undefined)
    throw new RequestError(
      "stage.flags",
      `mlora stage needs ${nats === undefined ? "--nats" : "--run"}`,
      "give --nats URL, --run ID and --key FILE, as the coordinator prints them",
    );
  const join = { run: runId(`${run}`), address: parseAddress(`${nats}`), key: keyFor(key === undefined ? null : `${key}`) };
  return { ...join, ...placeFromFlags(flags), abandoned: NEVER };
}

type Place = Omit<StageProcessOptions, "address" | "key" | "run" | "abandoned">;
const placeFromFlags = ({ stage, device, precision, gpu, model }: StageFlags): Place => ({
  stage: stage === undefined ? null : wholeNumber("stage", stage, 0),
  device: oneOf("device", device ?? "auto", DEVICES),
  precision: oneOf("precision", precision ?? "auto", PRECISIONS),
  ordinal: wholeNumber("gpu", gpu ?? 0, 0),
  folder: model === undefined ? null : `${model}`,
  joinMs: JOIN_MS,
  print: (line) => writeStderr(`${line}\n`),
});
