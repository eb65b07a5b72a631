// Rejection fine-tuning: sample, keep what the tests accept, imitate it once.
import type { Trajectory } from "../agent/types.ts";
import { counts } from "../evaluate/episodes.ts";
import { type AdamWOptions, OPTIMISER_DEFAULTS, type Policy } from "../policy/types.ts";
import { Random } from "../random.ts";
import type { Instance } from "../tasks/types.ts";
import { type RolloutSummary, rolloutSummary } from "./rollout-summary.ts";
import { sft } from "./sft.ts";
import { adamwOptions } from "./step.ts";
import type { Group, RolloutSource, StepMetrics } from "./types.ts";
import { type Aggregation, carriesLoss, type TrainingDocument, trajectoryDocument } from "./weights.ts";

/** Defaults are the paper's (arXiv 2508.03501, §4.2 and appendix C). */
export interface RftConfig extends AdamWOptions {
  /** Rollouts per instance: 10. */
  rollouts: number;
  /** Sampling temperature: 1. */
  temperature: number;
  /** Trajectories per optimiser step: 64. */
  batchSize: number;
  /** Passes over what was kept: 1. */
  epochs: number;
  /** Steps of linear warm-up, at most a quarter of all steps: 10. */
  warmupSteps: number;
  /** Share of the learning rate that the cosine ends at: 0. */
  floor: number;
  /** Turns whose action could not be read stay in the context and carry no loss: true. */
  maskFormatErrors: boolean;
  /** "token_mean". */
  aggregation: Aggregation;
  /** Tokens of one forward and backward pass: 4096. */
  microBatchTokens: number;
  /** See `trainStep`: 0, as for the embedded engine; null measures without judging. */
  logprobTolerance: number | null;
}

/** RFT as in the paper (arXiv 2508.03501, section 4.2 and appendix C). */
export const RFT_DEFAULTS: Readonly<RftConfig> = {
  rollouts: 10,
  temperature: 1,
  batchSize: 64,
  epochs: 1,
  learningRate: 5e-6,
  warmupSteps: 10,
  floor: 0,
  ...OPTIMISER_DEFAULTS,
  maskFormatErrors: true,
  aggregation: "token_mean",
  microBatchTokens: 4096,
  logprobTolerance: 0,
};

export interface RftSummary extends RolloutSummary {
  /** Trajectories that were solved and are learnt from. */
  kept: number;
  /** Optimiser steps that follow. */
  steps: number;
}

/** First one "rollouts" event, then one "step" event for each optimiser step. */
export type RftEvent =
  | { type: "rollouts"; groups: readonly Group[]; summary: RftSummary }
  | { type: "step"; step: number; steps: number; metrics: StepMetrics };

export interface RftOptions {
  policy: Policy;
  rollouts: RolloutSource;
  instances: readonly Instance[];
  /** Overrides of RFT_DEFAULTS. */
  config?: Partial<RftConfig>;
  /** Decides the order in which trajectories are learnt from. */
  seed: number | bigint;
  /** Names the random stream of the rollouts, and the stage in errors. Default "rft". */
  purpose?: string;
  signal?: AbortSignal;
  onTrajectory?: (trajectory: Trajectory) => void;
  /** Whether an episode ran the tests; gives `testsRunRate`. */
  ranTests?: (trajectory: Trajectory) => boolean;
  /** What was collected before, on resume: nothing is sampled, and there is no "rollouts" event. */
  collected?: readonly Group[];
  /** Optimiser steps on `collected` that are already done, on resume. Default 0. */
  startStep?: number;
  /** The trajectories are stored ones, by whatever policy: none is held against this one. Default false. */
  stored?: boolean;
}

function* shuffledBatches(
  documents: readonly TrainingDocument[],
  config: RftConfig,
  seed: number | bigint,
  startStep: number,
): Generator<TrainingDocument[]> {
  let step = 0;
  for (let epoch = 0; epoch < config.epochs; epoch++) {
    const order = Random.of(seed, "rft/order", epoch).shuffle(documents);
    for (let at = 0; at < order.length; at += config.batchSize)
      if (step++ >= startStep) yield order.slice(at, at + config.batchSize);
  }
}

/** The solved trajectories as documents, in the order of the groups. */
function solvedDocuments(groups: readonly Group[], config: RftConfig, stored: boolean): TrainingDocument[] {
  return groups
    .flatMap((group) => group.trajectories.filter(counts))
    .filter((trajectory) => trajectory.verdict === "resolved")
    .map((trajectory) => {
      const document = trajectoryDocument(trajectory, { maskFormatErrors: config.maskFormatErrors });
      // Cross entropy is taken at temperature 1: logprobs of another temperature are not to be compared with it.
      return config.temperature === 1 && !stored ? document : { ...document, version: null };
    })
    .filter(carriesLoss);
}

/**
 * Samples every instance `rollouts` times, keeps the solved trajectories and takes one epoch of supervised steps on
 * their actions. With nothing solved there is the rollouts event with `kept` 0 and no step: the caller decides. Between
 * two steps the policy's gradients are the next step's (see `sft`, ahead).
 * @throws ERR_TOKENRING_LOGPROB_MISMATCH, ERR_TOKENRING_NON_FINITE, ERR_TOKENRING_ABORTED; what `rollouts` throws.
 */
export async function* rft(options: RftOptions): AsyncGenerator<RftEvent, void, undefined> {
  const { policy, instances, seed, signal, purpose = "rft" } = options;
  const config: RftConfig = { ...RFT_DEFAULTS, ...options.config };
  const begin = performance.now();
  const groups =
    options.collected ??
    (await options.rollouts.collect({
      instances,
      rollouts: config.rollouts,
      purpose,
      iteration: 0,
      temperature: config.temperature,
      ...(signal ? { signal } : {}),
      ...(options.onTrajectory ? { onTrajectory: options.onTrajectory } : {}),
    }));
  const rolloutMs = performance.now() - begin;
  const { stored = false } = options;
  const documents = solvedDocuments(groups, config, stored);
  const steps = Math.ceil(documents.length / config.batchSize) * config.epochs;
  if (!options.collected) {
    const summary = rolloutSummary(groups, { rolloutMs, stored, ranTests: options.ranTests });
    yield { type: "rollouts", groups, summary: { ...summary, kept: documents.length, steps } };
  }

  const startStep = options.startStep ?? 0;
  const loop = sft({
    policy,
    purpose,
    batches: shuffledBatches(documents, config, seed, startStep),
    startStep,
    schedule: {
      peak: config.learningRate,
      warmupSteps: Math.min(config.warmupSteps, Math.floor(steps / 4)),
      totalSteps: steps,
      floor: config.floor,
    },
    optimiser: adamwOptions(config),
    aggregation: config.aggregation,
    microBatchTokens: config.microBatchTokens,
    ahead: true,
    ...(config.logprobTolerance === null ? {} : { logprobTolerance: config.logprobTolerance }),
    ...(signal ? { signal } : {}),
  });
  for await (const { step, metrics } of loop) yield { type: "step", step, steps, metrics };
}
