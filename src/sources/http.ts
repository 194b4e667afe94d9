// Requests for what recipes name, what is pushed, and notifications: redirects followed by hand, so that a secret stays with
// the host it is for, and what may pass tried again.

import { sleep } from "../base/clock.ts";
import { RunError, textOf } from "../base/errors.ts";

/** Attempts of a request, and the wait before the second in ms; each further wait is twice as long. */
const [ATTEMPTS, WAIT_MS] = [3, 400];
const MOST_REDIRECTS = 10;
/** Until the head of an answer is there. */
const HEAD_MS = 30_000;
const PASSING = [408, 425, 429, 500, 502, 503, 504];

export type Ask = {
  readonly method?: "GET" | "HEAD" | "POST" | "PUT";
  /** What is sent; a request with one may be sent again. */
  readonly body?: string | Blob;
  /** Until the head of an answer is there, in ms. Default: 30 s. */
  readonly headMs?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** A header for the host of the first address alone. */
  readonly token?: string | null;
  /** Whether redirects to another host are followed. Default: true. */
  readonly away?: boolean;
  readonly signal?: AbortSignal | undefined;
};

type Answer = { readonly response: Response; readonly url: string };

/** The answer, whatever its status, and the address it came from. Throws a RunError, `http.failed`, where there is none. */
export async function ask(url: string, options: Ask = {}): Promise<Answer> {
  try {
    return await tried(() => followed(url, options), options.signal);
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof RunError) throw error;
    const why = `${shown(url)} cannot be reached: ${textOf(error)}`;
    throw new RunError("http.failed", why, "check the network, or a proxy (HTTPS_PROXY)");
  }
}

/** Sends again what may pass. The last answer counts, whatever its status, or what the last attempt fails with. */
async function tried(send: () => Promise<Answer>, signal?: AbortSignal): Promise<Answer> {
  for (let attempt = 1; ; attempt++) {
    signal?.throwIfAborted();
    try {
      const answer = await send();
      if (attempt === ATTEMPTS || !PASSING.includes(answer.response.status)) return answer;
      await answer.response.body?.cancel();
    } catch (error) {
      if (attempt === ATTEMPTS || signal?.aborted || error instanceof RunError) throw error;
    }
    await sleep(WAIT_MS * 2 ** (attempt - 1));
  }
}

async function followed(from: string, options: Ask): Promise<Answer> {
  const { method = "GET", headers = {}, token, away = true, signal, body, headMs = HEAD_MS } = options;
  let url = new URL(from);
  const { origin } = url;
  for (let redirects = 0; redirects <= MOST_REDIRECTS; redirects++) {
    const own = token && url.origin === origin ? { authorization: `Bearer ${token}` } : {};
    const late = AbortSignal.timeout(headMs);
    const sent = { "accept-encoding": "identity", ...headers, ...own };
    const response = await fetchHead(url, { method, headers: sent, ...(body === undefined ? {} : { body }) }, late, signal);
    const location = response.headers.get("location");
    if (!REDIRECTS.includes(response.status) || location === null) return { response, url: url.href };
    const next = new URL(location, url);
    if (!away && next.origin !== url.origin) return { response, url: url.href };
    if (url.protocol === "https:" && next.protocol !== "https:")
      throw new RunError("http.failed", `${shown(from)} leads to ${next.origin}, which is not encrypted`);
    await response.body?.cancel();
    url = next;
  }
  throw new RunError("http.failed", `${shown(from)} leads from one address to another, more than ${MOST_REDIRECTS} times`);
}

const REDIRECTS = [301, 302, 303, 307, 308];

/** The limit of time holds for the head alone: a body may take hours. */
async function fetchHead(url: URL, init: RequestInit, late: AbortSignal, signal: AbortSignal | undefined): Promise<Response> {
  const stop = new AbortController();
  const end = () => stop.abort(late.aborted ? new Error("no answer in time") : signal?.reason);
  late.addEventListener("abort", end, { once: true });
  signal?.addEventListener("abort", end, { once: true });
  const response = await fetch(url, { ...init, redirect: "manual", decompress: false, signal: stop.signal });
  late.removeEventListener("abort", end);
  return response;
}

/**
 * Sends JSON, tried again as `ask` does it; no redirect is followed. Throws a RunError, `http.failed`, that names the host
 * alone: the rest of such an address may be a secret.
 */
export async function postJson(url: string, body: string): Promise<void> {
  const to = new URL(url);
  const failed = (why: string) => new RunError("http.failed", `${to.host}: ${why}`);
  const init = { method: "POST", headers: { "content-type": "application/json" }, body };
  const send = async () => ({ response: await fetchHead(to, init, AbortSignal.timeout(HEAD_MS), undefined), url });
  const { response } = await tried(send).catch((error: unknown) => Promise.reject(failed(textOf(error))));
  await response.body?.cancel();
  if (!response.ok) throw failed(`it answered ${response.status}`);
}

/** An address without what may be secret in it. */
export function shown(url: string): string {
  const { origin, pathname, search } = new URL(url);
  return `${origin}${pathname}${search === "" ? "" : "?..."}`;
}
