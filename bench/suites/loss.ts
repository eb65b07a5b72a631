// The policy loss, where a large vocabulary decides time and memory.
import { readFileSync, writeFileSync } from "node:fs";
import { type DecoderConfig, type PackedBatch, Policy, Random } from "tokenring";
import type { Case } from "../measure.ts";
import { documents, packed } from "../models.ts";
import { openTorch } from "../peers/torch.ts";
import type { Suite } from "../suites.ts";

const DOCUMENTS = 16;
const LENGTH = 256;
const TOKENS = DOCUMENTS * LENGTH;

/** A head of 32768 ids on the least decoder there is: its layer is a hundredth of the work. */
const HEAD: DecoderConfig = {
  vocab_size: 32_768,
  hidden_size: 512,
  intermediate_size: 64,
  num_hidden_layers: 1,
  num_attention_heads: 1,
  num_key_value_heads: 1,
  head_dim: 64,
  max_position_embeddings: LENGTH,
  rope_theta: 10_000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: false,
  attention_bias: false,
};

/** DAPO's batch: advantages of both signs, and old logprobs near those of random weights. */
function rollouts(lengths: readonly number[]): PackedBatch {
  const batch = packed(documents(1, lengths));
  const random = Random.of(1, "bench/advantages");
  const size = batch.tokens.length;
  return {
    ...batch,
    advantage: Float32Array.from({ length: size }, () => random.uniform() - 0.5),
    oldLogprob: new Float32Array(size).fill(-Math.log(HEAD.vocab_size)),
  };
}

/** Of this process, in MiB: VmRSS is now, VmHWM the most since the last reset. */
function resident(field: "VmRSS" | "VmHWM"): number {
  const [, kilobytes] =
    new RegExp(`${field}:\\s*(\\d+) kB`).exec(readFileSync("/proc/self/status", "utf8")) ?? [];
  return Number(kilobytes) / 1024;
}

async function policyLoss(threads: number, measured: "time" | "memory"): Promise<Case> {
  const policy = await Policy.create(HEAD, { seed: 1, threads });
  const batch = rollouts(new Array<number>(DOCUMENTS).fill(LENGTH));
  const step = (of: PackedBatch) => policy.accumulate(of, { objective: "ppo_clip" });
  await step(rollouts([2])); // gradients are there from here on
  const before = resident("VmRSS");
  const peak = async (): Promise<number> => {
    writeFileSync("/proc/self/clear_refs", "5"); // starts VmHWM anew
    await step(batch);
    return resident("VmHWM") - before;
  };
  const shape = { tokens: TOKENS, hidden: HEAD.hidden_size, vocabulary: HEAD.vocab_size };
  const what = `policy loss and its gradients, ${TOKENS} tokens x ${HEAD.vocab_size} ids, hidden size ${HEAD.hidden_size}`;
  return {
    name: measured === "time" ? what : `${what}, peak memory above weights and gradients`,
    unit: measured === "time" ? "tokens/s" : "MiB",
    work: measured === "time" ? TOKENS : null,
    ours: measured === "time" ? () => step(batch) : peak,
    peers: {
      "torch, full logits": () => openTorch({ task: "loss", threads, ...shape, measure: measured }),
    },
    close: () => policy.dispose(),
  };
}

export const loss: Suite = {
  name: "loss",
  about: "the policy loss over a vocabulary of 32768 against full logits in PyTorch: time, and peak memory",
  cases: [(threads) => policyLoss(threads, "time"), (threads) => policyLoss(threads, "memory")],
};
