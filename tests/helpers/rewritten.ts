// A model's folder with another config.json and other names of its tensors.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

type Changes = {
  readonly config: (config: Record<string, unknown>) => Record<string, unknown>;
  readonly name: (tensor: string) => string;
};

/** Writes `to` from the model in `from`, whose weights are in one file. */
export function rewritten(from: string, to: string, { config, name }: Changes): void {
  mkdirSync(to);
  writeFileSync(join(to, "config.json"), JSON.stringify(config(JSON.parse(readFileSync(join(from, "config.json"), "utf8")))));
  const bytes = readFileSync(join(from, "model.safetensors"));
  const length = Number(bytes.readBigUInt64LE(0));
  const header: Record<string, unknown> = JSON.parse(bytes.subarray(8, 8 + length).toString());
  const { __metadata__: metadata, ...tensors } = header;
  const renamed = Object.fromEntries(Object.entries(tensors).map(([tensor, entry]) => [name(tensor), entry]));
  const text = JSON.stringify({ ...(metadata ? { __metadata__: metadata } : {}), ...renamed });
  const padded = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(padded.length));
  writeFileSync(join(to, "model.safetensors"), Buffer.concat([size, padded, bytes.subarray(8 + length)]));
}
