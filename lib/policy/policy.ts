// The policy on one rank of the addon, or on many: weights, gradients and optimiser state live there; JavaScript holds
// a handle.
import { randomUUID } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { isTokenringError, TokenringError } from "../errors.ts";
import type { NativeAdamW, NativeBatch, NativeRank, NativeSave } from "../ops/binding.ts";
import { withSignal } from "../ops/jobs.ts";
import { nativeLoss } from "../ops/policy-loss.ts";
import { openRank } from "../ops/rank.ts";
import { RankGroup } from "../ranks/group.ts";
import { MeshRank, meshOf } from "../ranks/mesh-rank.ts";
import { launchedRanks } from "../ranks/place.ts";
import { type CarriedFiles, readCarriedFiles, writeCarriedFiles } from "./carried-files.ts";
import { contextLength, parseConfig, readConfigFile, writeConfig } from "./config.ts";
import { type MemoryOptions, type MemoryUse, memoryUse, type PolicyMemory, policyMemory } from "./memory.ts";
import { findModel, type ModelSourceOptions } from "./model-source.ts";
import { nativeRankOptions, type RankOptions } from "./rank-options.ts";
import {
  type AdamWOptions,
  type DecoderConfig,
  type LossResult,
  OPTIMISER_DEFAULTS,
  type OptimiserResult,
  type PackedBatch,
  type PassOptions,
  type PolicyLoss,
  type Policy as PolicyShape,
  type SaveOptions,
} from "./types.ts";

export type { HeldMemory, MemoryOptions, MemoryUse, PolicyMemory } from "./memory.ts";
export type { OffloadChoice, RankOptions } from "./rank-options.ts";

export interface CreateOptions extends RankOptions {
  /** Decides every initial weight (default 0). */
  seed?: number | bigint;
  /** Standard deviation of the initial matrices (default 0.02). */
  std?: number;
  /** Amplitude of the query and key biases that make layer 0's heads attend to fixed offsets; 0 = off (default). */
  previousTokenBias?: number;
}

export interface LoadOptions extends RankOptions {
  /** How a model that is named, not given as a directory, is found: revision, cache, progress, signal. */
  source?: ModelSourceOptions;
  /** Also read optimizer.safetensors, so that training continues exactly. */
  optimiser?: boolean;
  /** In place of what config.json says, which a model for short contexts leaves out; `save` writes it. */
  ropeScaling?: NonNullable<DecoderConfig["rope_scaling"]>;
}

/** Bytes of tensors that one file of a saved model holds: what transformers 4 writes. */
const SHARD_BYTES = 5e9;

/**
 * A decoder with its gradients and optimiser on one rank: scores packed documents, takes steps, is saved and loaded. Calls are
 * queued and run in their order on a native thread; each rejects with ERR_TOKENRING_DISPOSED after `dispose`.
 */
export class Policy implements PolicyShape {
  /** Its shape, as in Hugging Face's config.json. */
  readonly config: DecoderConfig;
  /** The native rank, for the embedded engine. @internal */
  readonly rank: NativeRank;
  #version = 0;
  /** Of the model that was loaded: its config.json, and what lay beside its weights. */
  #source: { config: Readonly<Record<string, unknown>>; files: CarriedFiles } | null = null;

  readonly #mesh: MeshRank | null;
  /** Started for this policy alone. */
  readonly #group: RankGroup | null;

  private constructor(config: DecoderConfig, rank: NativeRank, group: RankGroup | null) {
    this.config = config;
    this.rank = rank;
    this.#mesh = rank instanceof MeshRank ? rank : null;
    this.#group = group;
  }

  /** A policy whose weights are not there yet. */
  static async #open(shape: DecoderConfig, options: RankOptions): Promise<Policy> {
    const config = Object.freeze({ ...shape });
    const native = nativeRankOptions(config, options);
    const { ranks = launchedRanks() } = options;
    meshOf(typeof ranks === "number" ? ranks : ranks.size, options);
    const own = typeof ranks === "number" && ranks !== 1 ? await RankGroup.open({ size: ranks }) : null;
    const group = typeof ranks === "number" ? own : ranks;
    if (group === null || group.size === 1) return new Policy(config, await openRank(native), null);
    try {
      return new Policy(config, await MeshRank.create(group, native, contextLength(config), options), own);
    } catch (error) {
      await own?.dispose();
      throw error;
    }
  }

  /**
   * A policy with random weights: normal(0, std) matrices, ones for norms, zeros for biases.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT for a seed that is no integer.
   */
  static async create(config: DecoderConfig, options: CreateOptions = {}): Promise<Policy> {
    const seed = options.seed ?? 0;
    if (typeof seed === "number" && !Number.isSafeInteger(seed)) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `Policy.create: seed is ${seed}; give an integer`,
      );
    }
    const policy = await Policy.#open(config, options);
    return policy.#begin(async () => {
      await withSignal(() =>
        policy.rank.initialise({
          std: options.std ?? 0.02,
          seed: BigInt.asUintN(64, BigInt(seed)),
          previousTokenBias: options.previousTokenBias ?? 0,
        }),
      );
      policy.#version = await withSignal(() => policy.rank.version());
    });
  }

  /**
   * The policy of a Hugging Face model: a directory with config.json and model.safetensors (or its shards), or a name
   * as on the hub, which is looked for in the local cache and then downloaded (`findModel`). Tokenizer, chat template
   * and generation settings are carried along: `save` writes them beside the weights.
   * @throws ERR_TOKENRING_CHECKPOINT naming the file, and the field or tensor, that does not fit.
   */
  static async load(model: string, options: LoadOptions = {}): Promise<Policy> {
    const directory = await findModel(model, options.source);
    const config = await readConfigFile(directory);
    const decoder = parseConfig(config, join(directory, "config.json"));
    const files = await readCarriedFiles(directory);
    const { ropeScaling } = options;
    const shape = ropeScaling ? { ...decoder, rope_scaling: ropeScaling } : decoder;
    const policy = await ofFile(join(directory, "config.json"), () => Policy.#open(shape, options));
    policy.#source = { config: config as Record<string, unknown>, files };
    return policy.#begin(() => policy.load(directory, { optimiser: options.optimiser ?? false }));
  }

  /**
   * The memory that a policy of this shape and these options would hold, by what holds it, before there is one. The code
   * that would run is run on a device that is not there, which counts what is asked of it: what `heldMemory` then
   * measures is the same. Neither the device nor the other ranks are needed, nor is any weight.
   * @param lengths Tokens of each document of one pass of a context group (`accumulate` and `optimise`, or with
   *   `training: false` only `score`); empty for a policy that only samples `options.sessions`.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT for a shape or options that no policy takes, and for documents or sessions of
   *   more tokens than the model's context.
   */
  static memory(
    config: DecoderConfig,
    lengths: readonly number[],
    options: MemoryOptions = {},
  ): Promise<PolicyMemory> {
    return policyMemory(config, lengths, options);
  }

  /** Gives the rank back if the first steps fail. */
  async #begin(steps: () => Promise<void>): Promise<Policy> {
    try {
      await steps();
    } catch (error) {
      await this.dispose();
      throw error;
    }
    return this;
  }

  get disposed(): boolean {
    return this.rank.disposed;
  }

  /** Version of the weights; grows with every optimiser step and load. */
  get version(): number {
    return this.#version;
  }

  /** Ranks that a batch is spread over. */
  get ranks(): number {
    return this.#mesh?.size ?? 1;
  }

  /**
   * Forward and backward pass of the batch; its gradients are added to what is accumulated. Lanes are aligned with the
   * batch's tokens, logprobs and entropies in nats.
   * @throws ERR_TOKENRING_INVALID_ARGUMENT for lanes that do not fit, ERR_TOKENRING_NON_FINITE, ERR_TOKENRING_OUT_OF_MEMORY.
   */
  async accumulate(batch: PackedBatch, loss: PolicyLoss, options: PassOptions = {}): Promise<LossResult> {
    const how = nativeLoss(loss);
    const { signal, last = false, passTokens } = options;
    const mesh = this.#mesh;
    return withSignal(
      () =>
        mesh
          ? mesh.accumulate(nativeBatch(batch), how, last, passTokens)
          : this.rank.accumulate(nativeBatch(batch), how, last),
      signal,
    );
  }

  /** Logprob and entropy (nats) of every token but the first of each document; no gradients. */
  async score(
    batch: Pick<PackedBatch, "tokens" | "lengths">,
    options: Omit<PassOptions, "last"> & { temperature?: number } = {},
  ): Promise<LossResult> {
    const lanes = { tokens: batch.tokens, lengths: batch.lengths };
    const { signal, temperature = 1, passTokens } = options;
    const mesh = this.#mesh;
    return withSignal(
      () => (mesh ? mesh.score(lanes, temperature, passTokens) : this.rank.score(lanes, temperature)),
      signal,
    );
  }

  /** OPTIMISER_DEFAULTS where not given. */
  async optimise(options: AdamWOptions): Promise<OptimiserResult> {
    const how: NativeAdamW = {
      learningRate: options.learningRate,
      beta1: options.beta1 ?? OPTIMISER_DEFAULTS.beta1,
      beta2: options.beta2 ?? OPTIMISER_DEFAULTS.beta2,
      epsilon: options.epsilon ?? OPTIMISER_DEFAULTS.epsilon,
      weightDecay: options.weightDecay ?? OPTIMISER_DEFAULTS.weightDecay,
      clipNorm: options.clipNorm ?? OPTIMISER_DEFAULTS.clipNorm,
    };
    const result = await withSignal(() => this.rank.optimise(how));
    this.#version = result.version;
    return result;
  }

  /** Seconds of wall time that the engine thread has worked: on calls of this policy and on its sessions' tokens. */
  async busySeconds(): Promise<number> {
    return withSignal(() => this.rank.busySeconds());
  }

  /**
   * What this process's rank has held of its device's memory when all together was most. On the CPU without the scratch of
   * its threads, on a GPU without what CUDA and NCCL take themselves.
   */
  async heldMemory(): Promise<MemoryUse> {
    return memoryUse(await withSignal(() => this.rank.memory()));
  }

  /** Forgets what `accumulate` has added since the last step. */
  async dropGradients(): Promise<void> {
    await withSignal(() => this.rank.dropGradients());
  }

  /** AdamW starts anew, as after `load`: no gradients, zero moments, step 0. The weights stay. */
  async resetOptimiser(): Promise<void> {
    await withSignal(() => this.rank.resetOptimiser());
  }

  /**
   * Writes config.json and model.safetensors (or shards and their index), the files of the model that was loaded, and with
   * `optimiser` AdamW's state. With `background` later calls go on while it writes.
   * @throws ERR_TOKENRING_CHECKPOINT naming the file that could not be written.
   */
  async save(directory: string, options: SaveOptions = {}): Promise<void> {
    if (this.disposed)
      throw new TokenringError("ERR_TOKENRING_DISPOSED", "a disposed policy cannot be saved");
    const { dtype = "f32", optimiser = false, shardBytes = SHARD_BYTES, background = false } = options;
    const how = { dtype, optimiser, shardBytes };
    const describe = async (): Promise<void> => {
      await writeConfig(directory, this.config, dtype, this.#source?.config);
      if (this.#source) await writeCarriedFiles(directory, this.#source.files);
    };
    if (!background) {
      await describe();
      return withSignal(() => this.rank.save(directory, how));
    }
    // The copy comes first of all, so that it is of the weights as the calls so far leave them; and neither fails while
    // the other still writes.
    const outcomes = await Promise.allSettled([this.#saveCopy(directory, how), describe()]);
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  }

  /** All ranks write; when they have, the files get their names, and otherwise go. */
  async #saveCopy(directory: string, how: NativeSave): Promise<void> {
    mkdirSync(directory, { recursive: true });
    const save = { ...how, token: randomUUID() };
    let keep = false;
    try {
      await withSignal(() => this.rank.save(directory, save));
      keep = true;
    } finally {
      if (!this.disposed) await withSignal(() => this.rank.endSave(directory, { ...save, keep }));
    }
  }

  /**
   * Reads the weights (and with `optimiser` AdamW's state) of a checkpoint of the same shape into this policy.
   * @throws ERR_TOKENRING_CHECKPOINT naming the file and the tensor.
   */
  async load(directory: string, options: { optimiser?: boolean } = {}): Promise<void> {
    const optimiser = options.optimiser ?? false;
    try {
      this.#version = (await withSignal(() => this.rank.load(directory, { optimiser }))).version;
    } catch (error) {
      // The weights may have been read before the optimiser's file failed.
      if (!this.disposed) this.#version = await withSignal(() => this.rank.version());
      throw error;
    }
  }

  /** Idempotent. Waits for the call that runs; queued ones and turns being sampled end with ERR_TOKENRING_DISPOSED. */
  async dispose(): Promise<void> {
    await this.rank.dispose();
    await this.#group?.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

const SHAPE_FAULT = "decoder config: ";

/** What the native code finds wrong with a shape is the fault of the file that it came from. */
async function ofFile<T>(file: string, make: () => Promise<T>): Promise<T> {
  try {
    return await make();
  } catch (cause) {
    if (!isTokenringError(cause, "ERR_TOKENRING_INVALID_ARGUMENT")) throw cause;
    if (!cause.message.startsWith(SHAPE_FAULT)) throw cause;
    const message = `${file}: ${cause.message.slice(SHAPE_FAULT.length)}; give a model whose sizes fit together`;
    throw new TokenringError("ERR_TOKENRING_CHECKPOINT", message, { cause, details: { file } });
  }
}

function nativeBatch(batch: PackedBatch): NativeBatch {
  return {
    tokens: batch.tokens,
    lengths: batch.lengths,
    weight: batch.weight,
    ...(batch.advantage && { advantage: batch.advantage }),
    ...(batch.oldLogprob && { oldLogprob: batch.oldLogprob }),
    ...(batch.referenceLogprob && { referenceLogprob: batch.referenceLogprob }),
  };
}
