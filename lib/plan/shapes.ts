// Shapes of published models, so that a plan needs no download: config.json of each, as the hub has it.
import type { DecoderConfig } from "../policy/types.ts";

const qwen25 = (
  hidden_size: number,
  intermediate_size: number,
  num_hidden_layers: number,
  num_attention_heads: number,
  num_key_value_heads: number,
  rest: Partial<DecoderConfig> = {},
): DecoderConfig => ({
  vocab_size: 152_064,
  hidden_size,
  intermediate_size,
  num_hidden_layers,
  num_attention_heads,
  num_key_value_heads,
  head_dim: hidden_size / num_attention_heads,
  max_position_embeddings: 32_768,
  rope_theta: 1_000_000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: false,
  attention_bias: true,
  ...rest,
});
const small = { vocab_size: 151_936, tie_word_embeddings: true };

const SHAPES: Readonly<Record<string, DecoderConfig>> = {
  "Qwen2.5-0.5B": qwen25(896, 4_864, 24, 14, 2, small),
  "Qwen2.5-1.5B": qwen25(1_536, 8_960, 28, 12, 2, small),
  "Qwen2.5-3B": qwen25(2_048, 11_008, 36, 16, 2, small),
  "Qwen2.5-7B": qwen25(3_584, 18_944, 28, 28, 4),
  "Qwen2.5-14B": qwen25(5_120, 13_824, 48, 40, 8),
  "Qwen2.5-32B": qwen25(5_120, 27_648, 64, 40, 8),
  "Qwen2.5-72B": qwen25(8_192, 29_568, 80, 64, 8),
};

/** The shape of a model by its name on the hub, whoever's copy and whichever tuning it is; null for an unknown one. */
export function knownShape(name: string): DecoderConfig | null {
  const base = name.split("/").at(-1) ?? "";
  const found = Object.keys(SHAPES).find((known) => base === known || base.startsWith(`${known}-`));
  return found === undefined ? null : (SHAPES[found] as DecoderConfig);
}
