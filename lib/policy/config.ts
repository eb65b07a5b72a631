// config.json of a checkpoint directory in Hugging Face form: Qwen2ForCausalLM, or LlamaForCausalLM for decoders
// without biases on q, k and v.
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { TokenringError } from "../errors.ts";
import type { DecoderConfig } from "./types.ts";

/**
 * The decoder that `directory`/config.json describes.
 * @throws ERR_TOKENRING_CHECKPOINT when the file is missing or asks for what the decoder does not do.
 */
export async function readConfig(directory: string): Promise<DecoderConfig> {
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
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new TokenringError("ERR_TOKENRING_CHECKPOINT", `${path} is not JSON: ${(cause as Error).message}`, {
      cause,
      details: { path },
    });
  }
  return parseConfig(json, path);
}

/** `readConfig` of an object already parsed; `path` is its name in messages. */
export function parseConfig(json: unknown, path = "config.json"): DecoderConfig {
  const fields = new Fields(json, path);
  const type = fields.get("model_type");
  if (type !== "qwen2" && type !== "llama") {
    fields.refuse("model_type", `is ${JSON.stringify(type)}`, 'only "qwen2" and "llama" are supported');
  }
  fields.only("hidden_act", "silu", "the decoder's MLP is SwiGLU");
  fields.only("use_sliding_window", false, "attention is full in every layer");
  fields.only("mlp_bias", false, "the MLP has no biases");
  if (type === "llama") fields.only("attention_bias", false, "Llama's attention has no biases here");
  const layerTypes = fields.get("layer_types");
  if (Array.isArray(layerTypes) && layerTypes.some((layer) => layer !== "full_attention")) {
    fields.refuse("layer_types", `is ${JSON.stringify(layerTypes)}`, "attention is full in every layer");
  }
  for (const name of ["rope_scaling", "rope_parameters"]) {
    const rope = fields.object(name);
    const kind = rope?.rope_type ?? rope?.type ?? "default";
    if (kind !== "default") {
      fields.refuse(name, `asks for ${JSON.stringify(kind)}`, "rotary embeddings are not scaled");
    }
  }
  const heads = fields.count("num_attention_heads");
  const hidden = fields.count("hidden_size");
  return {
    vocab_size: fields.count("vocab_size"),
    hidden_size: hidden,
    intermediate_size: fields.count("intermediate_size"),
    num_hidden_layers: fields.count("num_hidden_layers"),
    num_attention_heads: heads,
    num_key_value_heads: fields.count("num_key_value_heads", heads),
    head_dim: fields.count("head_dim", hidden / heads),
    max_position_embeddings: fields.count("max_position_embeddings"),
    rope_theta: fields.positive("rope_theta", fields.object("rope_parameters")?.rope_theta ?? 10000),
    rms_norm_eps: fields.positive("rms_norm_eps", 1e-6),
    tie_word_embeddings: fields.get("tie_word_embeddings") === true,
    attention_bias: type === "qwen2",
  };
}

/** What config.json says of a decoder whose weights are stored as `dtype`. */
export function formatConfig(config: DecoderConfig, dtype: "f32" | "bf16"): Record<string, unknown> {
  const qwen = config.attention_bias;
  return {
    architectures: [qwen ? "Qwen2ForCausalLM" : "LlamaForCausalLM"],
    model_type: qwen ? "qwen2" : "llama",
    hidden_act: "silu",
    hidden_size: config.hidden_size,
    intermediate_size: config.intermediate_size,
    num_hidden_layers: config.num_hidden_layers,
    num_attention_heads: config.num_attention_heads,
    num_key_value_heads: config.num_key_value_heads,
    head_dim: config.head_dim,
    max_position_embeddings: config.max_position_embeddings,
    rope_theta: config.rope_theta,
    rms_norm_eps: config.rms_norm_eps,
    vocab_size: config.vocab_size,
    tie_word_embeddings: config.tie_word_embeddings,
    attention_dropout: 0,
    use_cache: true,
    ...(qwen ? { use_sliding_window: false } : { attention_bias: false, mlp_bias: false }),
    torch_dtype: dtype === "f32" ? "float32" : "bfloat16",
  };
}

/** Writes `directory`/config.json, whole or not at all; makes the directory. */
export async function writeConfig(
  directory: string,
  config: DecoderConfig,
  dtype: "f32" | "bf16",
): Promise<void> {
  const path = join(directory, "config.json");
  try {
    await mkdir(directory, { recursive: true });
    const draft = `${path}.${process.pid}.tmp`;
    await writeFile(draft, `${JSON.stringify(formatConfig(config, dtype), null, 2)}\n`);
    await rename(draft, path);
  } catch (cause) {
    throw new TokenringError(
      "ERR_TOKENRING_CHECKPOINT",
      `${path} cannot be written (${(cause as NodeJS.ErrnoException).code}); choose another directory`,
      { cause, details: { path } },
    );
  }
}

/** Reads fields of a parsed config.json; messages name the file and the field. */
class Fields {
  readonly #json: Record<string, unknown>;
  readonly #path: string;

  constructor(json: unknown, path: string) {
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      throw new TokenringError("ERR_TOKENRING_CHECKPOINT", `${path} must hold one JSON object`, {
        details: { path },
      });
    }
    this.#json = json as Record<string, unknown>;
    this.#path = path;
  }

  /** The value; null counts as absent, as Hugging Face has it. */
  get(name: string): unknown {
    return this.#json[name] ?? undefined;
  }

  object(name: string): Record<string, unknown> | undefined {
    const value = this.get(name);
    return typeof value === "object" ? (value as Record<string, unknown>) : undefined;
  }

  count(name: string, otherwise?: number): number {
    const value = this.get(name) ?? otherwise;
    if (!Number.isInteger(value) || (value as number) < 1) {
      const found = value === undefined ? "is missing" : `is ${JSON.stringify(value)}`;
      this.refuse(name, found, "a positive integer is needed");
    }
    return value as number;
  }

  positive(name: string, otherwise: unknown): number {
    const value = this.get(name) ?? otherwise;
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
      this.refuse(name, `is ${JSON.stringify(value)}`, "a positive number is needed");
    }
    return value;
  }

  only(name: string, supported: unknown, why: string): void {
    const value = this.get(name);
    if (value !== undefined && value !== supported) {
      this.refuse(
        name,
        `is ${JSON.stringify(value)}`,
        `only ${JSON.stringify(supported)} is supported: ${why}`,
      );
    }
  }

  refuse(name: string, found: string, todo: string): never {
    throw new TokenringError("ERR_TOKENRING_CHECKPOINT", `${this.#path}: ${name} ${found}; ${todo}`, {
      details: { path: this.#path, field: name },
    });
  }
}
