// The demo's decoder with random weights, and documents as long as its episodes: what the model's benchmarks work on.
import type { DecoderConfig } from "../lib/policy/types.ts";
import { Random } from "../lib/random.ts";

/** As in recipes/tinyswe.yaml, with the vocabulary that its tokenizer comes to. */
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
