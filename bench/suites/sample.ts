// Sampling: many sessions at once, as the rollouts of a group have them.
import { embeddedEngine, Policy, Random } from "tokenring";
import type { Case } from "../measure.ts";
import { DEMO_MODEL, documents } from "../models.ts";
import { openTorch } from "../peers/torch.ts";
import type { Suite } from "../suites.ts";

const SEED = 2;
const SESSIONS = 32;
const SHORTEST = 64;
const LONGEST = 256;
const TOKENS = 128;

async function sampling(): Promise<Case> {
  const policy = await Policy.create(DEMO_MODEL, { seed: 1 });
  const engine = embeddedEngine(policy);
  const random = Random.of(SEED, "bench/prompts");
  const lengths = Array.from({ length: SESSIONS }, () => SHORTEST + random.below(LONGEST - SHORTEST + 1));
  const prompts = documents(SEED, lengths);
  const request = {
    task: "sample",
    model: DEMO_MODEL,
    prompts: prompts.map((ids) => [...ids]),
    tokens: TOKENS,
  };
  const options = { maxTokens: TOKENS, stop: [], temperature: 1 };
  return {
    name: `sampling, demo model, ${SESSIONS} prompts of ${SHORTEST} to ${LONGEST} tokens, ${TOKENS} new tokens each`,
    unit: "sampled tokens/s",
    work: SESSIONS * TOKENS,
    ours: async () => {
      const sessions = prompts.map((ids) => {
        const session = engine.open();
        session.extend(ids);
        return session;
      });
      await Promise.all(sessions.map((session, i) => session.sample({ ...options, seed: BigInt(i) })));
      for (const session of sessions) session.dispose();
    },
    peers: { "transformers generate": await openTorch(request) },
    close: () => policy.dispose(),
  };
}

export const sample: Suite = {
  name: "sample",
  about: "32 sequences with ragged prompts, sampled together",
  cases: [sampling],
};
