// Settings of a stage that a coordinator or scripts/launch starts: a line on standard input, since they have secrets.

import * as v from "valibot";
import { deviceReport } from "../base/device-report.ts";
import { RunError } from "../base/errors.ts";
import { count } from "../base/schema.ts";
import { addressSchema } from "../bus/address.ts";
import { runKeySchema } from "../bus/seal.ts";

const ordersSchema = v.strictObject({
  address: addressSchema,
  key: runKeySchema,
  run: v.string(),
  /** A coordinator gives both; scripts/launch gives neither, and the stage has them from flags. */
  stage: v.optional(count),
  device: v.optional(v.pick(deviceReport, ["kind", "compute", "ordinal"])),
});
export type StageOrders = v.InferOutput<typeof ordersSchema>;

/** Reads the orders; `end` resolves when standard input ends. Throws a RunError, `stage.orders`. */
export async function readStageOrders(): Promise<{ readonly orders: StageOrders; readonly end: Promise<void> }> {
  const { line, end } = await readInput();
  const checked = v.safeParse(v.pipe(v.string(), v.parseJson(), ordersSchema), line);
  if (checked.success) return { orders: checked.output, end };
  throw new RunError("stage.orders", "standard input does not hold valid stage settings", "use --nats, --run and --key");
}

/** The first line of standard input, and the end of the rest. */
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
