// The routes as an OpenAPI document: what programs read to know what may be asked.

import { toJsonSchema } from "@valibot/to-json-schema";
import { VERSION } from "../base/version.ts";
import type { Route } from "./router.ts";

export function openApi(routes: readonly Route[]): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const { path, method, summary, body, isOpen = false, isHidden = false } of routes) {
    if (isHidden) continue;
    const names = [...path.matchAll(/:(\w+)/g)].map(([, name]) => name!);
    const at = path.replaceAll(/:(\w+)\+?/g, "{$1}");
    paths[at] ??= {};
    paths[at][method.toLowerCase()] = {
      summary,
      ...(names.length > 0
        ? { parameters: names.map((name) => ({ name, in: "path", required: true, schema: { type: "string" } })) }
        : {}),
      ...(body
        ? {
            requestBody: {
              required: true,
              content: { [typeOf(path)]: { schema: toJsonSchema(body, { errorMode: "ignore" }) } },
            },
          }
        : {}),
      responses: { 200: { description: "The answer" }, default: { $ref: "#/components/responses/Error" } },
      ...(isOpen ? { security: [] } : {}),
    };
  }
  const text = { type: ["string", "null"] };
  const error = {
    type: "object",
    properties: { message: { type: "string" }, type: { type: "string" }, param: text, code: text },
  };
  return {
    openapi: "3.1.0",
    info: { title: "mlora serve", version: VERSION },
    security: [{ key: [] }],
    paths,
    components: {
      securitySchemes: { key: { type: "http", scheme: "bearer" } },
      responses: {
        Error: {
          description: "What is wrong",
          content: { "application/json": { schema: { type: "object", properties: { error } } } },
        },
      },
    },
  };
}

/** Only a file is no JSON. */
const typeOf = (path: string): string => (path === "/v1/files" ? "multipart/form-data" : "application/json");
