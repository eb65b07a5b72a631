// Attention of some queries on some keys, and of documents that are spread over ranks.
import { TokenringError } from "../errors.ts";
import type { ContextSchedule, NativeAttention, NativeRing } from "./binding.ts";
import type { Communicator } from "./communicator.ts";
import { type CallOptions, withSignal } from "./jobs.ts";
import { loadBinding } from "./native.ts";
import { native, shapeOf, type TensorLike } from "./tensor.ts";

/** Consecutive tokens of one document, from a position on. */
export interface Segment {
  /** Any integer: tokens of one document see each other, those of different documents never. */
  document: number;
  /** Position of the first token within its document. */
  position: number;
  length: number;
}

/** The tensors of an attention, all f32. T: tokens of the queries; S: tokens of the keys. */
export interface AttentionTensors {
  /** [T, heads, headDim]; headDim is a multiple of 16 up to 128. */
  q: TensorLike;
  /** [S, kvHeads, headDim]; kvHeads divides heads, and query head h reads key head floor(h * kvHeads / heads). */
  k: TensorLike;
  /** [S, kvHeads, headDim] */
  v: TensorLike;
  /** [T, heads, headDim], the weighted sum of values. */
  out: TensorLike;
  /** [T, heads], the logarithm of the sum of exp(score). */
  lse: TensorLike;
  /** Multiplies q.k (default 1 / sqrt(headDim)). */
  scale?: number;
}

/** With what goes backward, all f32: dout [T, heads, headDim] comes in, dq, dk, dv (as q, k, v) come out. */
export interface AttentionGradients extends AttentionTensors {
  dout: TensorLike;
  dq: TensorLike;
  dk: TensorLike;
  dv: TensorLike;
}

/** Which tokens the rows of q, and those of k and v, are: the tokens of the segments, one after the other. */
export interface AttentionBlock {
  queries: readonly Segment[];
  keys: readonly Segment[];
}

function triples(segments: readonly Segment[]): Int32Array {
  return Int32Array.from(segments.flatMap((s) => [s.document, s.position, s.length]));
}

function tensors(x: AttentionTensors): NativeAttention {
  const headDim = shapeOf(x.q, 3, "q")[2] as number;
  return {
    q: native(x.q),
    k: native(x.k),
    v: native(x.v),
    out: native(x.out),
    lse: native(x.lse),
    scale: x.scale ?? 1 / Math.sqrt(headDim),
  };
}

function gradients(
  x: AttentionGradients,
): Parameters<ReturnType<typeof loadBinding>["attentionBackward"]>[0] {
  return {
    ...tensors(x),
    dout: native(x.dout),
    dq: native(x.dq),
    dk: native(x.dk),
    dv: native(x.dv),
    queries: new Int32Array(),
    keys: new Int32Array(),
  };
}

/**
 * Causal attention of a block of queries on a block of keys, by the absolute positions of the segments: a query sees the
 * keys of its document at its own position and before. Fills out and lse (0 and -Infinity for a query without keys).
 *
 * With `merge`, out and lse hold the attention on other keys and become that on both, as one softmax over all:
 * L = log(e^L1 + e^L2), O = O1 e^(L1-L) + O2 e^(L2-L), in float32 within the online softmax. So a ring, or any other
 * order of blocks, is a call a block.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for shapes that do not fit and tokens that appear twice.
 */
export async function attentionBlock(
  x: AttentionTensors & AttentionBlock & { merge?: boolean },
  options: CallOptions = {},
): Promise<void> {
  const call = {
    ...tensors(x),
    queries: triples(x.queries),
    keys: triples(x.keys),
    merge: x.merge ?? false,
  };
  await withSignal(() => loadBinding().attention(call), options.signal);
}

/**
 * The block's part of the gradients, added to dq, dk and dv. out and lse are the final ones, over all blocks:
 *
 *     P = exp(scale q.k - lse);  delta = sum over the head of dout * out
 *     dv += P^T dout;  dS = P (dout.v - delta) scale;  dq += dS k;  dk += dS^T q
 *
 * Dao et al. 2022 (FlashAttention), appendix B.4.
 */
export async function attentionBlockBackward(
  x: AttentionGradients & AttentionBlock,
  options: CallOptions = {},
): Promise<void> {
  const call = { ...gradients(x), queries: triples(x.queries), keys: triples(x.keys) };
  await withSignal(() => loadBinding().attentionBackward(call), options.signal);
}

/** How packed tokens are dealt to ranks: equal ranges in order, or folded so that all have as many keys to look at. */
export type ShardLayout = "contiguous" | "zigzag";

/**
 * Cuts packed documents among ranks: the segments of each rank.
 *
 * The tokens of all documents, one after the other, are cut into equal ranges. "contiguous": rank r holds range r of
 * `size`. "zigzag" (default): rank r holds ranges r and 2 size - 1 - r of 2 size, so that early and late tokens of a
 * long document, which see few and many keys, are shared evenly.
 * @param lengths tokens of each document; document i of the segments is lengths[i]. Any length goes, also shorter than
 * the number of ranks.
 */
export function shardDocuments(
  lengths: readonly number[],
  size: number,
  layout: ShardLayout = "zigzag",
): Segment[][] {
  if (!Number.isInteger(size) || size < 1) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `shardDocuments: size is ${size}; give a count of ranks`,
    );
  }
  for (const [i, length] of lengths.entries()) {
    if (Number.isInteger(length) && length >= 0) continue;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `shardDocuments: lengths[${i}] is ${length}; give a count of tokens`,
    );
  }
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const ranges = layout === "zigzag" ? 2 * size : size;
  const range = (i: number): Segment[] =>
    between(lengths, Math.floor((total * i) / ranges), Math.floor((total * (i + 1)) / ranges));
  return Array.from({ length: size }, (_, rank) =>
    layout === "zigzag" ? [...range(rank), ...range(ranges - 1 - rank)] : range(rank),
  );
}

/** The segments of the tokens [begin, end) of the documents, one after the other. */
function between(lengths: readonly number[], begin: number, end: number): Segment[] {
  const segments: Segment[] = [];
  let start = 0;
  for (const [document, length] of lengths.entries()) {
    const first = Math.max(begin, start);
    const last = Math.min(end, start + length);
    if (first < last) segments.push({ document, position: first - start, length: last - first });
    start += length;
  }
  return segments;
}

/** Which rank holds which tokens, and how keys and values travel. */
export interface RingOptions {
  /** The segments of all ranks, the same on every rank: `shardDocuments` makes them. */
  shards: readonly (readonly Segment[])[];
  /**
   * "ring" (default): blocks of keys and values go from rank to rank while the ones before are attended to; memory for
   * two blocks. "all_gather": all keys and values on every rank; out, lse and dq have the bits of one rank that holds
   * everything. "two_level": gathered within a node, and from node to node in a ring, where each shard enters a node
   * once.
   */
  schedule?: ContextSchedule;
  /**
   * Of "two_level": the communicator of the ranks of this rank's node, as many consecutive ones of the call's own
   * communicator on every node. Other calls of it are not made at the same time.
   */
  node?: Communicator;
}

function ring(options: RingOptions): NativeRing {
  const { shards, schedule = "ring", node } = options;
  return { shards: shards.map(triples), schedule, ...(node ? { node: node.native } : {}) };
}

/**
 * Causal attention over the documents of all ranks. Each rank gives and gets the rows of its own shard (T = S: the
 * tokens of `shards[communicator.rank]`); out and lse are filled. A collective call: all ranks make it.
 *
 * Liu, Zaharia, Abbeel 2023 (ring attention); zigzag as in Megatron-LM's context parallelism.
 */
export async function ringAttention(
  communicator: Communicator,
  x: AttentionTensors & RingOptions,
  options: CallOptions = {},
): Promise<void> {
  const call = { ...tensors(x), ...ring(x) };
  await withSignal(() => communicator.native.ringAttention(call), options.signal);
}

/**
 * Its gradients: dq, dk, dv of the rank's own rows, overwritten. out and lse are ringAttention's. The gradients of keys
 * and values travel with them, one hop behind, and come home after the last; with "all_gather" they are summed in the
 * order of the ranks, with "two_level" so within each node.
 */
export async function ringAttentionBackward(
  communicator: Communicator,
  x: AttentionGradients & RingOptions,
  options: CallOptions = {},
): Promise<void> {
  const { queries, keys, ...call } = gradients(x);
  await withSignal(() => communicator.native.ringAttentionBackward({ ...call, ...ring(x) }), options.signal);
}
