// The live page over HTTP: its files, its events, and what it asks. The same routes for a server's jobs and for a run.

import * as v from "valibot";
import { expected } from "../base/check.ts";
import { pageFile } from "../web/assets.ts";
import type { PageFile } from "../web/bundle.ts";
import { type Source, VIEWER_ABILITIES } from "../web/source.ts";
import type { Ability, AnswerPiece } from "../web/wire.ts";
import { ApiError, badRequest } from "./errors.ts";
import { eventStream } from "./openai/events.ts";
import { type Call, endsWith, type Handler, type Route } from "./router.ts";

/** Changes that wait for a page that reads slowly; then it gets everything at once instead. */
const MOST_WAITING = 8;

const name = v.pipe(v.string(), v.maxLength(512));
const Control = v.variant("action", [
  v.strictObject({ action: v.picklist(["pause", "resume", "stop"]), adapter: v.nullable(name) }),
  v.strictObject({ action: v.literal("fork"), adapter: name, name, set: v.pipe(v.string(), v.maxLength(4096)) }),
]);
const Answer = v.strictObject({
  prompt: v.pipe(v.string(), v.minLength(1, "is empty"), v.maxLength(1 << 20)),
  models: v.pipe(v.array(name), v.minLength(1, "is empty"), v.maxLength(8, expected("at most 8 models"))),
  max_tokens: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(4096)),
});

export type PageOptions = {
  /** Of a key's name. */
  readonly sourceOf: (tenant: string) => Source;
  /** The key of the read-only link of a key's name. */
  readonly viewKeyOf: (tenant: string) => string;
};

export function pageRoutes({ sourceOf, viewKeyOf }: PageOptions): Route[] {
  const file = (path: string, of: PageFile): Route => ({
    ...{ method: "GET", path, summary: `The live page: ${of}`, isOpen: true, isHidden: true },
    handler: ({ request }) => pageFile(of, request),
  });
  /** A route of the page's own script; `ability`: what its source must be able to do. */
  const asked = (
    [method, path, summary]: readonly [Route["method"], string, string],
    ability: Ability | null,
    handler: (call: Call, source: Source) => Response | Promise<Response>,
    body?: v.GenericSchema,
  ): Route => {
    const checked: Handler = (call) => {
      requireSameOrigin(call.request);
      const source = sourceOf(call.tenant);
      if (ability !== null && !source.abilities.includes(ability)) throw new ApiError(404, `There is no '${ability}' here.`);
      return handler(call, source);
    };
    const isForViewers = ability === null || VIEWER_ABILITIES.includes(ability);
    return { method, path, summary, handler: checked, isForViewers, isHidden: true, ...(body ? { body } : {}) };
  };
  return [
    file("/", "index.html"),
    ...(["app.js", "app.css", "icon.svg"] as const).map((of) => file(`/page/${of}`, of)),
    asked(["GET", "/page/events", "What the page shows, as it changes"], null, ({ isViewer }, source) =>
      events(source, isViewer ? source.abilities.filter((of) => VIEWER_ABILITIES.includes(of)) : source.abilities),
    ),
    asked(["GET", "/page/rows", "The rows that an adapter trains on now"], "rows", ({ query }, source) =>
      Response.json(source.rows(query.get("adapter") ?? "")),
    ),
    asked(["GET", "/page/spans", "What the stages did in the last seconds"], "spans", async (_, source) =>
      Response.json(await source.spans()),
    ),
    asked(["GET", "/page/link", "The key of a link that may only look"], "link", ({ tenant }) =>
      Response.json({ key: viewKeyOf(tenant) }),
    ),
    asked(
      ["POST", "/page/control", "Pause, resume, stop or fork an adapter"],
      null,
      async ({ json, isViewer }, source) => {
        const body = await json(Control);
        if (isViewer) throw new ApiError(403, "A read-only link changes nothing.", { code: "read_only" });
        if (!source.abilities.includes(abilityFor(body))) throw badRequest(`'${body.action}' is not possible here.`, "action");
        return Response.json({ message: await source.control(body) });
      },
      Control,
    ),
    asked(["GET", "/page/models", "Names that may be asked for an answer"], "answer", (_, source) =>
      Response.json({ models: source.models() }),
    ),
    asked(
      ["POST", "/page/answer", "Answer a prompt by several adapters"],
      "answer",
      async ({ json }, source) => {
        const { prompt, models, max_tokens: maxTokens } = await json(Answer);
        return eventStream(async (send, signal) => {
          const got = (piece: AnswerPiece) => send(piece);
          await source.answer({ prompt, models, maxTokens }, got, signal);
        });
      },
      Answer,
    ),
  ];
}

const abilityFor = ({ action, adapter }: v.InferOutput<typeof Control>): Ability => {
  if (action === "fork") return "fork";
  return action === "stop" ? (adapter === null ? "stopAll" : "stop") : "pause";
};

/** Throws an ApiError 403 for what a page of another origin asks. */
function requireSameOrigin(request: Request): void {
  const site = request.headers.get("sec-fetch-site");
  const origin = request.headers.get("origin");
  const isOther = origin !== null && URL.parse(origin)?.host !== request.headers.get("host");
  if (isOther || (site !== null && site !== "same-origin" && site !== "none"))
    throw new ApiError(403, "Another site's page may not ask this.", { code: "cross_origin" });
}

const encoder = new TextEncoder();

/** The board as server-sent events. */
function events({ board }: Source, abilities: readonly Ability[]): Response {
  const over = Promise.withResolvers<void>();
  let watching: Disposable | null = null;
  const end = () => {
    watching?.[Symbol.dispose]();
    over.resolve();
  };
  const body = new ReadableStream<Uint8Array>(
    {
      start(controller) {
        const send = (event: string, data: object): boolean => {
          if ((controller.desiredSize ?? 0) <= 0) return false;
          controller.enqueue(encoder.encode(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
          return true;
        };
        const close = () => {
          end();
          controller.close();
        };
        watching = board.watch({ send, close }, abilities);
      },
      cancel: end,
    },
    new CountQueuingStrategy({ highWaterMark: MOST_WAITING }),
  );
  const headers = { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store" };
  return endsWith(new Response(body, { headers }), over.promise);
}
