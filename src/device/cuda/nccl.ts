// Messages between two GPUs by NCCL, which knows the machine's and the network's ways between them. It has no slots of its own:
// a send waits on the GPU until its receive is there. So receives are posted, in the order of the sends, into its own slots.
//
// Each direction has a communicator, since one does its work in order: two ends that both send first would wait for each other.

import { fixedBytes } from "../../../ffi/memory.ts";
import { NCCL_BYTE, NCCL_ID_BYTES, nccl } from "../../../ffi/nccl.ts";
import { type Functions, openSystemLibrary } from "../../../ffi/open.ts";
import { bytesOf } from "../../base/dtype.ts";
import { RunError, textOf } from "../../base/errors.ts";
import { alignUp, range, sizeOf } from "../../base/shape.ts";
import type { Exchange, Tensor } from "../device.ts";
import { check, type Driver, OutParam } from "./driver.ts";
import { SideStream } from "./streams.ts";

type Nccl = Functions<typeof nccl>;
type Memory = { readonly allocate: (bytes: number, why: string) => number; readonly release: (ptr: number) => void };

const ALIGN = 512;
/** Two ranks; the first to come is 0. */
const RANKS = 2;

/** The version of the NCCL that this process would use, or why there is none. */
export function ncclHere(): { readonly version: number | null; readonly missing: string | null } {
  try {
    const library = openNccl();
    const out = new OutParam();
    tell(library, "ncclGetVersion", library.ncclGetVersion(out.ptr));
    return { version: out.i32, missing: null };
  } catch (error) {
    return { version: null, missing: textOf(error) };
  }
}

const openNccl = (): Nccl => openSystemLibrary("libnccl.so.2", nccl);

function tell(library: Nccl, call: string, status: number): void {
  if (status !== 0) throw new RunError("nccl", `${call} failed: ${library.ncclGetErrorString(status) ?? status}`);
}

export class NcclExchange implements Exchange {
  readonly ids: Uint8Array | null;
  readonly #library = openNccl();
  readonly #out = new OutParam();
  readonly #slots: { readonly ptr: number; readonly stride: number };
  readonly #leaving: SideStream;
  readonly #arriving: SideStream;
  readonly #arrived: readonly number[];
  readonly #emptied: readonly number[];
  #communicators: { readonly toUs: number; readonly toThem: number } | null = null;
  #closed = false;

  /** `first`: which of the two ends. */
  constructor(
    private readonly driver: Driver,
    main: number,
    private readonly receive: SideStream,
    private readonly memory: Memory,
    private readonly first: boolean,
    slots: number,
    slotBytes: number,
  ) {
    this.ids = first
      ? range(2)
          .map(() => this.#newId())
          .reduce(joined)
      : null;
    const stride = alignUp(slotBytes, ALIGN);
    this.#slots = { ptr: memory.allocate(slots * stride, "messages of a neighbour"), stride };
    this.#leaving = new SideStream(driver, main);
    this.#arriving = new SideStream(driver, main);
    this.#arrived = range(slots).map(() => receive.newEvent());
    this.#emptied = range(slots).map(() => receive.newEvent());
  }

  /** Waits for the neighbour, which must do the same at the same time. */
  connect(ids: Uint8Array): void {
    const [rightwards, leftwards] = range(2).map((i) => this.#join(ids.subarray(i * NCCL_ID_BYTES, (i + 1) * NCCL_ID_BYTES)));
    const [toThem, toUs] = this.first ? [rightwards!, leftwards!] : [leftwards!, rightwards!];
    this.#communicators = { toUs, toThem };
    // The first send of a communicator waits, with the whole process, for the first receive at the other end: so they come
    // here, in step.
    const byte: Tensor = { ptr: this.#slots.ptr, dtype: "u8", shape: [1] };
    const leave = () => void this.put(byte);
    const arrive = () => this.expect(0, 1);
    for (const act of this.first ? [leave, arrive] : [arrive, leave]) act();
    this.#arriving.synchronise();
    this.#leaving.synchronise();
  }

  put(from: Tensor): Promise<void> {
    const { ncclSend } = this.#library;
    const bytes = sizeOf(from.shape) * bytesOf(from.dtype);
    this.#leaving.afterMain();
    const { toThem } = this.#communicators!;
    if (bytes > 0) this.#tell("ncclSend", ncclSend(from.ptr, bytes, NCCL_BYTE, this.#other, toThem, this.#leaving.stream));
    return this.#leaving.settled();
  }

  expect(slot: number, bytes: number): void {
    const { ncclRecv } = this.#library;
    const to = this.#slots.ptr + slot * this.#slots.stride;
    this.#arriving.wait(this.#emptied[slot]!);
    const { toUs } = this.#communicators!;
    if (bytes > 0) this.#tell("ncclRecv", ncclRecv(to, bytes, NCCL_BYTE, this.#other, toUs, this.#arriving.stream));
    this.#arriving.record(this.#arrived[slot]!);
  }

  take(slot: number, into: Tensor): void {
    const bytes = sizeOf(into.shape) * bytesOf(into.dtype);
    const from = this.#slots.ptr + slot * this.#slots.stride;
    this.receive.afterMain(); // its earlier contents may still be read
    this.receive.wait(this.#arrived[slot]!);
    if (bytes > 0)
      check(this.driver, "a copy on the GPU", this.driver.cuMemcpyDtoDAsync_v2(into.ptr, from, bytes, this.receive.stream));
    this.receive.record(this.#emptied[slot]!);
    this.receive.beforeMain();
  }

  stop(): void {
    const communicators = this.#communicators;
    this.#communicators = null;
    if (!communicators) return;
    for (const communicator of [communicators.toThem, communicators.toUs]) this.#library.ncclCommAbort(communicator);
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.stop();
    this.receive.synchronise();
    this.#leaving[Symbol.dispose]();
    this.#arriving[Symbol.dispose]();
    for (const event of [...this.#arrived, ...this.#emptied]) this.driver.cuEventDestroy_v2(event);
    this.memory.release(this.#slots.ptr);
  }

  get #other(): number {
    return this.first ? 1 : 0;
  }

  #newId(): Uint8Array {
    const id = fixedBytes(NCCL_ID_BYTES);
    this.#tell("ncclGetUniqueId", this.#library.ncclGetUniqueId(id));
    return id.slice(0, NCCL_ID_BYTES);
  }

  #join(id: Uint8Array): number {
    const rank = this.first ? 0 : 1;
    const call = this.#library.ncclCommInitRank;
    this.#tell("ncclCommInitRank", call(this.#out.ptr, RANKS, rank, 0, 0, 0, ...wordsOf(id)));
    return this.#out.number;
  }

  #tell(call: string, status: number): void {
    tell(this.#library, call, status);
  }
}

type W = bigint;
type Words = [W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W];

function wordsOf(id: Uint8Array): Words {
  const view = new DataView(id.buffer, id.byteOffset, NCCL_ID_BYTES);
  return range(NCCL_ID_BYTES / 8).map((i) => view.getBigUint64(8 * i, true)) as Words;
}

const joined = (a: Uint8Array, b: Uint8Array): Uint8Array => new Uint8Array([...a, ...b]);
