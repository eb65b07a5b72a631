// What the two loops report, step by step.
export type { Group, RolloutSource } from "../agent/types.ts";

/** How far the engine's logprobs of what it sampled are from the trainer's, over action tokens. */
export interface LogprobMismatch {
  /** Median, 95th percentile (nearest rank) and maximum of |trainer - engine|, in nats. */
  p50: number;
  p95: number;
  max: number;
  /** Share of tokens whose ratio trainer / engine lies outside [0.9, 1.1]. */
  outside: number;
  /** k3 estimate of KL(engine || trainer): mean of exp(d) - d - 1, d = trainer - engine. */
  k3: number;
}

/** What the pass that learnt from a trajectory said of its action tokens: one entry each, in their order. */
export interface LearntTokens {
  /** Optimiser step of the iteration, from 0. */
  step: number;
  /** The trainer's logprobs, and entropies in nats, under the weights that the step changed. */
  logprob: Float32Array;
  entropy: Float32Array;
  /** 1 = ratio clipped low, 2 = clipped high, 3 = dual clip, 0 = none. */
  flags: Uint8Array;
  /** What the ratio was taken against, where that is not the logprob that the engine sampled with. */
  oldLogprob?: Float32Array;
}

/** Metrics of one optimiser step, means over the step's action tokens where not said otherwise. */
export interface StepMetrics {
  loss: number;
  /** Global L2 norm before clipping. */
  gradientNorm: number;
  /** In nats. */
  entropy: number;
  /** Shares of tokens whose ratio was clipped. */
  clipLow: number;
  clipHigh: number;
  /** Share of tokens whose loss the dual clip bounds. */
  clipDual: number;
  /** k3 estimate of KL(old || new): mean of exp(d) - d - 1, d = new - old. */
  approximateKl: number;
  /** k3 estimate of KL(new || reference); null without a reference. */
  referenceKl: number | null;
  /** Share of tokens whose importance weight was truncated; null with tisCap off. */
  tisClipped: number | null;
  /** Tokens that were compared: those of the weights that sampled them, or all with oldLogprobs "trainer". */
  mismatch: LogprobMismatch | null;
  /** Action tokens that carry loss. */
  tokens: number;
  /** All tokens that went through the passes, context included. */
  packedTokens: number;
  trajectories: number;
  /**
   * On several data-parallel groups: the cost of the group that got most, relative to the mean; 1 = even. Cost is
   * counted in multiplications, of which attention takes the square of a document's tokens.
   */
  imbalance?: number;
  learningRate: number;
  /** Milliseconds of wall time since the step was asked for; a pass that ran ahead of that is not in it. */
  learnMs: number;
}
