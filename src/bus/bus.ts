// How the coordinator reaches its stages. A request is answered or fails; requests to one stage are handled in order.

import { range } from "../base/shape.ts";
import type { RequestOf, RequestType, StageReply } from "./messages.ts";

export interface Bus extends AsyncDisposable {
  readonly stages: number;
  request<T extends RequestType>(stage: number, request: RequestOf<T>): Promise<StageReply[T]>;
}

/** The replies of all stages, first stage first, to one request, which is sent to all in one go. */
export const requestAll = <T extends RequestType>(bus: Bus, request: RequestOf<T>): Promise<StageReply[T][]> =>
  Promise.all(range(bus.stages).map((stage) => bus.request(stage, request)));

/** A reply that comes while later requests are handled already. */
export class Later<T> {
  constructor(readonly reply: Promise<T>) {}
}

/** What a stage does with each kind of request. */
export type StageHandlers = {
  readonly [T in RequestType]: (request: RequestOf<T>) => Promise<StageReply[T] | Later<StageReply[T]>>;
};
