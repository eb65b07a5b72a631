// Supervised steps: what the warm start and RFT have in common.
import type { AdamWOptions, Policy } from "../policy/types.ts";
import { type LearningRateSchedule, learningRate } from "./schedule.ts";
import type { StepOptions } from "./step.ts";
import { trainSteps } from "./steps.ts";
import type { StepMetrics } from "./types.ts";
import type { Aggregation, TrainingDocument } from "./weights.ts";

export interface SftOptions {
  policy: Policy;
  /** Each element is the documents of one optimiser step; pulled one at a time, when the step is asked for. */
  batches: Iterable<readonly TrainingDocument[]> | AsyncIterable<readonly TrainingDocument[]>;
  schedule: LearningRateSchedule;
  /** Everything of AdamW but the learning rate. */
  optimiser?: Omit<AdamWOptions, "learningRate">;
  /** Default "token_mean" over the relative weights of the step. */
  aggregation?: Aggregation;
  /** Default 4096. */
  microBatchTokens?: number;
  /** See `trainStep`; only documents that carry behaviour logprobs are judged. */
  logprobTolerance?: number;
  /** Names the loop in errors. Default "supervised learning". */
  purpose?: string;
  /** Steps that an earlier run of the same schedule has done; counting goes on from here. Default 0. */
  startStep?: number;
  /**
   * For batches that do not depend on the weights: the next one is pulled, and its first pass runs, while the step before
   * is being done and looked at, so that the engine never waits. Default false.
   */
  ahead?: boolean;
  signal?: AbortSignal;
}

export interface SftStep {
  /** Counted from 0. */
  step: number;
  metrics: StepMetrics;
}

/**
 * Cross entropy over the weighted tokens, one optimiser step per batch, yielded when done. Stop iterating to stop;
 * an abort throws ERR_TOKENRING_ABORTED and leaves the weights of the last finished step. With `ahead` the policy may be
 * saved, scored, sampled from and loaded between two steps, but its gradients are the next step's already.
 */
export async function* sft(options: SftOptions): AsyncGenerator<SftStep, void, undefined> {
  const { policy, schedule, signal, purpose = "supervised learning" } = options;
  const startStep = options.startStep ?? 0;
  async function* steps(): AsyncGenerator<StepOptions> {
    let step = startStep;
    for await (const documents of options.batches) {
      yield {
        policy,
        documents,
        where: `${purpose}, step ${step}`,
        loss: { objective: "nll" },
        optimiser: { ...options.optimiser, learningRate: learningRate(step, schedule) },
        microBatchTokens: options.microBatchTokens ?? 4096,
        ...(options.aggregation ? { aggregation: options.aggregation } : {}),
        ...(options.logprobTolerance === undefined ? {} : { logprobTolerance: options.logprobTolerance }),
        ...(signal ? { signal } : {}),
      };
      step++;
    }
  }
  let step = startStep;
  for await (const metrics of trainSteps(steps(), { ahead: options.ahead ?? false })) {
    yield { step, metrics };
    step++;
  }
}
