// The live page of `mlora run --web`: the routes of a server's page, and no others, for one run.

import { resolve } from "node:path";
import { RunError } from "../base/errors.ts";
import type { Source } from "../web/source.ts";
import { checkListen, placeOf, type ServeConfig, tlsOf } from "./config.ts";
import { newRunKeys } from "./keys.ts";
import { startListening, urlOf } from "./listen.ts";
import { Counters } from "./metrics.ts";
import { pageRoutes } from "./page.ts";
import { Router } from "./router.ts";

/** Where the page is without an address; another port where this one is taken. */
const USUAL = "127.0.0.1:8765";
/** Of requests, which are small. */
const LIMITS = { bytes: 1 << 20, seconds: 30, requests: 256 };

export type RunPageFlags = {
  /** host:port, a port, or true. */
  readonly web: string | number | true;
  readonly webCertificate?: string | undefined;
  readonly webCertificateKey?: string | undefined;
  readonly insecure?: boolean | undefined;
};

export type RunPage = AsyncDisposable & {
  /** Links that hold a key each: of all controls, and of one that may only look. */
  readonly url: string;
  readonly viewUrl: string;
};

export type PagePlace = Pick<ServeConfig, "listen" | "tls"> & { readonly isUsual: boolean };

/** Where the flags say that the page is. Throws a RequestError, `serve.config`. */
export function pagePlace({
  web,
  webCertificate: certificate,
  webCertificateKey: key,
  insecure = false,
}: RunPageFlags): PagePlace {
  const listen = placeOf(web === true ? USUAL : /^\d+$/.test(`${web}`) ? `127.0.0.1:${web}` : `${web}`, "--web");
  const files = { ...(certificate ? { certificate } : {}), ...(key ? { certificate_key: key } : {}) };
  const place = { listen, tls: tlsOf(files, resolve, "--web-certificate and --web-certificate-key"), isUsual: web === true };
  checkListen({ ...place, server: { insecure } });
  return place;
}

/** Throws a RunError, `serve.listen`. */
export function openRunPage(source: Source, place: PagePlace): RunPage {
  const keys = newRunKeys();
  const routes = pageRoutes({ sourceOf: () => source, viewKeyOf: keys.viewKeyOf });
  const options = { keys, counters: new Counters(), limits: LIMITS, log: "none", failed: () => undefined } as const;
  const router = new Router(routes, options);
  const listening = listeningAt(place, router);
  const url = urlOf(place, listening.port!);
  return {
    url: `${url}/#key=${keys.made}`,
    viewUrl: `${url}/#key=${keys.viewKeyOf("run")}`,
    async [Symbol.asyncDispose]() {
      router.isClosing = true;
      source.board[Symbol.dispose]();
      await listening.stop(true);
    },
  };
}

function listeningAt({ listen, tls, isUsual }: PagePlace, router: Router) {
  try {
    return startListening({ listen, tls }, router, "--web");
  } catch (error) {
    if (!isUsual || !(error instanceof RunError)) throw error;
    return startListening({ listen: { ...listen, port: 0 }, tls }, router, "--web");
  }
}
