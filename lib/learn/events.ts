// What a job writes down while it runs, event by event: the lines of metrics.jsonl and the input of the report.
import type { Evaluation } from "../evaluate/evaluate.ts";
import type { DapoSummary } from "./dapo.ts";
import type { RftSummary } from "./rft.ts";
import type { RolloutSummary } from "./rollout-summary.ts";
import type { StepMetrics } from "./types.ts";

/** Wall seconds by what they were spent on; stations of one stage do not overlap. */
export interface StageSeconds {
  /** Sampling, tools and verification. */
  rollouts?: number;
  /** Forward passes for old logprobs and those of a reference. */
  score?: number;
  /** Forward, backward and optimiser. */
  learn?: number;
  evaluate?: number;
  /** Saving what a resume needs. */
  checkpoints?: number;
  /** Everything else: tasks, trajectories and other files. */
  other?: number;
}

/**
 * One line of metrics.jsonl. Two runs of one seed write equal lines but for times: `at`, `seconds` and every field
 * whose name ends in `Ms`.
 */
export type RunEvent =
  | { type: "stage_start"; stage: string }
  | { type: "stage_end"; stage: string; seconds: StageSeconds }
  /** One optimiser step of a stage: warm start, RFT or DAPO. `step` counts from 0 within the stage. */
  | { type: "step"; stage: string; step: number; iteration?: number; metrics: StepMetrics }
  /** What RFT collected, before its steps. */
  | { type: "rollouts"; stage: string; summary: RftSummary }
  /** One iteration of sampling without training. */
  | { type: "sampled"; stage: string; iteration: number; summary: RolloutSummary }
  /** One iteration of DAPO, after its steps. */
  | { type: "iteration"; stage: string; iteration: number; summary: DapoSummary }
  /** `stage` names the checkpoint that was evaluated: "base", "rft", "stage1", ... */
  | { type: "evaluation"; stage: string; evaluation: Evaluation }
  /** The whole job, once, at its end. */
  | { type: "end"; seconds: number; peakRssMiB: number };

/** An event with the time it was written, in milliseconds since 1970. */
export type LoggedEvent = RunEvent & { at: number };
