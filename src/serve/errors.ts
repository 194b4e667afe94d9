// What a request is answered with when it fails: a status and OpenAI's error body, all four keys always there.

import { MloraError, RequestError, textOf } from "../base/errors.ts";

export type ErrorBody = {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
};

type More = {
  readonly param?: string | null;
  readonly code?: string | null;
  readonly headers?: Readonly<Record<string, string>>;
};

/** Thrown by handlers. Its text reaches the client. */
export class ApiError extends Error {
  readonly body: ErrorBody;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    readonly status: number,
    message: string,
    { param = null, code = null, headers = {} }: More = {},
  ) {
    super(message);
    const type = status === 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
    this.body = { error: { message, type, param, code } };
    this.headers = headers;
  }
}

export const badRequest = (message: string, param: string | null = null, code: string | null = null): ApiError =>
  new ApiError(400, message, { param, code });
export const notFound = (message: string, param: string | null = null, code: string | null = "not_found"): ApiError =>
  new ApiError(404, message, { param, code });
export const modelNotFound = (model: string): ApiError =>
  notFound(`The model '${model}' does not exist or you do not have access to it.`, "model", "model_not_found");
/** Clients send it again after a second. */
export const tooMany = (message: string): ApiError =>
  new ApiError(429, message, { code: "rate_limit_exceeded", headers: { "retry-after": "1" } });
export const unavailable = (message: string): ApiError => new ApiError(503, message, { headers: { "retry-after": "5" } });

/** What is thrown as what is answered; `isUnexpected` where it is a fault of the server, whose text stays in its log. */
export function apiErrorOf(error: unknown): { readonly error: ApiError; readonly isUnexpected: boolean } {
  if (error instanceof ApiError) return { error, isUnexpected: false };
  if (isGone(error)) return { error: notFound(GONE, "model", "model_not_found"), isUnexpected: false };
  if (error instanceof RequestError) {
    const { message, hint, code } = error;
    return { error: badRequest(hint === undefined ? message : `${message}; ${hint}`, null, code), isUnexpected: false };
  }
  if (isFatal(error)) return { error: unavailable("The model is being opened again: try again soon."), isUnexpected: true };
  return { error: new ApiError(500, "The server failed at this request; its log says why."), isUnexpected: true };
}

/** Whether the stages are lost with it: nothing can be computed until they are opened again. */
export const isFatal = (error: unknown): boolean =>
  error instanceof MloraError && /^(device|stage|bus|nats|link)\./.test(error.code);

/** Whether an adapter was removed: the primitives' own words name those of all keys. */
const isGone = (error: unknown): boolean => error instanceof RequestError && error.code === "primitives.adapter";
const GONE = "The model is gone: it was deleted meanwhile.";

/** An error for events and jobs: what people read of it. */
export const failureText = (error: unknown): string => {
  if (isGone(error)) return GONE;
  return error instanceof MloraError && error.hint !== undefined ? `${error.message}; ${error.hint}` : textOf(error);
};

/** `isTinker`: its clients look for the text as `detail`. */
export const errorResponse = ({ status, body, headers, message }: ApiError, isTinker = false): Response =>
  Response.json(isTinker ? { detail: message, ...body } : body, { status, headers });
