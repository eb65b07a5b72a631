// Which data-parallel group learns from which document: by cost, so that the ranks finish together.
import { TokenringError } from "../errors.ts";
import type { NativeBatch, NativeDecoderConfig } from "../ops/binding.ts";

/** Multiplications of a forward pass, which the backward pass doubles for all alike. */
export interface CostModel {
  /** A token: the matrices of all layers. */
  token: number;
  /** A pair of a token and one before it: attention of all layers. */
  pair: number;
  /** A token whose logprob is asked for: the head. */
  row: number;
}

export function costModel(config: NativeDecoderConfig): CostModel {
  const { hidden_size: hidden, num_hidden_layers: layers, head_dim: dim } = config;
  const heads = config.num_attention_heads * dim;
  const matrices = 2 * hidden * heads + 2 * hidden * config.num_key_value_heads * dim;
  return {
    token: layers * (matrices + 3 * hidden * config.intermediate_size),
    pair: layers * 2 * heads,
    row: hidden * config.vocab_size,
  };
}

/** Of each document, in multiplications: a t + b t (t + 1) / 2 + c rows of its t tokens. */
export function documentCosts(batch: NativeBatch, model: CostModel): number[] {
  let first = 0;
  return Array.from(batch.lengths, (length) => {
    let rows = length - 1;
    if (batch.weight) {
      rows = 0;
      for (let i = first; i < first + length; i++) if (batch.weight[i] !== 0) rows++;
    }
    first += length;
    return model.token * length + (model.pair * length * (length + 1)) / 2 + model.row * rows;
  });
}

export interface Placement {
  /** Documents by pass and group, each in the batch's order. A group may have none. */
  passes: number[][][];
  /** What the groups got, in the unit of the costs. */
  costs: number[];
}

/**
 * The dearest document first, each to the group that has least so far (`loads` counts from before, and is added to);
 * a group's documents are cut into passes of at most `passTokens` tokens, or one longer document. All groups make the
 * same number of passes.
 */
export function place(
  lengths: ArrayLike<number>,
  costs: readonly number[],
  loads: number[],
  passTokens: number,
): Placement {
  const groups = loads.map(() => [] as number[]);
  const got = loads.map(() => 0);
  const tokens = loads.map(() => 0);
  const dearest = costs.map((_, d) => d).sort((a, b) => (costs[b] as number) - (costs[a] as number) || a - b);
  for (const d of dearest) {
    const length = lengths[d] as number;
    // One that fits into a pass that is open anyway is better there than in a pass of its own.
    const full = (g: number): number =>
      Math.ceil(((tokens[g] as number) + length) / passTokens) > Math.max(1, Math.ceil(length / passTokens))
        ? 1
        : 0;
    let best = 0;
    for (let g = 1; g < loads.length; g++) {
      const order = full(g) - full(best) || (loads[g] as number) - (loads[best] as number);
      if (order < 0) best = g;
    }
    groups[best]?.push(d);
    loads[best] = (loads[best] as number) + (costs[d] as number);
    got[best] = (got[best] as number) + (costs[d] as number);
    tokens[best] = (tokens[best] as number) + length;
  }
  const cut = groups.map((documents) =>
    intoPasses(
      documents.sort((a, b) => a - b),
      lengths,
      passTokens,
    ),
  );
  const count = Math.max(1, ...cut.map((passes) => passes.length));
  return {
    passes: Array.from({ length: count }, (_, p) => cut.map((passes) => passes[p] ?? [])),
    costs: got,
  };
}

function intoPasses(documents: readonly number[], lengths: ArrayLike<number>, most: number): number[][] {
  const passes: number[][] = [];
  let tokens = 0;
  for (const d of documents) {
    const length = lengths[d] as number;
    if (passes.length === 0 || tokens + length > most) {
      passes.push([]);
      tokens = 0;
    }
    passes.at(-1)?.push(d);
    tokens += length;
  }
  return passes;
}

const LANES = ["weight", "advantage", "oldLogprob", "referenceLogprob"] as const;

/** First token of each document. */
export function offsetsOf(lengths: ArrayLike<number>): number[] {
  let at = 0;
  return Array.from(lengths, (length) => {
    at += length;
    return at - length;
  });
}

/** The batch of some of the documents, with the same lanes. */
export function takeDocuments(
  batch: NativeBatch,
  offsets: readonly number[],
  which: readonly number[],
): NativeBatch {
  const lengths = Int32Array.from(which, (d) => batch.lengths[d] as number);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const part = <A extends Int32Array | Float32Array>(lane: A, out: A): A => {
    let to = 0;
    which.forEach((d, i) => {
      const from = offsets[d] as number;
      out.set(lane.subarray(from, from + (lengths[i] as number)), to);
      to += lengths[i] as number;
    });
    return out;
  };
  const taken: NativeBatch = { tokens: part(batch.tokens, new Int32Array(total)), lengths };
  for (const name of LANES) {
    const lane = batch[name];
    if (lane) taken[name] = part(lane, new Float32Array(total));
  }
  return taken;
}

/** What the native code would refuse, found before some of the ranks begin: ERR_TOKENRING_INVALID_ARGUMENT. */
export function checkBatch(batch: NativeBatch, vocabulary: number, context: number): void {
  const { tokens, lengths } = batch;
  const refuse = (what: string): never => {
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `batch: ${what}`);
  };
  if (tokens.length === 0) refuse("tokens is empty");
  let sum = 0;
  lengths.forEach((length, d) => {
    if (length <= 0) refuse(`lengths[${d}] is ${length}; a document has at least one token`);
    if (length > context)
      refuse(`document ${d} has ${length} tokens, more than the model's context (${context})`);
    if (batch.weight && batch.weight[sum] !== 0) {
      refuse(
        `weight[${sum}] is ${batch.weight[sum]} but token ${sum} is the first of document ${d}, which nothing predicts; ` +
          "set it to 0",
      );
    }
    sum += length;
  });
  if (sum !== tokens.length) refuse(`lengths sum to ${sum} but there are ${tokens.length} tokens`);
  for (const name of LANES) {
    const lane = batch[name];
    if (lane && lane.length !== tokens.length)
      refuse(`${name} has ${lane.length} entries for ${tokens.length} tokens; give one a token, or none`);
  }
  tokens.forEach((token, i) => {
    if (token < 0 || token >= vocabulary)
      refuse(`tokens[${i}] is ${token}, outside the vocabulary of ${vocabulary}`);
  });
}
