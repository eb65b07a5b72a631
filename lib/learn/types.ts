// What the two loops report, step by step.
import type { Trajectory } from "../agent/types.ts";
import type { Instance } from "../tasks/types.ts";

/** One instance and its G rollouts. Trajectories that left the group (infra_failed) are in `dropped`. */
export interface Group {
  instance: Instance;
  trajectories: Trajectory[];
  dropped: Trajectory[];
}

/** How the loops get trajectories. `iteration` and the run's seed decide every draw. */
export interface RolloutSource {
  collect(request: {
    instances: readonly Instance[];
    rollouts: number;
    /** Names the random stream, with `iteration`. */
    purpose: string;
    iteration: number;
    temperature: number;
    signal?: AbortSignal;
    onTrajectory?: (trajectory: Trajectory) => void;
  }): Promise<Group[]>;
}

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
