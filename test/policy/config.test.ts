// config.json: Hugging Face's form, old and new, and nothing that the decoder would silently get wrong.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  contextLength,
  formatConfig,
  parseConfig,
  readConfig,
  writeConfig,
} from "../../lib/policy/config.ts";
import { TINY } from "./tiny.ts";

const qwen = formatConfig(TINY, "bf16");

describe("config.json", () => {
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "tokenring-config-"));
  });
  afterAll(() => rm(directory, { recursive: true }));

  it("is written as Hugging Face's Qwen2 and read back", async () => {
    const nested = join(directory, "a", "b");
    await writeConfig(nested, TINY, "bf16");
    const json = JSON.parse(await readFile(join(nested, "config.json"), "utf8"));
    expect(json).toMatchObject({
      architectures: ["Qwen2ForCausalLM"],
      model_type: "qwen2",
      torch_dtype: "bfloat16",
    });
    expect(await readConfig(nested)).toEqual(TINY);
  });

  it("is Llama's without attention biases", () => {
    const config = { ...TINY, attention_bias: false };
    const json = formatConfig(config, "f32");
    expect(json).toMatchObject({
      architectures: ["LlamaForCausalLM"],
      model_type: "llama",
      torch_dtype: "float32",
    });
    expect(parseConfig(json)).toEqual(config);
  });

  it("reads Qwen2.5-0.5B-Instruct as published", () => {
    const published = {
      architectures: ["Qwen2ForCausalLM"],
      attention_dropout: 0.0,
      bos_token_id: 151643,
      eos_token_id: 151645,
      hidden_act: "silu",
      hidden_size: 896,
      initializer_range: 0.02,
      intermediate_size: 4864,
      max_position_embeddings: 32768,
      max_window_layers: 21,
      model_type: "qwen2",
      num_attention_heads: 14,
      num_hidden_layers: 24,
      num_key_value_heads: 2,
      rms_norm_eps: 1e-6,
      rope_theta: 1000000.0,
      sliding_window: 32768,
      tie_word_embeddings: true,
      torch_dtype: "bfloat16",
      use_cache: true,
      use_sliding_window: false,
      vocab_size: 151936,
    };
    expect(parseConfig(published)).toEqual({
      vocab_size: 151936,
      hidden_size: 896,
      intermediate_size: 4864,
      num_hidden_layers: 24,
      num_attention_heads: 14,
      num_key_value_heads: 2,
      head_dim: 64,
      max_position_embeddings: 32768,
      rope_theta: 1e6,
      rms_norm_eps: 1e-6,
      tie_word_embeddings: true,
      attention_bias: true,
    });
  });

  it("reads the form of transformers 5", () => {
    const { rope_theta, torch_dtype, ...rest } = qwen;
    const json = {
      ...rest,
      dtype: torch_dtype,
      rope_parameters: { rope_theta: 5e5, rope_type: "default" },
      rope_scaling: null,
      layer_types: ["full_attention", "full_attention"],
    };
    expect(rope_theta).toBe(10000);
    expect(parseConfig(json)).toEqual({ ...TINY, rope_theta: 5e5 });
  });

  it("is Qwen3's with normed heads, and reads Qwen3-0.6B as published", () => {
    const published = {
      architectures: ["Qwen3ForCausalLM"],
      attention_bias: false,
      attention_dropout: 0.0,
      bos_token_id: 151643,
      eos_token_id: 151645,
      head_dim: 128,
      hidden_act: "silu",
      hidden_size: 1024,
      initializer_range: 0.02,
      intermediate_size: 3072,
      max_position_embeddings: 40960,
      max_window_layers: 28,
      model_type: "qwen3",
      num_attention_heads: 16,
      num_hidden_layers: 28,
      num_key_value_heads: 8,
      rms_norm_eps: 1e-6,
      rope_scaling: null,
      rope_theta: 1000000,
      sliding_window: null,
      tie_word_embeddings: true,
      torch_dtype: "bfloat16",
      use_cache: true,
      use_sliding_window: false,
      vocab_size: 151936,
    };
    const config = parseConfig(published);
    expect(config).toMatchObject({
      head_dim: 128,
      hidden_size: 1024,
      qk_norm: true,
      attention_bias: false,
      rope_theta: 1e6,
    });
    expect(config.rope_scaling).toBeUndefined();
    const { rope_scaling, ...rest } = published;
    expect(rope_scaling).toBeNull();
    // What the file says beside the decoder's shape stays when it is written again.
    expect(formatConfig(config, "bf16", published)).toEqual(rest);
    expect(parseConfig({ ...published, head_dim: undefined }).head_dim).toBe(128);
  });

  it("reads Llama 3.1's and 3.2's frequencies", () => {
    const llama = formatConfig({ ...TINY, attention_bias: false }, "bf16");
    const rope_scaling = {
      factor: 32,
      high_freq_factor: 4,
      low_freq_factor: 1,
      original_max_position_embeddings: 8192,
      rope_type: "llama3",
    };
    const config = parseConfig({
      ...llama,
      rope_theta: 500000,
      rope_scaling,
      max_position_embeddings: 131072,
    });
    expect(config).toMatchObject({ rope_theta: 500000, rope_scaling });
    expect(contextLength(config)).toBe(131072);
    expect(parseConfig(formatConfig(config, "bf16"))).toEqual(config);
  });

  it("reads YaRN as Qwen2.5's model cards add it, and stretches the context", () => {
    const yarn = { type: "yarn", factor: 4, original_max_position_embeddings: 32768 };
    const config = parseConfig({ ...qwen, max_position_embeddings: 32768, rope_scaling: yarn });
    expect(config.rope_scaling).toEqual({
      rope_type: "yarn",
      factor: 4,
      original_max_position_embeddings: 32768,
    });
    expect(config.max_position_embeddings).toBe(32768);
    expect(contextLength(config)).toBe(131072);
    expect(parseConfig(formatConfig(config, "bf16"))).toEqual(config);
    // transformers takes the model's length where the scaling names none.
    const short = parseConfig({ ...qwen, rope_scaling: { type: "yarn", factor: 2 } });
    expect(short.rope_scaling?.original_max_position_embeddings).toBe(TINY.max_position_embeddings);
    expect(contextLength(short)).toBe(2 * TINY.max_position_embeddings);
  });

  it("reads YaRN's options in transformers 5's form and writes them all", () => {
    const { rope_theta: _, ...rest } = qwen;
    const rope_parameters = {
      rope_type: "yarn",
      rope_theta: 1e6,
      factor: 8,
      original_max_position_embeddings: 128,
      beta_fast: 16,
      beta_slow: 2,
      attention_factor: 1.25,
      mscale: 0.7,
      mscale_all_dim: 0.5,
      truncate: false,
    };
    const config = parseConfig({ ...rest, rope_parameters });
    const { rope_theta, ...scaling } = rope_parameters;
    expect(config).toMatchObject({ rope_theta, rope_scaling: scaling });
    const written = formatConfig(config, "f32", { ...rest, rope_parameters, dtype: "float32" });
    expect(written).toMatchObject({ rope_theta, rope_scaling: scaling, torch_dtype: "float32" });
    expect(written).not.toHaveProperty("rope_parameters");
    expect(written).not.toHaveProperty("dtype");
    expect(parseConfig(written)).toEqual(config);
    // Both dialects at once are fine as long as they agree.
    expect(parseConfig({ ...written, rope_parameters })).toEqual(config);
  });

  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 128 };
  const llama3 = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 128,
  };
  const llama = { model_type: "llama", attention_bias: undefined, use_sliding_window: undefined };
  it.each([
    [
      { model_type: "qwen2_moe" },
      'model_type is "qwen2_moe"; only "qwen2", "qwen3" and "llama" are supported',
    ],
    [{ model_type: undefined }, /model_type is undefined/],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu"; only "silu" is supported: the decoder\'s MLP is SwiGLU'],
    [{ use_sliding_window: true }, /use_sliding_window is true; only false is supported/],
    [{ ...llama, sliding_window: 4096 }, /sliding_window is 4096; only null is supported/],
    [
      { layer_types: ["full_attention", "sliding_attention"] },
      /layer_types .*; attention is full in every layer/,
    ],
    [{ attention_bias: false }, /attention_bias is false; only true is supported: q, k and v of Qwen2/],
    [{ ...llama, attention_bias: true }, /attention_bias is true; only false .*output projection/],
    [{ model_type: "qwen3", attention_bias: true }, /attention_bias is true; only false .*output projection/],
    [{ mlp_bias: true }, /mlp_bias is true/],
    [{ attention_dropout: 0.1 }, /attention_dropout is 0.1; .*no dropout/],
    [{ is_causal: false }, /is_causal is false/],
    [{ quantization_config: { quant_method: "fp8" } }, /quantization_config is given; .*before quantisation/],
    [{ dual_chunk_attention_config: { chunk_size: 1 } }, /dual_chunk_attention_config is given/],
    [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor is 0.5; .*whole of each head/],
    [
      { rope_scaling: { type: "linear", factor: 4 } },
      'rope_scaling asks for "linear"; rotary embeddings are "default", "yarn" or "llama3"',
    ],
    [{ rope_scaling: { type: "dynamic", factor: 4 } }, /rope_scaling asks for "dynamic"/],
    [{ rope_parameters: { rope_type: "longrope" } }, /rope_parameters asks for "longrope"/],
    [{ rope_scaling: { type: "mrope", mrope_section: [1] } }, /rope_scaling asks for "mrope"/],
    [{ rope_scaling: { ...yarn, partial_rotary_factor: 0.5 } }, /rope_scaling.partial_rotary_factor is 0.5/],
    [
      { rope_scaling: { ...yarn, short_factor: [1] } },
      /rope_scaling.short_factor is no option of "yarn" here; remove it/,
    ],
    [
      { rope_parameters: { full_attention: { rope_type: "default" } } },
      /rope_parameters.full_attention is no option of "default"/,
    ],
    [{ rope_scaling: { ...yarn, factor: undefined } }, /rope_scaling.factor is missing/],
    [{ rope_scaling: { ...yarn, factor: 0.5 } }, /rope_scaling.factor is 0.5; .*1 or more/],
    [{ rope_scaling: { ...yarn, attention_factor: 0 } }, /rope_scaling.attention_factor is 0; a positive/],
    [{ rope_scaling: { ...yarn, beta_fast: 1, beta_slow: 2 } }, /rope_scaling.beta_fast is 1; .*beta_slow/],
    [{ rope_scaling: { ...yarn, truncate: "no" } }, /rope_scaling.truncate is "no"; true or false/],
    [{ rope_scaling: { ...llama3, high_freq_factor: 1 } }, /rope_scaling.high_freq_factor is 1; .*above/],
    [
      { rope_scaling: yarn, original_max_position_embeddings: 4096 },
      /original_max_position_embeddings is 4096; only 128/,
    ],
    [{ rope_scaling: yarn, rope_parameters: llama3 }, /rope_scaling contradicts rope_parameters/],
    [{ rope_parameters: { rope_theta: 5 } }, /rope_theta contradicts rope_parameters.rope_theta/],
    [{ rope_scaling: 3 }, /rope_scaling must be a JSON object/],
    [{ num_key_value_heads: undefined }, /num_key_value_heads is missing/],
    [{ tie_word_embeddings: "yes" }, /tie_word_embeddings is "yes"; true or false/],
    [{ hidden_size: undefined }, "hidden_size is missing; a positive integer is needed"],
    [{ vocab_size: 0.5 }, /vocab_size is 0.5; a positive integer is needed/],
    [{ rms_norm_eps: -1 }, /rms_norm_eps is -1; a positive number is needed/],
    [{ head_dim: undefined, hidden_size: 33 }, /head_dim is 8.25/],
  ])("refuses %j", (changes, message) => {
    expect(() => parseConfig({ ...qwen, ...changes }, "x/config.json")).toThrow(
      expect.objectContaining({
        code: "ERR_TOKENRING_CHECKPOINT",
        message: typeof message === "string" ? `x/config.json: ${message}` : expect.stringMatching(message),
      }) as Error,
    );
  });

  it("refuses a directory without it, and a file that is not JSON", async () => {
    await expect(readConfig(join(directory, "nowhere"))).rejects.toThrow(
      /nowhere\/config.json cannot be read \(ENOENT\)/,
    );
    await writeFile(join(directory, "config.json"), "{");
    await expect(readConfig(directory)).rejects.toThrow(/config.json is not JSON/);
    await writeFile(join(directory, "config.json"), "[]");
    await expect(readConfig(directory)).rejects.toThrow(/must hold one JSON object/);
    await expect(writeConfig(join(directory, "config.json"), TINY, "f32")).rejects.toThrow(
      /cannot be written/,
    );
  });
});
