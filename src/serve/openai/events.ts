// Server-sent events as OpenAI's clients read them: a line of JSON each, and [DONE] at the end.

import { apiErrorOf } from "../errors.ts";
import { endsWith } from "../router.ts";

const encoder = new TextEncoder();
const line = (data: unknown): Uint8Array =>
  encoder.encode(`data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);

/**
 * Streams what `run` sends; an error after the start is an event, too. A client that is gone aborts the signal, which frees
 * what it had.
 */
export function eventStream(run: (send: (data: unknown) => void, signal: AbortSignal) => Promise<void>): Response {
  const gone = new AbortController();
  const over = Promise.withResolvers<void>();
  const body = new ReadableStream<Uint8Array>({
    async start(controller) {
      const send = (data: unknown) => {
        if (!gone.signal.aborted) controller.enqueue(line(data));
      };
      try {
        await run(send, gone.signal);
        send("[DONE]");
      } catch (error) {
        send(apiErrorOf(error).error.body);
      }
      over.resolve();
      if (!gone.signal.aborted) controller.close();
    },
    cancel() {
      gone.abort(new Error("the client is gone"));
    },
  });
  const headers = { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache" };
  return endsWith(new Response(body, { headers }), over.promise);
}
