// config.json: Hugging Face's form, old and new, and nothing that the decoder would silently get wrong.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { formatConfig, parseConfig, readConfig, writeConfig } from "../../lib/policy/config.ts";
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

  it.each([
    [{ model_type: "qwen3" }, 'model_type is "qwen3"; only "qwen2" and "llama" are supported'],
    [{ model_type: undefined }, /model_type is undefined/],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu"; only "silu" is supported: the decoder\'s MLP is SwiGLU'],
    [{ use_sliding_window: true }, /use_sliding_window is true; only false is supported/],
    [
      { layer_types: ["full_attention", "sliding_attention"] },
      /layer_types .*; attention is full in every layer/,
    ],
    [
      { rope_scaling: { type: "yarn", factor: 4 } },
      'rope_scaling asks for "yarn"; rotary embeddings are not scaled',
    ],
    [{ rope_parameters: { rope_type: "llama3" } }, /rope_parameters asks for "llama3"/],
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
