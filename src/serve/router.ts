// Routes, and what is the same for all of them: keys, request ids, errors, limits of requests in flight, logs and counts.

import type * as v from "valibot";
import { now, wallTime } from "../base/clock.ts";
import { textOf } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";
import { jsonText, writeStderr } from "../base/terminal.ts";
import { counted } from "../base/units.ts";
import { type BodyLimits, bytesOf, type Exact, exactOf, jsonOf, passOver } from "./body.ts";
import { ApiError, apiErrorOf, errorResponse, unavailable } from "./errors.ts";
import type { Keys } from "./keys.ts";
import type { Counters } from "./metrics.ts";

/** A request that has a route. */
export type Call = {
  readonly request: Request;
  readonly query: URLSearchParams;
  /** The parts of the path that the route names, decoded. */
  readonly params: Readonly<Record<string, string>>;
  /** Whose key it has; empty for an open route. */
  readonly tenant: string;
  /** It has the key of a read-only link. */
  readonly isViewer: boolean;
  readonly id: string;
  /** The body as JSON by the schema. Throws ApiErrors. */
  readonly json: <S extends v.GenericSchema>(schema: S) => Promise<v.InferOutput<S>>;
  /** The same, and all of the body as it is written. Throws ApiErrors. */
  readonly exact: <S extends v.GenericSchema>(schema: S) => Promise<Exact<S>>;
  /** The body. Throws ApiErrors. */
  readonly bytes: () => Promise<Uint8Array>;
};
export type Handler = (call: Call) => Response | Promise<Response>;

export type Route = {
  readonly method: "GET" | "HEAD" | "POST" | "PUT" | "DELETE";
  /** "/v1/files/:id"; a last part ":name+" takes the rest of the path, slashes included. */
  readonly path: string;
  readonly handler: Handler;
  /** For the OpenAPI document. */
  readonly summary: string;
  readonly body?: v.GenericSchema;
  /** Needs no key. */
  readonly isOpen?: boolean;
  /** Takes the key of a read-only link, too. */
  readonly isForViewers?: boolean;
  /** Of the live page: not in the OpenAPI document. */
  readonly isHidden?: boolean;
  /** Waits for what other requests have begun, and is not counted among those that a key has in flight. */
  readonly isPoll?: boolean;
};

/** For the log: nothing of it reaches a client that has closed its connection. */
const GONE = new ApiError(499, "The client has closed the connection.");

type Compiled = Route & { readonly pattern: RegExp; readonly names: readonly string[] };

function compile(route: Route): Compiled {
  const names: string[] = [];
  const parts = route.path.split("/").map((part) => {
    if (!part.startsWith(":")) return part.replaceAll(/[.+]/g, "\\$&");
    names.push(part.replace(/^:|\+$/g, ""));
    return part.endsWith("+") ? "(.+)" : "([^/]+)";
  });
  return { ...route, names, pattern: new RegExp(`^${parts.join("/")}/?$`) };
}

export type RouterOptions = {
  readonly keys: Keys;
  readonly counters: Counters;
  readonly limits: BodyLimits & { readonly requests: number };
  readonly log: "requests" | "changes" | "none";
  /** Called with each fault of the server. */
  readonly failed: (error: unknown) => void;
};

export class Router {
  readonly routes: readonly Route[];
  readonly #compiled: readonly Compiled[];
  readonly #open = new Map<string, number>();
  /** Nothing new is taken. */
  isClosing = false;

  constructor(
    routes: readonly Route[],
    private readonly options: RouterOptions,
  ) {
    this.routes = routes;
    this.#compiled = routes.map(compile);
  }

  /** Answers any request; never throws. */
  async answer(request: Request): Promise<Response> {
    const started = now();
    const id = `req-${randomText(24)}`;
    const url = new URL(request.url);
    let route: Compiled | null = null;
    let [tenant, isViewer] = ["", false];
    let response: Response;
    try {
      route = this.#routeOf(request.method, url.pathname);
      if (this.isClosing) throw unavailable("The server is stopping.");
      if (!route.isOpen) ({ tenant, isViewer } = this.options.keys.accessOf(request.headers));
      if (isViewer && !route.isForViewers)
        throw new ApiError(403, "The key of a read-only link may only look at the live page.", { code: "read_only" });
      const call: Call = {
        ...{ request, id, tenant, isViewer, query: url.searchParams },
        params: paramsOf(route, url.pathname),
        json: (schema) => jsonOf(request, schema, this.options.limits),
        exact: (schema) => exactOf(request, schema, this.options.limits),
        bytes: () => bytesOf(request, this.options.limits),
      };
      const { handler, isPoll } = route;
      response = await (isPoll ? handler(call) : this.#limited(tenant, () => handler(call)));
    } catch (thrown) {
      const { error, isUnexpected } = request.signal.aborted ? { error: GONE, isUnexpected: false } : apiErrorOf(thrown);
      if (isUnexpected) this.options.failed(thrown);
      if (isUnexpected) this.log("error", { request: id, path: url.pathname, error: textOf(thrown), stack: stackOf(thrown) });
      await passOver(request);
      response = errorResponse(error, url.pathname.startsWith("/api/v1/"));
    }
    response.headers.set("x-request-id", id);
    const ms = Math.round(now() - started);
    const { method } = request;
    this.options.counters.request(method, route?.path ?? "", response.status, ms / 1000);
    if (this.options.log === "requests" || (this.options.log === "changes" && method !== "GET"))
      this.log("request", { request: id, key: tenant, method, path: url.pathname, status: response.status, ms });
    return response;
  }

  log(event: string, more: Readonly<Record<string, unknown>>): void {
    if (this.options.log === "none" && event !== "error") return;
    writeStderr(`${jsonText({ time: new Date(wallTime()).toISOString(), event, ...more })}\n`);
  }

  #routeOf(method: string, path: string): Compiled {
    const at = this.#compiled.filter(({ pattern }) => pattern.test(path));
    const found = at.find((route) => route.method === method);
    if (found) return found;
    if (at.length === 0) throw new ApiError(404, `Unknown request URL: ${method} ${path}.`, { code: "unknown_url" });
    throw new ApiError(405, `${method} is not taken at ${path}, only ${at.map((route) => route.method).join(", ")}.`, {
      headers: { allow: at.map((route) => route.method).join(", ") },
    });
  }

  /** Bounds what one key has in flight, so that it does not stop the others. */
  async #limited(tenant: string, work: () => Response | Promise<Response>): Promise<Response> {
    const open = this.#open.get(tenant) ?? 0;
    if (open >= this.options.limits.requests)
      throw new ApiError(429, `This key has ${counted(open, "request")} in flight, the most that it may have.`, {
        code: "rate_limit_exceeded",
        headers: { "retry-after": "1" },
      });
    this.#open.set(tenant, open + 1);
    const over = () => {
      const left = this.#open.get(tenant)! - 1;
      if (left === 0) this.#open.delete(tenant);
      else this.#open.set(tenant, left);
    };
    try {
      const response = await work();
      const end = ends.get(response);
      if (end) void end.finally(over);
      else over();
      return response;
    } catch (error) {
      over();
      throw error;
    }
  }
}

/** Of answers that continue after their headers: when they are over. */
const ends = new WeakMap<Response, Promise<unknown>>();
export const endsWith = (response: Response, over: Promise<unknown>): Response => {
  ends.set(response, over);
  return response;
};

function paramsOf({ pattern, names }: Compiled, path: string): Record<string, string> {
  const found = pattern.exec(path)!;
  return Object.fromEntries(
    names.map((name, i) => {
      try {
        return [name, decodeURIComponent(found[i + 1]!)];
      } catch {
        throw new ApiError(400, `The path ${path} is not percent-encoded.`);
      }
    }),
  );
}

const stackOf = (error: unknown): string | undefined => (error instanceof Error ? error.stack : undefined);

/** A page of a list as OpenAI has it. `limit` and `after` are of the query. */
export function listOf<T extends { readonly id: string }>(data: readonly T[], hasMore: boolean): Response {
  return Response.json({
    object: "list",
    data,
    has_more: hasMore,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
  });
}

/** The `limit` of a list. Throws an ApiError. */
export function limitOf(query: URLSearchParams, fallback: number, most: number): number {
  const given = query.get("limit");
  if (given === null) return fallback;
  const limit = Number(given);
  if (Number.isInteger(limit) && limit >= 1) return Math.min(limit, most);
  throw new ApiError(400, `'limit' is ${given}, expected a whole number of 1 or more.`, { param: "limit" });
}
