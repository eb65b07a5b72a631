// The whole native surface as TypeScript: what native/addon exports, and nothing else. lib/ops/native.ts loads it.

import type { ErrorCode } from "../errors.ts";

/** Raised with every incompatible change of this file; the addon exports its own number as `abi`. */
export const EXPECTED_ABI = 5;

/** Field names as in Hugging Face's config.json. */
export interface NativeDecoderConfig {
  vocab_size: number;
  hidden_size: number;
  intermediate_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_key_value_heads: number;
  head_dim: number;
  max_position_embeddings: number;
  rope_theta: number;
  rms_norm_eps: number;
  tie_word_embeddings: boolean;
  /** Biases on q, k and v (Qwen2). */
  attention_bias: boolean;
  /** RMSNorm of each query and key head (Qwen3); absent = false. */
  qk_norm?: boolean;
  rope_scaling?: NativeRopeScaling;
}

/** Rotary frequencies stretched beyond the length of pretraining; see native/model/rope.h for the defaults. */
export type NativeRopeScaling =
  | {
      rope_type: "yarn";
      factor: number;
      original_max_position_embeddings: number;
      beta_fast?: number;
      beta_slow?: number;
      attention_factor?: number;
      mscale?: number;
      mscale_all_dim?: number;
      truncate?: boolean;
    }
  | {
      rope_type: "llama3";
      factor: number;
      original_max_position_embeddings: number;
      low_freq_factor: number;
      high_freq_factor: number;
    };

/** What lies in the host's memory while the device has no use for it. */
export type OffloadChoice = "none" | "checkpoints" | "optimiser" | "all";

/** See RankOptions of `tokenring`; every value is given. */
export interface NativeRankOptions {
  config: NativeDecoderConfig;
  device: string;
  threads: number;
  precision: "float32" | "bf16";
  /** Absent: true. */
  deterministic?: boolean;
  activationCheckpointing: boolean;
  /** Of AdamW's moments; absent: 32. */
  optimiserBits?: 8 | 32;
  /** Absent: "none". */
  offload?: OffloadChoice;
  maxBatchTokens: number;
  maxPages: number;
  /**
   * Path of a Chrome trace: each forward and backward pass and optimiser step adds its ops, with times, bytes and FLOPs,
   * in one lane a rank and stream. All ranks of a host may name one file; one that is there is added to.
   */
  trace?: string;
  /** Absent: this rank alone. */
  mesh?: NativeMesh;
}

/**
 * The ranks that train together; native/parallel/mesh.h says how they are grouped. Every rank makes the same calls in
 * the same order, with batches of its own: `join`, `accumulate`, `score`, `optimise`, `dropGradients`, `load`. A batch
 * may be empty. Results are those of the rank's own part: `loss` and the lanes (0 where another rank holds the token)
 * are added up by the caller, and what `optimise` gives is the same on all.
 *
 * A call that fails or is aborted on one rank breaks the mesh: the others fail with ERR_TOKENRING_COMMUNICATOR, which
 * names the cause, in the same call or at the latest in `optimise`, before their weights change; ERR_TOKENRING_TIMEOUT
 * names who did not come. ERR_TOKENRING_NON_FINITE of `optimise` comes to all alike and breaks nothing.
 */
export interface NativeMesh {
  /** Of `uniqueId()`; the same for all. The process that made it lives until all have joined; on GPUs, as long as they. */
  id: Uint8Array;
  rank: number;
  size: number;
  contextParallel: number;
  contextSchedule: ContextSchedule;
  /** Of "two_level": consecutive ranks of a node; all where left out. */
  ranksPerNode?: number;
  shard: 0 | 1 | 3;
  shardSize: number;
  /** Milliseconds of every wait for other ranks. */
  timeout: number;
}

/** Lanes are aligned with `tokens`; see native/model/batch.h. */
export interface NativeBatch {
  tokens: Int32Array;
  lengths: Int32Array;
  weight?: Float32Array;
  advantage?: Float32Array;
  oldLogprob?: Float32Array;
  referenceLogprob?: Float32Array;
}

/** See PolicyLossOptions; every value is given. */
export interface NativeLoss {
  objective: "nll" | "ppo_clip" | "gspo" | "cispo";
  clipLow: number;
  clipHigh: number;
  /** 0 = off */
  dualClip: number;
  klCoef: number;
  entropyCoef: number;
  temperature: number;
  /** Rows of logits alive at once; 0 = as many as the backend likes: on the CPU 64 MiB of them, but 256 to 1024 rows. Bits do not depend on it. */
  chunkRows: number;
}

/** See LossResult: lanes have one entry a token, in nats. */
export interface NativeLossResult {
  loss: number;
  logprob: Float32Array;
  entropy: Float32Array;
  /** 1 = clipped low, 2 = clipped high, 3 = dual clip */
  flags: Int32Array;
}

/** See AdamWOptions; every value is given. */
export interface NativeAdamW {
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  /** 0 = off */
  clipNorm: number;
}

/** See SampleOptions of `tokenring`. */
export interface NativeSampleRequest {
  maxTokens: number;
  stop: Int32Array;
  temperature: number;
  seed: bigint;
}

/** See SampledTurn of `tokenring`. */
export interface NativeSampleResult {
  tokens: Int32Array;
  logprobs: Float32Array;
  stopped: boolean;
  version: number;
}

/** How a rank saves: see `NativeRank.save`. */
export interface NativeSave {
  dtype: "f32" | "bf16";
  optimiser: boolean;
  shardBytes: number;
  token?: string;
}

/** A job under way: its promise, and the switch that stops it between two ticks or micro-batches. */
export interface NativeJob<T> {
  promise: Promise<T>;
  abort(): void;
}

/** What the sampler's sessions hold and may hold, in pages and tokens. */
export interface NativeUsage {
  sessions: number;
  pages: number;
  prefilled: number;
  decoded: number;
}

/** Every method that computes queues a job for the engine thread; none blocks JavaScript. */
export interface NativeRank {
  readonly disposed: boolean;
  /** Settles when all ranks of the mesh are there. It is waited for in any case: other calls queue behind it. */
  join(): NativeJob<void>;
  initialise(options: { std: number; seed: bigint; previousTokenBias: number }): NativeJob<void>;
  /**
   * `last`: no other comes before `optimise`, so that a mesh can sum gradients while the backward pass still runs; it
   * changes no bit, and nothing on a rank alone. All ranks say the same.
   */
  accumulate(batch: NativeBatch, loss: NativeLoss, last: boolean): NativeJob<NativeLossResult>;
  score(batch: NativeBatch, temperature: number): NativeJob<NativeLossResult>;
  optimise(options: NativeAdamW): NativeJob<{ gradientNorm: number; step: number; version: number }>;
  dropGradients(): NativeJob<void>;
  resetOptimiser(): NativeJob<void>;
  /**
   * Safetensors with Hugging Face names; with `optimiser`, also `optimizer.safetensors` (moments and step). On a mesh each
   * rank writes its own slices, into a directory that all see; the files do not depend on it.
   *
   * With `token`, letters and digits that no other save into the directory has: copies the slices to host memory (4 bytes
   * for each parameter of the rank's share, 12 with `optimiser`), and writes while later calls go on, on a mesh without
   * waiting for other ranks. When all ranks have written, one of them ends it.
   */
  save(directory: string, options: NativeSave): NativeJob<void>;
  /** Of a save with a token: gives its files their names, or, without `keep`, removes them. */
  endSave(directory: string, options: NativeSave & { token: string; keep: boolean }): NativeJob<void>;
  load(directory: string, options: { optimiser: boolean }): NativeJob<{ version: number }>;
  version(): NativeJob<number>;
  /** Wall time that the engine thread has spent on jobs and on the sampler's ticks. */
  busySeconds(): NativeJob<number>;
  /** What the device's memory, and the host's that is pinned for it, was held for when all together was most. */
  memory(): NativeJob<{ memory: NativeHeldMemory[]; host: NativeHeldMemory[] }>;

  /** Session calls are synchronous bookkeeping on the queue; ids are given out at once. */
  openSession(): number;
  forkSession(session: number): number;
  extendSession(session: number, tokens: Int32Array): void;
  closeSession(session: number): void;
  sampleSession(session: number, request: NativeSampleRequest): NativeJob<NativeSampleResult>;
  usage(): NativeJob<NativeUsage>;

  /** Idempotent. Queued jobs end with ERR_TOKENRING_DISPOSED; the promise settles when the thread has ended. */
  dispose(): Promise<void>;
}

/** A rank of this process. Its constructor looks at the options alone. */
export interface NativeLocalRank extends NativeRank {
  /**
   * Takes the rank's memory and its place in the mesh, and waits for no other rank. Once, and before any other call but
   * `dispose`.
   */
  open(): NativeJob<void>;
}

/** Elements of a dtype in row-major order: in a typed array, or in native memory. See lib/ops/tensor.ts. */
export interface NativeTensor {
  data: Float32Array | Int32Array | Uint16Array | Uint8Array | NativeDeviceTensor;
  dtype: "f32" | "bf16" | "f16" | "i32" | "u8";
  shape: readonly number[];
}

/**
 * A native External whose data points to the address of a DLManagedTensor; whoever takes the tensor leaves null there.
 * docs/ops.md has its type tag.
 */
export type DLPackCapsule = object & { readonly DLPackCapsule: unique symbol };

/** Native memory with a dtype and a shape; DeviceTensor wraps it. */
export interface NativeDeviceTensor {
  readonly disposed: boolean;
  readonly device: "cpu" | "cuda";
  readonly dtype: NativeTensor["dtype"];
  readonly shape: number[];
  /** Address of the first element. */
  readonly pointer: bigint;
  /** Copies, in the order of the environment's calls; the array has the tensor's dtype, or f32 for bf16. */
  write(from: { array: NativeTensor }): NativeJob<void>;
  read(to: { array: NativeTensor }): NativeJob<void>;
  toDLPack(): DLPackCapsule;
  toDLPackPointer(): bigint;
  dispose(): void;
}

/** All f32: q, out [T, heads, d], k, v [S, kvHeads, d], lse [T, heads]. */
export interface NativeAttention {
  q: NativeTensor;
  k: NativeTensor;
  v: NativeTensor;
  out: NativeTensor;
  lse: NativeTensor;
  scale: number;
}

/** All f32, shapes as of the tensors they belong to; dq, dk, dv are added to. */
export interface NativeAttentionGradients extends NativeAttention {
  dout: NativeTensor;
  dq: NativeTensor;
  dk: NativeTensor;
  dv: NativeTensor;
}

/** The tokens of the rows, as (document, position, length) triples. */
export interface NativeAttentionBlock {
  queries: Int32Array;
  keys: Int32Array;
}

/** How keys and values go between the ranks that share documents: docs/ranks.md. */
export type ContextSchedule = "ring" | "all_gather" | "two_level";

/** How attention goes around ranks: which tokens each rank holds, and the schedule; of "two_level", the rank's node. */
export interface NativeRing {
  shards: Int32Array[];
  schedule: ContextSchedule;
  node?: NativeCommunicator;
}

/** f32: weight, advantage, oldLogprob, referenceLogprob [R]; i32: targets [R], lengths. See lib/ops/policy-loss.ts. */
export interface NativePolicyLoss {
  targets: NativeTensor;
  weight: NativeTensor;
  advantage?: NativeTensor;
  oldLogprob?: NativeTensor;
  referenceLogprob?: NativeTensor;
  lengths?: NativeTensor;
  /** f32 [R, vocabulary], or hidden [R, width] with head [vocabulary, width]. */
  logits?: NativeTensor;
  dlogits?: NativeTensor;
  hidden?: NativeTensor;
  head?: NativeTensor;
  dhidden?: NativeTensor;
  dhead?: NativeTensor;
}

/** Equally long f32 tensors; weight and moments are updated in place. Moments of u8 have scales. */
export interface NativeParameter {
  weight: NativeTensor;
  gradient: NativeTensor;
  firstMoment: NativeTensor;
  secondMoment: NativeTensor;
  firstScale?: NativeTensor;
  secondScale?: NativeTensor;
  decay: boolean;
}

/** Calls run in their order on a thread of their own; aborting one aborts the communicator on all ranks. */
export interface NativeCommunicator {
  readonly disposed: boolean;
  join(): NativeJob<void>;
  broadcast(x: NativeTensor, root: number): NativeJob<void>;
  allReduce(x: NativeTensor, reduction: "sum" | "max" | "min"): NativeJob<void>;
  reduceScatter(from: NativeTensor, to: NativeTensor, reduction: "sum" | "max" | "min"): NativeJob<void>;
  allGather(from: NativeTensor, to: NativeTensor): NativeJob<void>;
  exchange(transfers: { send: boolean; peer: number; tensor: NativeTensor }[]): NativeJob<void>;
  barrier(): NativeJob<void>;
  ringAttention(options: NativeAttention & NativeRing): NativeJob<void>;
  ringAttentionBackward(options: NativeAttentionGradients & NativeRing): NativeJob<void>;
  abort(reason: string): void;
  /** Idempotent. Aborts what runs; the promise settles when the thread has ended and the rank has left. */
  dispose(): Promise<void>;
}

/** An entry of native/core/schedule.h. */
export interface NativeScheduleEntry {
  op: string;
  layer: number;
  track: "compute" | "context" | "gradients" | "host";
  after: NativeScheduleEntry["track"][];
  bytes: number;
  flops: number;
}

/** Bytes of a device's memory, by what they are for. */
export interface NativeHeldMemory {
  purpose: string;
  bytes: number;
}

/** See native/model/plan.h; every value is given. */
export interface NativeStepPlanOptions extends Omit<NativeRankOptions, "mesh" | "trace"> {
  mesh: Omit<NativeMesh, "id" | "timeout">;
  lengths: Int32Array;
  weight: Float32Array;
  training: boolean;
  sessions: Int32Array;
}

/** See native/model/plan.h. */
export interface NativePlannedStep {
  memory: NativeHeldMemory[];
  host: NativeHeldMemory[];
  passes: Record<"score" | "accumulate" | "last" | "optimise", NativeScheduleEntry[]>;
}

/** The addon's whole surface. The functions and classes above it are what a program should use. */
export interface Binding {
  readonly abi: number;
  /** "avx512", "avx2" or "scalar": the path the CPU backend takes on this machine. */
  readonly isa: string;
  readonly cores: number;
  readonly Rank: new (options: NativeRankOptions) => NativeLocalRank;
  readonly Communicator: new (options: {
    device?: string;
    id: Uint8Array;
    rank: number;
    size: number;
    timeout: number;
  }) => NativeCommunicator;
  /** New memory; with `pointer`, memory of somebody else; with `dlpack`, a capsule's or DLManagedTensor's alone. */
  readonly DeviceTensor: new (options: {
    device: string;
    dtype?: string;
    shape?: readonly number[];
    pointer?: bigint;
    dlpack?: DLPackCapsule | bigint;
  }) => NativeDeviceTensor;
  /** Of ranks on this host's CPUs (default), of ranks on GPUs, or NCCL's own, for ranks of other programs too. */
  uniqueId(kind?: "cpu" | "cuda" | "nccl"): Uint8Array;
  /** Threads of the functions below in this environment; 0 = all cores. */
  setThreads(threads: number): void;
  attention(options: NativeAttention & NativeAttentionBlock & { merge: boolean }): NativeJob<void>;
  attentionBackward(options: NativeAttentionGradients & NativeAttentionBlock): NativeJob<void>;
  policyLoss(options: NativePolicyLoss, loss: NativeLoss): NativeJob<NativeLossResult>;
  /** Gives the norm of the gradients before clipping. */
  adamw(
    parameters: NativeParameter[],
    options: NativeAdamW & { step: number; gradientNorm?: number },
  ): NativeJob<number>;
  gradientNorm(gradients: NativeTensor[]): NativeJob<number>;
  /** What a policy on one rank of a mesh would queue and hold; needs neither its device nor the other ranks. */
  planStep(options: NativeStepPlanOptions): NativeJob<NativePlannedStep>;
  /** Called once by the loader with the class that native failures are thrown as. */
  setErrorClass(errorClass: new (code: ErrorCode, message: string) => Error): void;
  /** The path of the CPU backend's bf16 products, "amx" or as `isa`; why AMX cannot be used, null where it can. */
  bf16(): { isa: string; amxFault: string | null };
  /** What the CUDA driver says; never throws. */
  cuda(): { compiled: boolean; devices: { name: string; memoryBytes: number }[]; reason: string | null };
}
