// Copies between the device and host memory next to kernels, which the host waits for neither way: events order them.

import { bytesOf } from "../../base/dtype.ts";
import { sizeOf } from "../../base/shape.ts";
import type { Tensor } from "../device.ts";
import { check, type Driver } from "./driver.ts";
import type { SideStream } from "./streams.ts";

const bytes = ({ shape, dtype }: Tensor): number => sizeOf(shape) * bytesOf(dtype);

/** As Device.sendAside, on a stream of what leaves. */
export function sendAside(driver: Driver, stream: SideStream, to: number, from: Tensor): () => void {
  stream.afterMain();
  check(driver, "a copy from the GPU", driver.cuMemcpyDtoHAsync_v2(to, from.ptr, bytes(from), stream.stream));
  return stream.mark();
}

/** As Device.bringAside, on a stream of what arrives. */
export function bringAside(driver: Driver, stream: SideStream, to: Tensor, from: number): () => void {
  stream.afterMain(); // its earlier contents may still be read
  check(driver, "a copy to the GPU", driver.cuMemcpyHtoDAsync_v2(to.ptr, from, bytes(to), stream.stream));
  return stream.mark();
}
