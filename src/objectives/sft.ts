// Supervised fine-tuning: the mean cross-entropy of the answers' tokens.

import { define } from "./definition.ts";

export const sft = define({ name: "sft", keys: {}, rows: "single", loss: null });
