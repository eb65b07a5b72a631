// Supervised steps: what the warm start and RFT have in common.
import type { AdamWOptions, Policy } from "../policy/types.ts";
import { checkAborted } from "./abort.ts";
import { type LearningRateSchedule, learningRate } from "./schedule.ts";
import { trainStep } from "./step.ts";
import type { StepMetrics } from "./types.ts";
import type { Aggregation, TrainingDocument } from "./weights.ts";

export interface SftOptions {
  policy: Policy;
  /** Each element is the documents of one optimiser step; pulled one at a time, when the step before is done. */
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
  signal?: AbortSignal;
}

export interface SftStep {
  /** Counted from 0. */
  step: number;
  metrics: StepMetrics;
}

/**
 * Cross entropy over the weighted tokens, one optimiser step per batch, yielded when done. Stop iterating to stop;
 * an abort throws ERR_TOKENRING_ABORTED and leaves the weights of the last finished step.
 */
export async function* sft(options: SftOptions): AsyncGenerator<SftStep, void, undefined> {
  const { policy, schedule, signal, purpose = "supervised learning" } = options;
  let step = options.startStep ?? 0;
  for await (const documents of options.batches) {
    const where = `${purpose}, step ${step}`;
    checkAborted(signal, where);
    const metrics = await trainStep({
      policy,
      documents,
      where,
      loss: { objective: "nll" },
      optimiser: { ...options.optimiser, learningRate: learningRate(step, schedule) },
      microBatchTokens: options.microBatchTokens ?? 4096,
      ...(options.aggregation ? { aggregation: options.aggregation } : {}),
      ...(options.logprobTolerance === undefined ? {} : { logprobTolerance: options.logprobTolerance }),
      ...(signal ? { signal } : {}),
    });
    yield { step, metrics };
    step++;
  }
}
