// /v1/files: uploads that go to the disk as they come, lists, contents.

import * as v from "valibot";
import { piecesOf } from "../body.ts";
import { ApiError, badRequest } from "../errors.ts";
import { type FileRow, type Files, PURPOSES, seconds, type Writing } from "../files.ts";
import { boundaryOf, readMultipart } from "../multipart.ts";
import { type Call, limitOf, listOf, type Route } from "../router.ts";

export type UploadLimits = { readonly file_bytes: number; readonly upload_seconds: number };

/** Of a multipart body besides the file's bytes: its boundaries and fields. */
const MARGIN = 1 << 20;
const [LEAST_EXPIRY, MOST_EXPIRY] = [3600, 2_592_000];

const fileObject = ({ id, bytes, created_at, filename, purpose, expires_at }: FileRow) => ({
  ...{ id, object: "file", bytes, created_at, filename, purpose, status: "processed", status_details: null, expires_at },
});

/** For the OpenAPI document. */
const UploadBody = v.object({ file: v.string(), purpose: v.picklist(PURPOSES) });

export function fileRoutes(files: Files, limits: UploadLimits): Route[] {
  const upload = async ({ request, tenant }: Call): Promise<Response> => {
    const boundary = boundaryOf(request.headers.get("content-type"));
    const pieces = piecesOf(request, { bytes: limits.file_bytes + MARGIN, seconds: limits.upload_seconds });
    let writing: Writing | null = null;
    let filename = "";
    try {
      const fields = await readMultipart(pieces, boundary, (part) => {
        if (part.name !== "file" || writing)
          throw badRequest(`Expected one file, in the field 'file'; found another in '${part.name}'.`, part.name);
        filename = nameOf(part.filename!);
        writing = files.begin(tenant);
        return writing.write;
      });
      if (!writing) throw badRequest("'file' is missing: expected a part with a filename.", "file");
      const row = (writing as Writing).keep({ filename, purpose: purposeOf(fields), expires_at: expiryOf(fields) });
      return Response.json(fileObject(row));
    } finally {
      (writing as Writing | null)?.drop();
    }
  };

  const list = ({ query, tenant }: Call): Response => {
    const limit = limitOf(query, 10_000, 10_000);
    const order = query.get("order") ?? "desc";
    if (order !== "asc" && order !== "desc") throw badRequest(`'order' is ${order}, expected asc or desc.`, "order");
    const rows = files.list(tenant, query.get("purpose"), order, query.get("after"), limit + 1);
    return listOf(rows.slice(0, limit).map(fileObject), rows.length > limit);
  };

  const content = ({ params, tenant }: Call): Response => {
    const { id } = files.find(tenant, params["id"]!);
    return new Response(Bun.file(files.path(id)), { headers: { "content-type": "application/octet-stream" } });
  };

  return [
    { method: "POST", path: "/v1/files", summary: "Upload a file", handler: upload, body: UploadBody },
    { method: "GET", path: "/v1/files", summary: "List files", handler: list },
    {
      ...{ method: "GET", path: "/v1/files/:id", summary: "Retrieve a file" },
      handler: ({ params, tenant }) => Response.json(fileObject(files.find(tenant, params["id"]!))),
    },
    { method: "GET", path: "/v1/files/:id/content", summary: "Retrieve what a file holds", handler: content },
    {
      ...{ method: "DELETE", path: "/v1/files/:id", summary: "Delete a file" },
      handler: ({ params, tenant }) => {
        files.remove(tenant, params["id"]!);
        return Response.json({ id: params["id"]!, object: "file", deleted: true });
      },
    },
  ];
}

/** The last part of a name, without controls: it is shown, and never a path here. */
function nameOf(filename: string): string {
  const name = filename
    .split(/[\\/]/)
    .at(-1)!
    .replaceAll(/\p{Cc}/gu, "")
    .slice(0, 255);
  return name === "" ? "file" : name;
}

function purposeOf(fields: ReadonlyMap<string, string>): string {
  const purpose = fields.get("purpose");
  if (purpose === undefined) throw badRequest("'purpose' is missing.", "purpose");
  if (!(PURPOSES as readonly string[]).includes(purpose))
    throw badRequest(`'${purpose}' is not one of ${PURPOSES.map((of) => `'${of}'`).join(", ")} - 'purpose'`, "purpose");
  return purpose;
}

function expiryOf(fields: ReadonlyMap<string, string>): number | null {
  const [anchor, after] = [fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")];
  if (anchor === undefined && after === undefined) return null;
  const given = Number(after);
  if (anchor !== "created_at" || !Number.isInteger(given) || given < LEAST_EXPIRY || given > MOST_EXPIRY)
    throw new ApiError(400, `'expires_after' needs the anchor created_at and from ${LEAST_EXPIRY} to ${MOST_EXPIRY} seconds.`, {
      param: "expires_after",
    });
  return seconds() + given;
}
