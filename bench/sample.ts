// Sampling: many sessions at once, as the rollouts of a group have them, against generate() on one batch.
import { embeddedEngine } from "../lib/engine/embedded.ts";
import { Policy } from "../lib/policy/policy.ts";
import type { Suite } from "./compare.ts";
import { DEMO_MODEL, documents } from "./demo-model.ts";
import { openTorch } from "./peers/torch.ts";

const SESSIONS = 64;
const PROMPT = 128;
const TOKENS = 64;

export const sample: Suite = {
  name: "sample",
  async open() {
    const policy = await Policy.create(DEMO_MODEL, { seed: 1 });
    const engine = embeddedEngine(policy);
    const prompts = documents(2, new Array<number>(SESSIONS).fill(PROMPT));
    const peer = await openTorch({
      task: "sample",
      model: DEMO_MODEL,
      prompts: prompts.map((ids) => [...ids]),
      tokens: TOKENS,
    });
    const options = { maxTokens: TOKENS, stop: [], temperature: 1 };
    return {
      comparisons: [
        {
          name: `sampling, ${SESSIONS} sessions of ${PROMPT} + ${TOKENS} tokens, prompts read anew`,
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
          peer,
        },
      ],
      async close() {
        await peer?.close();
        await policy.dispose();
      },
    };
  },
};
