// One optimiser step: documents -> weights -> micro-batches -> gradients -> AdamW.
import { setImmediate as eventLoopTurn } from "node:timers/promises";
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
import { span } from "../trace.ts";
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
  /** Tokens of one forward and backward pass, on each of the policy's ranks. */
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

/** How much longer the busiest group works than all would if the work were spread evenly; 1 = evenly. */
function imbalanceOf(costs: readonly number[]): number {
  return (Math.max(...costs) * costs.length) / costs.reduce((sum, cost) => sum + cost, 0);
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

/** A pass that is queued or done. */
interface Pass {
  micro: MicroBatch;
  result: Promise<LossResult>;
  /** It has failed, and JavaScript has heard of it. */
  failed: boolean;
}

/** A step whose first pass is queued and whose gradients therefore are, or will be, the policy's. */
export interface BegunStep {
  /**
   * Goes through with it. When it fails, the accumulated gradients are dropped and the weights are as before. At most
   * one of `finish` and `drop` may be called, and once.
   */
  finish(): Promise<StepMetrics>;
  /** Drops its gradients, once its pass has ended. */
  drop(): Promise<void>;
  /** Resolves when `finish` has queued the update (true), so that passes of the next step may follow; or has failed. */
  readonly updating: Promise<boolean>;
}

/**
 * Queues the first pass of a step, behind whatever the policy has been asked for so far. Throws as `trainStep` before
 * anything is queued; all other failures are those of `finish`.
 */
export function beginStep(options: StepOptions): BegunStep {
  const { policy, loss, optimiser, signal, tisCap = 0, where = "optimiser step" } = options;
  const { logprobTolerance: tolerance } = options;
  checkAborted(signal, where);
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

  const passTokens = options.microBatchTokens;
  const micros = pack(weigh(documents, options.aggregation), passTokens * (policy.ranks ?? 1));
  const queue = (micro: MicroBatch): Pass => {
    const { tokens, lengths, weight, advantage, oldLogprob, referenceLogprob } = micro.batch;
    const batch: PackedBatch = {
      tokens,
      lengths,
      weight,
      ...(objective !== "nll" && advantage && oldLogprob && { advantage, oldLogprob }),
      ...(loss.klCoef && referenceLogprob && { referenceLogprob }),
    };
    const at = { where, documents: micro.documents, signal };
    const how = { passTokens, last: micro === micros.at(-1), ...(signal ? { signal } : {}) };
    const result = located(async () => {
      const pass = await policy.accumulate(batch, loss, how);
      if (Number.isFinite(pass.loss)) return pass;
      throw new TokenringError("ERR_TOKENRING_NON_FINITE", `the loss is ${pass.loss}`);
    }, at);
    const pass = { micro, result, failed: false };
    result.catch(() => {
      pass.failed = true; // what it failed of is heard where the result is awaited, unless a pass before failed as well
    });
    return pass;
  };
  const [first, ...rest] = micros;
  const opening = queue(first as MicroBatch);
  let tellUpdating: (updating: boolean) => void = () => {};
  const updating = new Promise<boolean>((resolve) => {
    tellUpdating = resolve;
  });

  const finish = async (): Promise<StepMetrics> => {
    const begin = performance.now();
    const measure = new Measure({ version: policy.version, tolerance, tisCap });
    // Where nothing is left to judge once the passes have succeeded, the update is queued right behind them.
    const judged =
      tolerance !== undefined &&
      documents.some((document) => document.oldLogprob && document.version === policy.version);
    /** Cost by data-parallel group. */
    let costs: readonly number[] = [];
    let update: Promise<OptimiserResult> | undefined;
    const optimise = (): void => {
      checkAborted(signal, where);
      update = located(() => policy.optimise(optimiser), { where });
      update.catch(() => {}); // left out if a pass fails, which is heard of first
      tellUpdating(true);
    };
    const learn = async ({ micro, result }: Pass): Promise<void> => {
      const pass = await result;
      measure.add(micro, pass);
      if (pass.costs) costs = pass.costs.map((cost, group) => cost + (costs[group] ?? 0));
      micro.documents.forEach((document, d) => {
        options.onLearnt?.(document.id, learntTokens(document, pass, micro.offsets[d] as number));
      });
    };
    try {
      // One pass is queued while another runs, so that the engine never waits for this thread between them.
      let running = opening;
      for (const micro of rest) {
        checkAborted(signal, where);
        const next = queue(micro);
        await learn(running);
        running = next;
      }
      if (judged) {
        await learn(running);
        optimise();
      } else {
        // A failure that has reached this thread is known after a turn of the event loop; of any other the policy knows.
        await eventLoopTurn();
        if (!running.failed) optimise();
        await learn(running);
      }
    } catch (error) {
      await policy.dropGradients();
      throw error;
    } finally {
      tellUpdating(false);
    }
    const { gradientNorm } = await (update as Promise<OptimiserResult>);
    return {
      ...measure.metrics(),
      gradientNorm,
      packedTokens: micros.reduce((sum, { batch }) => sum + batch.tokens.length, 0),
      trajectories: documents.length,
      ...(costs.length > 1 && { imbalance: imbalanceOf(costs) }),
      learningRate: optimiser.learningRate,
      learnMs: performance.now() - begin,
    };
  };
  const traced = (): Promise<StepMetrics> =>
    span("optimiser step", { "tokenring.step": where }, async (note) => {
      const metrics = await finish();
      note({
        "tokenring.loss": metrics.loss,
        "tokenring.gradient_norm": metrics.gradientNorm,
        "tokenring.learning_rate": metrics.learningRate,
        "tokenring.trajectories": metrics.trajectories,
        "tokenring.tokens": metrics.packedTokens,
        "tokenring.loss_tokens": metrics.tokens,
      });
      return metrics;
    });
  return { finish: traced, drop: () => policy.dropGradients(), updating };
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
  return beginStep(options).finish();
}
