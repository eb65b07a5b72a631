// Training: documents of uneven length, packed here, padded in PyTorch.
import { ACTION } from "../lib/agent/types.ts";
import { pack } from "../lib/learn/pack.ts";
import { demonstrationDocument, weigh } from "../lib/learn/weights.ts";
import { Policy } from "../lib/policy/policy.ts";
import type { Comparison, Suite } from "./compare.ts";
import { DEMO_MODEL, documents, episodeLengths } from "./demo-model.ts";
import { openTorch } from "./peers/torch.ts";

const SEED = 1;

async function trainStep(
  name: string,
  tokens: number,
): Promise<{ comparison: Comparison; close(): Promise<void> }> {
  const policy = await Policy.create(DEMO_MODEL, { seed: SEED });
  const texts = documents(SEED, episodeLengths(SEED, tokens));
  const demonstrations = texts.map((ids, i) =>
    demonstrationDocument(`document-${i}`, ids, new Uint8Array(ids.length).fill(ACTION)),
  );
  const [micro] = pack(weigh(demonstrations), tokens);
  if (!micro) throw new Error("no documents");
  const peer = await openTorch({ task: "train", model: DEMO_MODEL, documents: texts.map((ids) => [...ids]) });
  return {
    comparison: {
      name,
      unit: "tokens/s",
      work: tokens,
      ours: async () => {
        await policy.accumulate(micro.batch, { objective: "nll" });
        await policy.optimise({ learningRate: 1e-4, weightDecay: 0.1, clipNorm: 1 });
      },
      peer,
    },
    async close() {
      await peer?.close();
      await policy.dispose();
    },
  };
}

export const train: Suite = {
  name: "train",
  async open() {
    const steps = [
      await trainStep("training step, 4096 tokens of episodes", 4096),
      await trainStep("training step, 480 tokens of episodes", 480),
    ];
    return {
      comparisons: steps.map(({ comparison }) => comparison),
      close: async () => {
        for (const step of steps) await step.close();
      },
    };
  },
};
