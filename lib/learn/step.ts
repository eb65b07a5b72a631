// One optimiser step: documents -> weights -> micro-batches -> gradients -> AdamW.

import { ACTION } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import type {
  AdamWOptions,
  LossResult,
  OptimiserResult,
  PackedBatch,
  Policy,
  PolicyLoss,
} from "../policy/types.ts";
import { checkAborted } from "./abort.ts";
import { located } from "./located.ts";
import { Measure } from "./measure.ts";
import { type MicroBatch, pack } from "./pack.ts";
import type { LearntTokens, StepMetrics } from "./types.ts";
import {
  type Aggregation,
  carriesLoss,
  type TrainingDocument,
  truncated,
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
  /** Weights every token's objective by min(exp(oldLogprob - engineLogprob), tisCap), held constant. Default 0 = off. */
  tisCap?: number;
  /** Names the step in errors. Default "optimiser step". */
  where?: string;
  signal?: AbortSignal;
  /** Called for each document after its pass. */
  onLearnt?: (id: string, learnt: Omit<LearntTokens, "step">) => void;
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

/** The action tokens' part of a pass's lanes; `offset` is where the document begins in them. */
function learntTokens(
  document: WeightedDocument,
  { logprob, entropy, flags }: LossResult,
  offset: number,
): Omit<LearntTokens, "step"> {
  const at: number[] = [];
  document.provenance.forEach((from, i) => {
    if (from === ACTION) at.push(i);
  });
  const old = document.engineLogprob && document.oldLogprob;
  return {
    logprob: Float32Array.from(at, (i) => logprob[offset + i] as number),
    entropy: Float32Array.from(at, (i) => entropy[offset + i] as number),
    flags: Uint8Array.from(at, (i) => flags[offset + i] as number),
    ...(old && { oldLogprob: Float32Array.from(at, (i) => old[i] as number) }),
  };
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
  const { policy, loss, optimiser, signal, tisCap = 0, where = "optimiser step" } = options;
  const begin = performance.now();
  let documents = options.documents.filter(carriesLoss);
  const refuse = (what: string): never => {
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `${where}: ${what}`);
  };
  if (documents.length === 0) {
    refuse(
      `none of the ${options.documents.length} documents has a token that carries loss; leave the step out`,
    );
  }
  const { objective } = loss;
  for (const { id, advantage, oldLogprob, referenceLogprob } of documents) {
    if (objective !== "nll" && !(advantage && oldLogprob))
      refuse(`${objective} needs advantages and behaviour logprobs, document ${id} lacks them`);
    if (loss.klCoef && !referenceLogprob)
      refuse(`klCoef needs a reference's logprobs, document ${id} lacks them`);
  }
  if (tisCap) documents = documents.map((document) => truncated(document, tisCap));
  const measure = new Measure({ version: policy.version, tolerance: options.logprobTolerance, tisCap });
  const step = (): Promise<OptimiserResult> => located(() => policy.optimise(optimiser), { where });
  // Where nothing is left to judge once the passes have succeeded, the step is queued right behind them.
  const queued = options.logprobTolerance === undefined;
  let stepped: Promise<OptimiserResult> | null = null;
  let packedTokens = 0;
  // One pass is queued while another runs, so that the engine never waits for this thread between them.
  let running: { micro: MicroBatch; result: Promise<LossResult> } | null = null;
  const finish = async (): Promise<void> => {
    if (!running) return;
    const { micro, result } = running;
    const pass = await result;
    measure.add(micro, pass);
    micro.documents.forEach((document, d) => {
      options.onLearnt?.(document.id, learntTokens(document, pass, micro.offsets[d] as number));
    });
  };
  try {
    for (const micro of pack(weigh(documents, options.aggregation), options.microBatchTokens)) {
      checkAborted(signal, where);
      const { tokens, lengths, weight, advantage, oldLogprob, referenceLogprob } = micro.batch;
      const batch: PackedBatch = {
        tokens,
        lengths,
        weight,
        ...(objective !== "nll" && advantage && oldLogprob && { advantage, oldLogprob }),
        ...(loss.klCoef && referenceLogprob && { referenceLogprob }),
      };
      const at = { where, documents: micro.documents, signal };
      const result = located(async () => {
        const pass = await policy.accumulate(batch, loss, signal ? { signal } : {});
        if (Number.isFinite(pass.loss)) return pass;
        throw new TokenringError("ERR_TOKENRING_NON_FINITE", `the loss is ${pass.loss}`);
      }, at);
      result.catch(() => {}); // it is heard of below, unless the pass before failed as well
      await finish();
      running = { micro, result };
      packedTokens += tokens.length;
    }
    if (queued) stepped = step();
    stepped?.catch(() => {}); // left out if a pass fails, which is heard of first
    await finish();
    if (!stepped) checkAborted(signal, where);
  } catch (error) {
    await policy.dropGradients();
    throw error;
  }
  const { gradientNorm } = await (stepped ?? step());
  return {
    ...measure.metrics(),
    gradientNorm,
    packedTokens,
    trajectories: documents.length,
    learningRate: optimiser.learningRate,
    learnMs: performance.now() - begin,
  };
}
