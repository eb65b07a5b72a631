// What the example learns, and how small it is: documents that count upwards, each in steps of its own.
export const model = {
  vocab_size: 64,
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 32,
  max_position_embeddings: 256,
  rope_theta: 10000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: true,
  attention_bias: true,
};

const DOCUMENTS = 16;
const LENGTH = 48;

const tokens = Int32Array.from(
  { length: DOCUMENTS * LENGTH },
  (_, i) => ((i % LENGTH) * (1 + Math.floor(i / LENGTH))) % 64,
);

/** The mean over all tokens but the first of each document, which nothing predicts. */
export const batch = {
  tokens,
  lengths: new Int32Array(DOCUMENTS).fill(LENGTH),
  weight: Float32Array.from(tokens, (_, i) => (i % LENGTH === 0 ? 0 : 1 / (DOCUMENTS * (LENGTH - 1)))),
};
