// The policy as the loops see it: something that scores packed documents, takes gradient steps and can be saved.
import { ADAMW_DEFAULTS } from "../ops/adamw.ts";
import type { NativeDecoderConfig } from "../ops/binding.ts";
import type { CallOptions } from "../ops/jobs.ts";
import type { PolicyLossOptions } from "../ops/policy-loss.ts";

export type { Objective } from "../ops/policy-loss.ts";
export type { CallOptions };
/** What the policy's loss minimises: objective, clip range, KL and entropy terms, temperature (docs/losses.md). */
export type PolicyLoss = PolicyLossOptions;

/** Shape of a decoder; field names as in Hugging Face's config.json. */
export type DecoderConfig = NativeDecoderConfig;

/**
 * Documents packed one after the other. All lanes have one entry a token, aligned with the token itself
 * (the token as predicted from those before it).
 */
export interface PackedBatch {
  tokens: Int32Array;
  /** Tokens of each document; they sum to `tokens.length`. */
  lengths: Int32Array;
  /** Weight of each token's loss; every aggregation (global token mean, sample mean) is made of these. 0 = no loss. */
  weight: Float32Array;
  advantage?: Float32Array;
  /** log pi_old(token | prefix) of the policy that sampled, at the loss's temperature. */
  oldLogprob?: Float32Array;
  /** log pi_ref(token | prefix) of the policy to stay near, at the loss's temperature. */
  referenceLogprob?: Float32Array;
}

/** Sums over the batch's weighted tokens, and lanes aligned with its tokens (0 where a token has no loss). */
export interface LossResult {
  loss: number;
  logprob: Float32Array;
  entropy: Float32Array;
  /** 1 = clipped low, 2 = clipped high, 3 = dual clip. */
  flags: Int32Array;
  /** On many ranks: the cost of what each data-parallel group got, in multiplications of a forward pass. */
  costs?: readonly number[];
}

/** How a pass is made. */
export interface PassOptions extends CallOptions {
  /**
   * No other pass comes before `optimise`, so that many ranks can reduce gradients while the backward pass still runs.
   * Changes no bit (default false).
   */
  last?: boolean;
  /** Most tokens of one pass on one rank; what a rank gets beyond it of the batch makes further passes. Default: all. */
  passTokens?: number;
}

/** One AdamW step; what is left out is `OPTIMISER_DEFAULTS`. `learningRate` is per step, `weightDecay` decoupled. */
export interface AdamWOptions {
  learningRate: number;
  beta1?: number;
  beta2?: number;
  epsilon?: number;
  weightDecay?: number;
  /** Global gradient norm is clipped to this; 0 = off. */
  clipNorm?: number;
}

/** What `AdamWOptions` are where not given: AdamW's own, and decay and clipping of the paper (arXiv 2508.03501, Table 3). */
export const OPTIMISER_DEFAULTS = { ...ADAMW_DEFAULTS, weightDecay: 0.1, clipNorm: 1 } as const;

export interface OptimiserResult {
  /** Global L2 norm before clipping. */
  gradientNorm: number;
  step: number;
  version: number;
}

export interface SaveOptions {
  dtype?: "f32" | "bf16";
  /** Tensors beyond so many bytes are written as shards with an index (default 5e9). */
  shardBytes?: number;
  /** Also the AdamW moments and step, so that training continues exactly. */
  optimiser?: boolean;
  /**
   * Copy the weights to host memory as the calls made before leave them, and write while later calls go on (default
   * false). Each rank's copy takes 4 bytes for each parameter of its share, 12 with `optimiser`.
   */
  background?: boolean;
}

export interface Policy extends AsyncDisposable {
  readonly config: DecoderConfig;
  readonly disposed: boolean;
  /** Version of the weights; grows with every optimiser step and load. */
  readonly version: number;
  /** Ranks that a batch is spread over; default 1. */
  readonly ranks?: number;
  /** Adds the batch's gradients to what is accumulated. */
  accumulate(batch: PackedBatch, loss: PolicyLoss, options?: PassOptions): Promise<LossResult>;
  /** Logprob and entropy of every token but the first of each document; no gradients. */
  score(
    batch: Pick<PackedBatch, "tokens" | "lengths">,
    options?: Omit<PassOptions, "last"> & { temperature?: number },
  ): Promise<LossResult>;
  /**
   * One step from the accumulated gradients. It may be called while passes still run: should one of them fail, the step
   * is left out with ERR_TOKENRING_ABORTED.
   */
  optimise(options: AdamWOptions): Promise<OptimiserResult>;
  dropGradients(): Promise<void>;
  /**
   * Writes config.json and model.safetensors (or shards and their index) as transformers 4 and 5 and vLLM read them,
   * and the tokenizer's and generation's files of the model that was loaded. Atomic per file of weights.
   */
  save(directory: string, options?: SaveOptions): Promise<void>;
  /** Reads the weights (and with `optimiser` the AdamW state) of a checkpoint of the same shape. */
  load(directory: string, options?: { optimiser?: boolean }): Promise<void>;
  dispose(): Promise<void>;
}
