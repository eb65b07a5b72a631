// config.json of a checkpoint directory in Hugging Face form: Qwen2ForCausalLM, Qwen3ForCausalLM or LlamaForCausalLM.
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { TokenringError } from "../errors.ts";
import { Fields } from "./config-fields.ts";
import { formatRope, parseRope } from "./config-rope.ts";
import type { DecoderConfig } from "./types.ts";

/**
 * The decoder that `directory`/config.json describes.
 * @throws ERR_TOKENRING_CHECKPOINT when the file is missing or asks for what the decoder does not do.
 */
export async function readConfig(directory: string): Promise<DecoderConfig> {
  return parseConfig(await readConfigFile(directory), join(directory, "config.json"));
}

/** config.json as it is. Throws as `readConfig`. */
export async function readConfigFile(directory: string): Promise<unknown> {
  const path = join(directory, "config.json");
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw new TokenringError(
      "ERR_TOKENRING_CHECKPOINT",
      `${path} cannot be read (${(cause as NodeJS.ErrnoException).code}); give a directory with config.json and model.safetensors`,
      { cause, details: { path } },
    );
  }
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw new TokenringError("ERR_TOKENRING_CHECKPOINT", `${path} is not JSON: ${(cause as Error).message}`, {
      cause,
      details: { path },
    });
  }
}

const FAMILIES = ["qwen2", "qwen3", "llama"] as const;

/** `readConfig` of an object already parsed; `path` is its name in messages. */
export function parseConfig(json: unknown, path = "config.json"): DecoderConfig {
  const fields = new Fields(json, path);
  const type = fields.get("model_type");
  if (!FAMILIES.some((family) => family === type)) {
    fields.refuse(
      "model_type",
      `is ${JSON.stringify(type)}`,
      'only "qwen2", "qwen3" and "llama" are supported',
    );
  }
  refuseUnknown(fields, type === "llama");
  const heads = fields.count("num_attention_heads");
  const hidden = fields.count("hidden_size");
  const maxPositions = fields.count("max_position_embeddings");
  return {
    vocab_size: fields.count("vocab_size"),
    hidden_size: hidden,
    intermediate_size: fields.count("intermediate_size"),
    num_hidden_layers: fields.count("num_hidden_layers"),
    num_attention_heads: heads,
    num_key_value_heads: fields.count("num_key_value_heads", type === "llama" ? heads : undefined),
    // Hugging Face's Qwen3 has 128 where the file says nothing.
    head_dim: fields.count("head_dim", type === "qwen3" ? 128 : hidden / heads),
    max_position_embeddings: maxPositions,
    ...parseRope(fields, maxPositions),
    rms_norm_eps: fields.positive("rms_norm_eps", 1e-6),
    tie_word_embeddings: fields.boolean("tie_word_embeddings", false),
    attention_bias: type === "qwen2",
    ...(type === "qwen3" ? { qk_norm: true } : {}),
  };
}

/** What models of these families may ask for and the decoder does not do. */
function refuseUnknown(fields: Fields, llama: boolean): void {
  fields.only("hidden_act", "silu", "the decoder's MLP is SwiGLU");
  fields.only("mlp_bias", false, "the MLP has no biases");
  fields.only("attention_dropout", 0, "training has no dropout");
  fields.only("is_causal", true, "attention is causal");
  fields.only("use_sliding_window", false, "attention is full in every layer");
  if (llama) fields.only("sliding_window", null, "attention is full in every layer");
  const layerTypes = fields.get("layer_types");
  if (layerTypes !== undefined) {
    if (!Array.isArray(layerTypes) || layerTypes.some((layer) => layer !== "full_attention")) {
      fields.refuse("layer_types", `is ${JSON.stringify(layerTypes)}`, "attention is full in every layer");
    }
  }
  // Hugging Face's Qwen2 does not read the key: its q, k and v always have biases.
  if (fields.get("model_type") === "qwen2") {
    fields.only("attention_bias", true, "q, k and v of Qwen2 have biases");
  } else {
    fields.only("attention_bias", false, "it would put biases on q, k, v and the output projection");
  }
  for (const [name, why] of [
    ["quantization_config", "weights are read in f32, bf16 or f16; take the model before quantisation"],
    ["dual_chunk_attention_config", "attention is full in every layer"],
  ] as const) {
    if (fields.get(name) !== undefined) fields.refuse(name, "is given", why);
  }
}

/**
 * Tokens that a document may have: `max_position_embeddings`, or what YaRN stretches the original length to, since
 * Qwen2.5's files leave the former as it was.
 */
export function contextLength(config: DecoderConfig): number {
  const rope = config.rope_scaling;
  if (rope?.rope_type !== "yarn") return config.max_position_embeddings;
  const stretched = Math.trunc(rope.factor * rope.original_max_position_embeddings);
  return Math.max(config.max_position_embeddings, stretched);
}

/** Keys of a source that the written file says in another way, or that would be untrue of it. */
const REPLACED = ["rope_parameters", "rope_scaling", "dtype", "auto_map"];

/**
 * What config.json says of a decoder whose weights are stored as `dtype`: in the dialect of transformers 4, which
 * transformers 5 and vLLM read too. Keys of `source` (the file that the model came with) that do not concern the
 * decoder stay, the ids of its special tokens among them.
 */
export function formatConfig(
  config: DecoderConfig,
  dtype: "f32" | "bf16",
  source: Readonly<Record<string, unknown>> = {},
): Record<string, unknown> {
  const family = config.qk_norm === true ? "Qwen3" : config.attention_bias ? "Qwen2" : "Llama";
  const kept = Object.fromEntries(Object.entries(source).filter(([key]) => !REPLACED.includes(key)));
  return {
    attention_dropout: 0,
    use_cache: true,
    ...kept,
    architectures: [`${family}ForCausalLM`],
    model_type: family.toLowerCase(),
    hidden_act: "silu",
    hidden_size: config.hidden_size,
    intermediate_size: config.intermediate_size,
    num_hidden_layers: config.num_hidden_layers,
    num_attention_heads: config.num_attention_heads,
    num_key_value_heads: config.num_key_value_heads,
    head_dim: config.head_dim,
    max_position_embeddings: config.max_position_embeddings,
    ...formatRope(config),
    rms_norm_eps: config.rms_norm_eps,
    vocab_size: config.vocab_size,
    tie_word_embeddings: config.tie_word_embeddings,
    ...(family === "Llama" ? { mlp_bias: false } : { use_sliding_window: false }),
    ...(family === "Qwen2" ? {} : { attention_bias: false }),
    torch_dtype: dtype === "f32" ? "float32" : "bfloat16",
  };
}

/** Writes `formatConfig` to `directory`/config.json, whole or not at all; makes the directory. */
export async function writeConfig(
  directory: string,
  config: DecoderConfig,
  dtype: "f32" | "bf16",
  source?: Readonly<Record<string, unknown>>,
): Promise<void> {
  const path = join(directory, "config.json");
  try {
    await mkdir(directory, { recursive: true });
    const draft = `${path}.${process.pid}.tmp`;
    await writeFile(draft, `${JSON.stringify(formatConfig(config, dtype, source), null, 2)}\n`);
    await rename(draft, path);
  } catch (cause) {
    throw new TokenringError(
      "ERR_TOKENRING_CHECKPOINT",
      `${path} cannot be written (${(cause as NodeJS.ErrnoException).code}); choose another directory`,
      { cause, details: { path } },
    );
  }
}
