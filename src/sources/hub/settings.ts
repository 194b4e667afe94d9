// The hub that names are looked up on, as huggingface_hub's environment says it: both programs share one cache and one token.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { environment } from "../../base/env.ts";
import { RequestError } from "../../base/errors.ts";

export type HubSettings = {
  /** Without a slash at its end. */
  readonly endpoint: string;
  /** The folder of all repositories. */
  readonly cache: string;
  readonly token: string | null;
  /** Nothing is fetched: what is used is in the cache. */
  readonly offline: boolean;
};

const isTrue = (value: string | undefined): boolean => /^(1|on|yes|true)$/i.test(value ?? "");

/** Throws a RequestError, `hub.endpoint`, for one that would send a token unencrypted to another machine. */
export function hubSettings(): HubSettings {
  const endpoint = (environment("HF_ENDPOINT") ?? "https://huggingface.co").replace(/\/+$/, "");
  const url = URL.parse(endpoint);
  if (url === null || !/^https?:$/.test(url.protocol))
    throw new RequestError("hub.endpoint", `HF_ENDPOINT is ${endpoint}, expected an address`, "as https://huggingface.co");
  const caches = environment("XDG_CACHE_HOME") ?? join(environment("HOME") ?? "/", ".cache");
  const home = environment("HF_HOME") ?? join(caches, "huggingface");
  const tokenFile = environment("HF_TOKEN_PATH") ?? join(home, "token");
  const isHidden = isTrue(environment("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
  const token = isHidden
    ? undefined
    : (environment("HF_TOKEN") ?? (existsSync(tokenFile) ? readFileSync(tokenFile, "utf8") : ""));
  return {
    endpoint,
    cache: environment("HF_HUB_CACHE") ?? join(home, "hub"),
    token: token?.trim() || null,
    offline: isTrue(environment("HF_HUB_OFFLINE") ?? environment("TRANSFORMERS_OFFLINE")),
  };
}
