// Documents into micro-batches: what goes through one forward and backward pass together.
import { TokenringError } from "../errors.ts";
import type { PackedBatch } from "../policy/types.ts";
import type { WeightedDocument } from "./weights.ts";

export interface MicroBatch {
  batch: PackedBatch;
  /** The documents in the batch's order. */
  documents: WeightedDocument[];
  /** First packed token of each document. */
  offsets: number[];
}

function join(documents: WeightedDocument[]): MicroBatch {
  const offsets: number[] = [];
  let total = 0;
  for (const document of documents) {
    offsets.push(total);
    total += document.tokens.length;
  }
  const batch: PackedBatch = {
    tokens: new Int32Array(total),
    lengths: Int32Array.from(documents, (document) => document.tokens.length),
    weight: new Float32Array(total),
  };
  const lanes = (["advantage", "oldLogprob", "referenceLogprob"] as const).filter((lane) =>
    documents.some((document) => document[lane]),
  );
  for (const lane of lanes) batch[lane] = new Float32Array(total);
  documents.forEach((document, i) => {
    const at = offsets[i] as number;
    batch.tokens.set(document.tokens, at);
    batch.weight.set(document.weight, at);
    for (const lane of lanes) {
      const values = document[lane];
      if (values) batch[lane]?.set(values, at);
    }
  });
  return { batch, documents, offsets };
}

/**
 * Whole documents, in the order given, as many to a micro-batch as fit in `maxTokens`; one that is longer gets a
 * micro-batch of its own. The order never depends on `maxTokens`, so gradients are summed in the same order however
 * they are packed, and the weights already are what they are: results do not depend on the packing.
 */
export function pack(documents: readonly WeightedDocument[], maxTokens: number): MicroBatch[] {
  if (!(maxTokens >= 1)) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `pack: maxTokens is ${maxTokens}, give at least 1`,
    );
  }
  const batches: MicroBatch[] = [];
  let open: WeightedDocument[] = [];
  let tokens = 0;
  for (const document of documents) {
    const length = document.tokens.length;
    if (length === 0) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `pack: document ${document.id} has no tokens`,
      );
    }
    if (open.length > 0 && tokens + length > maxTokens) {
      batches.push(join(open));
      open = [];
      tokens = 0;
    }
    open.push(document);
    tokens += length;
  }
  if (open.length > 0) batches.push(join(open));
  return batches;
}
