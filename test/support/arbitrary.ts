// Random models and documents for the property tests of policy and engine.
import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { type CreateOptions, Policy } from "../../lib/policy/policy.ts";
import type { DecoderConfig, PackedBatch } from "../../lib/policy/types.ts";
import { Random } from "../../lib/random.ts";

/** How many times over the properties are tried; their own counts suit a run of all tests. */
const SOAK = Number(process.env.TOKENRING_SOAK ?? 1);

/** Parameters of a property that is tried `runs` times. fast-check prints the seed of one that fails. */
export function tries<T>(runs: number): fc.Parameters<T> {
  return { numRuns: Math.ceil(runs * SOAK) };
}

/** Stretched to no more positions than every model has. */
const YARN = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 16 } as const;
const LLAMA3 = {
  rope_type: "llama3",
  factor: 8,
  original_max_position_embeddings: 32,
  low_freq_factor: 1,
  high_freq_factor: 4,
} as const;

/** Shapes of which few fit the vectors, panels and blocks of the kernels evenly. */
const config = (positions: fc.Arbitrary<number>): fc.Arbitrary<DecoderConfig> =>
  fc
    .record({
      vocab_size: fc.oneof(fc.integer({ min: 2, max: 150 }), fc.constantFrom(16, 32, 33, 64, 97, 128)),
      hidden_size: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constantFrom(16, 31, 32, 48, 64, 65)),
      intermediate_size: fc.oneof(fc.integer({ min: 1, max: 100 }), fc.constantFrom(32, 64, 96)),
      num_hidden_layers: fc.integer({ min: 1, max: 3 }),
      queries_per_key: fc.integer({ min: 1, max: 5 }),
      num_key_value_heads: fc.integer({ min: 1, max: 3 }),
      head_dim: fc.constantFrom(16, 32, 48, 64, 128),
      max_position_embeddings: positions,
      rope_theta: fc.constantFrom(100, 10_000, 1_000_000),
      rms_norm_eps: fc.constantFrom(1e-5, 1e-6),
      tie_word_embeddings: fc.boolean(),
      family: fc.constantFrom(
        { attention_bias: true }, // Qwen2
        { attention_bias: false }, // Llama
        { attention_bias: false, qk_norm: true }, // Qwen3
      ),
      scaling: fc.constantFrom({}, { rope_scaling: YARN }, { rope_scaling: LLAMA3 }),
    })
    .map(({ queries_per_key, family, scaling, ...rest }) => ({
      ...rest,
      ...family,
      ...scaling,
      num_attention_heads: queries_per_key * rest.num_key_value_heads,
    }));

/** A model: its shape, and what decides its weights. */
export interface Model {
  config: DecoderConfig;
  seed: number;
  precision: "float32" | "bf16";
}
/** `positions`: max_position_embeddings, at least 64. */
export const model = (
  positions: fc.Arbitrary<number>,
  precision: fc.Arbitrary<Model["precision"]> = fc.constantFrom("float32", "float32", "bf16"),
): fc.Arbitrary<Model> => fc.record({ config: config(positions), seed: fc.nat(), precision });

/** A number of tokens up to `max`, often at the edges of pages and of the kernels' blocks. */
export function tokenCount(max: number): fc.Arbitrary<number> {
  const edges = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129].filter((edge) => edge <= max);
  return fc.oneof(fc.integer({ min: 1, max }), fc.constantFrom(...edges));
}

export const threads: fc.Arbitrary<number> = fc.integer({ min: 1, max: 4 });

/** Where documents are cut into micro-batches: sizes, in documents, taken in turn until none is left. */
export const cuts: fc.Arbitrary<number[]> = fc.array(fc.integer({ min: 1, max: 4 }), {
  minLength: 1,
  maxLength: 6,
});

/** `items` in consecutive parts of the sizes that `cuts` says. */
export function cut<T>(items: readonly T[], sizes: readonly number[]): T[][] {
  const parts: T[][] = [];
  for (let at = 0; at < items.length; ) {
    const size = sizes[parts.length % sizes.length] as number;
    parts.push(items.slice(at, at + size));
    at += size;
  }
  return parts;
}

/** Tokens of the longest of `documents`. */
export const LONGEST = 150;

/** A document with every lane. */
export interface Document {
  tokens: Int32Array;
  weight: Float32Array;
  advantage: Float32Array;
  oldLogprob: Float32Array;
  referenceLogprob: Float32Array;
}

/** The document that `seed` decides; about a third of its tokens carry no loss. */
export function makeDocument(config: DecoderConfig, seed: number, length: number): Document {
  const random = Random.of(seed, "document", length);
  const lane = (value: (_: unknown, i: number) => number) => Float32Array.from({ length }, value);
  return {
    tokens: Int32Array.from({ length }, () => random.below(config.vocab_size)),
    weight: lane((_, i) => (i === 0 || random.chance(1 / 3) ? 0 : random.uniform() / 100)),
    advantage: lane(() => 4 * random.uniform() - 2),
    // Near a uniform distribution's, so that ratios lie on all sides of the clips.
    oldLogprob: lane(() => random.uniform() - 0.5 - Math.log(config.vocab_size)),
    referenceLogprob: lane(() => random.uniform() - 0.5 - Math.log(config.vocab_size)),
  };
}
export const documents: fc.Arbitrary<{ seed: number; length: number }[]> = fc.array(
  fc.record({ seed: fc.nat(), length: tokenCount(LONGEST) }),
  { minLength: 1, maxLength: 7 },
);

export function packed(documents: readonly Document[]): Required<PackedBatch> {
  const lane = (name: Exclude<keyof Document, "tokens">) =>
    Float32Array.from(documents.flatMap((document) => [...document[name]]));
  return {
    tokens: Int32Array.from(documents.flatMap((document) => [...document.tokens])),
    lengths: Int32Array.from(documents, (document) => document.tokens.length),
    weight: lane("weight"),
    advantage: lane("advantage"),
    oldLogprob: lane("oldLogprob"),
    referenceLogprob: lane("referenceLogprob"),
  };
}

/** One optimiser step that moves every parameter visibly; `seed` decides where. */
export async function move(policy: Policy, seed: number): Promise<void> {
  const document = makeDocument(policy.config, seed, 40);
  await policy.accumulate(packed([document]), { objective: "nll" });
  await policy.optimise({ learningRate: 0.05 });
}

/** The model's policy, with norms and biases off the values that they begin with. */
export async function policyOf(model: Model, options: CreateOptions = {}): Promise<Policy> {
  const { config, seed, precision } = model;
  const policy = await Policy.create(config, { std: 0.3, ...options, seed, precision });
  await move(policy, model.seed);
  return policy;
}

export function sha256(...parts: NodeJS.ArrayBufferView[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
}

/** Of all that the policy's checkpoint with the optimiser's state holds: weights, both moments and the step. */
export async function stateOf(policy: Policy): Promise<Record<string, string>> {
  const directory = await mkdtemp(join(tmpdir(), "tokenring-state-"));
  try {
    await policy.save(directory, { optimiser: true });
    const files = (await readdir(directory)).filter((file) => file.endsWith(".safetensors")).sort();
    const digests = files.map(async (file) => [file, sha256(await readFile(join(directory, file)))]);
    return Object.fromEntries(await Promise.all(digests));
  } finally {
    await rm(directory, { recursive: true });
  }
}
