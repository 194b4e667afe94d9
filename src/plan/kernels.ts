// What a device has no kernels for, or none that a device of its kind has shown to be right.

import type { DeviceReport } from "../base/device-report.ts";
import { RequestError } from "../base/errors.ts";
import type { WeightFormat } from "../base/precision.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isOfExperts } from "../families/linears.ts";
import type { PoolAdapter } from "../methods/adapter.ts";

/** Experts of a layer and of a token that kernels on GPUs choose from (kernels/triton/route.py): BLOCK and SLOTS. */
const MOST_ON_GPUS = { count: 512, perToken: 16 };

export type KernelNeed = {
  readonly adapters: readonly Pick<PoolAdapter, "targets">[];
  /** Of experts, where it is not that of the linears. */
  readonly expertFormat?: WeightFormat | undefined;
};

/**
 * Refuses, with a RequestError, what a device does not compute. On GPUs the delta rule's kernels and those of weights in mxfp4
 * have run in Triton's interpreter alone, and adapters in experts were wrong when they last ran there.
 */
export function requireKernels(
  { family, delta, experts }: Pick<ModelSpec, "family" | "delta" | "experts">,
  { kind, name }: Pick<DeviceReport, "kind" | "name">,
  { adapters, expertFormat }: KernelNeed,
): void {
  if (kind === "cpu") return;
  const refuse = (code: string, what: string, wayOut = 'set device to "cpu"') => {
    throw new RequestError(code, `the base model (${family}) ${what}; the device is ${name}`, wayOut);
  };
  if (delta !== null) refuse("device.delta", "has layers of the gated delta rule, which this version computes on CPUs alone");
  if (experts === null) return;
  const { count, perToken } = experts;
  if (count % 8 !== 0 || count > MOST_ON_GPUS.count || perToken > MOST_ON_GPUS.perToken) {
    const most = `at most ${MOST_ON_GPUS.perToken} of a multiple of 8 up to ${MOST_ON_GPUS.count}`;
    refuse("device.experts", `chooses ${perToken} of ${count} experts, expected ${most} on a GPU`);
  }
  if (adapters.some(({ targets }) => targets.some(isOfExperts)))
    refuse(
      "device.experts",
      "has adapters in its experts, which this version trains and applies on CPUs alone",
      'leave the experts\' linears out of targets, or set device to "cpu"',
    );
  if (expertFormat === "mxfp4")
    refuse(
      "device.experts",
      "has experts in mxfp4, which this version computes with on CPUs alone",
      'set precision to "bf16", or device to "cpu"',
    );
}
