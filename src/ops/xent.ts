// Cross-entropy over the vocabulary, a chunk of rows at a time: logits of all rows never exist together.

import { op } from "./op.ts";

export const xent = op("xent", { logits: "c T V", targets: "i32 T", weights: "f32 T", loss: "f32 T", isCorrect: "i32 T" });
