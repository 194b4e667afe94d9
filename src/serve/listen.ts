// The port that requests come to.

import { RunError, textOf } from "../base/errors.ts";
import type { ServeConfig } from "./config.ts";
import type { Router } from "./router.ts";

/** A connection without a request is closed after this time. */
const IDLE_SECONDS = 120;

/** Throws a RunError, `serve.listen`; `flag` is what names the address. */
export function startListening({ listen, tls }: Pick<ServeConfig, "listen" | "tls">, router: Router, flag = "--listen") {
  try {
    return Bun.serve({
      hostname: listen.host,
      port: listen.port,
      ...(tls ? { tls } : {}),
      // Bodies are bounded where they are read (body.ts), with an error that says so.
      maxRequestBodySize: Number.MAX_SAFE_INTEGER,
      idleTimeout: IDLE_SECONDS,
      development: false,
      fetch(request, server) {
        server.timeout(request, 0); // an answer may take long; its body has a time of its own
        return router.answer(request);
      },
    });
  } catch (error) {
    throw new RunError(
      "serve.listen",
      `cannot listen on ${listen.host}:${listen.port}: ${textOf(error)}`,
      `give another ${flag}`,
    );
  }
}

/** With the port that was taken. */
export const urlOf = ({ listen, tls }: Pick<ServeConfig, "listen" | "tls">, port: number): string => {
  const host = listen.host.includes(":") ? `[${listen.host}]` : listen.host;
  return `${tls ? "https" : "http"}://${host}:${port}`;
};
