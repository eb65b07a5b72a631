// The rotary embedding of a config.json, in both dialects: rope_theta beside rope_scaling (transformers 4), and
// rope_parameters that holds all (transformers 5).
import type { Fields } from "./config-fields.ts";
import type { DecoderConfig } from "./types.ts";

type Rope = Pick<DecoderConfig, "rope_theta" | "rope_scaling">;

const KEYS: Readonly<Record<string, readonly string[]>> = {
  default: [],
  yarn: [
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
  ],
  llama3: ["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"],
};
const COMMON = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
/** What transformers takes where no theta is given. */
const DEFAULT_THETA = 10_000;

/** @throws ERR_TOKENRING_CHECKPOINT for a scheme or an option that the decoder does not compute. */
export function parseRope(fields: Fields, maxPositions: number): Rope {
  wholeHead(fields);
  const found = ["rope_scaling", "rope_parameters"].flatMap((name) => {
    const rope = fields.object(name);
    return rope === undefined || rope.keys().length === 0 ? [] : [readOne(rope, fields, name, maxPositions)];
  });
  const [first, second] = found;
  if (first === undefined) return { rope_theta: fields.positive("rope_theta", DEFAULT_THETA) };
  if (second !== undefined && JSON.stringify(first) !== JSON.stringify(second)) {
    fields.refuse("rope_scaling", "contradicts rope_parameters", "remove the one that is wrong");
  }
  return first;
}

function readOne(rope: Fields, outer: Fields, name: string, maxPositions: number): Rope {
  const type = rope.get("rope_type") ?? rope.get("type") ?? "default";
  const keys = typeof type === "string" ? KEYS[type] : undefined;
  if (keys === undefined) {
    outer.refuse(
      name,
      `asks for ${JSON.stringify(type)}`,
      'rotary embeddings are "default", "yarn" or "llama3"',
    );
  }
  for (const key of rope.keys()) {
    if (!keys.includes(key) && !COMMON.includes(key)) {
      rope.refuse(key, `is no option of ${JSON.stringify(type)} here`, "remove it if it has no effect");
    }
  }
  wholeHead(rope);
  const theta = rope.positive("rope_theta", outer.positive("rope_theta", DEFAULT_THETA));
  if (outer.get("rope_theta") !== undefined && outer.get("rope_theta") !== theta) {
    outer.refuse("rope_theta", `contradicts ${name}.rope_theta`, "remove the one that is wrong");
  }
  if (type === "default") return { rope_theta: theta };

  const common = {
    factor: rope.positive("factor"),
    original_max_position_embeddings: rope.count("original_max_position_embeddings", maxPositions),
  };
  // Some families give the original length outside, and transformers then takes that one.
  outer.only(
    "original_max_position_embeddings",
    common.original_max_position_embeddings,
    `${name} has that length`,
  );
  if (common.factor < 1) rope.refuse("factor", `is ${common.factor}`, "a context is stretched by 1 or more");
  if (type === "llama3") {
    const low = rope.positive("low_freq_factor");
    const high = rope.positive("high_freq_factor");
    if (high <= low)
      rope.refuse("high_freq_factor", `is ${high}`, `a number above low_freq_factor (${low}) is needed`);
    return {
      rope_theta: theta,
      rope_scaling: { rope_type: "llama3", ...common, low_freq_factor: low, high_freq_factor: high },
    };
  }
  const optional = ["beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"] as const;
  const given = Object.fromEntries(
    // transformers takes a 0 among the first two and the last two as absent; of the attention factor it makes zeros.
    optional
      .filter((key) => rope.get(key) !== undefined && !(rope.get(key) === 0 && key !== "attention_factor"))
      .map((key) => [key, rope.positive(key)]),
  );
  const { beta_fast = 32, beta_slow = 1 } = given;
  if (beta_fast < beta_slow)
    rope.refuse("beta_fast", `is ${beta_fast}`, `a number of at least beta_slow (${beta_slow}) is needed`);
  const truncate = rope.boolean("truncate", true);
  return {
    rope_theta: theta,
    rope_scaling: { rope_type: "yarn", ...common, ...given, ...(truncate ? {} : { truncate }) },
  };
}

function wholeHead(fields: Fields): void {
  fields.only("partial_rotary_factor", 1, "the whole of each head is rotated");
}

/** In the dialect of transformers 4, which version 5 and vLLM read too. */
export function formatRope({ rope_theta, rope_scaling }: Rope): Record<string, unknown> {
  return rope_scaling === undefined ? { rope_theta } : { rope_theta, rope_scaling };
}
