// A card of all parts, which tests/golden/push/make.py shows to huggingface_hub: run by itself, it prints its text.

import { cardText } from "../../src/session/publishing/model-card.ts";

const CARD = {
  ...{ name: "dates", repo: "me/dates", base: "org/base", license: "apache-2.0", method: "lora" },
  outcome: {
    ...{ steps: 75, tokens: 19740 },
    before: { loss: 1.6353467, exact: 0, rows: 50 },
    after: { loss: 0.0064, exact: 49, rows: 50 },
  },
  settings: { system: 'Say "yes" | no', rank: 8, targets: ["q_proj", "v_proj"], learning_rate: 0.004 },
  ...{ data: ["train.jsonl"], datasets: ["org/rows"], more: null },
};

/** Without the version, which changes. */
export const cardOfAllParts = (): string => cardText(CARD).replace(/mlora \d+\.\d+\.\d+\S*\./, "mlora VERSION.");

if (import.meta.main) console.log(JSON.stringify(cardOfAllParts()));
