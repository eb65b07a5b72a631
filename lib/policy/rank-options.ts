// Where and how a policy runs, and what of it the native rank is told.
import { resolve } from "node:path";
import type { NativeRankOptions, OffloadChoice } from "../ops/binding.ts";
import type { RankGroup } from "../ranks/group.ts";
import type { MeshOptions } from "../ranks/mesh-rank.ts";
import type { DecoderConfig } from "./types.ts";

export type { OffloadChoice };

/** Where and how a policy runs; of many ranks, how they train together (docs/ranks.md). */
export interface RankOptions extends MeshOptions {
  /**
   * Ranks that train and sample together (default: as many as a launcher started, else 1): their number, for which the
   * policy starts workers on this machine or waits for those that a launcher started, and ends them when it is disposed;
   * or a group that is open already. 1: this process alone, under a launcher too.
   */
  ranks?: number | RankGroup;
  /**
   * Default "cpu". "cuda": the first Hopper GPU that CUDA shows, always with bf16 activations and weights beside float32
   * masters; refused, with what is missing, where it cannot be used (docs/kernels.md).
   */
  device?: "cpu" | "cuda";
  /**
   * false: on CUDA, gradients of queries are added in any order, which is faster; their last bits then differ from run
   * to run (default true). The CPU backend always gives the same bits.
   */
  deterministic?: boolean;
  /** Threads of the CPU backend, shared by the ranks of a machine; 0 = all cores (default). Results do not depend on it. */
  threads?: number;
  /**
   * "bf16" rounds the operands of linear layers (weights, their inputs, the gradients of their outputs) to bf16, for
   * training and sampling alike; accumulation, attention, statistics, master weights and optimiser stay float32.
   * Default "float32".
   */
  precision?: "float32" | "bf16";
  /**
   * Keep of each layer only its input and what its attention gave, and compute the rest again in the backward pass:
   * a fraction of the memory, about a quarter more matrix products, the same bits (default false).
   */
  activationCheckpointing?: boolean;
  /**
   * What AdamW keeps its two moments in: float32, or 8 bits in blocks of 256 with a scale each, which is a quarter of
   * the memory (docs/ops.md has the formula). Checkpoints hold float32 either way, and go from one to the other (default 32).
   */
  optimiserBits?: 8 | 32;
  /**
   * What of a GPU's memory lies in the host's (pinned) while it is not needed, copied while the GPU computes; the bits stay
   * the same. "checkpoints": what activation checkpointing keeps, but for two layers at a time. "optimiser": float32
   * masters and AdamW's moments, but for the parts that a step is at. Default "none", the only choice of device "cpu"
   * (docs/kernels.md).
   */
  offload?: OffloadChoice;
  /** Tokens that one forward pass of the embedded sampler packs (default 512). */
  maxBatchTokens?: number;
  /** Pages of 64 tokens that the sampler's sessions may hold at once; 0 = as many as fit (default). */
  maxPages?: number;
  /**
   * A Chrome trace (for Perfetto or chrome://tracing) that every pass and optimiser step is added to: each op with its
   * times, bytes and FLOPs, one lane a rank and stream. Timing takes the CPU's ops apart, so steps are slower; no bit
   * changes.
   */
  trace?: string;
}

/** What the rank is told, with the defaults of what is left out. A rank alone: the mesh comes later. */
export function nativeRankOptions(config: DecoderConfig, options: RankOptions): NativeRankOptions {
  return {
    config,
    device: options.device ?? "cpu",
    deterministic: options.deterministic ?? true,
    threads: options.threads ?? 0,
    precision: options.precision ?? "float32",
    activationCheckpointing: options.activationCheckpointing ?? false,
    optimiserBits: options.optimiserBits ?? 32,
    offload: options.offload ?? "none",
    maxBatchTokens: options.maxBatchTokens ?? 512,
    maxPages: options.maxPages ?? 0,
    ...(options.trace !== undefined && { trace: resolve(options.trace) }),
  };
}
