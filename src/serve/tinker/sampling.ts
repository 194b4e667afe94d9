// Samples of saved weights, of snapshots and of the base model: requests have no order, and each stands in the tables with its
// result.

import { MloraError } from "../../base/errors.ts";
import { range } from "../../base/shape.ts";
import { count, counted } from "../../base/units.ts";
import { distributionOf, type Sampling } from "../../session/decoding/distribution.ts";
import type { TextModel } from "../../session/generation/text-model.ts";
import { TextStream } from "../../session/generation/text-stream.ts";
import type { Primitives, Row, SampledToken } from "../../session/primitives/primitives.ts";
import { ApiError, badRequest, isFatal, tooMany } from "../errors.ts";
import type { RecipeMaker } from "../job-recipe.ts";
import type { Models } from "../models.ts";
import type { Rates } from "../rates.ts";
import type { Usage } from "../usage.ts";
import { read, Sample, SampleAddress } from "./asked.ts";
import { type Futures, failed, protobufResult, type Result, textFor } from "./futures.ts";
import { type SampleResult, sampleResult, type Tensor, type TopTokens } from "./messages.ts";
import { DatumFault, denseOf } from "./rows.ts";
import type { RequestRow, SamplerRow, TinkerStore } from "./store.ts";

export type SamplingOptions = {
  readonly engine: Primitives;
  readonly store: TinkerStore;
  readonly futures: Futures;
  readonly models: Models;
  readonly recipes: RecipeMaker;
  readonly texts: TextModel;
  readonly usage: Usage;
  readonly log: (event: string, more: Readonly<Record<string, unknown>>) => void;
  readonly lost: (error: unknown) => void;
  /** Called with the session of each new request. */
  readonly heard: (session: string) => void;
  readonly rates: Rates;
  /** Requests of a tenant that have no result, at most. */
  readonly most: number;
};

/** A fresh LoRA, which changes nothing: the base model scores prompts by it. */
const BASE = "scores-base";

export class Samples {
  readonly #open = new Map<string, number>();
  readonly #stop = new AbortController();
  readonly #underway = new Set<Promise<void>>();
  /** Of requests under way: gives back the tokens that they were allowed and did not need. */
  readonly #giveBack = new Map<string, (used: number) => void>();

  constructor(private readonly options: SamplingOptions) {}

  begin(): void {
    for (const row of this.options.store.waiting({ isOpen: true })) if (row.kind === "sample") this.#start(row);
  }

  /** Takes a request; its result is a future's. Throws ApiErrors. */
  submit(tenant: string, body: Uint8Array, seed: number): { readonly id: string; readonly samples: number } {
    const { store, most } = this.options;
    const { sampling_session_id, seq_id, num_samples } = read(SampleAddress, body);
    const sampler = store.sampler(tenant, sampling_session_id);
    if (!store.request(sampler.id, seq_id)) {
      store.openSession(tenant, sampler.session);
      if ((this.#open.get(tenant) ?? 0) >= most)
        throw tooMany(`This key has ${counted(most, "sample")} in flight, the most that it may have.`);
      this.#take(tenant, `${sampler.id}:${seq_id}`, body);
    }
    const of = { tenant, session: sampler.session, owner: sampler.id, number: seq_id, kind: "sample", seed, body };
    const { row, isNew } = store.addRequest(of);
    if (isNew) this.#start(row);
    this.options.heard(sampler.session);
    return { id: row.id, samples: num_samples };
  }

  /** By the tokens that it may need. Throws ApiErrors. */
  #take(tenant: string, id: string, body: Uint8Array): void {
    const { num_samples: n, prompt, sampling_params: params } = read(Sample, body);
    const length = prompt.chunks.reduce((sum, { tokens }) => sum + tokens.length, 0);
    const most = length + n * (params.max_tokens ?? Math.max(0, this.#room - length));
    const giveBack = this.options.rates.take(tenant, most);
    this.#giveBack.set(id, (used) => giveBack(Math.max(0, most - used)));
  }

  /** Tokens of a sequence at most. */
  get #room(): number {
    const { spec, stages } = this.options.engine.plan;
    return Math.min(stages[0]!.sizes.cache!.capacity, spec.maxPositions);
  }

  #start(row: RequestRow): void {
    const { tenant } = row;
    this.#open.set(tenant, (this.#open.get(tenant) ?? 0) + 1);
    const over = this.#run(row).finally(() => {
      this.#giveBack.delete(row.id);
      this.#underway.delete(over);
      const left = this.#open.get(tenant)! - 1;
      if (left === 0) this.#open.delete(tenant);
      else this.#open.set(tenant, left);
    });
    this.#underway.add(over);
  }

  /** Never throws. */
  async #run(row: RequestRow): Promise<void> {
    const { futures, lost, log, store } = this.options;
    let outcome: { readonly result: Result; readonly more?: () => void };
    try {
      outcome = await this.#sample(store.sampler(row.tenant, row.owner), row);
    } catch (error) {
      if (this.#stop.signal.aborted) return; // it is made when the server is started again
      if (isFatal(error)) return lost(error);
      const isTheirs = error instanceof ApiError || error instanceof MloraError || error instanceof DatumFault;
      if (!isTheirs) log("error", { request: row.id, error: textFor(error), stack: (error as Error).stack });
      const fault = "The server failed at this sample; its log says why.";
      outcome = { result: isTheirs ? failed(textFor(error), "user") : failed(fault, "server") };
    }
    const { result, more } = outcome;
    if (store.request(row.owner, row.number)?.done_at === null) futures.finish(row, result, false, more);
  }

  /** `more` is written together with the result. */
  async #sample(sampler: SamplerRow, row: RequestRow): Promise<{ readonly result: Result; readonly more: () => void }> {
    const { engine, models, usage } = this.options;
    const asked = read(Sample, row.body!);
    const { num_samples: n, sampling_params: params } = asked;
    const prompt = asked.prompt.chunks.flatMap(({ tokens }) => tokens);
    const { vocab } = engine.plan.spec;
    const unknown = prompt.find((id) => id >= vocab);
    if (unknown !== undefined) throw badRequest(`The prompt has the token ${unknown}; the model has ${vocab}.`, "prompt");
    if (prompt.length === 0) throw badRequest("The prompt has no token.", "prompt");
    const room = this.#room;
    const maxTokens = params.max_tokens ?? room - prompt.length;
    if (prompt.length + maxTokens > room || maxTokens < 1)
      throw badRequest(
        `The prompt has ${counted(prompt.length, "token")}, and ${count(maxTokens)} may follow: a sequence has ${count(room)} at most.`,
      );
    const { scored, sequences } = await models.use(this.#modelOf(sampler), async (adapter) => ({
      scored: await this.#score(adapter, prompt, asked),
      sequences: await Promise.all(range(n).map((i) => this.#one(adapter, row, prompt, asked, maxTokens, i))),
    }));
    const completed = sequences.reduce((sum, { tokens }) => sum + tokens.length, 0);
    const used = { requests: 1, prompt_tokens: prompt.length, completion_tokens: completed };
    this.#giveBack.get(row.id)?.(prompt.length + completed);
    return {
      result: protobufResult(sampleResult({ sequences, ...scored })),
      more: () => usage.add(row.tenant, sampler.path ?? models.base.name, used),
    };
  }

  #modelOf({ model, path }: SamplerRow) {
    const { models } = this.options;
    if (model === null) return null;
    const found = models.known(model);
    if (found) return found;
    throw badRequest(path === null ? "The snapshot is gone." : `The weights '${path}' are deleted.`, "sampling_session_id");
  }

  async #one(adapter: string | null, row: RequestRow, prompt: readonly number[], asked: Sample, maxTokens: number, i: number) {
    const { engine, texts } = this.options;
    const { temperature, top_k, top_p, seed, stop } = asked.sampling_params;
    const sampling: Sampling = { temperature, topP: top_p, topK: Math.max(0, top_k) };
    const { ids, words } = stopsOf(stop, texts.stops);
    const text = words.length > 0 ? new TextStream(texts.decode, words) : null;
    const [tokens, logProbs, top] = [[] as number[], [] as number[], [] as TopTokens["rows"][number][]];
    const halt = new AbortController();
    let end: "stop" | "length" | null = null;
    const got = ({ token, end: ended, drawnLogProb, logits }: SampledToken) => {
      if (end !== null) return;
      const chosen = logits && distributionOf(logits, sampling);
      tokens.push(token);
      logProbs.push(chosen?.logProb(token) ?? drawnLogProb);
      if (chosen) top.push(chosen.top(asked.topk_sample_logprobs));
      end = ended;
      if (ended === null && text?.push(token).isStopped) {
        end = "stop";
        halt.abort(HALTED);
      } else if (ended === "length" && text && text.push(token).isStopped) end = "stop";
    };
    const first = Number(BigInt.asUintN(32, BigInt(seed ?? row.seed)));
    try {
      await engine.stream(
        adapter,
        [prompt],
        {
          ...{ sampling, maxTokens, stops: ids, seed: (first + i) >>> 0, owner: row.tenant },
          logits: asked.topk_sample_logprobs > 0,
          signal: AbortSignal.any([halt.signal, this.#stop.signal]),
        },
        got,
      );
    } catch (error) {
      if (error !== HALTED) throw error;
    }
    const likeliest = asked.topk_sample_logprobs > 0 ? { width: asked.topk_sample_logprobs, rows: top } : null;
    return { tokens, logProbs, end: end ?? ("length" as const), top: likeliest };
  }

  /** What is asked of the prompt's own tokens, at temperature 1. */
  async #score(adapter: string | null, prompt: readonly number[], asked: Sample): Promise<Omit<SampleResult, "sequences">> {
    const { topk_prompt_logprobs: top, prompt_logprobs: isScored, target_prompt_logprobs: targets } = asked;
    const length = prompt.length;
    const from = length - Math.min(asked.prompt_logprobs_last_n ?? length, length);
    const [promptLogProbs, promptTop] = [
      new Float32Array(length).fill(Number.NaN),
      range(length).map(() => [] as TopTokens["rows"][number]),
    ];
    if (length > 1 && (isScored || top > 0)) {
      const row: Row = { ids: Int32Array.from(prompt), mask: new Uint8Array(length).fill(1) };
      const [found] = await this.#forward(adapter, [row], top);
      for (let i = Math.max(1, from); i < length; i++) {
        promptLogProbs[i] = found!.logProbs[i]!;
        if (top > 0)
          promptTop[i] = Array.from(found!.top![i - 1]!.ids, (id, at) => [id, found!.top![i - 1]!.logProbs[at]!] as const);
      }
    }
    return {
      prompt: isScored ? promptLogProbs : null,
      promptTop: top > 0 ? { width: top, rows: promptTop } : null,
      targets: targets ? await this.#scoreTargets(adapter, prompt, targets) : null,
    };
  }

  /** Log-probabilities of tokens of the client's in the place of each but the first; those of cells of -1 are 0. */
  async #scoreTargets(
    adapter: string | null,
    prompt: readonly number[],
    {
      data,
      dtype,
      shape,
      sparse_crow_indices: rows,
      sparse_col_indices: columns,
    }: NonNullable<Sample["target_prompt_logprobs"]>,
  ): Promise<Tensor> {
    const sparse = rows && columns ? { rows, columns } : null;
    const given: Tensor = { dtype, shape: shape ?? [data.length], values: data, sparse };
    // What a sparse tensor leaves out asks for nothing.
    const shiftedUp = { ...given, values: data.map((id) => id + 1) };
    const { columns: width, column } = denseOf(shiftedUp, "target_prompt_logprobs", "int64", prompt.length - 1);
    const { vocab } = this.options.engine.plan.spec;
    if (data.some((id) => !Number.isInteger(id) || id < -1 || id >= vocab))
      throw badRequest(
        `'target_prompt_logprobs' has a token that is not of the ${vocab} of the model.`,
        "target_prompt_logprobs",
      );
    const found = new Float32Array((prompt.length - 1) * width);
    for (let k = 0; k < width; k++) {
      const wanted = Array.from(column(k), (id) => id - 1);
      const mask = Uint8Array.from([0, ...wanted.map((id) => Number(id >= 0))]);
      if (!mask.includes(1)) continue;
      const targets = Int32Array.from([0, ...wanted.map((id) => Math.max(0, id))]);
      const [row] = await this.#forward(adapter, [{ ids: Int32Array.from(prompt), mask, targets }], 0);
      for (const [i, id] of wanted.entries()) if (id >= 0) found[i * width + k] = row!.logProbs[i + 1]!;
    }
    if (!sparse) return { dtype: "float32", shape: given.shape, values: found, sparse };
    const values = sparse.rows
      .slice(1)
      .flatMap((end, row) =>
        range(end - sparse.rows[row]!).map((i) => found[row * width + sparse.columns[sparse.rows[row]! + i]!]!),
      );
    return { dtype: "float32", shape: given.shape, values, sparse };
  }

  async #forward(adapter: string | null, rows: readonly Row[], top: number) {
    const { engine, recipes } = this.options;
    if (adapter === null && !engine.has(BASE)) {
      const fresh = { rank: 1, seed: 0, attention: true, mlp: true };
      try {
        await engine.add(recipes.ofTrained(BASE, fresh));
      } catch (error) {
        if (!engine.has(BASE)) throw error; // else another sample was first
      }
    }
    return (await engine.forward(adapter ?? BASE, rows, { top })).rows;
  }

  /** Samples under way end without a result. */
  async stop(): Promise<void> {
    this.#stop.abort(new Error("the server is stopping"));
    await Promise.allSettled([...this.#underway]);
  }
}

/** A stop text has come. */
const HALTED = new Error("a stop text has come");

/** Left out, the ends of the model; an empty list: nothing ends a sample. */
function stopsOf(stop: Sample["sampling_params"]["stop"], ends: ReadonlySet<number>) {
  if (stop == null) return { ids: ends, words: [] };
  const all: readonly (string | number)[] = typeof stop === "string" ? [stop] : stop;
  const words = all.filter((of) => typeof of === "string");
  if (words.includes("")) throw badRequest("'stop' has an empty text.", "stop");
  return { ids: new Set(all.filter((of) => typeof of === "number")), words };
}
