// One synchronous iteration, station by station: rollouts, verification, old logprobs, the update, new weights.
import type { DecoderConfig } from "../policy/types.ts";
import type { Cluster } from "./price.ts";

/** What an iteration works on. The paper gives none of the averages; what is not given here is assumed, and said so. */
export interface Workload {
  /** Sampled in an iteration: instances x rollouts. */
  trajectories: number;
  /** Tokens of a trajectory: the mean, and the limit. */
  meanTokens: number;
  maxTokens: number;
  /** Of them, sampled by the policy. */
  actionTokens: number;
  turns: number;
  /** Wall seconds of one command, and of one verification; how many of the latter run at once. */
  commandSeconds: number;
  verifySeconds: number;
  verifications: number;
  /** Share of the trajectories that an advantage is left for. */
  kept: number;
  batchSize: number;
  /** Whether the trainer computes the old logprobs itself. */
  scored: boolean;
}

/** The engine while the trainer rests: every GPU, in groups that hold the weights together. */
export interface EnginePlan {
  tensorParallel: number;
  replicas: number;
  /** Sequences that one replica decodes at once, bound by the memory for their keys and by how many there are. */
  batch: number;
  tokensPerSecond: number;
  /** Why there is none. */
  fault?: string;
}

export interface Stations {
  rollout: number;
  verify: number;
  score: number;
  update: number;
  weights: number;
}

/** Parameters of the model: all, and those of its linear layers. */
export function parameterCounts(config: DecoderConfig): { all: number; products: number } {
  const {
    hidden_size: h,
    intermediate_size: f,
    head_dim: d,
    num_hidden_layers: layers,
    vocab_size: v,
  } = config;
  const q = config.num_attention_heads * d;
  const kv = config.num_key_value_heads * d;
  const products = layers * (h * (q + 2 * kv) + q * h + 3 * h * f) + v * h;
  const vectors =
    layers * (2 * h + (config.attention_bias ? q + 2 * kv : 0) + (config.qk_norm ? 2 * d : 0)) + h;
  return { all: products + vectors + (config.tie_word_embeddings ? 0 : v * h), products };
}

/**
 * The rollouts' engine, modelled: a decode step reads the weights and the keys of its sequences once, at
 * `decodeEfficiency` of the memory bandwidth, and pays two calls between its GPUs a layer; reading observations is bound
 * by products at `prefillEfficiency`. Keys of shared prompts are counted for each sequence.
 */
export function planEngine(
  config: DecoderConfig,
  gpus: number,
  cluster: Cluster,
  { trajectories, meanTokens }: Pick<Workload, "trajectories" | "meanTokens">,
): EnginePlan {
  const { memory, reserved, bandwidth, decodeEfficiency, nodeLatency } = cluster.hardware;
  const weights = 2 * parameterCounts(config).all;
  const keys = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * meanTokens;
  const room = memory.value - reserved.value;
  for (let tensorParallel = 1; tensorParallel <= Math.min(gpus, cluster.gpusPerNode); tensorParallel *= 2) {
    // Half of the memory is left to keys.
    if (weights / tensorParallel > room / 2 || gpus % tensorParallel !== 0) continue;
    if (config.num_attention_heads % tensorParallel !== 0) continue;
    const replicas = gpus / tensorParallel;
    const fits = Math.floor((room * tensorParallel - weights) / keys);
    const batch = Math.min(fits, Math.ceil(trajectories / replicas));
    if (batch < 1) continue;
    const read = (weights + batch * keys) / tensorParallel / (bandwidth.value * decodeEfficiency.value);
    const calls = tensorParallel > 1 ? 2 * config.num_hidden_layers * nodeLatency.value : 0;
    return { tensorParallel, replicas, batch, tokensPerSecond: batch / (read + calls) };
  }
  return {
    tensorParallel: 0,
    replicas: 0,
    batch: 0,
    tokensPerSecond: 0,
    fault:
      `an engine of this model does not fit on the ${Math.min(gpus, cluster.gpusPerNode)} GPUs of a node ` +
      `(${(weights / 1e9).toFixed(0)} GB of weights in bf16)`,
  };
}

/** Wall seconds of sampling: decoding, reading what the tools answered, and the commands that no sampling hides. */
export function rolloutSeconds(
  config: DecoderConfig,
  engine: EnginePlan,
  gpus: number,
  cluster: Cluster,
  workload: Workload,
): number {
  const { trajectories, meanTokens, actionTokens, turns, commandSeconds } = workload;
  const { products, prefillEfficiency } = cluster.hardware;
  const decode = (trajectories * actionTokens) / (engine.replicas * engine.tokensPerSecond);
  const { num_attention_heads: heads, head_dim: d, num_hidden_layers: layers } = config;
  // No turn reads again what its session has seen.
  const flops =
    trajectories *
    (2 * parameterCounts(config).products * (meanTokens - actionTokens) +
      2 * layers * heads * d * meanTokens ** 2);
  const prefill = flops / (gpus * products.value * prefillEfficiency.value);
  // While one episode's command runs, others sample; the longest episode has nobody to hide behind.
  const alone = turns * commandSeconds;
  return decode + prefill + alone;
}

/** Weights from the trainer to the engine, one broadcast in bf16 to all GPUs at the slower of the two links. */
export function weightSeconds(
  config: DecoderConfig,
  gpus: number,
  { hardware, gpusPerNode }: Cluster,
): number {
  const bytes = 2 * parameterCounts(config).all;
  const link =
    gpus > gpusPerNode
      ? Math.min(hardware.nodeLink.value, gpusPerNode * hardware.clusterLink.value)
      : hardware.nodeLink.value;
  return bytes / link;
}

export const verifySeconds = ({ trajectories, verifySeconds: each, verifications }: Workload): number =>
  Math.ceil(trajectories / verifications) * each;
