// `mlora stage`: one stage of a run, in a process of its own. A coordinator on this machine starts it with its orders on standard
// input; on other machines people do, with the run's id, its key and its NATS server, or scripts/launch, with both. The latter keeps
// standard input open: its end, before the stage has joined, means that scripts/launch is gone.

import * as v from "valibot";
import { now, sleep } from "../base/clock.ts";
import { RequestError, RunError } from "../base/errors.ts";
import { PRECISIONS, type Precision } from "../base/precision.ts";
import { writeStderr } from "../base/terminal.ts";
import { type Address, addressSchema, describeAddress, parseAddress } from "../bus/address.ts";
import { connectSealed, type RunKey, runKeySchema, type SealedConnection } from "../bus/seal.ts";
import { joinRun } from "../bus/stage.ts";
import { runId } from "../bus/subjects.ts";
import { keyFor } from "../cluster/keyfile.ts";
import { serveStage } from "../cluster/serve-stage.ts";
import { describeDevice } from "../engine/probe.ts";
import { oneOf, wholeNumber } from "./flags.ts";

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
const RETRY_MS = 500;
/** What a server that is not there yet looks like. */
const AWAY = ["nats.refused", "nats.timeout"];

const number = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
/** As cluster/launch.ts writes them; scripts/launch writes the secrets alone, and gives the rest by flags. */
const ordersSchema = v.strictObject({
  address: addressSchema,
  key: runKeySchema,
  run: v.string(),
  stage: v.optional(number),
  device: v.optional(
    v.strictObject({ kind: v.picklist(["cpu", "cuda"]), compute: v.picklist(["f32", "bf16"]), ordinal: number }),
  ),
});

type Orders = {
  readonly address: Address;
  readonly key: RunKey;
  readonly run: string;
  readonly stage: number | null;
  readonly device: "auto" | "cpu" | "cuda";
  readonly precision: Precision;
  readonly ordinal: number;
  readonly folder: string | null;
  readonly joinMs: number;
  /** Rejects where the process that started this stage ends first. */
  readonly abandoned: Promise<never>;
};

/** Serves until the run is over. Throws a RunError where it is not over in order. */
export async function stage(flags: StageFlags): Promise<void> {
  const orders = flags.orders ? await ordersFromInput(flags) : ordersFromFlags(flags);
  const { run, stage, device, precision, ordinal, folder, joinMs, abandoned } = orders;
  const print = (line: string) => void (joinMs === JOIN_MS && writeStderr(`${line}\n`));
  const report = describeDevice(device, precision, ordinal);
  await using connection = await Promise.race([reach(orders), abandoned]);
  print(`joining the run ${run} at ${connection.server} with ${report.kind} (${report.name})`);
  await using membership = await Promise.race([joinRun(connection, run, { stage, report, joinMs }), abandoned]);
  print(`joined as stage ${membership.stage} of ${membership.stages}`); // scripts/launch waits for this line
  const reason = await serveStage({ run, membership, folder });
  if (reason) throw reason;
}

/** The server may come up later than the stage, where people start both. */
async function reach({ address, key, run, joinMs: limitMs }: Orders): Promise<SealedConnection> {
  const limit = now() + limitMs;
  for (let waiting = false; ; waiting = true) {
    try {
      return await connectSealed(address, `mlora ${run} stage`, key);
    } catch (error) {
      if (!(error instanceof RequestError) || !AWAY.includes(error.code) || now() > limit) throw error;
      if (!waiting) writeStderr(`waiting for the NATS server at ${describeAddress(address)}\n`);
      await sleep(RETRY_MS);
    }
  }
}

/** The first line of standard input, and what comes after it. */
async function readInput(): Promise<{ readonly line: string; readonly end: Promise<void> }> {
  const reader = Bun.stdin.stream().getReader();
  const decoder = new TextDecoder();
  let text = "";
  let over = false;
  while (!over && !text.includes("\n")) {
    const { value, done } = await reader.read();
    text += decoder.decode(value, { stream: !done });
    over = done;
  }
  const drain = async () => {
    while (!over) over = (await reader.read()).done;
  };
  return { line: text.split("\n")[0]!, end: drain() };
}

function settingsIn(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

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

async function ordersFromInput(flags: StageFlags): Promise<Orders> {
  const { line, end } = await readInput();
  const checked = v.safeParse(ordersSchema, settingsIn(line));
  if (!checked.success)
    throw new RunError("stage.orders", "standard input does not hold valid stage settings", "use --nats, --run and --key");
  const { address, key, run, stage, device } = checked.output;
  const join = { address, key, run: runId(run) };
  if (stage === undefined || device === undefined) {
    const abandoned = abandonedAt(end);
    abandoned.catch(() => undefined); // nothing awaits it once the stage has joined
    return { ...join, ...placeFromFlags(flags), abandoned };
  }
  const precision = device.compute === "bf16" ? "bf16" : "fp32";
  const place = { stage, device: device.kind, precision, ordinal: device.ordinal, folder: null } as const;
  return { ...join, ...place, joinMs: CHILD_JOIN_MS, abandoned: NEVER };
}

function ordersFromFlags(flags: StageFlags): Orders {
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

type PlaceFlags = Omit<Orders, "address" | "key" | "run" | "abandoned">;
const placeFromFlags = ({ stage, device, precision, gpu, model }: StageFlags): PlaceFlags => ({
  stage: stage === undefined ? null : wholeNumber("stage", stage, 0),
  device: oneOf("device", device ?? "auto", ["auto", "cpu", "cuda"]),
  precision: oneOf("precision", precision ?? "auto", PRECISIONS),
  ordinal: wholeNumber("gpu", gpu ?? 0, 0),
  folder: model === undefined ? null : `${model}`,
  joinMs: JOIN_MS,
});
