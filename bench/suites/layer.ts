// One layer of a model that people train, where the large products decide.
import { type DecoderConfig, Policy } from "tokenring";
import type { Case, Peer } from "../measure.ts";
import { documents, packed } from "../models.ts";
import { openTorch } from "../peers/torch.ts";
import type { Suite } from "../suites.ts";

const TOKENS = 1024;

/** A layer of Qwen2.5-0.5B. With its vocabulary of 151936 the head would be nine tenths of the work. */
const LAYER: DecoderConfig = {
  vocab_size: 512,
  hidden_size: 896,
  intermediate_size: 4864,
  num_hidden_layers: 1,
  num_attention_heads: 14,
  num_key_value_heads: 2,
  head_dim: 64,
  max_position_embeddings: 32_768,
  rope_theta: 1_000_000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: true,
  attention_bias: true,
};

async function layerStep(threads: number, precision: "float32" | "bf16"): Promise<Case> {
  const policy = await Policy.create(LAYER, { seed: 1, threads, precision });
  const texts = documents(1, [TOKENS]);
  const batch = packed(texts);
  const call = (of: Policy) => () => of.accumulate(batch, { objective: "nll" });
  const request = {
    task: "gradients",
    threads,
    model: LAYER,
    documents: texts.map((ids) => [...ids]),
    autocast: precision === "bf16",
  };
  const suffix = precision === "bf16" ? " bf16" : "";
  const float32 = async (): Promise<Peer> => {
    const peer = await Policy.create(LAYER, { seed: 1, threads });
    return { name: "tokenring float32", call: call(peer), close: () => peer.dispose() };
  };
  return {
    name: `forward and backward, one Qwen2.5-0.5B layer (vocabulary 512), ${TOKENS} tokens${suffix && `,${suffix}`}`,
    unit: "tokens/s",
    work: TOKENS,
    ours: call(policy),
    peers: {
      ...(precision === "bf16" && { "tokenring float32": float32 }),
      [`torch eager${suffix}`]: () => openTorch(request),
      [`torch.compile${suffix}`]: () => openTorch({ ...request, compile: true }),
    },
    close: () => policy.dispose(),
  };
}

export const layer: Suite = {
  name: "layer",
  about:
    "forward and backward of one Qwen2.5-0.5B layer in float32 and bf16 against PyTorch eager and torch.compile",
  cases: [(threads) => layerStep(threads, "float32"), (threads) => layerStep(threads, "bf16")],
};
