// The memory of a policy before there is one: its calls are made on a device that is not there (native/model/plan.h).
import { totalmem } from "node:os";
import { TokenringError } from "../errors.ts";
import type {
  NativeHeldMemory,
  NativeMesh,
  NativePlannedStep,
  NativeStepPlanOptions,
} from "../ops/binding.ts";
import { withSignal } from "../ops/jobs.ts";
import { loadBinding } from "../ops/native.ts";
import { meshOf } from "../ranks/mesh-rank.ts";
import { contextLength } from "./config.ts";
import { nativeRankOptions, type RankOptions } from "./rank-options.ts";
import type { CallOptions, DecoderConfig } from "./types.ts";

/** Bytes of a device's memory, by what they are for. */
export type HeldMemory = NativeHeldMemory;

/** Bytes that CUDA, NCCL and the allocator's rounding take of a GPU beside what tokenring asks for: assumed. */
export const RESERVED_BYTES = 4e9;

/** How the policy would run, and what else it would do. */
export interface MemoryOptions extends Omit<RankOptions, "ranks" | "trace">, CallOptions {
  /** Ranks that train together (default 1). */
  ranks?: number;
  /** false: the documents are scored, without gradients and optimiser (default true). */
  training?: boolean;
  /** Tokens of each of the embedded sampler's sessions that are open at once (default: none). */
  sessions?: readonly number[];
  /**
   * Bytes that each rank may take. Default: the memory of the GPU that is here less 4 GB for what CUDA takes itself, or
   * this machine's memory by the number of ranks.
   */
  available?: number;
}

/** What a policy holds of its device's memory when all together is most; and of the host's, for what it offloads. */
export interface MemoryUse {
  /** By what it is for; the largest first. */
  items: HeldMemory[];
  /** Their sum. */
  bytes: number;
  /** Pinned for the device by `offload`, by what it is for; the largest first. */
  host: HeldMemory[];
  /** Their sum. */
  hostBytes: number;
}

/** What `Policy.memory` says, of the rank that needs most. */
export interface PolicyMemory extends MemoryUse {
  /** Bytes that the rank may take; null where nothing is known. */
  available: number | null;
  /** Whether `bytes` are at most `available`; null where nothing is known. */
  fits: boolean | null;
}

type Held = Pick<NativePlannedStep, "memory" | "host">;

const sorted = (held: readonly HeldMemory[]): HeldMemory[] => [...held].sort((a, b) => b.bytes - a.bytes);
const total = (held: readonly HeldMemory[]): number => held.reduce((sum, { bytes }) => sum + bytes, 0);

export const memoryUse = ({ memory, host }: Held): MemoryUse => ({
  items: sorted(memory),
  bytes: total(memory),
  host: sorted(host),
  hostBytes: total(host),
});

/** That of the rank that needs most. */
export const heaviest = (planned: readonly NativePlannedStep[]): MemoryUse =>
  planned.map(memoryUse).reduce((most, one) => (one.bytes > most.bytes ? one : most));

/** Weights of the loss of such a share of the tokens: evenly spread, so that ranks and chunks get their share. */
export function lossWeights(lengths: readonly number[], share: number): Float32Array {
  const tokens = lengths.reduce((sum, length) => sum + length, 0);
  const weight = Float32Array.from({ length: tokens }, (_, i) =>
    Math.floor((i + 1) * share) > Math.floor(i * share) ? 1 : 0,
  );
  let at = 0;
  for (const length of lengths) {
    weight[at] = 0; // a document's first token has no prediction
    at += length;
  }
  return weight;
}

/**
 * What the ranks of the first context group, or `ranks` of them, would queue and hold; those of other groups whose
 * documents are alike are like them. A rank has the sessions that come to it in turns.
 */
export async function planRanks(
  options: Omit<NativeStepPlanOptions, "mesh" | "sessions"> & { sessions?: readonly number[] },
  mesh: Omit<NativeMesh, "id" | "timeout" | "rank">,
  { signal, ranks = mesh.contextParallel }: CallOptions & { ranks?: number } = {},
): Promise<NativePlannedStep[]> {
  const planned: NativePlannedStep[] = [];
  const { sessions = [] } = options;
  for (let rank = 0; rank < Math.min(mesh.contextParallel, ranks); rank++) {
    const native = {
      ...options,
      sessions: Int32Array.from(sessions.filter((_, i) => i % mesh.size === rank)),
      mesh: { ...mesh, rank },
    };
    planned.push(await withSignal(() => loadBinding().planStep(native), signal));
  }
  return planned;
}

/** `Policy.memory`. */
export async function policyMemory(
  config: DecoderConfig,
  lengths: readonly number[],
  options: MemoryOptions,
): Promise<PolicyMemory> {
  const { ranks = 1, training = true, sessions = [], device = "cpu", signal } = options;
  checkLengths("lengths", lengths, config);
  checkLengths("sessions", sessions, config);
  if (lengths.length + sessions.length === 0)
    throw invalid("there is nothing to do; give lengths of documents, or sessions");
  if (!Number.isInteger(ranks) || ranks < 1)
    throw invalid(`ranks is ${ranks}; give a whole number from 1 up`);
  const mesh = { ...meshOf(ranks, options), size: ranks };
  const native = {
    ...nativeRankOptions(config, options),
    lengths: Int32Array.from(lengths),
    weight: lossWeights(lengths, 1),
    training,
    sessions,
  };
  const use = heaviest(await planRanks(native, mesh, signal ? { signal } : {}));
  const available = options.available ?? availableOn(device, ranks);
  return { ...use, available, fits: available === null ? null : use.bytes <= available };
}

function availableOn(device: "cpu" | "cuda", ranks: number): number | null {
  if (device === "cpu") return Math.floor(totalmem() / ranks);
  const [gpu] = loadBinding().cuda().devices;
  return gpu ? gpu.memoryBytes - RESERVED_BYTES : null;
}

const invalid = (what: string): TokenringError =>
  new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `Policy.memory: ${what}`);

function checkLengths(name: string, lengths: readonly number[], config: DecoderConfig): void {
  const context = contextLength(config);
  for (const [i, length] of lengths.entries()) {
    if (!Number.isInteger(length) || length < 1)
      throw invalid(`${name}[${i}] is ${length}; give a whole number of tokens from 1 up`);
    if (length > context)
      throw invalid(`${name}[${i}] is ${length} tokens, more than the model's context (${context})`);
  }
}
