// Models that clients train: the requests of each are carried out in the order of their numbers, whenever they arrive, and each
// stands in the tables with its result. Now and then a model's state is saved after a step. What a kill interrupts is computed
// again from there, to the same bytes, and no result is made twice.

import { now } from "../../base/clock.ts";
import { MloraError, RequestError } from "../../base/errors.ts";
import { WireFault } from "../../base/protobuf.ts";
import { sum } from "../../base/shape.ts";
import { counted } from "../../base/units.ts";
import { inputLength } from "../../session/primitives/primitives.ts";
import { ApiError, badRequest, isFatal, tooMany } from "../errors.ts";
import type { RecipeMaker } from "../job-recipe.ts";
import type { Models } from "../models.ts";
import type { Usage } from "../usage.ts";
import { LoadInto, OptimStep, read, repeatsOf, SaveForSampler, SaveWeights } from "./asked.ts";
import type { Checkpoints } from "./checkpoints.ts";
import { type Futures, failed, JSON_TYPE, jsonResult, protobufResult, type Result, textFor } from "./futures.ts";
import { forwardBackwardResult, readForwardBackward } from "./messages.ts";
import { datumLogProbs, lossOf, rowsOf } from "./rows.ts";
import { type Saved, States, type StatesOptions } from "./states.ts";
import { type ModelAsked, type ModelRow, pathOf, type RequestRow } from "./store.ts";

export type TrainingOptions = StatesOptions & {
  readonly futures: Futures;
  readonly checkpoints: Checkpoints;
  readonly models: Models;
  readonly recipes: RecipeMaker;
  readonly usage: Usage;
  /** Models of a tenant whose sessions are open, at most. */
  readonly most: number;
  /** Called with the session of each new request. */
  readonly heard: (session: string) => void;
};

/** A model whose session is open. */
type Live = Saved & {
  /** The number of the request that is next. */
  next: number;
  isRunning: boolean;
  /** Its adapter is there. */
  isOpen: boolean;
  /** Requests that change it came before. */
  isUsed: boolean;
  /** Resolves when its requests under way are done with. */
  over: Promise<void>;
};

/** What a request comes to; `more` is written together with the result. */
type Outcome = { readonly result: Result; readonly more?: () => void };
/** Requests of a model that may wait for one before them; and the number of the one that unloads it. */
const [AHEAD, UNLOAD] = [4096, -1];
/** Requests that are made again after a kill, to come to what the model was. */
const CHANGES = new Set(["create_model", "load_weights", "forward_backward", "optim_step"]);

/** Whether a request has failed in a way that making it again need not: then it changed nothing, and is passed over. */
const isServersFault = ({ type, result }: RequestRow): boolean =>
  type === JSON_TYPE && result !== null && JSON.parse(new TextDecoder().decode(result)).category === "server";

export class Training {
  readonly #live = new Map<string, Live>();
  readonly #states: States;
  #isStopping = false;

  constructor(private readonly options: TrainingOptions) {
    this.#states = new States(options);
  }

  /** Continues what an earlier server left, and removes what a kill has left of states. */
  begin(): void {
    const { store } = this.options;
    this.#states.begin();
    for (const owner of new Set(store.waiting({ isOpen: true }).map((row) => row.owner))) {
      const row = store.knownModel(owner);
      const unloading = store.request(owner, UNLOAD);
      if (row && unloading) void this.#unload(row, unloading);
      else if (row) this.#run(this.#liveOf(row));
    }
  }

  /** Makes a model with its first request, which is number 0. */
  create(
    row: Pick<ModelRow, "id" | "tenant" | "session" | "asked">,
    kind: "create_model" | "load_weights",
    body: Uint8Array,
  ): string {
    const { store, most } = this.options;
    const known = store.knownModel(row.id);
    if (!known && store.openModels(row.tenant) >= most)
      throw tooMany(`This key has ${counted(most, "model")} in open sessions, the most that it may have.`);
    const request = store.db.together(() => {
      if (!known) store.addModel(row);
      return store.addRequest({ ...this.#of(store.knownModel(row.id)!), number: 0, kind, body });
    });
    this.#run(this.#liveOf(store.knownModel(row.id)!));
    return request.row.id;
  }

  /** Takes a request of a model; its result is a future's. Throws ApiErrors. */
  submit(tenant: string, id: string, number: number, kind: string, body: Uint8Array): string {
    const { store } = this.options;
    const model = store.model(tenant, id);
    const known = store.request(id, number);
    if (!known) {
      store.openSession(tenant, model.session); // what is repeated has its result still
      if (number <= model.saved) throw badRequest(`Request ${number} of '${id}' was carried out long ago.`, "seq_id");
      if (store.request(id, UNLOAD)) throw badRequest(`The model '${id}' is unloaded.`, "model_id");
      if (number > this.#liveOf(model).next + AHEAD)
        throw tooMany(`${AHEAD} requests of the model '${id}' wait for one before them: send that first.`);
    }
    const { row, isNew } = store.addRequest({ ...this.#of(model), number, kind, body, repeats: repeatsOf(kind, body) });
    if (isNew) store.asked(id);
    this.options.heard(model.session);
    this.#run(this.#liveOf(model));
    return row.id;
  }

  /** Lets go of a model before its session ends; what waits fails. */
  async unload(tenant: string, id: string, body: Uint8Array): Promise<string> {
    const { store } = this.options;
    const model = store.model(tenant, id);
    const { row, isNew } = store.addRequest({ ...this.#of(model), number: UNLOAD, kind: "unload_model", body });
    if (isNew) await this.#unload(model, row);
    return row.id;
  }

  async #unload(model: ModelRow, unloading: RequestRow): Promise<void> {
    const { store, futures } = this.options;
    await this.#leave(model);
    for (const request of store.waiting({ owner: model.id }))
      if (request.number !== UNLOAD) futures.finish(request, failed("The model is unloaded.", "user"), false);
    futures.finish(unloading, jsonResult({ type: "unload_model", model_id: model.id }), false);
  }

  #of({ id, tenant, session, asked }: ModelRow) {
    return { owner: id, tenant, session, seed: asked.seed };
  }

  #liveOf(row: ModelRow): Live {
    const known = this.#live.get(row.id);
    if (known) return known;
    const live: Live = {
      ...{ row, adapter: `train-${row.seq}`, next: 0, isRunning: false, isOpen: false, isUsed: false },
      ...{ savedAt: now(), saved: row.saved, over: Promise.resolve(), saving: Promise.resolve() },
    };
    this.#live.set(row.id, live);
    return live;
  }

  /** Carries out what is there, in order, up to a number that is missing. */
  #run(live: Live): void {
    if (live.isRunning || this.#isStopping) return;
    live.isRunning = true;
    live.over = this.#drain(live);
  }

  async #drain(live: Live): Promise<void> {
    const { store, futures, log, lost } = this.options;
    try {
      if (!live.isOpen) await this.#open(live);
      for (;;) {
        const request = store.request(live.row.id, live.next);
        if (!request || this.#isStopping || !this.#live.has(live.row.id)) {
          live.isRunning = false; // at once: the next request starts anew
          return;
        }
        if (request.done_at === null) {
          const { result, more } = await this.#outcome(live, request);
          futures.finish(request, result, CHANGES.has(request.kind), more);
        }
        live.next++;
        // What a model began as may be deleted.
        if (request.kind === "load_weights") await this.#states.save(live, request.number);
        if (request.kind === "optim_step") this.#states.saveMeanwhile(live, request.number);
      }
    } catch (error) {
      if (isFatal(error)) return lost(error);
      log("error", { model: live.row.id, error: textFor(error), stack: (error as Error).stack });
      for (const request of store.waiting({ owner: live.row.id }))
        futures.finish(request, failed("The server failed at this model; its log says why.", "server"), true);
      live.isRunning = false;
    }
  }

  /** Puts the adapter on the stages as it was when it was saved, and makes again what came after. */
  async #open(live: Live): Promise<void> {
    const { store, engine } = this.options;
    const { row } = live;
    if (engine.has(live.adapter)) await engine.remove(live.adapter);
    if (row.saved >= 0) {
      await this.#add(live, row.asked);
      await engine.load(live.adapter, this.#states.pathOf(row, row.saved));
      live.isUsed = true;
    }
    live.next = row.saved + 1;
    for (;;) {
      const request = store.request(row.id, live.next);
      if (!request || request.done_at === null) break;
      if (CHANGES.has(request.kind) && request.body && !isServersFault(request)) await this.#outcome(live, request);
      live.next++;
    }
    live.isOpen = true;
  }

  /** Never throws what is the client's fault: that is a result. */
  async #outcome(live: Live, request: RequestRow): Promise<Outcome> {
    try {
      const outcome = await this.#execute(live, request);
      if (request.kind !== "create_model") live.isUsed = true;
      return outcome;
    } catch (error) {
      if (isFatal(error)) throw error;
      if (error instanceof ApiError || error instanceof RequestError || error instanceof MloraError)
        return { result: failed(textFor(error), "user") };
      if (error instanceof WireFault) return { result: failed(`The message ${error.message}.`, "user") };
      const { log } = this.options;
      log("error", { request: request.id, error: textFor(error), stack: (error as Error).stack });
      return { result: failed("The server failed at this request; its log says why.", "server") };
    }
  }

  #execute(live: Live, request: RequestRow): Promise<Outcome> {
    const body = request.body!;
    if (request.number > 0 && !this.options.engine.has(live.adapter))
      throw badRequest("The model is not there: its first request failed.", "model_id");
    switch (request.kind) {
      case "create_model":
        return this.#begin(live);
      case "load_weights":
        return request.number === 0 ? this.#begin(live, read(LoadInto, body).path) : this.#load(live, body);
      case "forward_backward":
        return this.#forwardBackward(live, body);
      case "optim_step":
        return this.#step(live, body);
      case "save_weights":
      case "save_weights_external":
        return this.#saveAs(live, request.kind, read(SaveWeights, body));
      case "save_weights_for_sampler":
        return this.#saveForSampler(live, body);
      default:
        throw badRequest(`There is no request of the kind '${request.kind}'.`);
    }
  }

  async #add(live: Live, asked: ModelAsked): Promise<void> {
    const { engine, recipes } = this.options;
    await engine.add(recipes.ofTrained(live.adapter, asked), undefined, live.row.tenant);
  }

  async #begin(live: Live, path?: string): Promise<Outcome> {
    const { engine, checkpoints } = this.options;
    const { asked, id } = live.row;
    await this.#add(live, asked);
    if (asked.from) await engine.load(live.adapter, checkpoints.stateIn(asked.from.folder, asked.from.optimizer));
    return { result: jsonResult({ model_id: id, ...(path === undefined ? {} : { path }) }) };
  }

  async #load(live: Live, body: Uint8Array): Promise<Outcome> {
    const { engine, store, checkpoints } = this.options;
    const { path, optimizer } = read(LoadInto, body);
    if (live.isUsed) throw badRequest("LoadWeights is not permitted: it must be the model's first request.", "path");
    const found = store.checkpoint(live.row.tenant, path);
    checkpoints.checkLoads(found, live.row.asked);
    await engine.load(live.adapter, checkpoints.stateIn(found.folder, optimizer === true));
    return { result: jsonResult({ path, model_id: live.row.id }) };
  }

  async #forwardBackward(live: Live, body: Uint8Array): Promise<Outcome> {
    const { engine, usage, models } = this.options;
    const { data, isForwardOnly, ...given } = readForwardBackward(body);
    const policy = lossOf(given);
    const of = rowsOf(data, policy);
    const rows = of.flatMap((datum) => datum.rows);
    const call = isForwardOnly ? "forward" : "forwardBackward";
    const { loss, rows: found } = await engine[call](live.adapter, rows, policy ? { policy } : {});
    if (!Number.isFinite(loss)) {
      await engine.discard(live.adapter);
      throw badRequest(`The loss is ${loss}: all gradients since the last step are dropped.`);
    }
    let at = 0;
    const logProbs = of.map((datum) =>
      datumLogProbs(
        datum,
        datum.rows.map(() => found[at++]!.logProbs),
      ),
    );
    const tokens = sum(rows.map(inputLength));
    return {
      result: protobufResult(forwardBackwardResult(logProbs, { "loss:sum": loss })),
      more: () => usage.add(live.row.tenant, models.base.name, { requests: 1, trained_tokens: isForwardOnly ? 0 : tokens }),
    };
  }

  async #step(live: Live, body: Uint8Array): Promise<Outcome> {
    const { engine } = this.options;
    const { adam_params: of } = read(OptimStep, body);
    if (of.grad_clip_norm < 0) throw badRequest("'grad_clip_norm' is below 0.", "grad_clip_norm");
    const settings = {
      ...{ learningRate: of.learning_rate, beta1: of.beta1, beta2: of.beta2, eps: of.eps, weightDecay: of.weight_decay },
      maxGradNorm: of.grad_clip_norm === 0 ? null : of.grad_clip_norm,
    };
    try {
      const { gradNorm } = await engine.step(live.adapter, settings, true);
      return { result: jsonResult({ metrics: { "grad_norm:mean": gradNorm } }) };
    } catch (error) {
      if (error instanceof MloraError && error.code === "primitives.numbers") await engine.discard(live.adapter);
      throw error;
    }
  }

  async #saveAs(live: Live, kind: "save_weights" | "save_weights_external", asked: SaveWeights): Promise<Outcome> {
    const { checkpoints } = this.options;
    const which = kind === "save_weights" ? "weights" : "external_weights";
    const { row, add } = await checkpoints.save(live.row, live.adapter, which, asked.path, asked);
    const size = which === "external_weights" ? { size_bytes: row.bytes } : {};
    return { result: jsonResult({ path: pathOf(row), ...size }), more: add };
  }

  async #saveForSampler(live: Live, body: Uint8Array): Promise<Outcome> {
    const { checkpoints } = this.options;
    const asked = read(SaveForSampler, body);
    const { path, sampling_session_seq_id: number } = asked;
    if (path != null) {
      const { row, add } = await checkpoints.save(live.row, live.adapter, "sampler_weights", path, asked);
      return { result: jsonResult({ path: pathOf(row) }), more: add };
    }
    if (number == null) throw badRequest("Give 'path' or 'sampling_session_seq_id'.", "path");
    const { id, add } = await checkpoints.snapshot(live.row, live.adapter, number);
    return { result: jsonResult({ sampling_session_id: id }), more: add };
  }

  /** Ends a session's models: what waits fails, and nothing of them stays but their checkpoints. */
  async end(session: string): Promise<void> {
    const { store, futures } = this.options;
    for (const row of store.models({ session })) await this.#leave(row);
    for (const request of store.waiting({ session })) futures.finish(request, failed("The session is over.", "user"), false);
  }

  async #leave(row: ModelRow): Promise<void> {
    const { engine } = this.options;
    const live = this.#live.get(row.id);
    this.#live.delete(row.id);
    await Promise.all([live?.over, live?.saving]);
    if (live && engine.has(live.adapter)) await engine.remove(live.adapter);
    this.#states.remove(row);
  }

  /** Requests under way are finished; what waits is made when the server is started again. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    await Promise.allSettled([...this.#live.values()].flatMap(({ over, saving }) => [over, saving]));
  }
}
