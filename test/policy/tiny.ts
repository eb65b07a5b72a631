// A decoder small enough that a test spends its time on what it is about.

import type { DecoderConfig } from "../../lib/policy/types.ts";
import { streamKey } from "../../lib/random.ts";

export const TINY: DecoderConfig = {
  vocab_size: 97,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  max_position_embeddings: 512,
  rope_theta: 10000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: true,
  attention_bias: true,
};

/** `n` token ids of TINY's vocabulary that `name` decides. */
export function ids(name: string, n: number): Int32Array {
  return Int32Array.from({ length: n }, (_, i) => Number(streamKey(1, name, i) % BigInt(TINY.vocab_size)));
}

/** Weights far from zero, so that different inputs give visibly different logprobs. */
export const LIVELY = { seed: 7, std: 0.3 };
