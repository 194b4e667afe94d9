// The rate of matrix products that a device reaches, measured: what a benchmark's share of the peak refers to.

import type { WeightFormat } from "../base/precision.ts";
import type { Device, Tensor } from "../device/device.ts";
import type { Weight } from "../device/packed.ts";
import { randomFill } from "../ops/fill.ts";
import { linearForward } from "../ops/linear.ts";
import { quantise } from "../ops/packed.ts";

/** Rows, columns and depth of the product: large enough that a device shows what it can do. */
const SIZE = { cpu: 768, cuda: 8192, null: 128 };
const TIMES = 12;

/**
 * FLOP/s of a large frozen product on random numbers, the median of several; memory is given back. The weight is as the device
 * computes or, with bf16-products, multiplied so.
 */
export async function measurePeak(device: Device, format: WeightFormat = "dense"): Promise<number> {
  const size = SIZE[device.kind];
  const bytes = size * size * (device.compute === "f32" ? 4 : 2);
  const matrix = (): Tensor => ({
    ptr: device.allocate(bytes, "measuring the peak rate"),
    dtype: device.compute,
    shape: [size, size],
  });
  const [x, values, y] = [matrix(), matrix(), matrix()];
  const held = format === "bf16-products" ? matrix() : null;
  try {
    for (const [i, out] of [x, values].entries()) randomFill(device, { out, seed: i, scale: 1 });
    let weight: Weight = values;
    if (held) {
      weight = { ptr: held.ptr, format: "bf16-products", shape: [size, size], firstRow: [0, size] };
      quantise(device, { from: values, weight, linear: 0, absmax: { ...y, shape: [size * size] } });
    }
    const product = () => linearForward(device, { x, weight, bias: null, residual: null, y, lora: null });
    product(); // loads the kernel
    await device.idle();
    device.startTimeline();
    for (let i = 0; i < TIMES; i++) product();
    const times = (await device.endTimeline()).map(({ ms }) => ms).sort((a, b) => a - b);
    return (2 * size ** 3) / ((times[times.length >> 1] ?? Number.NaN) / 1000);
  } finally {
    for (const of of [x, values, y, held]) if (of) device.release(of.ptr);
  }
}
