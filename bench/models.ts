// What the model's benchmarks work on: decoders with random weights, and documents of random tokens.
import { type DecoderConfig, type PackedBatch, Random } from "tokenring";

/** The demo's decoder as in recipes/tinyswe.yaml, with the vocabulary that its tokenizer comes to. */
export const DEMO_MODEL: DecoderConfig = {
  vocab_size: 512,
  hidden_size: 128,
  intermediate_size: 384,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 64,
  max_position_embeddings: 1024,
  rope_theta: 10_000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: true,
  attention_bias: true,
};

/** Random token ids, one array a document. */
export function documents(seed: number, lengths: readonly number[]): Int32Array[] {
  return lengths.map((length, i) => {
    const random = Random.of(seed, "bench/document", i);
    return Int32Array.from({ length }, () => random.below(DEMO_MODEL.vocab_size));
  });
}

/** Lengths like those of an iteration's episodes: most short, some near the limit; they sum to `total`. */
export function episodeLengths(seed: number, total: number): number[] {
  const random = Random.of(seed, "bench/lengths");
  const lengths: number[] = [];
  for (let left = total; left > 0; ) {
    const length = Math.min(left, 80 + Math.floor(500 * random.uniform() ** 2));
    lengths.push(length);
    left -= length;
  }
  return lengths;
}

/** The documents in one batch; every token but the first of each counts the same in the loss. */
export function packed(texts: readonly Int32Array[]): PackedBatch {
  const lengths = Int32Array.from(texts, ({ length }) => length);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const tokens = new Int32Array(total);
  const weight = new Float32Array(total).fill(1 / (total - texts.length));
  let at = 0;
  for (const text of texts) {
    tokens.set(text, at);
    weight[at] = 0;
    at += text.length;
  }
  return { tokens, lengths, weight };
}
