// /v1/models: the base, and the models that are the caller's own.

import { badRequest } from "../errors.ts";
import type { ModelRow, Models } from "../models.ts";
import type { Call, Route } from "../router.ts";

export function modelRoutes(models: Models, organization: string): Route[] {
  const baseObject = {
    ...{ id: models.base.name, object: "model", created: models.base.created_at, owned_by: organization },
    ...{ root: models.base.name, parent: null },
  };
  const objectOf = ({ name, created_at, parent }: ModelRow) => ({
    ...{ id: name, object: "model", created: created_at, owned_by: organization, root: models.base.name, parent },
  });

  const list = ({ tenant }: Call): Response =>
    Response.json({ object: "list", data: [baseObject, ...models.list(tenant).map(objectOf)] });

  const retrieve = ({ tenant, params }: Call): Response => {
    const row = models.find(tenant, params["name"]!);
    return Response.json(row ? objectOf(row) : baseObject);
  };

  const remove = async ({ tenant, params }: Call): Promise<Response> => {
    const row = models.find(tenant, params["name"]!);
    if (!row) throw badRequest("The base model cannot be deleted.", "model");
    await models.remove(row);
    return Response.json({ id: row.name, object: "model", deleted: true });
  };

  return [
    { method: "GET", path: "/v1/models", summary: "List models", handler: list },
    { method: "GET", path: "/v1/models/:name+", summary: "Retrieve a model", handler: retrieve },
    { method: "DELETE", path: "/v1/models/:name+", summary: "Delete a fine-tuned model", handler: remove },
  ];
}
