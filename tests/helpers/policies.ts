// The losses of policies, each with limits that its tests reach.

import type { PolicyLoss } from "../../src/objectives/policy.ts";

export const POLICY_LOSSES: readonly PolicyLoss[] = [
  { name: "importance_sampling" },
  { name: "ppo", low: 0.8, high: 1.2 },
  { name: "cispo", low: 0, high: 4 },
  { name: "dro", beta: 0.05 },
];
