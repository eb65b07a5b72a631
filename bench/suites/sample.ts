// Sampling: many sessions at once, as the rollouts of a group have them.
import { type Engine, embeddedEngine, Policy, Random, type SampleOptions } from "tokenring";
import type { Case } from "../measure.ts";
import { DEMO_MODEL, documents } from "../models.ts";
import { openLlama } from "../peers/llama.ts";
import { openTorch } from "../peers/torch.ts";
import type { Suite } from "../suites.ts";

const SEED = 2;
const SESSIONS = 32;
const SHORTEST = 64;
const LONGEST = 256;
const TOKENS = 128;
/** Of the greedy continuations that show whether a peer computes the same model. */
const GREEDY_TOKENS = 16;

/** A session for each prompt, all sampled at once, and closed. */
async function sampleAll(
  engine: Engine,
  prompts: readonly Int32Array[],
  options: Omit<SampleOptions, "seed">,
): Promise<number[][]> {
  const sessions = prompts.map((ids) => {
    const session = engine.open();
    session.extend(ids);
    return session;
  });
  const turns = await Promise.all(
    sessions.map((session, i) => session.sample({ ...options, seed: BigInt(i) })),
  );
  for (const session of sessions) session.dispose();
  return turns.map(({ tokens }) => [...tokens]);
}

async function sampling(threads: number): Promise<Case> {
  // Weights large enough that attention, positions and biases decide the greedy tokens.
  const policy = await Policy.create(DEMO_MODEL, { threads, seed: 1, std: 0.08, previousTokenBias: 4 });
  const engine = embeddedEngine(policy);
  const random = Random.of(SEED, "bench/prompts");
  const lengths = Array.from({ length: SESSIONS }, () => SHORTEST + random.below(LONGEST - SHORTEST + 1));
  const texts = documents(SEED, lengths);
  const prompts = texts.map((ids) => [...ids]);
  const greedy = await sampleAll(engine, texts, { maxTokens: GREEDY_TOKENS, stop: [], temperature: 0 });
  return {
    name: `sampling, demo model, ${SESSIONS} prompts of ${SHORTEST} to ${LONGEST} tokens, ${TOKENS} new tokens each`,
    unit: "sampled tokens/s",
    work: SESSIONS * TOKENS,
    ours: () => sampleAll(engine, texts, { maxTokens: TOKENS, stop: [], temperature: 1 }),
    peers: {
      "transformers generate": () =>
        openTorch({ task: "sample", threads, model: DEMO_MODEL, prompts, tokens: TOKENS }),
      "llama.cpp": () => openLlama(policy, { threads, prompts, tokens: TOKENS, greedy }),
    },
    close: () => policy.dispose(),
  };
}

export const sample: Suite = {
  name: "sample",
  about: "32 sequences with ragged prompts, sampled together, against transformers generate and llama.cpp",
  cases: [sampling],
};
