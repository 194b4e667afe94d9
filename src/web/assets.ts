// The page's files: embedded in the binary, bundled anew in a checkout.

import { readAsset } from "../base/assets.ts";
import { bundlePage, PAGE_FILES, type PageFile } from "./bundle.ts";

/** How scripts/build names them among the assets. */
export const PAGE_ASSETS = "page/";

/** Nothing but what this server has, and no script or style that stands in a document. */
const POLICY = [
  "default-src 'none'",
  ...["script-src", "style-src", "connect-src", "img-src"].map((what) => `${what} 'self'`),
  ...["base-uri", "form-action", "frame-ancestors"].map((what) => `${what} 'none'`),
  "require-trusted-types-for 'script'",
].join("; ");

const TYPES: Readonly<Record<PageFile, string>> = {
  "index.html": "text/html; charset=utf-8",
  "app.js": "text/javascript; charset=utf-8",
  "app.css": "text/css; charset=utf-8",
  "icon.svg": "image/svg+xml",
};

type Asset = { readonly content: Uint8Array; readonly etag: string };
let assets: Promise<ReadonlyMap<PageFile, Asset>> | null = null;

async function load(): Promise<ReadonlyMap<PageFile, Asset>> {
  const files = Bun.isStandaloneExecutable ? null : await bundlePage();
  return new Map(
    PAGE_FILES.map((name) => {
      const content = files ? files[name] : readAsset(PAGE_ASSETS + name).slice();
      const etag = `"${new Bun.CryptoHasher("sha256").update(content).digest("hex").slice(0, 24)}"`;
      return [name, { content, etag }];
    }),
  );
}

/** A file of the page. They hold no data, so that they need no key. */
export async function pageFile(name: PageFile, request: Request): Promise<Response> {
  assets ??= load();
  const { content, etag } = (await assets).get(name)!;
  const headers = {
    ...{ etag, "content-type": TYPES[name], "cache-control": "no-cache", "content-security-policy": POLICY },
    ...{ "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY" },
    ...{ "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin" },
  };
  if (request.headers.get("if-none-match") === etag) return new Response(null, { status: 304, headers });
  return new Response(content as Uint8Array<ArrayBuffer>, { headers });
}
