// One optimiser step: documents -> weights -> micro-batches -> gradients -> AdamW.
import { ACTION } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import type { AdamWOptions, LossResult, Policy, PolicyLoss } from "../policy/types.ts";
import { checkAborted } from "./abort.ts";
import { type MicroBatch, pack } from "./pack.ts";
import type { StepMetrics } from "./types.ts";
import {
  type Aggregation,
  carriesLoss,
  type TrainingDocument,
  type WeightedDocument,
  weigh,
} from "./weights.ts";

export interface StepOptions {
  policy: Policy;
  documents: readonly TrainingDocument[];
  loss: PolicyLoss;
  optimiser: AdamWOptions;
  /** Default "token_mean". */
  aggregation?: Aggregation;
  /** Tokens of one forward and backward pass. */
  microBatchTokens: number;
  /**
   * Largest |trainer - sampler| logprob that is allowed while the weights are still those that sampled. 0 for the
   * embedded engine, which shares model and arithmetic with the trainer; an engine in other precision needs more.
   * Left out, the difference is measured and not judged.
   */
  logprobTolerance?: number;
  signal?: AbortSignal;
}

/** The AdamW part of a stage's config, and nothing else of it. */
export function adamwOptions(config: AdamWOptions): AdamWOptions {
  const out: AdamWOptions = { learningRate: config.learningRate };
  for (const key of ["beta1", "beta2", "epsilon", "weightDecay", "clipNorm"] as const) {
    const value = config[key];
    if (value !== undefined) out[key] = value;
  }
  return out;
}

/** Sums over action tokens that carry loss. */
interface Sums {
  loss: number;
  tokens: number;
  entropy: number;
  clippedLow: number;
  clippedHigh: number;
  kl: number;
  klTokens: number;
  gap: number | null;
}

function mismatch(
  document: WeightedDocument,
  at: number,
  trainer: number,
  tolerance: number,
): TokenringError {
  const sampler = document.oldLogprob?.[at] as number;
  return new TokenringError(
    "ERR_TOKENRING_LOGPROB_MISMATCH",
    `trajectory ${document.id}, token ${at} (id ${document.tokens[at]}): the sampler says logprob ${sampler}, the ` +
      `trainer ${trainer} under the same weights (version ${document.version}), more than ${tolerance} apart; the ` +
      "engine does not sample from this policy: check its context between turns, its temperature and its filters",
    {
      details: { trajectory: document.id, token: at, id: document.tokens[at], sampler, trainer, tolerance },
    },
  );
}

function measure(
  micro: MicroBatch,
  result: LossResult,
  sums: Sums,
  version: number,
  tolerance?: number,
): void {
  sums.loss += result.loss;
  micro.documents.forEach((document, d) => {
    const offset = micro.offsets[d] as number;
    const fresh = document.version === version && document.oldLogprob !== undefined;
    for (let i = 1; i < document.tokens.length; i++) {
      if (document.provenance[i] !== ACTION || document.weight[i] === 0) continue;
      const logprob = result.logprob[offset + i] as number;
      sums.tokens++;
      sums.entropy += result.entropy[offset + i] as number;
      if (result.flags[offset + i] === 1) sums.clippedLow++;
      if (result.flags[offset + i] === 2) sums.clippedHigh++;
      if (document.oldLogprob === undefined) continue;
      const difference = logprob - (document.oldLogprob[i] as number);
      sums.kl += Math.exp(difference) - difference - 1;
      sums.klTokens++;
      if (!fresh) continue;
      const gap = Math.abs(difference);
      // Written so that NaN is a mismatch too.
      if (tolerance !== undefined && !(gap <= tolerance)) throw mismatch(document, i, logprob, tolerance);
      sums.gap = Math.max(sums.gap ?? 0, gap);
    }
  });
}

/**
 * Learns from `documents` in one AdamW step. Weights are made over all of them before anything is packed. Where the
 * policy is still at the version that sampled a document, its logprobs must be the sampler's.
 *
 * When anything fails, the accumulated gradients are dropped and the weights are as before. Throws
 * ERR_TOKENRING_LOGPROB_MISMATCH, ERR_TOKENRING_NON_FINITE, ERR_TOKENRING_ABORTED, or INVALID_ARGUMENT when no
 * token carries loss.
 */
export async function trainStep(options: StepOptions): Promise<StepMetrics> {
  const { policy, loss, optimiser, signal } = options;
  const documents = options.documents.filter(carriesLoss);
  if (documents.length === 0) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `optimiser step: none of the ${options.documents.length} documents has a token that carries loss; leave the step out`,
    );
  }
  const clipped = loss.objective === "ppo_clip";
  for (const document of documents) {
    if (clipped && !(document.advantage && document.oldLogprob)) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `optimiser step: ppo_clip needs advantages and behaviour logprobs, document ${document.id} lacks them`,
      );
    }
  }
  const version = policy.version;
  const sums: Sums = {
    loss: 0,
    tokens: 0,
    entropy: 0,
    clippedLow: 0,
    clippedHigh: 0,
    kl: 0,
    klTokens: 0,
    gap: null,
  };
  try {
    for (const micro of pack(weigh(documents, options.aggregation), options.microBatchTokens)) {
      checkAborted(signal, "optimiser step");
      const { tokens, lengths, weight } = micro.batch;
      const batch = clipped ? micro.batch : { tokens, lengths, weight };
      const result = await policy.accumulate(batch, loss, signal ? { signal } : {});
      if (!Number.isFinite(result.loss)) {
        const ids = micro.documents.map((document) => document.id).join(", ");
        throw new TokenringError(
          "ERR_TOKENRING_NON_FINITE",
          `optimiser step: the loss is ${result.loss} over documents ${ids}; lower the learning rate or resume from an earlier checkpoint`,
        );
      }
      measure(micro, result, sums, version, options.logprobTolerance);
    }
    checkAborted(signal, "optimiser step");
  } catch (error) {
    await policy.dropGradients();
    // A pass that the signal stopped rejects with the signal's own reason.
    checkAborted(signal, "optimiser step");
    throw error;
  }
  const { gradientNorm } = await policy.optimise(optimiser);
  const per = (total: number, count: number): number => (count === 0 ? 0 : total / count);
  return {
    loss: sums.loss,
    gradientNorm,
    entropy: per(sums.entropy, sums.tokens),
    clipLow: per(sums.clippedLow, sums.tokens),
    clipHigh: per(sums.clippedHigh, sums.tokens),
    approximateKl: per(sums.kl, sums.klTokens),
    tokens: sums.tokens,
    trajectories: documents.length,
    learningRate: optimiser.learningRate,
    logprobGap: sums.gap,
  };
}
