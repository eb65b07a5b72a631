// What the two loops report, step by step.
export type { Group, RolloutSource } from "../agent/types.ts";

/** Metrics of one optimiser step, means over the step's action tokens where not said otherwise. */
export interface StepMetrics {
  loss: number;
  gradientNorm: number;
  entropy: number;
  clipLow: number;
  clipHigh: number;
  /** k3 estimate of KL(old || new): mean of exp(d) - d - 1, d = new - old. */
  approximateKl: number;
  tokens: number;
  trajectories: number;
  learningRate: number;
  /** max |trainer logprob - sampler logprob| over action tokens, on steps taken before any update; else null. */
  logprobGap: number | null;
}
